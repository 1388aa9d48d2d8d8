"""Accepting connections on a socket that may be shared with other processes, and letting go of them without losing a request.

Each connection has a thread of its own, up to a limit; what one connection does is :mod:`edgeops_runtime.serving.http`.
"""

import contextlib
import os
import select
import socket
import stat
import threading
import time
from collections import deque
from pathlib import Path

from edgeops.errors import ConfigError
from edgeops_runtime.serving.http import Connection, Handler, KnownHeads, Limits, error_response, response_bytes

MAX_CONNECTIONS = 64
_BACKLOG = 512
_REFUSED_LINGER_S = 1.0
_MAX_REFUSED = 256
_PAUSE_S = 0.02
_IDLE_ENOUGH_S = 1.0
"""A connection that is idle for less may have its request on the way."""


class Listener:
    """Accepts connections on a listening socket and answers on them; its methods are for one thread."""

    def __init__(
        self,
        listening: socket.socket,
        handler: Handler,
        *,
        limits: Limits | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Prepare; nothing is accepted before :meth:`start`.

        Args:
            listening: Bound and listening; other processes may accept on it too.
            handler: Answers requests, on many threads.
            limits: What a client may do.
            max_connections: More are told to come again, with 503.
        """
        self._listening = listening
        self._handler = handler
        self._limits = limits or Limits()
        self._max_connections = max_connections
        self._heads = KnownHeads()
        self._open: set[Connection] = set()
        self._changed = threading.Condition()
        self._refused = _Refused()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._is_last_call = False
        self._is_over = False
        self._thread: threading.Thread | None = None

    @property
    def busy_s(self) -> float:
        """How long the oldest request that is not answered yet has been under way, in seconds; 0 when there is none."""
        with self._changed:
            return max((connection.busy_s for connection in self._open), default=0.0)

    def start(self) -> None:
        """Accept from now on."""
        if self._thread is not None:
            return
        # With several processes on one socket, a connection that poll() saw may be another's by the time of accept().
        self._listening.setblocking(False)
        self._thread = threading.Thread(target=self._accept_all, name="accept", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Accept no more until :meth:`start`; the next answer on each connection says ``Connection: close``."""
        thread, self._thread = self._thread, None
        if thread is not None:
            os.write(self._wake_write, b"x")
            thread.join()
        with self._changed:
            for connection in self._open:
                connection.finish()

    def drain(self, timeout_s: float) -> None:
        """Accept no more, answer what there is, and close every connection; the end of this listener.

        Connections that are still idle after ``timeout_s`` are closed; a request that has arrived by then is answered.
        """
        self.pause()
        with self._changed:
            self._changed.wait_for(lambda: not self._open or self._is_last_call, timeout_s)
        self.hang_up()
        with self._changed:
            self._changed.wait_for(lambda: not self._open, self._limits.request_s + self._limits.send_s)
        self._refused.close()
        if not self._is_over:
            self._is_over = True
            os.close(self._wake_read)
            os.close(self._wake_write)

    def hang_up(self) -> None:
        """Close idle connections now, and cut a running :meth:`drain` short. Called by any thread."""
        with self._changed:
            self._is_last_call = True
            for connection in self._open:
                connection.hang_up()
            self._changed.notify_all()

    def _accept_all(self) -> None:
        poller = select.poll()
        poller.register(self._listening, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        while True:
            events = dict(poller.poll(self._refused.wait_ms()))
            self._refused.collect()
            if self._wake_read in events:
                os.read(self._wake_read, 1)
                return
            if not events:
                continue
            try:
                accepted, _ = self._listening.accept()
            except BlockingIOError:
                continue
            except OSError:
                # No descriptors left, or the client gave up in between: wait a little, or until we are stopped.
                select.select([self._wake_read], [], [], _PAUSE_S)
                continue
            self._take(accepted)

    def _take(self, accepted: socket.socket) -> None:
        with self._changed:
            if len(self._open) >= self._max_connections:
                self._refused.add(accepted)
                self._make_room()
                return
            connection = Connection(accepted, self._handler, self._limits, heads=self._heads)
            self._open.add(connection)
        try:
            threading.Thread(target=self._serve, args=(connection,), name="connection", daemon=True).start()
        except (RuntimeError, MemoryError):
            # No memory for one more thread: this client has to come again, the others are served.
            with self._changed:
                self._open.discard(connection)
            self._refused.add(accepted)

    def _make_room(self) -> None:
        """Close the connection that is idle for longest, so that clients which only hold theirs do not lock the others out."""
        longest = max(self._open, key=lambda connection: connection.idle_s)
        if longest.idle_s > _IDLE_ENOUGH_S:
            longest.hang_up()

    def _serve(self, connection: Connection) -> None:
        try:
            connection.serve()
        finally:
            with self._changed:
                self._open.discard(connection)
                self._changed.notify_all()


class _Refused:
    """Connections that were told to come again; kept until the client has read that, for a second at most.

    Closing at once would reset the connection under the answer, since what the client sent was not read.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, socket.socket]] = deque()
        answer = error_response(503, "too many connections; try again", headers=(("Retry-After", "1"),))
        self._answer = response_bytes(answer)

    def add(self, connection: socket.socket) -> None:
        """Tell a client to come again."""
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.send(self._answer)
            connection.shutdown(socket.SHUT_WR)
        self._waiting.append((time.monotonic() + _REFUSED_LINGER_S, connection))
        if len(self._waiting) > _MAX_REFUSED:
            self._let_go(self._waiting.popleft()[1])

    def wait_ms(self) -> int | None:
        """How long until :meth:`collect` has something to do; ``None``: for ever."""
        if not self._waiting:
            return None
        return max(0, int((self._waiting[0][0] - time.monotonic()) * 1000)) + 1

    def collect(self) -> None:
        """Close those whose time is over."""
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            self._let_go(self._waiting.popleft()[1])

    def close(self) -> None:
        """Close all."""
        while self._waiting:
            self._let_go(self._waiting.popleft()[1])

    @staticmethod
    def _let_go(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.recv(1 << 16)
        connection.close()


def bind(address: str) -> socket.socket:
    """A listening socket.

    Args:
        address: ``host:port`` (port 0: any that is free) or ``unix:/path``; a socket file that nobody listens on is replaced.

    Raises:
        ConfigError: The address is none, or cannot be had.
    """
    listening: socket.socket | None = None
    try:
        if address.startswith("unix:"):
            path = Path(address.removeprefix("unix:"))
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            _remove_stale(path)
            listening.bind(str(path))
        else:
            host, separator, port = address.rpartition(":")
            if not separator or not port.isdigit():
                raise ConfigError(f"address {address!r}: expected host:port or unix:/path")
            host = host.strip("[]") or "127.0.0.1"
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listening = socket.socket(family, socket.SOCK_STREAM)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, int(port)))
        listening.listen(_BACKLOG)
    except (OSError, OverflowError, ValueError) as error:
        if listening is not None:
            listening.close()
        raise ConfigError(f"address {address!r}: cannot listen on it: {error}") from error
    return listening


def address_of(listening: socket.socket) -> str:
    """The address of a listening socket, as :func:`bind` takes it."""
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if listening.family == socket.AF_INET6 else name[0]
    return f"{host}:{name[1]}"


def _remove_stale(path: Path) -> None:
    """Remove a socket file whose owner is gone.

    Raises:
        OSError: Somebody listens on it, or it is another kind of file.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(f"{path} exists and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise FileExistsError(f"somebody listens on {path}")
