"""The outbox: through kill -9, torn and damaged files, quotas, and disks that refuse."""

import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edgeops.errors import MessageError
from edgeops.messages import Gap, Notice, Sample, SampledTensor, Telemetry, decode_record
from edgeops_runtime.outbox import Outbox, Stamp, Stream
from edgeops_runtime.segments import SegmentFile
from edgeops_runtime.sender import Pace, Sender

STAMP = Stamp(boot=1, time=100.0, uptime_s=1.0, clock_trusted=True)
_WRITER = Path(__file__).with_name("outbox_writer.py")


def open_outbox(directory: Path, *, quota_bytes: int = 1 << 20, **settings) -> Outbox:
    return Outbox(directory / "outbox", quota_bytes=quota_bytes, stamp=lambda: STAMP, **settings)


def add(outbox: Outbox, stream: Stream, text: str) -> int:
    base = {"epoch": outbox.epoch, "stream": stream.value, "boot": 1, "time": 0.0, "uptime_s": 0.0}
    if stream is Stream.EVENT:
        return outbox.append(stream, lambda sequence: Notice(**base, sequence=sequence, kind="test", text=text))
    model = {"model": "m", "version": "1.0.0", "digest": "d"}
    if stream is Stream.TELEMETRY:
        rest = {**model, "variant": text, "engine": "e", "start": 0.0, "end": 1.0}
        return outbox.append(stream, lambda sequence: Telemetry(**base, sequence=sequence, **rest))
    tensor = SampledTensor(dtype="UINT8", shape=(len(text),), data=text.encode())
    return outbox.append(
        stream, lambda sequence: Sample(**base, **model, sequence=sequence, id=str(sequence), inputs={"x": tensor})
    )


def read_all(outbox: Outbox, stream: Stream = Stream.EVENT) -> list:
    outbox.sync()
    return [decode_record(entry.payload, where="outbox") for entry in outbox.read(stream, after=0, limit=100_000)]


def noise(rng: random.Random, size: int) -> str:
    return "".join(chr(rng.randrange(33, 127)) for _ in range(size))


def test_records_come_back_in_order_after_a_restart(tmp_path):
    outbox = open_outbox(tmp_path)
    for stream in Stream:
        for number in range(5):
            assert add(outbox, stream, str(number)) == number + 1
    outbox.close()
    again = open_outbox(tmp_path)
    assert again.epoch == outbox.epoch
    for stream in Stream:
        assert [record.sequence for record in read_all(again, stream)] == [1, 2, 3, 4, 5]
    assert add(again, Stream.EVENT, "next") == 6


def test_event_is_on_disk_when_append_returns(tmp_path):
    outbox = open_outbox(tmp_path)
    add(outbox, Stream.EVENT, "kept")
    again = open_outbox(tmp_path)  # The first is never closed, as after a kill.
    assert [record.text for record in read_all(again)] == ["kept"]


def test_acknowledged_records_are_forgotten_and_their_sequences_never_given_again(tmp_path):
    outbox = open_outbox(tmp_path, quota_bytes=64 << 10)
    for number in range(200):
        add(outbox, Stream.EVENT, "x" * 100 + str(number))
    before = outbox.size_bytes
    assert not outbox.acknowledge("another epoch", {"event": 200})
    assert outbox.acknowledge(outbox.epoch, {"event": 150})
    assert not outbox.acknowledge(outbox.epoch, {"event": 100})
    assert outbox.size_bytes < before / 2
    assert [record.sequence for record in read_all(outbox)] == list(range(151, 201))
    outbox.acknowledge(outbox.epoch, {"event": 10_000})
    outbox.close()
    again = open_outbox(tmp_path)
    assert read_all(again) == []
    assert add(again, Stream.EVENT, "next") == 201


