"""Records that wait for the server: on disk, in order, through kill, power cut and full disk.

Three streams (classes) of append-only segments, each record with length and checksum. An ``event`` is on disk when
:meth:`Outbox.append` returns; the others are committed in groups, and may be sent when they are. A record is forgotten when the
server has acknowledged it. When room is needed, old telemetry windows are added up into longer ones; when that gives no more, the
oldest samples go, then the oldest telemetry, events last, for which some room is kept free. A :class:`edgeops.messages.Gap` then
stands in their place and counts exactly what went. A disk that is full or broken never raises into the caller: records wait in
bounded memory. Sending is left to :mod:`edgeops_runtime.sender`, the bytes of a segment to :mod:`edgeops_runtime.segments`,
adding up to :mod:`edgeops_runtime.coarsening`.
"""

import contextlib
import errno
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec

from edgeops.errors import ConfigError, MessageError
from edgeops.files import sync_directory, write_durably
from edgeops.messages import Gap, StoredRecord, encode_record
from edgeops_runtime.ballast import Ballast
from edgeops_runtime.coarsening import SPANS_S, coarsen
from edgeops_runtime.commits import Allowance
from edgeops_runtime.frames import Kept
from edgeops_runtime.segments import GROUP, Log, OpenSegment, Segment, SegmentFile

logger = logging.getLogger(__name__)


class Stream(StrEnum):
    """The classes of records; in the order in which they are dropped when room is needed."""

    SAMPLE = "sample"
    TELEMETRY = "telemetry"
    EVENT = "event"


class Stamp(msgspec.Struct, frozen=True, kw_only=True):
    """When and in which life of the agent a record was made (:class:`edgeops.messages.Record`)."""

    boot: int
    time: float
    uptime_s: float
    clock_trusted: bool
    machine_boot: str = ""


class Entry(msgspec.Struct, frozen=True):
    """A record to send: what it is acknowledged by, and its bytes on the wire."""

    sequence: int
    payload: bytes


class _GapState(msgspec.Struct, kw_only=True):
    """A range of sequences that is gone; once it was sent it is not extended, so that nothing is counted twice."""

    first: int
    last: int
    reason: str
    stamp: Stamp
    sent: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.first <= self.last <= _MAX_SEQUENCE:
            raise ValueError(f"gap: expected a range of sequences, got {self.first} to {self.last}")


class _State(msgspec.Struct, kw_only=True):
    """What is kept beside the segments; replaced as a whole.

    Attributes:
        sent: Telemetry up to here may have been sent; above it surely not. Written ahead, in steps, to spare the flash.
            ``None``, from an older agent: everything may.
    """

    epoch: str
    sent: int | None = None
    acked: dict[str, int] = {}
    last: dict[str, int] = {}
    gaps: dict[str, list[_GapState]] = {}

    def __post_init__(self) -> None:
        for name, acked in self.acked.items():
            if not 0 <= acked <= self.last.get(name, 0) <= _MAX_SEQUENCE:
                raise ValueError(f"{name}: expected acked up to last, got {acked} and {self.last.get(name)}")
        if not all(0 <= last <= _MAX_SEQUENCE for last in self.last.values()):
            raise ValueError(f"expected sequences up to {_MAX_SEQUENCE}, got {self.last}")


_STATE_FILE = "state.json"
_MAX_SEQUENCE = 1 << 62
_BALLAST_FILE = "reserve"
_MAX_SEGMENT_BYTES = 256 << 10
_MIN_SEGMENT_BYTES = 4 << 10
_MAX_PENDING_BYTES = 256 << 10
_MAX_RESERVE_BYTES = 1 << 20
_SENT_AHEAD = 512
_WORTH = 8
"""Segments are written anew when that frees an eighth of them at least."""


