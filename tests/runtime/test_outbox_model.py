"""The outbox against a simple model, through power cuts at any operation, full and failing disks, lost messages and lost answers.

What was promised (an event whose ``append`` returned, a group that was synced, anything that was sent) is never lost, nothing
counts twice, and the sums at the server and the gaps together are everything that was appended.
"""

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

sys.path.insert(0, str(Path(__file__).parent))  # The folder is no package.

from simulated_disk import PowerCut, SimulatedDisk

from edgeops.messages import Gap, Notice, Sample, SampledTensor, StoredRecord, Telemetry, decode_record
from edgeops.signals import Profile
from edgeops_runtime.outbox import Outbox, Stamp, Stream

QUOTA = 64 << 10
SMALL = 28 << 10
DIGEST = "sha256:" + "a1b2c3d4" * 8


class Server:
    """Stores each sequence once, as the fleet's ingest does."""

    def __init__(self) -> None:
        self.stored: dict[str, set[int]] = {stream: set() for stream in Stream}
        self.lost: dict[str, int] = dict.fromkeys(Stream, 0)
        self.vanished: dict[str, set[int]] = {stream: set() for stream in Stream}
        self.reasons: set[str] = set()
        self.requests = 0

    def take(self, record: StoredRecord) -> None:
        covered = set(range(record.first_sequence, record.sequence + 1))
        fresh = covered - self.stored[record.stream]
        if fresh and isinstance(record, Gap):
            self.lost[record.stream] += len(fresh)
            self.reasons.add(record.reason)
            if record.reason in {"lost", "unreadable"}:
                self.vanished[record.stream] |= fresh
        elif fresh:
            assert fresh == covered, "a sum of windows of which some had come before"
            self.requests += record.requests if isinstance(record, Telemetry) else 0
        self.stored[record.stream] |= covered

    def contiguous(self, stream: Stream) -> int:
        stored = self.stored[stream]
        return next(number for number in range(1, len(stored) + 2) if number not in stored) - 1


