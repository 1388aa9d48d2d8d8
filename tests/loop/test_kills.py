"""Kill -9 of worker, agent and server at random points of rollouts: nothing that was accepted is lost or counted twice."""

import contextlib
import os
import random
import signal
import sqlite3
from collections.abc import Callable

import pytest

from edgeops.messages import Gap, decode_record
from edgeops_demo.people import wait_until
from edgeops_runtime.config import load_config
from edgeops_runtime.outbox import Outbox, Stream
from edgeops_runtime.slots import SlotStore

DEVICES = ("camera-1", "camera-2")
SERVES_WITHIN_S = 20.0
"""Generous, since the machine is shared; the benchmark prints how long it really takes."""

KILLS = 4


def kill_something(fleet, rng: random.Random) -> str:
    victim = rng.choice(("worker", "agent", "server"))
    device = rng.choice(DEVICES)
    agent = fleet.agents[device]
    if victim == "worker":
        for child in agent.children:
            # One that was draining may have ended since it was listed.
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    elif victim == "agent":
        agent.kill()
        slots = SlotStore(load_config(fleet.directory / f"{device}.toml").directory).slots
        assert slots.current is not None
        fleet.start_device(device)
    else:
        fleet.server.kill()
        fleet.start_server()
    return f"{victim} {device}"


def stored_marks(fleet) -> dict[tuple[str, str, str], int]:
    with sqlite3.connect(fleet.server_data / "fleet.db") as database:
        rows = database.execute("SELECT device, epoch, stream, contiguous FROM streams").fetchall()
    return {(device, epoch, stream): contiguous for device, epoch, stream, contiguous in rows}


def check_events_are_complete(fleet) -> None:
    """Every sequence up to the mark is there exactly once: as its record, or covered by a gap."""
    with sqlite3.connect(fleet.server_data / "fleet.db") as database:
        rows = database.execute("SELECT device, record FROM events").fetchall()
    seen: dict[tuple[str, str], list[int]] = {}
    for device, data in rows:
        record = decode_record(data, where=device)
        numbers = range(record.first, record.sequence + 1) if isinstance(record, Gap) else [record.sequence]
        if record.stream == "event":
            seen.setdefault((device, record.epoch), []).extend(numbers)
    marks = {key: mark for key, mark in stored_marks(fleet).items() if key[2] == "event"}
    assert marks
    for (device, epoch, _), mark in marks.items():
        assert sorted(seen[device, epoch]) == list(range(1, mark + 1))


def given_sequences(fleet) -> dict[tuple[str, str, str], int]:
    """What the stopped devices have put into their outboxes: the highest sequence of each stream."""
    given = {}
    for device in DEVICES:
        outbox = Outbox(fleet.data(device) / "outbox", quota_bytes=64 << 20, stamp=no_gap_is_expected)
        given |= {(device, outbox.epoch, stream.value): outbox.last(stream) for stream in Stream if outbox.last(stream)}
        outbox.close()
    return given


def no_gap_is_expected():
    raise AssertionError("the outbox lost records")


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_nothing_accepted_is_lost_or_counted_twice(
    seed: int, new_fleet: Callable, new_caller: Callable, make_bundle: Callable
) -> None:
    rng = random.Random(seed)
    fleet = new_fleet("embedded")
    for device in DEVICES:
        fleet.start_device(device)
    fleet.wait_online()
    fleet.wait_rollout(fleet.roll_out(make_bundle("1.0.0")), "completed")
    # Somebody asks all the time; while things are killed, failures are no surprise.
    callers = [new_caller(fleet.address(device), seed=number) for number, device in enumerate(DEVICES)]
    for caller in callers:
        caller.start()
    for number in range(1, 1 + KILLS):
        rollout = fleet.roll_out(make_bundle(f"1.{number}.0"), waves=[{"percent": 100}])
        callers[0].join(rng.uniform(0, 2.0))
        killed = kill_something(fleet, rng)
        for device in DEVICES:
            new_caller(fleet.address(device)).serves_within(SERVES_WITHIN_S, what=f"after the kill of {killed}")
        ended = fleet.wait_rollout(rollout, "completed", "paused", "rolled_back", "aborted")
        if ended["state"] == "paused":
            fleet.operator.post(f"/api/v1/rollouts/{rollout}/rollback")
            fleet.wait_rollout(rollout, "rolled_back")
    for caller in callers:
        caller.stop()
    for agent in fleet.agents.values():
        agent.ask_to_stop()
        assert agent.end(timeout_s=30) == 0
    given = given_sequences(fleet)
    assert {(device, stream) for device, _, stream in given} >= {(device, "event") for device in DEVICES}
    for device in DEVICES:
        fleet.start_device(device)
    wait_until(
        lambda: all(stored_marks(fleet).get(key, 0) >= last for key, last in given.items()),
        timeout_s=40,
        what="every record stored",
        on_timeout=lambda: f"{given} against {stored_marks(fleet)}",
    )
    check_events_are_complete(fleet)
