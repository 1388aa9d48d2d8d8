"""Records of machines whose clocks were wrong: dated by what the clock was set to later, and nothing believed too early."""

import hashlib
import random
import time

import msgspec
import pytest
import sqlalchemy as sa
from fleet_rig import wait_for

from edgeops.messages import Anchor, Telemetry
from edgeops.topics import Upstream
from edgeops_fleet import schema
from edgeops_fleet.dating import MachineClock, clock_of, date
from edgeops_fleet.store import SCHEMA_VERSION, Store, get_setting

YEAR = 365 * 86400.0
NOW = 1_800_000_000.0
STARTED = NOW - 5000.0
MODEL = {"model": "digits", "version": "1.0.0", "digest": "d", "variant": "onnx", "engine": "e"}


def window(uptime_s: float, *, started: float = STARTED, trusted: bool = True, machine_boot: str = "m1") -> Telemetry:
    return Telemetry(
        epoch="e",
        stream="telemetry",
        sequence=1,
        boot=1,
        time=started + uptime_s,
        uptime_s=uptime_s,
        clock_trusted=trusted,
        machine_boot=machine_boot,
        start=started + uptime_s - 60,
        end=started + uptime_s,
        **MODEL,
    )


def anchor(uptime_s: float, *, started: float = STARTED, trusted: bool = True, **before) -> Anchor:
    return Anchor(
        epoch="e",
        stream="event",
        sequence=1,
        boot=1,
        time=started + uptime_s,
        uptime_s=uptime_s,
        clock_trusted=trusted,
        machine_boot="m1",
        **before,
    )


def test_record_keeps_its_own_time_while_nothing_else_is_known():
    for record in (window(10.0), window(10.0, started=0.0, trusted=False), window(10.0, started=STARTED + 10 * YEAR)):
        assert date(record, None, now=NOW).shift_s == 0.0


def test_record_before_an_anchor_is_dated_by_it_and_one_behind_it_by_itself():
    clock = MachineClock(STARTED, 100.0)
    assert date(window(50.0, started=STARTED - 50 * YEAR, trusted=False), clock, now=NOW).shift_s == 50 * YEAR
    assert date(window(50.0, started=STARTED - 30.0), clock, now=NOW).shift_s == 30.0
    assert date(window(150.0, started=STARTED + 7.0), clock, now=NOW).shift_s == 0.0  # Set once more; its anchor comes.
    assert date(window(50.0, started=STARTED + 1.0), clock, now=NOW).shift_s == 0.0


def test_clock_that_cannot_be_right_is_not_believed_whatever_the_device_thinks():
    clock = MachineClock(STARTED, 100.0)
    assert date(window(150.0, started=STARTED + 10 * YEAR), clock, now=NOW).shift_s == -10 * YEAR
    assert date(window(150.0, started=0.0, trusted=False), clock, now=NOW).started == STARTED
    assert clock_of(anchor(5.0, started=STARTED + 10 * YEAR), now=NOW) is None
    assert clock_of(anchor(5.0, trusted=False), now=NOW) is None
    assert clock_of(anchor(5.0, started=float("nan")), now=NOW) is None


def test_clock_that_was_set_wrong_says_what_it_was_before():
    wrong = anchor(70.0, started=STARTED + 10 * YEAR, before_s=STARTED, before_trusted=True)
    assert clock_of(wrong, now=NOW) == MachineClock(STARTED, 70.0)
    assert clock_of(msgspec.structs.replace(wrong, before_trusted=False), now=NOW) is None


@pytest.fixture
def device(shared_rig, request):
    """A device of its own for each test, on one server."""
    made = shared_rig.add_device(f"camera-{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}")
    made.current["digits"] = ("1.0.0", "sha256:" + "a" * 64)
    return made


def send(device, kind: Upstream, record, sequence: int) -> None:
    device._publish(kind, msgspec.structs.replace(record, sequence=sequence))


def ends(rig, device) -> list[float]:
    query = sa.select(schema.windows).where(schema.windows.c.device == device.name)
    with rig.server.store.read() as connection:
        rows = connection.execute(query.order_by(schema.windows.c.requests)).mappings().all()
    assert all(row["end"] - row["start"] == pytest.approx(60) for row in rows)
    return [row["end"] for row in rows]