class World:
    """An outbox on a simulated disk, and what is known of it from outside."""

    def __init__(self, directory: Path, *, seed: int, quota_bytes: int = QUOTA) -> None:
        self.quota_bytes = quota_bytes
        self.rng = random.Random(seed)
        self.directory = directory / "outbox"
        self.directory.mkdir()
        self.disk = SimulatedDisk(self.directory, self.rng)
        self.server = Server()
        self.now = 1000.0
        self.given: dict[Stream, dict[int, int]] = {stream: {} for stream in Stream}
        self.promised = dict.fromkeys(Stream, 0)
        self.durable: dict[Stream, set[int]] = {stream: set() for stream in Stream}
        self.ever_refused = False
        self.cuts = 0
        self.start()

    def start(self) -> None:
        with self.disk.in_place():
            self.outbox = Outbox(
                self.directory,
                quota_bytes=self.quota_bytes,
                stamp=self.stamp,
                open_segment=self.disk.open,
                memory_bytes=16 << 10,
            )

    def stamp(self) -> Stamp:
        return Stamp(boot=1, time=1.79e9 + self.now, uptime_s=self.now, clock_trusted=True, machine_boot="m")

    def do(self, action: Callable[[], object]) -> bool:
        """Act; ``False`` when the power was cut meanwhile, and everything is up again."""
        try:
            with self.disk.in_place():
                action()
        except PowerCut:
            self.restart()
            return False
        self.ever_refused |= self.disk.is_full or self.disk.fails_to_sync
        return True

    def restart(self) -> None:
        self.cuts += 1
        self.disk.crash()
        self.start()
        for stream in Stream:
            assert self.outbox.last(stream) >= self.promised[stream], f"{stream}: what was promised is gone"
            self.given[stream] = {
                number: requests
                for number, requests in self.given[stream].items()
                if number <= self.outbox.last(stream)
            }

    def append(self, stream: Stream) -> None:
        self.now += 60.0

        def make(sequence: int) -> StoredRecord:
            requests = self.rng.randrange(1000)
            self.given[stream][sequence] = requests
            base = {"epoch": self.outbox.epoch, "stream": stream.value, "sequence": sequence, "boot": 1}
            base |= {"time": 1.79e9 + self.now, "uptime_s": self.now}
            if stream is Stream.EVENT:
                return Notice(**base, kind="k", text=self.rng.randbytes(100).hex())
            model = {"model": "m", "version": "1.0.0", "digest": DIGEST}
            if stream is Stream.SAMPLE:
                tensor = SampledTensor(dtype="UINT8", shape=(600,), data=self.rng.randbytes(600))
                return Sample(**base, **model, id=str(sequence), inputs={"x": tensor})
            return Telemetry(
                **base | model,
                variant="v",
                engine="e",
                start=base["time"] - 60,
                end=base["time"],
                requests=requests,
                latency={self.rng.randrange(300): requests},
                profile=Profile(reference=DIGEST, rows=requests, counts={"s": (requests, 3, 4), "t": (1, 2, requests)}),
            )

        def act() -> None:
            sequence = self.outbox.append(stream, make)
            if stream is Stream.EVENT and not (self.disk.is_full or self.disk.fails_to_sync):
                self.promised[stream] = sequence
                self.durable[stream].add(sequence)

        self.do(act)

    def sync(self) -> None:
        def act() -> None:
            self.outbox.sync()
            if not (self.disk.is_full or self.disk.fails_to_sync):
                self.promised = {stream: self.outbox.last(stream) for stream in Stream}
                for stream in Stream:
                    gaps = self.outbox._state.gaps.get(stream, [])
                    gone = {number for gap in gaps for number in range(gap.first, gap.last + 1)}
                    here = set(range(1, self.promised[stream] + 1)) - gone
                    self.durable[stream] |= here - self.server.stored[stream]

        self.do(act)

    def send(self, stream: Stream, *, limit: int, arrives: Callable[[], bool], is_heard: bool) -> None:
        def act() -> None:
            for entry in self.outbox.read(stream, after=0, limit=limit):
                self.promised[stream] = max(self.promised[stream], entry.sequence)
                record = decode_record(entry.payload, where="test")
                if isinstance(record, Telemetry):
                    covered = range(record.first_sequence, record.sequence + 1)
                    assert record.requests == sum(self.given[stream][number] for number in covered)
                if arrives():
                    self.server.take(record)
            if is_heard:
                self.outbox.acknowledge(self.outbox.epoch, {stream.value: self.server.contiguous(stream)})

        self.do(act)

    def drain(self) -> None:
        """The disk and the way are good again: everything is accounted for."""
        self.disk.fuse = None
        self.disk.is_full = self.disk.fails_to_sync = False
        self.append(Stream.EVENT)
        self.sync()
        for stream in Stream:
            for _ in range(10_000):
                if self.outbox.acked(stream) >= self.outbox.last(stream):
                    break
                before = self.outbox.acked(stream)
                self.send(stream, limit=64, arrives=lambda: True, is_heard=True)
                assert self.outbox.acked(stream) > before, f"{stream}: stuck at {before}"
            assert self.server.contiguous(stream) == self.outbox.last(stream)
        if not self.ever_refused:
            # What made room before it was on disk may be told as a hole after a cut; what was on disk never vanishes.
            assert self.server.reasons <= ({"quota", "lost"} if self.cuts else {"quota"})
            vanished = {stream: self.server.vanished[stream] & self.durable[stream] for stream in Stream}
            assert not any(vanished.values()), f"on disk once, and gone: {vanished}"
        assert "unreadable" not in self.server.reasons


class OutboxMachine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 1 << 30))
    def begin(self, seed):
        self.directory = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
        self.world = World(self.directory, seed=seed, quota_bytes=SMALL)

    def teardown(self) -> None:
        self.world.drain()
        shutil.rmtree(self.directory)

    @rule(stream=st.sampled_from(Stream), count=st.integers(1, 120))
    def append(self, stream, count):
        for _ in range(count):
            self.world.append(stream)

    @rule(seconds=st.sampled_from([1.0, 61.0]))
    def commit(self, seconds):
        self.world.now += seconds
        self.world.do(self.world.outbox.commit)

    @rule()
    def sync(self):
        self.world.sync()

    @rule(
        stream=st.sampled_from(Stream), limit=st.integers(1, 40), loss=st.sampled_from([0, 0, 0.3]), heard=st.booleans()
    )
    def send(self, stream, limit, loss, heard):
        self.world.send(stream, limit=limit, arrives=lambda: self.world.rng.random() >= loss, is_heard=heard)

    @rule(after=st.integers(1, 12))
    def power_will_be_cut(self, after):
        self.world.disk.fuse = after

    @rule()
    def power_is_cut(self):
        self.world.restart()

    @rule(is_full=st.booleans())
    def disk_is_full(self, is_full):
        self.world.disk.is_full = is_full

    @rule(fails=st.booleans())
    def disk_fails_to_sync(self, fails):
        self.world.disk.fails_to_sync = fails

    @rule()
    def agent_restarts(self):
        self.world.do(self.world.outbox.close)
        self.world.restart()

    @invariant()
    def it_stays_within_its_quota(self):
        assert self.world.outbox.size_bytes <= SMALL


