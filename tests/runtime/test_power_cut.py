"""Power cuts at every point of what the product writes: recorded file system calls, every state that they may leave, recovered.

The short form takes a share of the points; the slow one takes all, and starts a whole agent on some of what is left.
"""

import contextlib
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgeops.bundle import MANIFEST_FILE, open_bundle, read_manifest
from edgeops.files import digest_bytes, digest_file, write_durably
from edgeops.messages import Gap, Notice, Telemetry, decode_record
from edgeops.signing import PublicKey, SigningKey
from edgeops_runtime.blobs import BlobStore, PartialBlob
from edgeops_runtime.clock import SystemClock, TrustedClock
from edgeops_runtime.crew import Crew
from edgeops_runtime.desired import DesiredState
from edgeops_runtime.downloads import Stream as Download
from edgeops_runtime.identity import KEY_FILE, enrol, load_identity
from edgeops_runtime.lifetimes import count_boot, read_boot
from edgeops_runtime.outbox import Outbox, Stamp, Stream
from edgeops_runtime.slots import Slots, SlotStore
from edgeops_runtime.updater import Brought, Order, Updater

sys.path.insert(0, str(Path(__file__).parent))  # The folder is no package, and this module is only for its tests.

from agent_parts import DEVICE as DEVICE_NAME
from agent_parts import Hammer, Station, eventually, scripted_bundle
from power_cut import Mark, Recorder, State, restored, states

STAMP = Stamp(boot=1, time=100.0, uptime_s=1.0, clock_trusted=True)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


@pytest.fixture(params=[0.03, pytest.param(1.0, marks=pytest.mark.slow)], ids=["some", "all"])
def positions(request: pytest.FixtureRequest) -> float:
    """The share of the points at which the power is cut."""
    return float(request.param)


# ---- the model itself ------------------------------------------------------------------------------------------------


def found(recorder: Recorder, name: str) -> set[bytes | None]:
    """All that a file may hold once the program has ended; nothing where it may be missing."""
    operations = [*recorder.operations, Mark("end")]
    every = states(operations, rng=random.Random(1), each=10_000)
    return {dict(_files(state)).get(name) for state in every if "end" in state.marks}


def _files(state: State) -> Iterator[tuple[str, bytes]]:
    for name, node in state.entries[0].items():
        if node in state.content:
            yield name, state.content[node]


def test_file_that_is_not_synced_may_be_lost_torn_or_empty(disk):
    with Recorder(disk) as recorder:
        (disk / "old").write_bytes(b"old")
        (disk / "file").write_bytes(b"abcdef")
        (disk / "file").replace(disk / "old")
    recorder.check()
    possible = found(recorder, "old")
    assert possible >= {None, b"", b"old", b"a", b"abc", b"abcdef", bytes(6)}


def test_name_that_is_not_synced_may_be_lost_though_the_file_is_not(disk):
    with Recorder(disk) as recorder, (disk / "file").open("wb") as stream:
        stream.write(b"whole")
        stream.flush()
        os.fsync(stream.fileno())
    recorder.check()
    assert found(recorder, "file") == {None, b"whole"}


def test_file_that_is_written_durably_is_the_old_or_the_new_one(disk):
    with Recorder(disk) as recorder:
        write_durably(disk / "file", b"old")
        recorder.mark("old")
        write_durably(disk / "file", b"new")
        recorder.mark("new")
    recorder.check()
    for state in states(recorder.operations, rng=random.Random(1), each=10_000):
        possible = {"new": {b"new"}, "old": {b"old", b"new"}, None: {None, b"old"}}[state.marks[-1]]
        assert dict(_files(state)).get("file") in possible
    assert found(recorder, "file") == {b"new"}


def test_recorder_notices_what_passed_it_by(disk):
    with Recorder(disk) as recorder:
        recorder._real_open(disk / "unseen", "wb").close()
    with pytest.raises(AssertionError):
        recorder.check()


# ---- the outbox ------------------------------------------------------------------------------------------------------


