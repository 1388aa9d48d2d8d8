"""What reads bytes that somebody else wrote: one function a target, which takes any bytes and raises where a promise is broken.

A target is run over its corpus and over mutations of it by ``test_fuzz.py``, and for hours by ``scripts/fuzz``, which keeps
what reaches new code. A promise is: no exception but those that are documented, and the same answer however the bytes came.
"""

import contextlib
import shutil
import socket
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from edgeops.bundle import MANIFEST_FILE, open_bundle, read_manifest, unpack
from edgeops.errors import ConfigError, EdgeOpsError, InputError, ManifestError
from edgeops.manifest import decode_manifest
from edgeops.messages import Notice, decode_record
from edgeops.signals import decode_reference
from edgeops.tensors import TensorSpec
from edgeops_runtime.outbox import Outbox, Stamp, Stream
from edgeops_runtime.serving.codec import Codec, decode_request
from edgeops_runtime.serving.http import Connection, KnownHeads, Limits, Request, Response
from edgeops_runtime.serving.vectors import read_arrays

# ---- HTTP ------------------------------------------------------------------------------------------------------------

LIMITS = Limits(header_bytes=600, body_bytes=2000, idle_s=5.0, request_s=5.0, send_s=5.0)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_MAX_STREAM = 8000


class Wire:
    """A client that has sent all it will, in pieces, and takes every answer."""

    family = socket.AF_INET

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = [piece for piece in pieces if piece]
        self.received = bytearray()
        self.is_closed = False

    def recv(self, size: int) -> bytes:
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if len(piece) > size:
            self._pieces.insert(0, piece[size:])
        return piece[:size]

    def recv_into(self, room: memoryview) -> int:
        data = self.recv(len(room))
        room[: len(data)] = data
        return len(data)

    def sendall(self, data: bytes) -> None:
        self.received += data

    def sendmsg(self, parts: list[bytes]) -> int:
        self.received += b"".join(parts)
        return sum(map(len, parts))

    def close(self) -> None:
        self.is_closed = True

    def setsockopt(self, *_: object) -> None: ...

    def setblocking(self, _: bool) -> None: ...

    def shutdown(self, _: int) -> None: ...


def converse(pieces: list[bytes], heads: KnownHeads) -> tuple[bytes, list[tuple[object, ...]]]:
    """What a client gets, and what the handler was asked."""
    asked: list[tuple[object, ...]] = []

    def answer(request: Request) -> Response:
        body = bytes(request.body)
        asked.append((request.method, request.path, sorted(request.headers.items()), body, request.keep_alive))
        return Response(200, (b"%d" % zlib.crc32(body),))

    wire = Wire(pieces)
    Connection(wire, answer, LIMITS, heads=heads).serve()  # type: ignore[arg-type]  # it is as much of a socket as is used
    if not wire.is_closed:
        raise AssertionError("the connection was left open")
    return bytes(wire.received).replace(_CONTINUE, b""), asked


