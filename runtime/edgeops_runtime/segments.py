"""Append-only files of checksummed records with rising sequence numbers: one :class:`Log` for each stream of the outbox.

After a restart a new segment is begun, and so after any error: when an fsync has failed, the kernel may have dropped the pages,
and syncing the same descriptor again would report a success that is none. What is not synced yet stays in memory and is written
again. Old segments can be replaced by a shorter one that holds the same, in one step that a power cut cannot halve. How records
are framed is left to :mod:`edgeops_runtime.frames`; quotas, gaps and acknowledgements to :mod:`edgeops_runtime.outbox`.
"""

import contextlib
import logging
import os
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from edgeops.files import sync_directory
from edgeops_runtime.frames import Frame, Kept, encode_pack, encode_single, records_of, scan, unpack

logger = logging.getLogger(__name__)

GROUP = 64
"""Most records that are written, and packed, together."""
_OVERHEAD_BYTES = 20


class Segment(msgspec.Struct, kw_only=True):
    """One file: its path, the first and last sequence in it, its size.

    Attributes:
        coarseness: How far its records were added up already, in the unit of whoever does it; not kept over a restart.
    """

    path: Path
    first: int
    last: int
    size_bytes: int
    coarseness: float = 0.0


class Writable(Protocol):
    """A segment that is open for appending."""

    def append(self, data: bytes) -> None:
        """Write all of it, or raise ``OSError``."""

    def sync(self) -> None:
        """Make it durable, or raise ``OSError``."""

    def close(self) -> None:
        """Close it."""


OpenSegment = Callable[[Path], Writable]