class Said(msgspec.Struct):
    """What an outbox has promised by its marks."""

    epoch: str = ""
    given: dict[tuple[str, int], bytes] = {}
    stored: dict[str, int] = {}
    sent: dict[tuple[str, int], bytes] = {}
    acked: dict[str, int] = {}
    killed: set[tuple[str, int]] = set()
    """What was in memory only when the program was killed in the middle of its life."""

    def hear(self, mark: Any) -> None:
        match mark:
            case ("given", epoch, stream, sequence, payload):
                self.epoch = epoch
                self.given[stream, sequence] = payload
                self.killed.discard((stream, sequence))
            case ("stored", stream, sequence):
                self.stored[stream] = sequence
            case ("sent", stream, sequence, payload):
                self.sent[stream, sequence] = payload
            case "killed":
                self.killed |= {key for key in self.given if key[1] > self.stored.get(key[0], 0)}
            case ("acked", sequences):
                self.acked |= {stream: max(last, self.acked.get(stream, 0)) for stream, last in sequences.items()}


def said(marks: list[Any]) -> Said:
    told = Said()
    for mark in marks:
        told.hear(mark)
    return told


@contextlib.contextmanager
def outboxes_tell(recorder: Recorder) -> Iterator[None]:
    """Every outbox marks what it promises."""

    append, sync, read, acknowledge = Outbox.append, Outbox.sync, Outbox.read, Outbox.acknowledge

    def telling_append(self, stream, make):
        def telling_make(sequence):
            record = make(sequence)
            recorder.mark(("given", self.epoch, stream.value, sequence, msgspec.msgpack.encode(record)))
            return record

        sequence = append(self, stream, telling_make)
        if stream is Stream.EVENT:
            recorder.mark(("stored", stream.value, sequence))
        return sequence

    def telling_sync(self):
        last = {stream.value: self.last(stream) for stream in Stream}
        sync(self)
        for stream, sequence in last.items():
            recorder.mark(("stored", stream, sequence))

    def telling_read(self, stream, *, after, limit):
        entries = read(self, stream, after=after, limit=limit)
        for entry in entries:
            recorder.mark(("sent", stream.value, entry.sequence, entry.payload))
        return entries

    def telling_acknowledge(self, epoch, sequences):
        if epoch == self.epoch:
            recorder.mark(("acked", sequences))
        return acknowledge(self, epoch, sequences)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Outbox, "append", telling_append)
        patch.setattr(Outbox, "sync", telling_sync)
        patch.setattr(Outbox, "read", telling_read)
        patch.setattr(Outbox, "acknowledge", telling_acknowledge)
        yield


def open_outbox(directory: Path, quota_bytes: int) -> Outbox:
    return Outbox(directory, quota_bytes=quota_bytes, stamp=lambda: STAMP)


def check_outbox(directory: Path, told: Said, *, quota_bytes: int) -> None:
    outbox = open_outbox(directory, quota_bytes)
    promised = {stream: last for stream, last in told.stored.items() if last}
    if not promised and not told.sent and outbox.epoch != told.epoch:
        return  # Nothing was promised yet.
    assert outbox.epoch == told.epoch
    for stream in Stream:
        name = stream.value
        assert outbox.acked(stream) <= told.acked.get(name, 0)
        sent = [sequence for where, sequence in told.sent if where == name]
        assert outbox.last(stream) >= max([promised.get(name, 0), *sent])
        records = [decode_record(entry.payload, where=name) for entry in outbox.read(stream, after=0, limit=1 << 20)]
        covered: list[int] = []
        for record in records:
            first = getattr(record, "first", 0) or record.sequence
            covered.extend(range(first, record.sequence + 1))
            if isinstance(record, Telemetry) and first < record.sequence:
                assert record.requests == sum(
                    msgspec.msgpack.decode(told.given[name, sequence], type=Telemetry).requests
                    for sequence in range(first, record.sequence + 1)
                )
            elif not isinstance(record, Gap):
                assert msgspec.msgpack.encode(record) == told.given[name, record.sequence]
            elif record.reason != "quota":
                gone = range(first, min(record.sequence, promised.get(name, 0)) + 1)
                assert {(name, sequence) for sequence in gone} <= told.killed, record
        assert covered == list(range(outbox.acked(stream) + 1, outbox.last(stream) + 1))
        gaps = {(record.first, record.sequence) for record in records if isinstance(record, Gap)}
        for where, sequence in told.sent:
            gone = decode_record(told.sent[where, sequence], where=where)
            if where == name and isinstance(gone, Gap) and sequence > outbox.acked(stream):
                assert (
                    gone.first,
                    gone.sequence,
                ) in gaps  # What was sent is never extended, and so never counted twice.
    last = outbox.last(Stream.EVENT)
    assert outbox.append(Stream.EVENT, lambda sequence: notice(outbox, sequence, "after")) == last + 1
    again = open_outbox(directory, quota_bytes)
    assert {stream: again.last(stream) for stream in Stream} == {stream: outbox.last(stream) for stream in Stream}