def http(data: bytes) -> None:
    """A stream of requests: the same answers however it is cut, and whether its heads are known or not.

    The first two bytes say how it is cut.
    """
    seed, stream = int.from_bytes(data[:2], "little"), data[2 : 2 + _MAX_STREAM]
    heads = KnownHeads()
    whole = converse([stream], heads)
    check_answers(whole[0], asked=len(whole[1]))
    cuts = sorted(place % (len(stream) + 1) for place in (seed, seed * 31, seed * 17 + 7, seed >> 3))
    pieces = [stream[low:high] for low, high in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    single = [stream[place : place + 1] for place in range(min(len(stream), 100))] + [stream[100:]]
    for other, known in (([stream], heads), (pieces, heads), (pieces, KnownHeads()), (single, KnownHeads())):
        found = converse(other, known)
        if found[1] != whole[1] or not _are_alike(found[0], whole[0]):
            raise AssertionError(f"in {len(other)} pieces {found}, whole {whole}")


def _are_alike(one: bytes, other: bytes) -> bool:
    """Of a header that does not end it depends on the pieces whether its size is noticed before what else is wrong."""
    if b"HTTP/1.1 431 " in one + other:
        return one.partition(b"HTTP/1.1 4")[0] == other.partition(b"HTTP/1.1 4")[0]
    return one == other


def check_answers(received: bytes, *, asked: int) -> None:
    """One whole answer for each request, and at most one that names a broken rule."""
    count = 0
    while received:
        head, separator, rest = received.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        version, status, _ = lines[0].split(b" ", 2)
        if version != b"HTTP/1.1" or not separator:
            raise AssertionError(f"not an answer: {received!r}")
        fields = dict(line.split(b": ", 1) for line in lines[1:])
        size = int(fields[b"Content-Length"])
        is_head = not rest.startswith(b"{") and not rest[:1].isdigit()
        count += 1
        if status != b"200" and count != asked + 1:
            raise AssertionError(f"{status!r} in the middle")
        received = rest if is_head else rest[size:]
    if count not in {asked, asked + 1}:
        raise AssertionError(f"{asked} requests, {count} answers")


# ---- inference requests ----------------------------------------------------------------------------------------------


def request(data: bytes) -> None:
    """The body of an inference request; the first two bytes say where the JSON ends, 65535 that there is no binary part."""
    length, body = int.from_bytes(data[:2], "little"), data[2:]
    headers = {} if length == (1 << 16) - 1 else {b"inference-header-content-length": b"%d" % length}
    asked = Request(b"POST", b"/v2/models/m/infer", headers, body, keep_alive=True)
    codec = Codec((TensorSpec("y", "FP32", ("batch", 2)),), model="m", version="1.0.0")
    try:
        message, feeds = decode_request(asked)
    except InputError:
        _refused(codec, asked)
        return
    for tensor in message.inputs:
        if feeds[tensor.name].shape != tuple(tensor.shape):
            raise AssertionError(f"{tensor.name}: {feeds[tensor.name].shape} for {tensor.shape}")
    with contextlib.suppress(InputError):  # An output that there is not.
        first, again = codec.decode(asked), codec.decode(asked)
        _same(feeds, first.feeds)
        _same(feeds, again.feeds)
        outputs = {"y": np.zeros((1, 2), np.float32)}
        one, other = codec.encode(first, outputs), codec.encode(again, outputs)
        if b"".join(map(bytes, one.body)) != b"".join(map(bytes, other.body)):
            raise AssertionError("what is known is answered otherwise")


def _refused(codec: Codec, asked: Request) -> None:
    try:
        codec.decode(asked)
    except InputError:
        return
    raise AssertionError("taken by the codec, and refused by decode_request")


def _same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    if left.keys() != right.keys():
        raise AssertionError(f"{sorted(left)} and {sorted(right)}")
    for name, array in left.items():
        if (
            array.dtype != right[name].dtype
            or array.shape != right[name].shape
            or array.tobytes() != right[name].tobytes()
        ):
            raise AssertionError(f"{name}: {array!r} and {right[name]!r}")


# ---- bundles ---------------------------------------------------------------------------------------------------------


def bundle(data: bytes) -> None:
    """A file of a bundle; the first byte says which."""
    kind, content = data[:1], data[1:]
    with contextlib.suppress(EdgeOpsError):
        match kind:
            case b"m":
                decode_manifest(content)
            case b"e":
                read_manifest(content, keys=None)
            case b"r":
                decode_reference(content)
            case b"z":
                with _directory() as directory:
                    (directory / "a.npz").write_bytes(content)
                    read_arrays(directory / "a.npz")
            case b"t":
                with _directory() as directory:
                    (directory / "a.tar").write_bytes(content)
                    _unpack(directory)
            case b"d":
                with _directory() as directory:
                    (directory / MANIFEST_FILE).write_bytes(content)
                    open_bundle(directory, partial=True)


def _unpack(directory: Path) -> None:
    inside = directory / "inside"
    inside.mkdir()
    try:
        unpacked = unpack(directory / "a.tar", inside / "bundle")
    except ManifestError:
        if list(inside.iterdir()):
            raise AssertionError("something was left behind") from None
        raise
    names = {str(path.relative_to(unpacked.path)) for path in unpacked.path.rglob("*") if not path.is_dir()}
    if names != {MANIFEST_FILE, *unpacked.manifest.files} or {path.name for path in directory.iterdir()} != {
        "inside",
        "a.tar",
    }:
        raise AssertionError(f"unpacked {names}")


# ---- the outbox ------------------------------------------------------------------------------------------------------

_STAMP = Stamp(boot=1, time=100.0, uptime_s=1.0, clock_trusted=True)
_EPOCH = "00112233445566aa"
_STATE = b'{"epoch":"%s","acked":{"event":1},"last":{"event":4},"gaps":{}}' % _EPOCH.encode()


def outbox(data: bytes) -> None:
    """What lies in an outbox's directory at a start: the first byte says whether the state or a segment is damaged.

    Whatever it is, the outbox opens, says of every number what became of it, goes on, and is the same when it is opened again.
    """
    kind, content = data[:1], data[1:]
    with _directory() as directory:
        (directory / "state.json").write_bytes(content if kind == b"s" else _STATE)
        if kind != b"s":
            half = content.find(b"|split|")
            parts = [content] if half < 0 else [content[:half], content[half + 7 :]]
            for number, part in enumerate(parts, 1):
                (directory / f"event.{number:08d}.log").write_bytes(part)
        try:
            opened = _open(directory)
        except ConfigError:
            return
        _check_outbox(opened)
        last = opened.last(Stream.EVENT)
        if last < 1 << 62:
            sequence = opened.append(Stream.EVENT, lambda number: _notice(opened.epoch, number))
            if sequence != last + 1:
                raise AssertionError(f"after {last} came {sequence}")
        opened.sync()
        _check_outbox(opened)
        again = _open(directory)
        if [again.last(stream) for stream in Stream] != [opened.last(stream) for stream in Stream]:
            raise AssertionError("opened again it is another")
        _check_outbox(again)
        for each in (opened, again):
            each.close()


def _open(directory: Path) -> Outbox:
    return Outbox(directory, quota_bytes=1 << 20, stamp=lambda: _STAMP)


def _check_outbox(opened: Outbox) -> None:
    for stream in Stream:
        after = opened.acked(stream)
        for entry in opened.read(stream, after=0, limit=1 << 12):
            first = entry.sequence
            with contextlib.suppress(EdgeOpsError):  # A payload with the right checksum may still be no record.
                record = decode_record(entry.payload, where=stream.value)
                if record.sequence == entry.sequence:
                    first = getattr(record, "first", 0) or first
            # A gap may begin before what was acknowledged since.
            is_next = first <= after + 1 if after == opened.acked(stream) else first == after + 1
            if not is_next or entry.sequence < max(first, after + 1):
                raise AssertionError(f"{stream}: after {after} came {first} to {entry.sequence}")
            after = entry.sequence


def _notice(epoch: str, sequence: int) -> Notice:
    return Notice(
        epoch=epoch, stream="event", sequence=sequence, boot=1, time=0.0, uptime_s=0.0, kind="k", text="after"
    )


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    root = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    directory = Path(tempfile.mkdtemp(prefix="edgeops-fuzz-", dir=root))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


TARGETS: dict[str, Callable[[bytes], None]] = {"http": http, "request": request, "bundle": bundle, "outbox": outbox}
CORPUS = Path(__file__).with_name("corpus")


def corpus(target: str) -> list[bytes]:
    """The inputs that are kept for a target, in order."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]
