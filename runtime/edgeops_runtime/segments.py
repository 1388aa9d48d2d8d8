"""Append-only files of checksummed records with rising sequence numbers: one :class:`Log` for each stream of the outbox.

A record is framed as magic, length, CRC-32, sequence, payload. After a restart a new segment is begun, and so after any error:
when an fsync has failed, the kernel may have dropped the pages, and syncing the same descriptor again would report a success
that is none. What is not synced yet stays in memory and is written again. Quotas, gaps and acknowledgements are left to
:mod:`edgeops_runtime.outbox`.
"""

import contextlib
import logging
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from edgeops.files import sync_directory

logger = logging.getLogger(__name__)

_MAGIC = b"EoR1"
_HEADER = struct.Struct("<4sIIQ")
_SEQUENCE = struct.Struct("<Q")
_MAX_PAYLOAD_BYTES = 1 << 20


class Segment(msgspec.Struct, kw_only=True):
    """One file: its path, the first and last sequence in it, its size."""

    path: Path
    first: int
    last: int
    size_bytes: int


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


class Frame(msgspec.Struct, frozen=True):
    """Where a whole record lies in a segment."""

    sequence: int
    start: int
    end: int


def encode_frame(sequence: int, payload: bytes) -> bytes:
    """A record as it stands in a segment."""
    checksum = zlib.crc32(payload, zlib.crc32(_SEQUENCE.pack(sequence)))
    return _HEADER.pack(_MAGIC, len(payload), checksum, sequence) + payload


def scan(data: bytes) -> list[Frame]:
    """The whole records of a segment; what is damaged between them is skipped, and a torn tail is left out.

    >>> data = encode_frame(1, b"a") + b"damage" + encode_frame(3, b"c") + encode_frame(4, b"torn")[:-1]
    >>> [frame.sequence for frame in scan(data)]
    [1, 3]
    """
    frames: list[Frame] = []
    place = data.find(_MAGIC)
    while place >= 0 and place + _HEADER.size <= len(data):
        _, length, checksum, sequence = _HEADER.unpack_from(data, place)
        start = place + _HEADER.size
        payload = data[start : start + length] if length <= _MAX_PAYLOAD_BYTES else b""
        is_whole = len(payload) == length and checksum == zlib.crc32(payload, zlib.crc32(_SEQUENCE.pack(sequence)))
        if is_whole:
            frames.append(Frame(sequence, start, start + length))
        place = data.find(_MAGIC, start + length if is_whole else place + 1)
    return frames


class Log:
    """The segments of one stream.

    Args:
        directory: Exists.
        name: Of the stream; segments are ``{name}.{number}.log``.
        segment_bytes: A segment that has reached this size is followed by a new one.
        open_segment: Opens a new segment for writing.
    """

    def __init__(self, directory: Path, name: str, *, segment_bytes: int, open_segment: OpenSegment) -> None:
        self._directory, self._name = directory, name
        self._segment_bytes = segment_bytes
        self._open = open_segment
        self._segments: list[Segment] = []
        self._ranges: list[tuple[int, int]] = []
        self._number = 0
        self._file: Writable | None = None
        self._pending: deque[tuple[int, bytes]] = deque()
        self._pending_bytes = 0
        self._cache: tuple[Path, int, dict[int, Frame]] | None = None
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
        frame = encode_frame(sequence, payload)
        self._pending.append((sequence, frame))
        self._pending_bytes += len(frame)

    def sync(self) -> OSError | None:
        """Write what is in memory and make it durable; the error when the disk refused, and then it stays in memory."""
        try:
            while self._pending:
                self._write_batch()
        except OSError as error:
            self._abandon()
            return error
        return None

    def drop_pending(self) -> int:
        """Forget the oldest record that is in memory only; returns its sequence."""
        sequence, frame = self._pending.popleft()
        self._pending_bytes -= len(frame)
        return sequence

    def oldest(self) -> Segment | None:
        """The segment with the lowest sequences."""
        return self._segments[0] if self._segments else None

    def sealed_until(self, sequence: int) -> list[Segment]:
        """Segments that hold nothing above a sequence, the one that is being written left out."""
        active = self._segments[-1] if self._file is not None and self._segments else None
        return [segment for segment in self._segments if segment.last <= sequence and segment is not active]

    def drop(self, segment: Segment) -> None:
        """Remove a segment."""
        if self._file is not None and segment is self._segments[-1]:
            self._seal()
        self._segments.remove(segment)
        with contextlib.suppress(OSError):
            segment.path.unlink()

    def read(self, sequence: int) -> bytes | None:
        """The payload of a record that is on disk; ``None`` when it is not there, or cannot be read."""
        for segment in self._segments:
            if segment.first <= sequence <= segment.last:
                payload = self._read_from(segment, sequence)
                if payload is not None:
                    return payload
        return None

    def next_readable(self, sequence: int) -> int:
        """The lowest sequence above this one that can be read; one above the last when there is none."""
        after = sequence + 1
        while after <= self.durable_last and self.read(after) is None:
            after += 1
        return after

    def close(self) -> None:
        """Close the segment that is being written."""
        self._seal()

    def _write_batch(self) -> None:
        if self._file is None or self._segments[-1].size_bytes >= self._segment_bytes:
            self._begin()
        file, segment = self._file, self._segments[-1]
        if file is None:
            raise OSError("no segment is open")
        room = max(self._segment_bytes - segment.size_bytes, 1)
        count, size = 0, 0
        for _, frame in self._pending:
            if count and size + len(frame) > room:
                break
            count, size = count + 1, size + len(frame)
        file.append(b"".join(self._pending[index][1] for index in range(count)))
        file.sync()
        for _ in range(count):
            sequence = self.drop_pending()
            segment.first = segment.first or sequence
            segment.last = self.durable_last = sequence
        segment.size_bytes += size

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

    def _read_from(self, segment: Segment, sequence: int) -> bytes | None:
        try:
            if self._cache is None or self._cache[:2] != (segment.path, segment.last):
                frames = scan(segment.path.read_bytes())
                self._cache = (segment.path, segment.last, {frame.sequence: frame for frame in frames})
            frame = self._cache[2].get(sequence)
            if frame is None:
                return None
            with segment.path.open("rb") as stream:
                stream.seek(frame.start)
                return stream.read(frame.end - frame.start)
        except OSError as error:
            logger.warning("%s: cannot be read: %s", segment.path, error)
            return None

    def _recover(self) -> None:
        last = 0
        for path in sorted(self._directory.glob(f"{self._name}.*.log")):
            number = path.name.split(".")[1]
            self._number = max(self._number, int(number) if number.isdigit() else 0)
            try:
                data = path.read_bytes()
            except OSError as error:
                logger.warning("%s: cannot be read: %s", path, error)
                continue
            frames = [frame for frame in scan(data) if frame.sequence > last]
            if not frames:
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            for frame in frames:
                if self._ranges and self._ranges[-1][1] + 1 == frame.sequence:
                    self._ranges[-1] = (self._ranges[-1][0], frame.sequence)
                elif frame.sequence > last:
                    self._ranges.append((frame.sequence, frame.sequence))
                last = max(last, frame.sequence)
            end = frames[-1].end
            if end < len(data):
                _truncate(path, end)
            self._segments.append(
                Segment(path=path, first=frames[0].sequence, last=frames[-1].sequence, size_bytes=end)
            )


def _truncate(path: Path, size_bytes: int) -> None:
    with contextlib.suppress(OSError), path.open("r+b") as stream:
        stream.truncate(size_bytes)
        os.fsync(stream.fileno())