STORIES = {
    # Uptime of each window, and the start of the machine by the clock of then; anchors likewise, with the clock before.
    "fifty years ago at boot, then set": (
        [(10, -50 * YEAR, False), (70, -50 * YEAR, False), (130, 0, True)],
        [(100, 0, True, -50 * YEAR, False)],
    ),
    "ten years ahead and back": (
        [(10, 0, True), (70, 10 * YEAR, True), (130, 10 * YEAR, True), (190, 0, True)],
        [(50, 10 * YEAR, True, 0, True), (150, 0, True, 10 * YEAR, True)],
    ),
    "ten years ahead and not back yet": (
        [(10, 0, True), (70, 10 * YEAR, True)],
        [(50, 10 * YEAR, True, 0, True)],
    ),
    "a minute off, and set right between two windows of one batch": (
        [(10, -60, True), (70, -60, True), (130, 0, True)],
        [(100, 0, True, -60, True)],
    ),
}


@pytest.mark.parametrize("order", ["anchors first", "anchors last", "shuffled"])
@pytest.mark.parametrize("story", STORIES)
def test_windows_end_up_at_the_right_time_in_whatever_order_they_come(shared_rig, device, story, order):
    began = time.time() - 5000.0
    windows, anchors = STORIES[story]
    sent = []
    for sequence, (uptime_s, off_s, trusted, before_s, was_trusted) in enumerate(anchors, start=1):
        record = anchor(uptime_s, started=began + off_s, trusted=trusted)
        before = {"before_s": began + before_s, "before_trusted": was_trusted}
        sent.append((Upstream.EVENT, msgspec.structs.replace(record, **before), sequence))
    for sequence, (uptime_s, off_s, trusted) in enumerate(windows, start=1):
        record = window(uptime_s, started=began + off_s, trusted=trusted)
        sent.append((Upstream.TELEMETRY, msgspec.structs.replace(record, requests=sequence), sequence))
    if order == "anchors last":
        sent.reverse()
    elif order == "shuffled":
        random.Random(story).shuffle(sent)
    device.epoch, device.acked = "e", {}
    for each in sent:
        send(device, *each)
    wait_for(lambda: device.acked == {"event": len(anchors), "telemetry": len(windows)}, "all stored")
    assert ends(shared_rig, device) == pytest.approx([began + uptime_s for uptime_s, *_ in windows], abs=2.5)


def test_sample_is_dated_anew_and_other_starts_of_the_machine_are_left_alone(shared_rig, device):
    began = time.time() - 5000.0
    sample = device.sample(1, command="c", data=b"\0" * 4)
    wait_for(lambda: device.acked.get("sample") == 1, "stored")
    wrong = {"time": 20.0, "uptime_s": 20.0, "clock_trusted": False, "machine_boot": "m1", "id": "s2"}
    send(device, Upstream.SAMPLE, msgspec.structs.replace(sample, **wrong), 2)
    send(device, Upstream.SAMPLE, msgspec.structs.replace(sample, **wrong | {"machine_boot": "m0", "id": "s3"}), 3)
    send(device, Upstream.SAMPLE, msgspec.structs.replace(sample, **wrong | {"machine_boot": "", "id": "s4"}), 4)
    wait_for(lambda: device.acked.get("sample") == 4, "stored")
    device.epoch, device.acked = "e", {}
    send(device, Upstream.EVENT, anchor(30.0, started=began, before_s=0.0), 1)
    wait_for(lambda: device.acked.get("event") == 1, "the anchor is stored")
    with shared_rig.server.store.read() as connection:
        times = {row.id: row.time for row in connection.execute(sa.select(schema.samples))}
    assert times == pytest.approx({sample.id: sample.time, "s2": began + 20, "s3": 20.0, "s4": 20.0})
    texts = [entry["text"] for entry in shared_rig.api.get("/api/v1/log")["log"]]
    assert any("1 windows and samples are dated anew" in text for text in texts)


def test_database_of_the_schema_before_is_taken_over(tmp_path):
    path = tmp_path / "fleet.db"
    store = Store(path)
    with store.write() as connection:
        for table in (schema.windows, schema.samples):
            connection.exec_driver_sql(f"DROP INDEX {table.name}_by_machine")
            for column in ("machine_boot", "uptime_s", "machine_started", "clock_trusted"):
                connection.exec_driver_sql(f"ALTER TABLE {table.name} DROP COLUMN {column}")
        connection.execute(schema.settings.update().where(schema.settings.c.key == "schema").values(value="1"))
        connection.exec_driver_sql(
            "INSERT INTO windows VALUES (1, 'd', 'm', '1', 'x', 1.0, 2.0, 3.0, 4, 5, 6, 7, x'80', NULL, '{}')"
        )
    store.close()
    again = Store(path)
    with again.read() as connection:
        (row,) = connection.execute(sa.select(schema.windows)).mappings()
        assert (row["requests"], row["machine_boot"], row["clock_trusted"]) == (4, "", True)
        assert get_setting(connection, "schema") == SCHEMA_VERSION
        names = {each["name"] for each in sa.inspect(connection).get_indexes("samples")}
        assert "samples_by_machine" in names
    again.close()