def notice(outbox: Outbox, sequence: int, text: str) -> Notice:
    return Notice(
        epoch=outbox.epoch, stream="event", sequence=sequence, boot=1, time=0.0, uptime_s=0.0, kind="k", text=text
    )


def telemetry(outbox: Outbox, sequence: int, stream: str, text: str) -> Telemetry:
    return Telemetry(
        epoch=outbox.epoch,
        stream=stream,
        sequence=sequence,
        boot=1,
        time=0.0,
        uptime_s=0.0,
        model="m",
        version="1.0.0",
        digest="d",
        variant=text,
        engine="e",
        start=0.0,
        end=1.0,
        requests=1,
        rows=1,
    )


def live_with_an_outbox(
    directory: Path, rng: random.Random, killed: Callable[[], None], *, quota_bytes: int, steps: int
) -> None:
    """Appends, syncs, sends, acknowledgements and kills, drawn."""
    outbox = open_outbox(directory, quota_bytes)
    for _ in range(steps):
        stream = rng.choice(list(Stream))
        match rng.choices(("append", "sync", "send", "acknowledge", "kill"), weights=(20, 2, 3, 2, 1))[0]:
            case "append":
                # Noise, which does not become smaller on the wire.
                text = "".join(chr(rng.randrange(33, 127)) for _ in range(rng.choice((10, 300, 2000))))
                if stream is Stream.EVENT:
                    outbox.append(stream, lambda sequence, o=outbox, t=text: notice(o, sequence, t))
                else:
                    outbox.append(
                        stream, lambda sequence, o=outbox, s=stream, t=text: telemetry(o, sequence, s.value, t)
                    )
            case "sync":
                outbox.sync()
            case "send":
                outbox.read(stream, after=0, limit=rng.randrange(1, 20))
            case "acknowledge":
                low, high = outbox.acked(stream), outbox.last(stream)
                sent = outbox.read(stream, after=0, limit=1 << 20)
                if sent:
                    outbox.acknowledge(outbox.epoch, {stream.value: rng.choice(sent).sequence})
                assert low <= outbox.acked(stream) <= high
            case "kill":
                killed()
                outbox = open_outbox(directory, quota_bytes)
    outbox.close()


@pytest.mark.parametrize("quota_bytes", [1 << 20, 48 << 10], ids=["roomy", "tight"])
def test_outbox_keeps_its_promises_whenever_the_power_is_cut(disk, tmp_path, positions, quota_bytes):
    rng = random.Random(11)
    with Recorder(disk) as recorder, outboxes_tell(recorder):
        live_with_an_outbox(
            disk / "outbox",
            rng,
            lambda: recorder.mark("killed"),
            quota_bytes=quota_bytes,
            steps=150 if positions < 1 else 300,
        )
    recorder.check()
    count = 0
    for state in states(recorder.operations, rng=rng, each=16, positions=positions):
        with restored(state, tmp_path) as directory:
            check_outbox(directory / "outbox", said(state.marks), quota_bytes=quota_bytes)
        count += 1
    assert count > 30


# ---- a device --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def devices_tell(recorder: Recorder) -> Iterator[None]:
    """Every store of an agent marks what it is about to do, and what it has promised."""

    def around(owner, name, *, before=None, after=None):
        real = getattr(owner, name)

        def telling(*args, **named):
            if before is not None:
                recorder.mark(before(*args, **named))
            result = real(*args, **named)
            if after is not None:
                recorder.mark(after(result, *args, **named))
            return result

        patch.setattr(owner, name, telling)

    with pytest.MonkeyPatch.context() as patch, outboxes_tell(recorder):
        around(
            SlotStore,
            "save",
            before=lambda _, slots: ("slots begun", slots),
            after=lambda _, store, slots: ("slots", slots),
        )
        around(PartialBlob, "finish", after=lambda path, *_: ("blob", path.name))
        around(
            BlobStore,
            "assemble",
            after=lambda path, _store, _digest, *, manifest, files: ("bundle", path.name, {**files, MANIFEST_FILE: ""}),
        )
        around(BlobStore, "collect", before=lambda _, keep: ("collect", {each.partition(":")[2] for each in keep}))
        around(Crew, "spawn", before=lambda _, slot, owner: ("spawn", slot.digest, type(owner).__name__))
        around(TrustedClock, "save", after=lambda _, clock: ("floor", clock.floor))
        around(
            DesiredState,
            "accept",
            after=lambda desired, _, source, envelope, *, seen: ("desired", source, desired.generation),
        )
        real_count = count_boot
        patch.setattr(
            "edgeops_runtime.agent.count_boot",
            lambda directory, *, now: (boot := real_count(directory, now=now), recorder.mark(("boot", boot)))[0],
        )
        yield