class Outbox:
    """The store.

    Args:
        directory: Made when missing.
        quota_bytes: Most that the segments may take.
        stamp: Gives the stamp of a gap that is found or made, and the time by which commits are paced.
        open_segment: How to open a segment for writing; tests give one whose disk fails.
        memory_bytes: Most that records of one stream may take in memory while the disk refuses them.
    """

    def __init__(
        self,
        directory: Path,
        *,
        quota_bytes: int,
        stamp: Callable[[], Stamp],
        open_segment: OpenSegment = SegmentFile,
        memory_bytes: int = _MAX_PENDING_BYTES,
    ) -> None:
        self._directory = directory
        self._reserve_bytes = min(quota_bytes // 16, _MAX_RESERVE_BYTES)
        self._stamp = stamp
        self._memory_bytes = memory_bytes
        directory.mkdir(parents=True, exist_ok=True)
        self._ballast = Ballast(directory / _BALLAST_FILE, size_bytes=self._reserve_bytes // 2)
        self._quota_bytes = quota_bytes - self._reserve_bytes // 2
        self._state = self._read_state()
        segment_bytes = max(min(quota_bytes // 16, _MAX_SEGMENT_BYTES), _MIN_SEGMENT_BYTES)
        self._logs = {
            stream: Log(
                directory,
                stream.value,
                segment_bytes=segment_bytes,
                open_segment=open_segment,
                packs=stream is Stream.TELEMETRY,
            )
            for stream in Stream
        }
        self._segment_bytes = segment_bytes
        self._allowances = {stream: Allowance() for stream in Stream}
        self._dirty = False
        for stream in Stream:
            self._recover(stream)
        last = self.last(Stream.TELEMETRY)
        # What will be given from now on was not sent, however far ahead the mark was written.
        self._sent = (
            last if self._state.sent is None else min(max(self._state.sent, self.acked(Stream.TELEMETRY)), last)
        )
        self._state.sent = max(self._sent, self._state.sent or 0)
        self._save_state()

    @property
    def epoch(self) -> str:
        """Identity of this outbox; sequences count within it."""
        return self._state.epoch

    @property
    def size_bytes(self) -> int:
        """What the records take, on disk and in memory."""
        return sum(log.size_bytes + log.pending_bytes for log in self._logs.values())

    def acked(self, stream: Stream) -> int:
        """The highest sequence that the server has; 0 for none."""
        return self._state.acked.get(stream, 0)

    def last(self, stream: Stream) -> int:
        """The highest sequence that was given; 0 for none."""
        return self._state.last.get(stream, 0)

    def append(self, stream: Stream, make: Callable[[int], StoredRecord]) -> int:
        """Keep a record.

        Args:
            stream: Its class.
            make: Makes the record, given its sequence.

        Returns:
            The sequence.

        Raises:
            MessageError: The record is larger than a broker takes; nothing was kept, and no sequence was used.
        """
        sequence = self.last(stream) + 1
        payload = encode_record(make(sequence))
        log = self._logs[stream]
        self._state.last[stream] = sequence
        log.append(sequence, payload)
        self._allowances[stream].note_waiting(self._stamp().uptime_s)
        if stream is Stream.EVENT or log.pending_count >= GROUP or log.pending_bytes >= self._memory_bytes // 2:
            self._sync(stream)
        self._make_room()
        return sequence

    def commit(self) -> bool:
        """Bring to disk what is due (:mod:`edgeops_runtime.commits`); whether anything was, which may be sent now."""
        now = self._stamp().uptime_s
        before = [self._durable_last(stream) for stream in Stream]
        for stream, allowance in self._allowances.items():
            if allowance.is_due(now):
                self._sync(stream)
        self._tidy()
        return before != [self._durable_last(stream) for stream in Stream]

    def sync(self) -> None:
        """Bring everything to disk that is not there yet, as far as the disk takes it."""
        for stream in Stream:
            self._sync(stream)
        self._tidy()

    def read(self, stream: Stream, *, after: int, limit: int) -> list[Entry]:
        """Records behind a sequence, in order, gaps included; only what would survive a power cut now.

        A sequence that was sent must never be given again. What is read counts as sent.
        """
        log = self._logs[stream]
        entries: list[Entry] = []
        sequence = max(after, self.acked(stream)) + 1
        while len(entries) < limit and sequence <= self._durable_last(stream):
            gap = self._gap_at(stream, sequence)
            if gap is None and (record := log.read(sequence)) is not None:
                if not self._note_sent(stream, record.sequence):
                    break
                entries.append(Entry(record.sequence, record.payload))
                sequence = record.sequence + 1
                continue
            if gap is None:
                self._add_gap(stream, sequence, max(sequence, log.next_readable(sequence) - 1), "unreadable")
                gap = self._gap_at(stream, sequence)
            entry = self._gap_entry(stream, gap) if gap is not None else None
            if gap is None or entry is None:
                break
            entries.append(entry)
            sequence = gap.last + 1
        return entries

    def acknowledge(self, epoch: str, sequences: dict[str, int]) -> bool:
        """Forget what the server has.

        Args:
            epoch: Of the acknowledgement; another one is not ours.
            sequences: Stream → highest sequence below which the server misses nothing.

        Returns:
            Whether anything was new.
        """
        if epoch != self.epoch:
            return False
        is_new = False
        for stream in Stream:
            sequence = min(sequences.get(stream.value, 0), self.last(stream))
            if sequence > self.acked(stream):
                # Not written for its own sake: after a kill some records are sent twice, which the server sees.
                self._state.acked[stream] = sequence
                is_new = True
        if is_new:
            self._forget_acked()
        return is_new

    def close(self) -> None:
        """Bring everything to disk and stop."""
        self._state.sent = self._sent
        self._dirty = True
        self.sync()
        for log in self._logs.values():
            log.close()

    def counts(self) -> dict[str, int]:
        """Stream → how many sequences wait for an acknowledgement."""
        return {stream.value: self.last(stream) - self.acked(stream) for stream in Stream}

    def _sync(self, stream: Stream) -> None:
        log = self._logs[stream]
        if not log.pending_count:
            return
        error = log.sync()
        if _is_full(error) and stream is Stream.EVENT and (self._ballast.release() or self._drop_oldest()):
            error = log.sync()
        if error is not None:
            logger.warning("outbox: %s: %s; records wait in memory", stream.value, error)
            self._drop_pending(stream)
            return
        self._allowances[stream].spend()

    def _tidy(self) -> None:
        if self._dirty:
            self._save_state()
        if not self._ballast.is_there:
            self._ballast.restore()

    def _note_sent(self, stream: Stream, sequence: int) -> bool:
        """A record is about to be sent; ``False`` when that cannot be noted, and then it must not be.

        Only telemetry is ever added up, so only there it matters.
        """
        if stream is not Stream.TELEMETRY or sequence <= self._sent:
            return True
        before = self._state.sent or 0
        if sequence > before:
            self._state.sent = sequence + _SENT_AHEAD
            if not self._save_state():
                self._state.sent = before
                return False
        self._sent = sequence
        return True

    def _durable_last(self, stream: Stream) -> int:
        gaps = self._state.gaps.get(stream, [])
        return max(self._logs[stream].durable_last, gaps[-1].last if gaps else 0)

    def _drop_pending(self, stream: Stream) -> None:
        log = self._logs[stream]
        while log.pending_bytes > self._memory_bytes and log.pending_count > 1:
            sequence = log.drop_pending()
            self._add_gap(stream, sequence, sequence, "the disk refused it")

    def _make_room(self) -> None:
        while self._is_over_quota() and (self._coarsen() or self._drop_oldest(in_memory=True)):
            pass

    def _is_over_quota(self) -> bool:
        events = self._logs[Stream.EVENT]
        size = self.size_bytes
        others = size - events.size_bytes - events.pending_bytes
        return size > self._quota_bytes or others > self._quota_bytes - self._reserve_bytes

    def _coarsen(self) -> bool:
        """Add up a few old telemetry windows; ``False`` when that frees nothing any more."""
        log = self._logs[Stream.TELEMETRY]
        unsent = [segment for segment in log.sealed() if segment.first > self._sent]
        for span_s in SPANS_S:
            for group in _groups(unsent, limit_bytes=self._segment_bytes):
                if all(segment.coarseness >= span_s for segment in group):
                    continue
                for segment in group:
                    segment.coarseness = span_s
                if self._coarsen_group(log, group, span_s=span_s):
                    return True
        return False

    def _coarsen_group(self, log: Log, group: Sequence[Segment], *, span_s: float) -> bool:
        worth = sum(segment.size_bytes for segment in group) // _WORTH
        try:
            return log.replace(group, coarsen(self._unsent(log, group), span_s=span_s), min_freed_bytes=worth) > 0
        except (OSError, MessageError) as error:
            logger.warning("outbox: telemetry is not added up: %s", error)
            return False

    def _unsent(self, log: Log, group: Sequence[Segment]) -> Iterator[Kept]:
        """The records of some segments, without those that a gap stands for already."""
        last = 0
        for segment in group:
            for record in log.records(segment):
                if record.first > last and self._gap_at(Stream.TELEMETRY, record.sequence) is None:
                    last = record.sequence
                    yield record

    def _drop_oldest(self, *, in_memory: bool = False) -> bool:
        """Drop one segment of the least important stream that has one; ``False`` when there is nothing to drop.

        Args:
            in_memory: A record that is in memory only will do, too.
        """
        for stream in Stream:
            log = self._logs[stream]
            segment = log.oldest()
            if segment is not None and self._drop_segment(stream, segment):
                return True
            if in_memory and log.pending_count:
                sequence = log.drop_pending()
                self._add_gap(stream, sequence, sequence, "quota")
                return True
        return False

    def _drop_segment(self, stream: Stream, segment: Segment) -> bool:
        log = self._logs[stream]
        # The gap first: without it a power cut now would lose the count. With a full disk the hole itself tells later, unless
        # it is the last segment, whose absence nobody would notice.
        is_last = log.segment_count == 1
        if is_last and not self._save_state():
            return False
        first = max(segment.first, self.acked(stream) + 1)
        if first <= segment.last:
            self._add_gap(stream, first, segment.last, "quota")
        if not self._save_state() and is_last:
            return False
        log.drop(segment)
        return True

    def _forget_acked(self) -> None:
        removable = {
            stream: segments for stream, log in self._logs.items() if (segments := log.sealed_until(self.acked(stream)))
        }
        for stream, gaps in self._state.gaps.items():
            acked = self._state.acked.get(stream, 0)
            self._state.gaps[stream] = [gap for gap in gaps if gap.last > acked]
        # The cursor first: a segment that is gone before it would be taken for a loss.
        if removable and self._save_state():
            for stream, segments in removable.items():
                for segment in segments:
                    self._logs[stream].drop(segment)

    def _gap_at(self, stream: Stream, sequence: int) -> _GapState | None:
        gaps = self._state.gaps.get(stream, [])
        return next((gap for gap in gaps if gap.first <= sequence <= gap.last), None)

    def _gap_entry(self, stream: Stream, gap: _GapState) -> Entry | None:
        """The gap as a record; ``None`` while the disk cannot note that it was sent."""
        if not gap.sent:
            gap.sent = True
            if not self._save_state():
                gap.sent = False
                return None
        record = Gap(
            epoch=self.epoch,
            stream=stream.value,
            sequence=gap.last,
            first=gap.first,
            count=gap.last - gap.first + 1,
            reason=gap.reason,
            **msgspec.structs.asdict(gap.stamp),
        )
        return Entry(gap.last, encode_record(record))

    def _add_gap(self, stream: Stream, first: int, last: int, reason: str) -> None:
        """Note that a range is gone, except for what is noted already; neighbours that were not sent yet grow together."""
        gaps = self._state.gaps.get(stream, [])
        for low, high in _without(first, last, [(gap.first, gap.last) for gap in gaps]):
            gaps.append(_GapState(first=low, last=high, reason=reason, stamp=self._stamp()))
        gaps.sort(key=lambda gap: gap.first)
        merged: list[_GapState] = []
        for gap in gaps:
            before = merged[-1] if merged else None
            joins = before is not None and before.last + 1 == gap.first and before.reason == gap.reason
            if before is not None and joins and not before.sent and not gap.sent:
                before.last = gap.last
            else:
                merged.append(gap)
        self._state.gaps[stream] = merged
        self._dirty = True

    def _recover(self, stream: Stream) -> None:
        """Find out what is there; whatever is missing between the acknowledged and the last becomes a gap."""
        log = self._logs[stream]
        acked = self.acked(stream)
        noted = [(gap.first, gap.last) for gap in self._state.gaps.get(stream, [])]
        for segment in log.sealed():
            if not _without(max(segment.first, acked + 1), segment.last, noted):
                log.drop(segment)  # It was about to be dropped, or is acknowledged.
        have = [(first, last) for first, last in log.ranges() if last > acked]
        known = [(gap.first, gap.last) for gap in self._state.gaps.get(stream, [])]
        last = max([acked, self.last(stream), *(high for _, high in have + known)])
        for low, high in _without(acked + 1, last, have + known):
            self._add_gap(stream, low, high, "lost")
        self._state.last[stream] = last

    def _read_state(self) -> _State:
        path = self._directory / _STATE_FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=_State)
        except FileNotFoundError:
            return self._new_epoch()
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            # Sequences cannot be continued safely, so a new epoch begins; what the old one had is set aside, not sent twice.
            logger.warning("%s: cannot be read, a new epoch begins: %s", path, error)
            return self._new_epoch()

    def _new_epoch(self) -> _State:
        epoch = secrets.token_hex(8)
        for segment in sorted(self._directory.glob("*.log")):
            with contextlib.suppress(OSError):
                segment.rename(segment.with_suffix(f".{epoch}.lost"))
        state = _State(epoch=epoch, sent=0)
        try:
            write_durably(self._directory / _STATE_FILE, msgspec.json.encode(state))
            sync_directory(self._directory.parent)
        except OSError as error:
            if not os.access(self._directory, os.W_OK):
                raise ConfigError(f"{self._directory}: cannot be written: {error.strerror}") from error
            logger.warning("outbox: %s", error)
        return state

    def _save_state(self) -> bool:
        error = self._try_save_state()
        if _is_full(error) and self._ballast.release():
            error = self._try_save_state()
        if error is not None:
            logger.warning("outbox: state not written: %s", error)
        self._dirty = error is not None
        return not self._dirty

    def _try_save_state(self) -> OSError | None:
        # A sequence that is in memory only was never given, should the power be cut now.
        last = {stream.value: max(self._durable_last(stream), self.acked(stream)) for stream in Stream}
        state = msgspec.structs.replace(self._state, last=last)
        try:
            write_durably(self._directory / _STATE_FILE, msgspec.json.encode(state))
        except OSError as error:
            return error
        return None


def _is_full(error: OSError | None) -> bool:
    return error is not None and error.errno in {errno.ENOSPC, errno.EDQUOT}


def _groups(segments: Sequence[Segment], *, limit_bytes: int) -> Iterator[list[Segment]]:
    """Neighbours that together are not larger than a limit, or one by itself."""
    group: list[Segment] = []
    for segment in segments:
        if group and sum(each.size_bytes for each in group) + segment.size_bytes > limit_bytes:
            yield group
            group = []
        group.append(segment)
    if group:
        yield group


def _without(first: int, last: int, ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """What of ``first`` to ``last`` (both included) is in none of the ranges.

    >>> _without(1, 10, [(3, 4), (8, 20)])
    [(1, 2), (5, 7)]
    """
    free = []
    for low, high in sorted(ranges):
        if low > first:
            free.append((first, min(low - 1, last)))
        first = max(first, high + 1)
    if first <= last:
        free.append((first, last))
    return [(low, high) for low, high in free if low <= high]
