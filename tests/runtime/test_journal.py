"""What the journal writes when the clock is set under it."""

from functools import partial
from pathlib import Path

import pytest

from edgeops.messages import Anchor, HostMetrics, Telemetry, decode_record
from edgeops_runtime.clock import RELEASED, ClockWatch, TrustedClock
from edgeops_runtime.journal import Journal, stamp
from edgeops_runtime.outbox import Outbox, Stream
from edgeops_runtime.slots import Slot
from edgeops_runtime.telemetry import Window

YEAR = 365 * 86400.0
SLOT = Slot(version="1.0.0", digest="a", variant="onnx", engine="onnxruntime")


class Machine:
    """A machine whose clock can be set, with a journal."""

    def __init__(self, directory: Path, *, wall: float) -> None:
        self.now, self.up = wall, 50.0
        self.clock = TrustedClock(self, directory / "clock")
        stamp_now = partial(stamp, self.clock, 1, "a1b2c3d4e5f6")
        self.outbox = Outbox(directory / "outbox", quota_bytes=1 << 20, stamp=stamp_now)
        self.journal = Journal(self.outbox, stamp=stamp_now, watch=ClockWatch(self.clock))
        self.journal.look_at_clock()

    def wall(self) -> float:
        return self.now

    def uptime(self) -> float:
        return self.up

    def passes(self, seconds: float, *, set_by_s: float = 0.0) -> None:
        self.now, self.up = self.now + seconds + set_by_s, self.up + seconds

    def window(self, start: float, end: float) -> None:
        self.journal.telemetry("m", Window(slot=SLOT, start=start, end=end, requests=1), HostMetrics())

    def records(self, stream: Stream) -> list:
        self.outbox.sync()
        return [decode_record(entry.payload, where="t") for entry in self.outbox.read(stream, after=0, limit=1000)]


@pytest.mark.parametrize(("wall", "set_by_s"), [(0.0, RELEASED + YEAR), (RELEASED + YEAR, 10 * YEAR)])
def test_clock_that_is_set_between_two_records_is_told_before_the_second(tmp_path, wall, set_by_s):
    machine = Machine(tmp_path, wall=wall)
    told = len(machine.records(Stream.EVENT))  # A clock that is right from the start is told at once.
    machine.passes(60)
    machine.window(machine.now - 60, machine.now)
    machine.passes(60, set_by_s=set_by_s)
    machine.window(machine.now - 30, machine.now)
    first, second = machine.records(Stream.TELEMETRY)
    (anchor,) = machine.records(Stream.EVENT)[told:]
    assert isinstance(anchor, Anchor)
    assert (anchor.uptime_s, anchor.time, anchor.machine_boot) == (170.0, machine.now, "a1b2c3d4e5f6")
    assert anchor.before_s == first.time - first.uptime_s
    assert (anchor.before_trusted, anchor.clock_trusted) == (wall > 0, True)
    assert second.time - first.time == pytest.approx(60 + set_by_s)


@pytest.mark.parametrize("set_by_s", [50 * YEAR, -10 * YEAR, 10 * YEAR])
def test_window_that_saw_the_clock_being_set_is_dated_by_the_clock_of_its_end(tmp_path, set_by_s):
    machine = Machine(tmp_path, wall=RELEASED + 11 * YEAR)
    machine.passes(100)
    start = machine.now
    machine.passes(60, set_by_s=set_by_s)
    machine.window(start, machine.now)
    (record,) = machine.records(Stream.TELEMETRY)
    assert isinstance(record, Telemetry)
    assert record.end == pytest.approx(machine.now)
    assert record.end - record.start == pytest.approx(60)


def test_clock_in_the_future_does_not_raise_the_floor(tmp_path):
    machine = Machine(tmp_path, wall=RELEASED + YEAR)
    machine.passes(10, set_by_s=10 * YEAR)
    machine.journal.look_at_clock()
    machine.clock.save()
    machine.passes(10, set_by_s=-10 * YEAR)
    assert machine.clock.is_trusted
    assert TrustedClock(machine, tmp_path / "clock").is_trusted
