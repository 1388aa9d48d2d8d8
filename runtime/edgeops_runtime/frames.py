"""How records stand in a segment: framed with a checksum, alone or packed by the group. Pure.

A *single* is magic, length, CRC-32, sequence, payload. A *pack* holds records that were written together, compressed together:
telemetry windows differ little, so a group takes a sixth of what its records take one by one. Each record of a pack has the range
of sequences that it stands for, since the outbox adds old windows up when it runs out of room.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence

import msgspec

_MAGIC = b"EoR"
_SINGLE, _PACK = b"EoR1", b"EoR2"
_SINGLE_HEADER = struct.Struct("<4sIIQ")
_PACK_HEADER = struct.Struct("<4sIIQQ")
_SEQUENCE = struct.Struct("<Q")
_RANGE = struct.Struct("<QQ")
_MAX_PAYLOAD_BYTES = 1 << 20
_MAX_PLAIN_BYTES = 16 << 20
_LEVEL = 6


class Kept(msgspec.Struct, frozen=True):
    """A record: the sequences that it stands for, both included, and its bytes on the wire."""

    first: int
    sequence: int
    payload: bytes


class Frame(msgspec.Struct, frozen=True, gc=False):
    """Where a whole frame lies in a segment, and the sequences in it."""

    first: int
    last: int
    start: int
    end: int
    is_pack: bool


class _Packed(msgspec.Struct, frozen=True, array_like=True):
    first: int
    sequence: int
    is_deflated: bool
    data: bytes


_PACKED: msgspec.msgpack.Decoder[list[_Packed]] = msgspec.msgpack.Decoder(list[_Packed])


def encode_single(record: Kept) -> bytes:
    """A record by itself, which stands for its own sequence alone."""
    payload = record.payload
    checksum = zlib.crc32(payload, zlib.crc32(_SEQUENCE.pack(record.sequence)))
    return _SINGLE_HEADER.pack(_SINGLE, len(payload), checksum, record.sequence) + payload


def encode_pack(records: Sequence[Kept]) -> bytes:
    """Records whose ranges follow each other, compressed together.

    >>> data = encode_pack([Kept(1, 4, b"sum"), Kept(5, 5, b"five")])
    >>> [(frame.first, frame.last) for frame in scan(data)]
    [(1, 5)]
    >>> unpack(data, scan(data)[0])
    [Kept(first=1, sequence=4, payload=b'sum'), Kept(first=5, sequence=5, payload=b'five')]
    """
    first, last = records[0].first, records[-1].sequence
    payload = zlib.compress(msgspec.msgpack.encode([_inflated(record) for record in records]), _LEVEL)
    checksum = zlib.crc32(payload, zlib.crc32(_RANGE.pack(first, last)))
    return _PACK_HEADER.pack(_PACK, len(payload), checksum, first, last) + payload


def scan(data: bytes) -> list[Frame]:
    """The whole frames of a segment; what is damaged between them is skipped, and a torn tail is left out.

    >>> one, three, four = (encode_single(Kept(number, number, b"x")) for number in (1, 3, 4))
    >>> [frame.last for frame in scan(one + b"damage" + three + four[:-1])]
    [1, 3]
    """
    frames: list[Frame] = []
    place = data.find(_MAGIC)
    while place >= 0:
        frame = _frame_at(data, place)
        if frame is not None:
            frames.append(frame)
        place = data.find(_MAGIC, frame.end if frame is not None else place + 1)
    return frames


def unpack(data: bytes, frame: Frame) -> list[Kept]:
    """The records of a frame of these bytes; none when they cannot be made out, whatever the checksum says."""
    payload = data[frame.start : frame.end]
    if not frame.is_pack:
        return [Kept(frame.first, frame.last, payload)]
    try:
        inflater = zlib.decompressobj()
        plain = inflater.decompress(payload, _MAX_PLAIN_BYTES)
        return [
            Kept(each.first, each.sequence, zlib.compress(each.data, _LEVEL) if each.is_deflated else each.data)
            for each in _PACKED.decode(plain)
        ]
    except (zlib.error, msgspec.DecodeError):
        return []


def records_of(data: bytes) -> Iterator[Kept]:
    """All whole records of a segment, one frame at a time."""
    for frame in scan(data):
        yield from unpack(data, frame)


def _inflated(record: Kept) -> _Packed:
    try:
        inflater = zlib.decompressobj()
        plain = inflater.decompress(record.payload, _MAX_PLAIN_BYTES)
    except zlib.error:
        return _Packed(record.first, record.sequence, False, record.payload)
    if not inflater.eof or inflater.unused_data:
        return _Packed(record.first, record.sequence, False, record.payload)
    return _Packed(record.first, record.sequence, True, plain)


def _frame_at(data: bytes, place: int) -> Frame | None:
    """The frame that begins here, if it is whole."""
    is_pack = data[place : place + 4] == _PACK
    header = _PACK_HEADER if is_pack else _SINGLE_HEADER
    start = place + header.size
    if start > len(data) or data[place : place + 4] not in {_SINGLE, _PACK}:
        return None
    _, length, checksum, *span = header.unpack_from(data, place)
    end = start + length
    if length > _MAX_PAYLOAD_BYTES or end > len(data):
        return None
    covered = (_RANGE if is_pack else _SEQUENCE).pack(*span)
    if checksum != zlib.crc32(memoryview(data)[start:end], zlib.crc32(covered)) or span[0] > span[-1]:
        return None
    return Frame(span[0], span[-1], start, end, is_pack)