def live_as_a_device(station: Station, recorder: Recorder, bundle: Callable[..., Any]) -> None:
    """Enrolment, an installation, an upgrade, two that fail, an override, restarts, and bundles that make room."""

    def post(_url: str, body: bytes) -> bytes:
        recorder.mark(("asked", msgspec.json.decode(body)["public_key"]))
        return msgspec.json.encode(station.enrolment)

    enrol(station.data, server="http://x", token="t", device=DEVICE_NAME, attributes={}, post=post)
    recorder.mark("enrolled")
    station.start()
    station.install(bundle("1.0.0"))
    station.install(bundle("1.1.0", window={"latency_ns": 1_000_001}))
    station.stop()
    station.start()
    for version, script in (("1.2.0", {"golden": False}), ("1.3.0", {"window": {"errors": 1}})):
        station.desire(station.target(None, rollout=bundle(version, **script)))
        with Hammer(station):
            station.wait_for(version, "rolled_back")
    station.desire(station.target(None, rollout=bundle("1.4.0", window={"latency_ns": 1_000_002})), device=DEVICE_NAME)
    with Hammer(station):
        station.wait_for("1.4.0", "committed")
    eventually(lambda: not any(station.agent._outbox.counts().values()))
    station.stop()


class Told(msgspec.Struct):
    """What a device has promised by its marks."""

    outbox: Said
    asked: str = ""
    is_enrolled: bool = False
    slots: list[Slots] = msgspec.field(default_factory=lambda: [Slots()])
    """The last that was saved, and all that were begun since."""
    blobs: set[str] = set()
    bundles: dict[str, dict[str, str]] = {}
    boot: int = 0
    floor: float = 0.0
    generations: dict[str, int] = {}

    def hear(self, mark: Any) -> None:  # noqa: C901 - one case for each mark
        self.outbox.hear(mark)
        match mark:
            case ("asked", key):
                self.asked = key
            case "enrolled":
                self.is_enrolled = True
            case ("slots begun", slots):
                self.slots.append(slots)
            case ("slots", slots):
                self.slots = [slots]
            case ("blob", name):
                self.blobs.add(name)
            case ("bundle", name, files):
                self.bundles[name] = files
            case ("collect", kept):
                self.bundles = {name: files for name, files in self.bundles.items() if name in kept}
                self.blobs.clear()
            case ("boot", boot):
                self.boot = boot
            case ("floor", moment):
                self.floor = max(self.floor, moment)
            case ("desired", source, generation):
                self.generations[source] = max(generation, self.generations.get(source, 0))
            case ("spawn", digest, "Deployer"):
                self._check_attempt(digest)

    def _check_attempt(self, digest: str) -> None:
        """A candidate is started; whatever happens now, its attempt is on disk."""
        (slots,) = self.slots
        assert slots.candidate is not None
        assert slots.candidate.digest == digest
        assert slots.candidate.attempts >= 1


def check_device(directory: Path, told: Told, blobs: dict[str, bytes], keys: list[PublicKey]) -> None:
    data = directory / "device"
    if told.asked:
        # A second try must use the same key, or the server takes it for another device.
        assert SigningKey.load(data / KEY_FILE).public.text == told.asked
    if not told.is_enrolled:
        return
    identity = load_identity(data)
    check_outbox(data / "outbox", told.outbox, quota_bytes=1 << 26)
    store = SlotStore(data)
    assert store.slots in told.slots
    boot = read_boot(data)
    assert boot is not None
    assert boot >= told.boot
    floor = TrustedClock(SystemClock(), data / "clock").floor
    assert floor >= told.floor - 2  # It is written in whole seconds, a moment before the mark.
    desired = DesiredState(data, identity)
    for source, generation in told.generations.items():
        kept = desired._documents.get(source)
        assert max(kept.generation if kept else 0, store.slots.generations.get(source, 0)) >= generation
    check_blobs(data, told, store.slots, blobs, keys)