def test_torn_tail_is_cut_off_at_every_byte(tmp_path):
    outbox = open_outbox(tmp_path)
    for number in range(2):
        add(outbox, Stream.EVENT, str(number))
    outbox.close()
    (segment,) = (tmp_path / "outbox").glob("event.*.log")
    whole = segment.read_bytes()
    state = tmp_path / "outbox" / "state.json"
    kept_state = state.read_bytes()
    ends = [*[end for end in range(1, len(whole)) if whole[end : end + 4] == b"EoR1"], len(whole)]
    for size in range(len(whole)):
        for path in (tmp_path / "outbox").glob("event.*.log"):
            path.unlink()
        segment.write_bytes(whole[:size])
        state.write_bytes(kept_state.replace(b'"event":2', b'"event":0'))  # As it was before the two came.
        again = open_outbox(tmp_path)
        records = read_all(again)
        assert [record.sequence for record in records] == list(range(1, sum(end <= size for end in ends) + 1)), size
        assert again.last(Stream.EVENT) == len(records)
        again.close()


def test_damage_in_the_middle_becomes_a_gap_that_counts(tmp_path):
    outbox = open_outbox(tmp_path)
    for number in range(10):
        add(outbox, Stream.EVENT, str(number))
    outbox.close()
    (segment,) = (tmp_path / "outbox").glob("event.*.log")
    data = bytearray(segment.read_bytes())
    starts = [place for place in range(len(data)) if data[place : place + 4] == b"EoR1"]
    for number in (3, 4):
        data[starts[number] + 30] ^= 0xFF
    segment.write_bytes(bytes(data))
    again = open_outbox(tmp_path)
    records = read_all(again)
    assert [record.sequence for record in records] == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    gap = records[3]
    assert isinstance(gap, Gap)
    assert (gap.first, gap.sequence, gap.count) == (4, 5, 2)


def test_quota_drops_oldest_samples_first_then_telemetry_and_counts_exactly(tmp_path):
    rng = random.Random(5)
    outbox = open_outbox(tmp_path, quota_bytes=64 << 10)
    for _ in range(200):
        for stream in Stream:
            add(outbox, stream, noise(rng, 300))
    assert outbox.size_bytes <= 64 << 10
    for is_reopened in (False, True):
        if is_reopened:
            outbox.close()
        again = open_outbox(tmp_path, quota_bytes=64 << 10) if is_reopened else outbox
        for stream in Stream:
            records = read_all(again, stream)
            covered: list[int] = []
            for record in records:
                first = record.first if isinstance(record, Gap) else record.sequence
                if isinstance(record, Gap):
                    assert record.count == record.sequence - record.first + 1
                covered.extend(range(first, record.sequence + 1))
            assert covered == list(range(1, outbox.last(stream) + 1))
        dropped = {
            stream: sum(record.count for record in read_all(again, stream) if isinstance(record, Gap))
            for stream in Stream
        }
        assert dropped[Stream.SAMPLE] >= 199
        assert dropped[Stream.TELEMETRY] >= 190
        assert 0 < dropped[Stream.EVENT] < 120  # Some had to go: they alone are more than the quota.
        again.sync()


def test_gap_that_was_sent_is_never_extended(tmp_path):
    rng = random.Random(6)
    outbox = open_outbox(tmp_path, quota_bytes=64 << 10)
    while not any(isinstance(record, Gap) for record in read_all(outbox, Stream.SAMPLE)):
        add(outbox, Stream.SAMPLE, noise(rng, 300))
    sent = read_all(outbox, Stream.SAMPLE)[0]
    for _ in range(200):
        add(outbox, Stream.SAMPLE, noise(rng, 300))
    gaps = [record for record in read_all(outbox, Stream.SAMPLE) if isinstance(record, Gap)]
    assert (gaps[0].first, gaps[0].sequence) == (sent.first, sent.sequence)
    assert gaps[1].first == sent.sequence + 1


class BrokenDisk:
    """Segments on a disk that can be full, or fail to sync."""

    def __init__(self) -> None:
        self.is_full = self.fails_to_sync = False
        self.opened: list[Path] = []

    def open(self, path: Path):
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.opened.append(path)
        return _Segment(self, path)


