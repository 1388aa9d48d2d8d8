"""A TCP proxy in front of a broker that loses, stalls and drops on demand; a thread for each direction of each connection."""

import contextlib
import socket
import threading
from typing import Self

_PUBACK = 4


class TcpProxy:
    """Listens on a port of its own.

    Attributes:
        swallows_pubacks: Whether connections that are made from now on lose what the broker acknowledges.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.swallows_pubacks = False
        self._connections: list[_Connection] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(10)
        self.drop()

    def stall(self) -> None:
        """Connections that exist stay open, and carry nothing any more: as when a router forgets them."""
        with self._lock:
            for connection in self._connections:
                connection.is_stalled.set()

    def drop(self) -> None:
        """End every connection."""
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
                broker = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:
                return
            with self._lock:
                self._connections.append(_Connection(client, broker, swallows_pubacks=self.swallows_pubacks))


class _Connection:
    def __init__(self, client: socket.socket, broker: socket.socket, *, swallows_pubacks: bool) -> None:
        self.is_stalled = threading.Event()
        self._sockets = (client, broker)
        self._swallows_pubacks = swallows_pubacks
        for source, sink, is_down in ((client, broker, False), (broker, client, True)):
            threading.Thread(target=self._carry, args=(source, sink, is_down), daemon=True).start()

    def close(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _carry(self, source: socket.socket, sink: socket.socket, is_down: bool) -> None:
        buffer = b""
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.is_stalled.is_set():
                    continue
                if is_down and self._swallows_pubacks:
                    data, buffer = without_pubacks(buffer + data)
                sink.sendall(data)
        if not self.is_stalled.is_set():
            self.close()


def without_pubacks(data: bytes) -> tuple[bytes, bytes]:
    """The whole MQTT packets but for acknowledgements, and what is left over of the last."""
    kept, place = b"", 0
    while (end := _packet_end(data, place)) is not None:
        if data[place] >> 4 != _PUBACK:
            kept += data[place:end]
        place = end
    return kept, data[place:]


def _packet_end(data: bytes, start: int) -> int | None:
    length, shift, place = 0, 0, start + 1
    while place < len(data):
        length |= (data[place] & 0x7F) << shift
        place += 1
        if not data[place - 1] & 0x80:
            return place + length if place + length <= len(data) else None
        shift += 7
    return None
