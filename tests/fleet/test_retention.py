"""What is too old goes, a little at a time; what is still needed stays."""

import pytest
import sqlalchemy as sa
from fleet_rig import wait_for

from edgeops.errors import ConfigError
from edgeops_fleet.retention import STEP_ROWS, Retention
from edgeops_fleet.schema import checkpoints, commands, events, retrains, samples, windows
from edgeops_fleet.settings import RetentionSection
from edgeops_fleet.store import Store, upsert

DAY_S = 86400.0
WINDOW = {
    "device": "d",
    "model": "m",
    "version": "1.0.0",
    "digest": "x",
    "start": 0.0,
    "end": 1.0,
    "requests": 1,
    "rows": 1,
    "errors": 0,
    "not_finite": 0,
    "latency": b"",
    "host": {},
}
SAMPLE = {
    "device": "d",
    "time": 0.0,
    "model": "m",
    "version": "1.0.0",
    "digest": "x",
    "request": "",
    "probability": 1.0,
}


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "fleet.db")
    yield made
    made.close()


def count(store, table):
    with store.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar()


def fill(store, table, row, number):
    with store.write() as connection:
        connection.execute(table.insert(), [{**row, "received": float(day) * DAY_S} for day in range(number)])


def keep_state(store, window):
    with store.write() as connection:
        upsert(connection, checkpoints, {"name": "drift"}, {"window": window, "time": 0.0, "state": b""})


def test_windows_go_when_they_are_old_and_the_drift_monitors_state_has_them(store):
    retention = Retention(store, RetentionSection(windows_days=30))
    fill(store, windows, WINDOW, 100)
    assert retention.step(now=100 * DAY_S) == 0, "no state is kept yet"
    keep_state(store, 40)
    assert retention.step(now=100 * DAY_S) == 40
    keep_state(store, 100)
    assert retention.step(now=100 * DAY_S) == 30
    assert count(store, windows) == 30
    assert retention.step(now=1000 * DAY_S) == 29, "the newest row stays, so that its id is not given again"


def test_a_step_is_small(store):
    retention = Retention(store, RetentionSection(events_days=14))
    fill(store, events, {"device": "d", "record": b""}, STEP_ROWS * 2 + 11)
    now = (STEP_ROWS * 2 + 11 + 14) * DAY_S
    assert [retention.step(now=now) for _ in range(4)] == [STEP_ROWS, STEP_ROWS, 10, 0]


def test_samples_beyond_the_quota_go_oldest_first_and_those_of_an_open_cause_last(store):
    with store.write() as connection:
        for number in range(10):
            row = {"id": f"s-{number}", "command": "c-1" if number < 3 else "", "received": float(number)}
            connection.execute(samples.insert().values({**SAMPLE, **row, "inputs": bytes(100)}))
        connection.execute(
            commands.insert().values(id="c-1", device="d", retrain="t", expires=0, payload=b"", published=True)
        )
        cause = dict.fromkeys(("cause", "model", "version", "digest", "cohort", "signal", "state", "reason"), "")
        cause |= {"verdict": {}, "assessed": 0, "opened": 0.0, "updated": 0.0}
        connection.execute(retrains.insert().values(id="t", **cause))
    retention = Retention(store, RetentionSection(samples_mb=500 / 1e6))
    assert retention.step(now=0.0) == 5
    with store.read() as connection:
        left = list(connection.execute(sa.select(samples.c.id).order_by(samples.c.received)).scalars())
    assert left == ["s-0", "s-1", "s-2", "s-8", "s-9"]
    assert "samples_mb" in store.log()[-1].text


def test_retention_that_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="retention"):
        RetentionSection(windows_days=0)


def test_a_server_that_stops_keeps_the_drift_monitors_state(rig):
    device = rig.add_device("device-0")
    device.current["digits"] = ("1.0.0", "sha256:" + "0" * 64)
    device.window()
    wait_for(lambda: device.acked.get("telemetry") == 1, "stored")
    rig.restart()
    with rig.server.store.read() as connection:
        kept = connection.execute(sa.select(checkpoints.c.window)).scalar()
    assert kept == 1