class _Segment(SegmentFile):
    def __init__(self, disk: BrokenDisk, path: Path) -> None:
        super().__init__(path)
        self._disk = disk

    def append(self, data: bytes) -> None:
        if self._disk.is_full:
            super().append(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        super().append(data)

    def sync(self) -> None:
        if self._disk.fails_to_sync:
            raise OSError(errno.EIO, "Input/output error")
        super().sync()


@pytest.mark.parametrize("failure", ["is_full", "fails_to_sync"])
def test_disk_that_refuses_costs_nothing_once_it_takes_again(tmp_path, failure):
    disk = BrokenDisk()
    outbox = open_outbox(tmp_path, open_segment=disk.open)
    add(outbox, Stream.EVENT, "before")
    setattr(disk, failure, True)
    for number in range(20):
        add(outbox, Stream.EVENT, str(number))
    assert [record.sequence for record in read_all(outbox)] == [1]  # What is not on disk is not sent.
    setattr(disk, failure, False)
    segments = len(disk.opened)
    add(outbox, Stream.EVENT, "after")
    assert len(disk.opened) == segments + 1  # Never the same descriptor again.
    assert [record.sequence for record in read_all(outbox)] == list(range(1, 23))
    assert [record.sequence for record in read_all(open_outbox(tmp_path))] == list(range(1, 23))


def test_what_a_failed_sync_left_behind_costs_nothing_of_what_was_written_with_it_again(tmp_path):
    disk = BrokenDisk()
    outbox = open_outbox(tmp_path, open_segment=disk.open)
    disk.fails_to_sync = True
    for number in range(10):
        add(outbox, Stream.TELEMETRY, str(number))
    outbox.sync()
    disk.fails_to_sync = False
    for number in range(5):
        add(outbox, Stream.TELEMETRY, str(number))
    outbox.sync()  # One pack of fifteen, and in the segment before it one of ten that nobody vouches for.
    again = open_outbox(tmp_path)
    assert [record.sequence for record in read_all(again, Stream.TELEMETRY)] == list(range(1, 16))


def test_telemetry_is_sent_when_its_group_is_committed_and_not_before(tmp_path):
    now = [1000.0]
    stamp = lambda: msgspec.structs.replace(STAMP, uptime_s=now[0])  # noqa: E731
    outbox = Outbox(tmp_path / "outbox", quota_bytes=1 << 20, stamp=stamp)
    for allowance in outbox._allowances.values():
        for _ in range(200):
            allowance.spend()
    add(outbox, Stream.TELEMETRY, "x")
    assert not outbox.commit()
    assert outbox.read(Stream.TELEMETRY, after=0, limit=10) == []
    now[0] += 60
    assert outbox.commit()
    assert len(outbox.read(Stream.TELEMETRY, after=0, limit=10)) == 1
    for number in range(64):
        add(outbox, Stream.TELEMETRY, str(number))
    assert len(outbox.read(Stream.TELEMETRY, after=0, limit=100)) == 65


def test_acknowledgements_cost_no_writes_of_their_own(tmp_path):
    outbox = open_outbox(tmp_path)
    state = tmp_path / "outbox" / "state.json"
    for number in range(5):
        add(outbox, Stream.EVENT, str(number))
    before = state.stat().st_mtime_ns
    for number in range(1, 6):
        assert outbox.acknowledge(outbox.epoch, {"event": number})
        outbox.sync()
    assert state.stat().st_mtime_ns == before
    outbox.close()
    assert open_outbox(tmp_path).acked(Stream.EVENT) == 5


def test_state_of_an_older_agent_is_read_and_nothing_of_it_is_added_up(tmp_path):
    outbox = open_outbox(tmp_path)
    for number in range(3):
        add(outbox, Stream.TELEMETRY, str(number))
    outbox.close()
    state = tmp_path / "outbox" / "state.json"
    document = msgspec.json.decode(state.read_bytes())
    del document["sent"]
    state.write_bytes(msgspec.json.encode(document))
    again = open_outbox(tmp_path)
    assert again._sent == 3
    assert len(read_all(again, Stream.TELEMETRY)) == 3


def test_disk_that_goes_on_refusing_costs_the_oldest_and_counts_them(tmp_path):
    disk = BrokenDisk()
    outbox = open_outbox(tmp_path, open_segment=disk.open, memory_bytes=4096)
    disk.is_full = True
    for _ in range(100):
        add(outbox, Stream.EVENT, "x" * 100)
    assert outbox.size_bytes < 8192
    disk.is_full = False
    add(outbox, Stream.EVENT, "after")
    records = read_all(outbox)
    gap = records[0]
    assert isinstance(gap, Gap)
    assert gap.count == gap.sequence == 101 - (len(records) - 1)
    assert [record.sequence for record in records[1:]] == list(range(gap.sequence + 1, 102))


def test_record_that_no_broker_takes_is_refused_and_uses_no_sequence(tmp_path):
    outbox = open_outbox(tmp_path)
    with pytest.raises(MessageError):
        add(outbox, Stream.EVENT, "x" * 200_000)
    assert add(outbox, Stream.EVENT, "small") == 1


def test_state_that_cannot_be_read_begins_a_new_epoch(tmp_path):
    outbox = open_outbox(tmp_path)
    add(outbox, Stream.EVENT, "old")
    outbox.close()
    (tmp_path / "outbox" / "state.json").write_bytes(b"{")
    again = open_outbox(tmp_path)
    assert again.epoch != outbox.epoch
    assert add(again, Stream.EVENT, "new") == 1
    assert [record.text for record in read_all(again)] == ["new"]


def test_no_event_is_lost_or_doubled_by_kill_9(tmp_path):
    rng = random.Random(9)
    promised: list[str] = []
    for round_number in range(12):
        command = [sys.executable, str(_WRITER), str(tmp_path / "outbox"), str(round_number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            promised.extend(writer.stdout.readline().strip() for _ in range(rng.randrange(1, 60)))
            os.kill(writer.pid, signal.SIGKILL)
            promised.extend(line.strip() for line in writer.stdout if line.endswith("\n"))
    records = read_all(open_outbox(tmp_path))
    texts = [record.text for record in records]
    assert [record.sequence for record in records] == list(range(1, len(records) + 1))
    assert len(set(texts)) == len(texts)
    # One more in each round may have reached the disk before its promise reached us.
    missing = [text for text in promised if text not in set(texts)]
    assert missing == []
    assert [text for text in texts if text in set(promised)] == promised


class Server:
    """The other end of a sender."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox, self.received = outbox, []

    def publish(self, stream: Stream, payload: bytes) -> None:
        self.received.append(decode_record(payload, where="server").sequence)


def test_sender_keeps_to_its_window_and_goes_on_with_acknowledgements(tmp_path):
    outbox = open_outbox(tmp_path)
    for number in range(10):
        add(outbox, Stream.EVENT, str(number))
    server = Server(outbox)
    sender = Sender(outbox, server.publish, pace=Pace(window=4, resend_s=5))
    assert sender.pump(now=0)
    assert sender.pump(now=1)
    assert server.received == [1, 2, 3, 4]
    outbox.acknowledge(outbox.epoch, {"event": 2})
    sender.pump(now=2)
    assert server.received == [1, 2, 3, 4, 5, 6]
    outbox.acknowledge(outbox.epoch, {"event": 10})
    assert not sender.pump(now=3)


def test_sender_sends_again_after_silence_and_after_a_reconnection(tmp_path):
    outbox = open_outbox(tmp_path)
    add(outbox, Stream.EVENT, "x")
    server = Server(outbox)
    sender = Sender(outbox, server.publish, pace=Pace(window=4, resend_s=5))
    for now in (0, 4.9, 5, 9, 15):
        sender.pump(now=now)
    assert server.received == [1, 1, 1]  # At 0, 5 and, after twice the patience, 15.
    sender.reconnected()
    sender.pump(now=16)
    assert server.received == [1, 1, 1, 1]