class SegmentFile:
    """A segment on a real disk."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)

    def append(self, data: bytes) -> None:
        """Write all of it."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def sync(self) -> None:
        """Make it durable."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


class Log:
    """The segments of one stream.

    Args:
        directory: Exists.
        name: Of the stream; segments are ``{name}.{number}.log``.
        segment_bytes: A segment that has reached this size is followed by a new one.
        open_segment: Opens a new segment for writing.
        packs: Whether records that are written together are compressed together.
    """

    def __init__(
        self, directory: Path, name: str, *, segment_bytes: int, open_segment: OpenSegment, packs: bool = False
    ) -> None:
        self._directory, self._name = directory, name
        self._segment_bytes = segment_bytes
        self._open = open_segment
        self._packs = packs
        self._segments: list[Segment] = []
        self._ranges: list[tuple[int, int]] = []
        self._number = 0
        self._file: Writable | None = None
        self._pending: deque[Kept] = deque()
        self._pending_bytes = 0
        self._frames: tuple[Path, int, list[Frame]] | None = None
        self._unpacked: tuple[Path, Frame, list[Kept]] | None = None
        self._recover()
        self.durable_last = self._segments[-1].last if self._segments else 0
        """The highest sequence that is on disk, as far as this log knows; 0 for none."""

    @property
    def size_bytes(self) -> int:
        """What the segments take on disk."""
        return sum(segment.size_bytes for segment in self._segments)

    @property
    def segment_count(self) -> int:
        """How many segments there are."""
        return len(self._segments)

    @property
    def pending_count(self) -> int:
        """Records that are in memory only."""
        return len(self._pending)

    @property
    def pending_bytes(self) -> int:
        """What they take."""
        return self._pending_bytes

    def ranges(self) -> list[tuple[int, int]]:
        """First and last of each unbroken run of sequences that was found at the start."""
        return list(self._ranges)

    def append(self, sequence: int, payload: bytes) -> None:
        """Take a record; it is on disk after the next :meth:`sync` that returns no error."""
        self._pending.append(Kept(sequence, sequence, payload))
        self._pending_bytes += len(payload) + _OVERHEAD_BYTES

    def sync(self) -> OSError | None:
        """Write what is in memory and make it durable; the error when the disk refused, and then it stays in memory."""
        try:
            while self._pending:
                self._write_group()
        except OSError as error:
            self._abandon()
            return error
        return None

    def drop_pending(self) -> int:
        """Forget the oldest record that is in memory only; returns its sequence."""
        record = self._pending.popleft()
        self._pending_bytes -= len(record.payload) + _OVERHEAD_BYTES
        return record.sequence

    def oldest(self) -> Segment | None:
        """The segment with the lowest sequences."""
        return self._segments[0] if self._segments else None

    def sealed(self) -> list[Segment]:
        """The segments that are not being written, oldest first."""
        return self._segments[:-1] if self._file is not None else list(self._segments)

    def sealed_until(self, sequence: int) -> list[Segment]:
        """Sealed segments that hold nothing above a sequence."""
        return [segment for segment in self.sealed() if segment.last <= sequence]

    def drop(self, segment: Segment) -> None:
        """Remove a segment."""
        if self._file is not None and segment is self._segments[-1]:
            self._seal()
        self._segments.remove(segment)
        with contextlib.suppress(OSError):
            segment.path.unlink()

    def read(self, sequence: int) -> Kept | None:
        """The record on disk that stands for a sequence; ``None`` when there is none, or it cannot be read."""
        for segment in self._segments:
            if segment.first <= sequence <= segment.last:
                record = self._read_from(segment, sequence)
                if record is not None:
                    return record
        return None

    def records(self, segment: Segment) -> Iterator[Kept]:
        """All records of a segment that can be read, in order.

        Raises:
            OSError: The file cannot be read.
        """
        last = segment.first - 1
        for record in records_of(segment.path.read_bytes()):
            if last < record.first and record.sequence <= segment.last:
                last = record.sequence
                yield record

    def replace(self, old: Sequence[Segment], records: Iterable[Kept], *, min_freed_bytes: int) -> int:
        """Put one segment in the place of some that follow each other.

        A power cut leaves the old ones or the new one. The new one takes the name of the first, and says by its ranges that the
        others, should they come back, are in it.

        Args:
            old: Sealed.
            records: What the new one holds; read while it is written.
            min_freed_bytes: Nothing is replaced when it would free less.

        Returns:
            How many bytes were freed; 0: nothing was replaced.

        Raises:
            OSError: The disk refused; nothing was replaced, as far as one can tell.
        """
        before = sum(segment.size_bytes for segment in old)
        temporary = self._directory / f"{self._name}.tmp"
        temporary.unlink(missing_ok=True)
        try:
            first, last, size = self._write_packs(temporary, records)
            if before - size < max(min_freed_bytes, 1) or not last:
                return 0
            temporary.replace(old[0].path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        old[0].first, old[0].last, old[0].size_bytes = first, last, size
        self._frames = self._unpacked = None
        sync_directory(self._directory)
        for segment in old[1:]:
            self.drop(segment)
        return before - size

    def next_readable(self, sequence: int) -> int:
        """The lowest sequence above this one that can be read; one above the last when there is none."""
        after = sequence + 1
        while after <= self.durable_last and self.read(after) is None:
            after += 1
        return after

    def close(self) -> None:
        """Close the segment that is being written."""
        self._seal()

    def _write_group(self) -> None:
        if self._file is None or self._segments[-1].size_bytes >= self._segment_bytes:
            self._begin()
        file, segment = self._file, self._segments[-1]
        if file is None:
            raise OSError("no segment is open")
        count, size = 0, 0
        while count < min(len(self._pending), GROUP) and size < self._segment_bytes // 2:
            size += len(self._pending[count].payload)
            count += 1
        group = [self._pending[index] for index in range(count)]
        data = encode_pack(group) if self._packs and count > 1 else b"".join(map(encode_single, group))
        file.append(data)
        file.sync()
        for _ in group:
            self.drop_pending()
        segment.first = segment.first or group[0].first
        segment.last = self.durable_last = group[-1].sequence
        segment.size_bytes += len(data)

    def _write_packs(self, path: Path, records: Iterable[Kept]) -> tuple[int, int, int]:
        """Write a file of packs; the first and last sequence in it, and its size."""
        file = self._open(path)
        first = last = size = 0
        group: list[Kept] = []
        bytes_in_group = 0

        def write() -> None:
            nonlocal first, last, size, bytes_in_group
            if group:
                data = encode_pack(group)
                file.append(data)
                first, last, size = first or group[0].first, group[-1].sequence, size + len(data)
                group.clear()
                bytes_in_group = 0

        try:
            for record in records:
                # What is packed together has no hole, since a pack says only where it begins and ends.
                if group and record.first != group[-1].sequence + 1:
                    write()
                group.append(record)
                bytes_in_group += len(record.payload)
                if len(group) >= GROUP or bytes_in_group >= self._segment_bytes // 2:
                    write()
            write()
            file.sync()
        finally:
            file.close()
        return first, last, size

    def _begin(self) -> None:
        self._seal()
        self._number += 1
        path = self._directory / f"{self._name}.{self._number:08d}.log"
        self._file = self._open(path)
        self._segments.append(Segment(path=path, first=0, last=0, size_bytes=0))
        sync_directory(self._directory)

    def _seal(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def _abandon(self) -> None:
        """Never again the same descriptor; a segment into which nothing was synced goes altogether."""
        was_open = self._file is not None
        self._seal()
        if was_open and self._segments and not self._segments[-1].first:
            self.drop(self._segments[-1])

    def _read_from(self, segment: Segment, sequence: int) -> Kept | None:
        try:
            frame = self._frame(segment, sequence)
            if frame is None:
                return None
            if self._unpacked is None or self._unpacked[:2] != (segment.path, frame):
                with segment.path.open("rb") as stream:
                    stream.seek(frame.start)
                    data = stream.read(frame.end - frame.start)
                alone = msgspec.structs.replace(frame, start=0, end=len(data))
                self._unpacked = (segment.path, frame, unpack(data, alone))
        except OSError as error:
            logger.warning("%s: cannot be read: %s", segment.path, error)
            return None
        records = self._unpacked[2]
        place = bisect_left(records, sequence, key=lambda record: record.sequence)
        return records[place] if place < len(records) and records[place].first <= sequence else None

    def _frame(self, segment: Segment, sequence: int) -> Frame | None:
        if self._frames is None or self._frames[:2] != (segment.path, segment.last):
            self._frames = (segment.path, segment.last, scan(segment.path.read_bytes()))
        frames = self._frames[2]
        place = bisect_left(frames, sequence, key=lambda frame: frame.last)
        return frames[place] if place < len(frames) and frames[place].first <= sequence else None

    def _recover(self) -> None:
        for path in self._directory.glob(f"{self._name}.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()
        for path in sorted(self._directory.glob(f"{self._name}.*.log")):
            number = path.name.split(".")[1]
            self._number = max(self._number, int(number) if number.isdigit() else 0)
            try:
                data = path.read_bytes()
            except OSError as error:
                logger.warning("%s: cannot be read: %s", path, error)
                continue
            self._recover_segment(path, data)
        if self._segments:
            # A kill leaves what was written and not synced, and it will be taken for durable from now on.
            _sync_file(self._segments[-1].path)

    def _recover_segment(self, path: Path, data: bytes) -> None:
        """Take what is new in a segment: what a failed sync had written already stands in two, and so does what was added up."""
        last = self._segments[-1].last if self._segments else 0
        frames = [frame for frame in scan(data) if frame.last > last]
        if not frames:
            with contextlib.suppress(OSError):
                path.unlink()
            return
        begin = max(frames[0].first, last + 1)
        for frame in frames:
            first = max(frame.first, last + 1)
            if first > frame.last:
                continue
            if self._ranges and self._ranges[-1][1] + 1 == first:
                self._ranges[-1] = (self._ranges[-1][0], frame.last)
            else:
                self._ranges.append((first, frame.last))
            last = frame.last
        end = frames[-1].end
        if end < len(data):
            _truncate(path, end)
        self._segments.append(Segment(path=path, first=begin, last=last, size_bytes=end))


def _truncate(path: Path, size_bytes: int) -> None:
    with contextlib.suppress(OSError), path.open("r+b") as stream:
        stream.truncate(size_bytes)
        os.fsync(stream.fileno())


def _sync_file(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("rb") as stream:
        os.fsync(stream.fileno())