def run_machine(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        OutboxMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=(Phase.explicit, Phase.reuse, Phase.generate),  # Shrinking may take minutes.
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_outbox_agrees_with_the_model():
    run_machine(10, 25)


@pytest.mark.slow
def test_outbox_agrees_with_the_model_at_length():
    run_machine(100, 50)


def test_windows_are_added_up_before_anything_is_dropped(tmp_path):
    world = World(tmp_path, seed=3, quota_bytes=SMALL)
    for _ in range(1200):
        world.append(Stream.TELEMETRY)
    given = sum(world.given[Stream.TELEMETRY].values())
    assert world.outbox.size_bytes <= SMALL
    world.drain()
    assert world.server.lost[Stream.TELEMETRY] == 0
    assert world.server.requests == given


def test_events_fit_beside_a_full_outbox_and_cost_no_telemetry(tmp_path):
    world = World(tmp_path, seed=4)
    for _ in range(200):
        world.append(Stream.SAMPLE)
    dropped = world.outbox._state.gaps[Stream.SAMPLE][0].last
    world.outbox.sync()
    for _ in range(8):
        world.append(Stream.EVENT)
    world.drain()
    assert world.server.lost == {Stream.SAMPLE: dropped, Stream.TELEMETRY: 0, Stream.EVENT: 0}


def fill(world: World, *, fuse: int) -> None:
    """Sent and acknowledged, sent and lost, never sent; the power is cut so far into the adding up of several segments."""
    for _ in range(60):
        world.append(Stream.TELEMETRY)
    world.sync()
    world.send(Stream.TELEMETRY, limit=30, arrives=lambda: True, is_heard=True)
    world.send(Stream.TELEMETRY, limit=20, arrives=lambda: True, is_heard=False)
    add_up, is_done = world.outbox._coarsen_group, False

    def add_up_on_a_short_fuse(log, group, *, span_s):
        nonlocal is_done
        is_done = len(group) > 1
        world.disk.fuse = fuse if is_done else None
        try:
            return add_up(log, group, span_s=span_s)
        finally:
            world.disk.fuse = None

    world.outbox._coarsen_group = add_up_on_a_short_fuse
    while not is_done:
        world.append(Stream.TELEMETRY)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_power_cut_at_any_operation_of_adding_up_loses_and_doubles_nothing(tmp_path, seed):
    for fuse in range(1, 100):
        directory = tmp_path / str(fuse)
        directory.mkdir()
        world = World(directory, seed=seed, quota_bytes=SMALL)
        fill(world, fuse=fuse)
        was_cut = world.cuts > 0
        given = sum(world.given[Stream.TELEMETRY].values())
        world.drain()
        assert world.server.requests == given
        assert world.server.lost[Stream.TELEMETRY] == 0
        if not was_cut:
            break
    assert not was_cut
    assert fuse > 7  # Open, write, sync, rename, sync of the directory, and one for each of the others.


def test_full_disk_gives_way_when_the_server_has_taken_something(tmp_path):
    """Forgetting takes a write first; the ballast is room for it."""
    world = World(tmp_path, seed=7)
    for _ in range(150):
        world.append(Stream.EVENT)
    before = world.outbox.size_bytes
    world.server.stored[Stream.EVENT] = set(range(1, 101))
    reserve = world.directory / "reserve"
    full_once = world.disk._refuse_when_full

    def refuse_while_the_ballast_is_there() -> None:
        world.disk.is_full = reserve.exists()
        full_once()

    world.disk._refuse_when_full = refuse_while_the_ballast_is_there
    with world.disk.in_place():
        assert world.outbox.acknowledge(world.outbox.epoch, {"event": 100})
    assert world.outbox.size_bytes < before
