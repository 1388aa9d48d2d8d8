"""HTTP/1.1 on one connection: requests in, answers out, nothing about what they mean.

httptools (llhttp) parses; a head that was parsed before, byte for byte, is recognised and not parsed again. This module bounds
what a client may send and how long it may take, answers pipelined requests in order, and sends every answer with one call.
Accepting connections and ending them is :mod:`edgeops_runtime.serving.listener`.
"""

import contextlib
import ctypes
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus

import httptools
import msgspec

_RECEIVE_BYTES = 1 << 16
_LINGER_S = 2.0
_LINGER_BYTES = 64 << 20
_MAX_HEADS = 64
_HEAD_END = b"\r\n\r\n"
_TEXT_LENGTH = b"inference-header-content-length"
_UNUSUAL = {b"transfer-encoding", b"expect", b"upgrade", b"trailer"}
_JOINED_BYTES = 16 << 10
_ALIGNMENT = 64
_CREDENTIALS = struct.Struct("iII")
_SHORTEST_WAIT_S = 0.001  # A kernel timeout of zero would wait for ever.


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may do.

    Attributes:
        header_bytes: Of the request line and all headers.
        body_bytes: Of the body.
        idle_s: Between two requests.
        request_s: From the first byte of a request to its last.
        send_s: Without taking a byte of the answer.
    """

    header_bytes: int = 16 << 10
    body_bytes: int = 64 << 20
    idle_s: float = 75.0
    request_s: float = 10.0
    send_s: float = 10.0


class Request(msgspec.Struct):
    """A whole request.

    Attributes:
        path: Without the query, as sent.
        headers: By lower-case name; of a header that comes several times, the last. Not to be written to.
        keep_alive: Whether the client may send another one on this connection.
        peer_uid: Whose process the caller is, where it came over a Unix socket.
        deadline: When an answer is of no use any more, by ``time.perf_counter_ns()``; HTTP has none.
    """

    method: bytes
    path: bytes
    headers: dict[bytes, bytes]
    body: bytes | memoryview
    keep_alive: bool
    peer_uid: int | None = None
    deadline: int | None = None


class Response(msgspec.Struct):
    """An answer.

    Attributes:
        headers: Beside those that every answer has.
        body: Its parts, sent one after the other; a memory view is one of bytes.
        after: Called when the answer is out.
        head: Its status line and headers, for a connection that goes on, where they are known already.
    """

    status: int
    body: tuple[bytes | memoryview, ...] = ()
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    after: Callable[[], None] | None = None
    head: bytes = b""


Handler = Callable[[Request], Response]


def error_response(status: int, message: str, *, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """An answer that says what was wrong, as the Open Inference Protocol has it."""
    return Response(status, (msgspec.json.encode({"error": message}),), headers=headers)


class KnownHeads:
    """Heads of requests that were parsed before; shared by connections, since clients of one kind send the same.

    A head is known by its exact bytes, and only where a ``Content-Length`` says how long the body is, so that recognising one
    means the same as parsing it.
    """

    def __init__(self) -> None:
        self._heads: dict[bytes, tuple[Request, int]] = {}

    def find(self, head: bytes) -> tuple[Request, int] | None:
        """The request that a head makes, without its body, and the length of that; ``None`` when it has to be parsed."""
        return self._heads.get(head)

    def learn(self, head: bytes, request: Request) -> None:
        """Remember a head that was parsed, if it is of the plainest kind.

        Args:
            head: What was received, from the first byte of the request to the first empty line.
            request: What the parser made of it.
        """
        headers = request.headers
        size = headers.get(b"content-length", b"")
        if not size.isdigit() or int(size[:20]) != len(request.body) or _UNUSUAL & headers.keys():
            return
        # The parser also takes empty lines before a request and lines that end without CR; then the first empty line need not be
        # where the body begins.
        if not head.startswith(request.method + b" ") or head.count(b"\n") != head.count(b"\r\n"):
            return
        if len(self._heads) >= _MAX_HEADS:
            self._heads.clear()
        self._heads[head] = (msgspec.structs.replace(request, body=b""), len(request.body))


class Connection:
    """One client's connection; :meth:`serve` runs on a thread of its own until it ends."""

    def __init__(
        self, connection: socket.socket, handler: Handler, limits: Limits, *, heads: KnownHeads | None = None
    ) -> None:
        self._socket = connection
        self._handler = handler
        self._limits = limits
        self._reader = _Reader(limits, heads or KnownHeads(), _peer_uid(connection))
        self._is_last = False
        self._idle_since: float | None = time.monotonic()
        self._asked_at: float | None = None

    @property
    def busy_s(self) -> float:
        """How long the handler has been at a request, in seconds; 0 while it is not. What a slow client takes is not in it."""
        begun = self._asked_at
        return time.monotonic() - begun if begun is not None else 0.0

    @property
    def idle_s(self) -> float:
        """Since when there was no request, in seconds; 0 while one is there, or has begun to come."""
        since = self._idle_since
        return time.monotonic() - since if since is not None and not self._reader.has_begun else 0.0

    def serve(self) -> None:
        """Answer until the client leaves, breaks a rule, or :meth:`finish` was called; then close."""
        try:
            self._prepare()
            while self._receive() and self._answer_all():
                pass
        except OSError:
            return  # The client is gone or does not read; nobody is left to tell.
        finally:
            self._socket.close()

    def finish(self) -> None:
        """Let the next answer be the last one on this connection. Called by any thread."""
        self._is_last = True

    def hang_up(self) -> None:
        """Take no further request; one that is there, or has begun to come, is answered. Called by any thread."""
        self._is_last = True
        if not self._reader.has_begun:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RD)

    def _prepare(self) -> None:
        if self._socket.family != socket.AF_UNIX:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Kernel timeouts: Python's would cost a poll() before each call.
        self._socket.setblocking(True)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(self._limits.send_s))
        self._wait_at_most(self._limits.idle_s)

    def _receive(self) -> bool:
        """Read until at least one request is complete or a rule is broken; ``False`` when the client is gone."""
        reader = self._reader
        deadline = time.monotonic() + self._limits.request_s if reader.has_begun else 0.0
        if deadline:
            self._wait_at_most(self._limits.request_s)
        while not reader.requests and reader.problem is None:
            if not self._receive_some():
                return False
            if reader.requests or reader.problem is not None:
                break
            if reader.wants_continue():
                self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            deadline = deadline or time.monotonic() + self._limits.request_s
            self._wait_at_most(max(deadline - time.monotonic(), _SHORTEST_WAIT_S))
        if deadline:
            self._wait_at_most(self._limits.idle_s)
        return True

    def _receive_some(self) -> bool:
        """Read what is there; ``False`` when the client is gone, or idle for too long."""
        reader = self._reader
        try:
            if reader.room is not None:
                size = self._socket.recv_into(reader.room)
                reader.fill(size)
                return size > 0
            data = self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            reader.problem = (408, f"the request did not arrive within {self._limits.request_s:g} s")
            return reader.has_begun
        if data and reader.feed(data):
            self._is_last = True
        return bool(data)

    def _answer_all(self) -> bool:
        """Answer what was read; whether the connection goes on."""
        reader = self._reader
        self._idle_since = None
        while reader.requests:
            request = reader.requests.popleft()
            self._asked_at = time.monotonic()
            response = self._handler(request)
            self._asked_at = None
            # What a client sent before it could know that this is the end is still answered.
            goes_on = request.keep_alive and (not self._is_last or bool(reader.requests) or reader.has_begun)
            self._send(response, goes_on=goes_on, is_head=request.method == b"HEAD")
            if response.after is not None:
                response.after()
            if not goes_on:
                return False
        if reader.problem is not None:
            self._send(error_response(*reader.problem), goes_on=False)
            self._linger()
            return False
        self._idle_since = time.monotonic()
        return True

    def _send(self, response: Response, *, goes_on: bool, is_head: bool = False) -> None:
        body = response.body
        start = response.head if response.head and goes_on else _head(response, goes_on=goes_on)
        if is_head:
            self._socket.sendall(start)
        elif sum(map(len, body)) < _JOINED_BYTES:
            self._socket.sendall(b"".join((start, *body)))
        else:
            send_all(self._socket, [start, *body])

    def _linger(self) -> None:
        """Close so that the answer arrives: data that is unread at close() would reset the connection under it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            deadline, taken = time.monotonic() + _LINGER_S, 0
            while taken < _LINGER_BYTES and (left := deadline - time.monotonic()) > 0:
                self._wait_at_most(left)
                data = self._socket.recv(_RECEIVE_BYTES)
                if not data:
                    return
                taken += len(data)

    def _wait_at_most(self, seconds: float) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))


class _Reader:
    """Feeds the parser and collects what it finds: whole requests, or the rule that was broken."""

    def __init__(self, limits: Limits, heads: KnownHeads, peer_uid: int | None) -> None:
        self.requests: deque[Request] = deque()
        self.problem: tuple[int, str] | None = None
        self.has_begun = False
        self.room: memoryview | None = None
        """Where the rest of a body goes that is received without the parser; see :meth:`fill`."""
        self._heads = heads
        self._peer_uid = peer_uid
        self._first = b""
        self._known: Request | None = None
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._is_in_headers = False
        self._unfinished_bytes = 0
        self._has_continued = False
        self._reset()

    def feed(self, data: bytes) -> bool:
        """Parse what came; ``True`` when nothing after it on this connection is for us."""
        if not self.has_begun:
            if self._recognise(data):
                return False
            self._first = data
        unfinished = self._headers if self._is_in_headers else None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return True  # An upgrade is declined by answering in HTTP/1.1.
        except httptools.HttpParserError as error:
            self._refuse(400, f"not a valid HTTP/1.1 request: {error}")
        # A header that never ends is kept by the parser, unseen by on_header. One that began in these bytes is another.
        goes_on = self._is_in_headers and self._headers is unfinished
        self._unfinished_bytes = self._unfinished_bytes + len(data) if goes_on else 0
        if self._unfinished_bytes > self._limits.header_bytes:
            self._refuse_headers()
        return False

    def fill(self, size: int) -> None:
        """So many bytes were received into :attr:`room`."""
        if self.room is None or self._known is None:
            return
        self.room = self.room[size:]
        if not self.room:
            self.requests.append(self._known)
            self.room = self._known = None
            self.has_begun = False

    def wants_continue(self) -> bool:
        """Whether the client waits for ``100 Continue`` before it sends the body; true once for a request."""
        waits = self.has_begun and self.room is None and not self._is_in_headers and not self._has_continued
        if waits and self._headers.get(b"expect", b"").lower() == b"100-continue":
            self._has_continued = True
            return True
        return False

    def on_message_begin(self) -> None:
        """The parser: a request begins."""
        self._reset()
        self.has_begun = self._is_in_headers = True

    def on_url(self, url: bytes) -> None:
        """The parser: a piece of the request line."""
        self._url += url
        self._count_headers(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser: a header."""
        self._headers[name.lower()] = value
        self._count_headers(len(name) + len(value) + 4)

    def on_headers_complete(self) -> None:
        """The parser: the headers are over."""
        self._is_in_headers = False
        size = self._headers.get(b"content-length", b"")
        if size.isdigit() and int(size[:20]) > self._limits.body_bytes:
            self._refuse_body()

    def on_body(self, data: bytes) -> None:
        """The parser: a piece of the body."""
        self._body_bytes += len(data)
        if self._body_bytes > self._limits.body_bytes:
            self._refuse_body()
        elif self.problem is None:
            self._parts.append(data)

    def on_message_complete(self) -> None:
        """The parser: a request is whole."""
        self.has_begun = False
        if self.problem is not None:
            return
        parts = self._parts
        request = Request(
            method=self._parser.get_method(),
            path=self._url.partition(b"?")[0],
            headers=self._headers,
            body=parts[0] if len(parts) == 1 else b"".join(parts),
            keep_alive=self._parser.should_keep_alive(),
            peer_uid=self._peer_uid,
        )
        self.requests.append(request)
        # Only the first request in what was received surely begins where that begins.
        first, self._first = self._first, b""
        end = first.find(_HEAD_END)
        if end > 0 and self._header_bytes:
            self._heads.learn(first[: end + len(_HEAD_END)], request)

    def _recognise(self, data: bytes) -> bool:
        """Take a request whose head is known; ``False``: it has to be parsed."""
        start = data.find(_HEAD_END) + len(_HEAD_END)
        found = self._heads.find(data[:start])
        if found is None:
            return False
        known, size = found
        came = len(data) - start
        if came > size or size > self._limits.body_bytes or self.problem is not None:
            return False
        if came == size:
            self.requests.append(
                Request(known.method, known.path, known.headers, data[start:], known.keep_alive, self._peer_uid)
            )
            return True
        # The binary part begins at a multiple of 64 bytes, so that tensors in it need not be moved.
        text = known.headers.get(_TEXT_LENGTH, b"")
        shift = -int(text[:20]) % _ALIGNMENT if text.isdigit() else 0
        whole = aligned(size + _ALIGNMENT)[shift : shift + size]
        whole[:came] = data[start:]
        self._known = Request(known.method, known.path, known.headers, whole, known.keep_alive, self._peer_uid)
        self.room, self.has_begun = whole[came:], True
        return True

    def _reset(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self._header_bytes = 0
        self._body_bytes = 0
        self._has_continued = False

    def _count_headers(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self._limits.header_bytes:
            self._refuse_headers()

    def _refuse_headers(self) -> None:
        self._refuse(431, f"expected a request line and headers of at most {self._limits.header_bytes} bytes")

    def _refuse_body(self) -> None:
        self._parts.clear()
        self._refuse(413, f"expected a body of at most {self._limits.body_bytes} bytes")

    def _refuse(self, status: int, message: str) -> None:
        if self.problem is None:
            self.problem = (status, message)


def send_all(connection: socket.socket, parts: Sequence[bytes | memoryview]) -> None:
    """Send the parts with one call; with more only when the client is slower than we are.

    Raises:
        OSError: The client is gone, or took nothing for too long.
    """
    sent = connection.sendmsg(parts)
    for part in parts:
        if sent >= len(part):
            sent -= len(part)
        else:
            connection.sendall(memoryview(part)[sent:])
            sent = 0


def aligned(size: int) -> memoryview:
    """Writable memory that begins at a multiple of 64 bytes."""
    buffer = bytearray(size + _ALIGNMENT)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % _ALIGNMENT
    return memoryview(buffer)[start : start + size]


def response_bytes(response: Response) -> bytes:
    """An answer after which the connection ends, in one piece."""
    return b"".join([_head(response, goes_on=False), *response.body])


def usual_head(response: Response) -> bytes:
    """What :attr:`Response.head` is to be for an answer like this one."""
    return _head(response, goes_on=True)


def _head(response: Response, *, goes_on: bool) -> bytes:
    return _head_of(response.status, response.content_type, response.headers, sum(map(len, response.body)), goes_on)


@lru_cache(maxsize=256)
def _head_of(status: int, content_type: str, headers: tuple[tuple[str, str], ...], size: int, goes_on: bool) -> bytes:
    more = "".join([f"{name}: {value}\r\n" for name, value in headers])
    return (
        f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {size}\r\n{more}"
        f"Connection: {'keep-alive' if goes_on else 'close'}\r\n\r\n"
    ).encode("latin-1", "replace")


def _peer_uid(connection: socket.socket) -> int | None:
    if connection.family != socket.AF_UNIX:
        return None
    _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))


_PHRASES = {status.value: status.phrase for status in HTTPStatus}