def check_blobs(data: Path, told: Told, slots: Slots, blobs: dict[str, bytes], keys: list[PublicKey]) -> None:
    store = BlobStore(data)
    for path in (data / "blobs").iterdir():
        assert path.name.startswith(".") or digest_file(path) == f"sha256:{path.name}"
    for name in told.blobs:
        assert store.has(name)
    for name, files in told.bundles.items():
        assert store.has_bundle(name)
        assert all((store.bundle_path(name) / file).exists() for file in files)
    for slot in (slots.current, slots.previous):
        assert slot is None or store.damage(slot.digest, slot.variant) == ""
    # Whatever else is there, asking for it again ends in a whole bundle.
    for name in sorted(path.name for path in (data / "bundles").iterdir() if not path.name.startswith(".")):
        check_brought(store, name, blobs, keys)


def check_brought(store: BlobStore, name: str, blobs: dict[str, bytes], keys: list[PublicKey]) -> None:
    digest = f"sha256:{name}"
    manifest = read_manifest(blobs[digest], keys=keys)
    order = Order(model="digits", version=manifest.version, digest=digest, url="memory")
    updater = Updater(
        store,
        MemoryDownloader(blobs),
        keys=keys,
        choose=lambda manifest, _digest: (manifest.variants[0], "onnxruntime"),
    )
    assert isinstance(updater.bring(order, cancelled=threading.Event()), Brought)
    assert set(open_bundle(store.bundle_path(digest), keys=keys).manifest.files) == set(manifest.files)


class MemoryDownloader:
    def __init__(self, blobs: dict[str, bytes]) -> None:
        self._blobs = blobs

    @contextlib.contextmanager
    def open(self, url: str, *, offset: int) -> Iterator[Download]:
        yield Download(offset, iter([self._blobs[url.rpartition("/")[2]][offset:]]))


def test_device_comes_back_whenever_the_power_is_cut(disk, tmp_path, positions, release_key):
    rng = random.Random(12)
    station = Station(disk, release_key)

    def bundle(version: str, **script):
        return scripted_bundle(tmp_path / "bundles", version, release_key, **script)

    try:
        with Recorder(disk) as recorder, devices_tell(recorder):
            live_as_a_device(station, recorder, bundle)
    finally:
        station.close()
    recorder.check()
    count = 0
    for state in states(recorder.operations, rng=rng, each=16, positions=positions):
        told = Told(outbox=Said())
        for mark in state.marks:
            told.hear(mark)
        with restored(state, tmp_path) as directory:
            check_device(directory, told, station.blobs.blobs, [release_key.public])
        count += 1
    assert count > 30


def test_bundle_with_folders_is_whole_once_it_counts(disk, tmp_path):
    with Recorder(disk) as recorder:
        store = BlobStore(disk)
        digest = digest_bytes(b"weights")
        store.partial(digest).append(b"weights", offset=0)
        store.partial(digest).finish()
        store.assemble(digest_bytes(b"{}"), manifest=b"{}", files={"deep/er/model.onnx": digest})
        recorder.mark("assembled")
    recorder.check()
    for state in states(recorder.operations, rng=random.Random(1), each=200):
        with restored(state, tmp_path) as directory:
            store = BlobStore(directory)
            path = store.bundle_path(digest_bytes(b"{}")) / "deep" / "er" / "model.onnx"
            assert store.has_bundle(digest_bytes(b"{}")) or "assembled" not in state.marks
            assert not store.has_bundle(digest_bytes(b"{}")) or path.read_bytes() == b"weights"


@pytest.mark.slow
def test_agent_serves_whenever_the_power_is_cut(disk, tmp_path, release_key):
    rng = random.Random(13)
    station = Station(disk, release_key)

    def bundle(version: str, **script):
        return scripted_bundle(tmp_path / "bundles", version, release_key, **script)

    try:
        with Recorder(disk) as recorder, devices_tell(recorder):
            live_as_a_device(station, recorder, bundle)
        recorder.check()
        every = [state for state in states(recorder.operations, rng=rng, each=4) if "enrolled" in state.marks]
        for state in rng.sample(every, 60):
            told = Told(outbox=Said())
            for mark in state.marks:
                told.hear(mark)
            with restored(state, tmp_path) as directory:
                station.directory = directory
                agent = station.start()
                if all(each.current is not None for each in told.slots):
                    assert station.answer()
                assert agent._boot > told.boot
                station.stop()
    finally:
        station.close()
