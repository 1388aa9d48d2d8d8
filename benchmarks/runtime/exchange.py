"""One request and its answer on a connection that stays open, as cheaply as a client can, and servers of ours to ask."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

_RECEIVE_BYTES = 1 << 16
_PATIENCE_S = 30.0
_DATATYPES = {"float32": "FP32", "uint8": "UINT8"}

Feeds = Mapping[str, NDArray[Any]]


class Exchange:
    """A connection with a request that is sent again and again.

    Args:
        address: ``unix:/path`` or ``host:port``.
        request: Head and body.
    """

    def __init__(self, address: str, request: bytes) -> None:
        self._request = request
        self._socket = connect(address)

    def __call__(self) -> bytes:
        """Ask, and return head and body of the answer.

        Raises:
            ConnectionError: The other side hung up.
            RuntimeError: The answer is not 200.
        """
        self._socket.sendall(self._request)
        answer = self._socket.recv(_RECEIVE_BYTES)
        while b"\r\n\r\n" not in answer:
            answer += self._receive()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"expected 200, got {answer[:300]!r}")
        head, _, body = answer.partition(b"\r\n\r\n")
        missing = _content_length(head) - len(body)
        while missing > 0:
            part = self._receive()
            answer += part
            missing -= len(part)
        return answer

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _receive(self) -> bytes:
        part = self._socket.recv(_RECEIVE_BYTES)
        if not part:
            raise ConnectionResetError("the server hung up in the middle of an answer")
        return part


def connect(address: str) -> socket.socket:
    """A connected socket; over TCP without waiting for more to send."""
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address.removeprefix("unix:"))
        return connection
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=_PATIENCE_S)
    connection.settimeout(None)  # A timeout costs a poll() before each call.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def binary_request(model: str, feeds: Feeds) -> bytes:
    """A V2 request with binary tensors both ways."""
    tensors = [
        _tensor(name, array) | {"parameters": {"binary_data_size": array.nbytes}} for name, array in feeds.items()
    ]
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    body = head + b"".join(array.tobytes() for array in feeds.values())
    return post(f"/v2/models/{model}/infer", body, f"Inference-Header-Content-Length: {len(head)}\r\n")


def json_request(model: str, feeds: Feeds) -> bytes:
    """The same in JSON."""
    tensors = [_tensor(name, array) | {"data": array.ravel().tolist()} for name, array in feeds.items()]
    return post(
        f"/v2/models/{model}/infer", json.dumps({"inputs": tensors}).encode(), "Content-Type: application/json\r\n"
    )


def post(path: str, body: bytes, headers: str) -> bytes:
    """Head and body of a POST; each header ends with a line break."""
    return f"POST {path} HTTP/1.1\r\nHost: device\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


@contextmanager
def serving(bundle: Path, address: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """``edgeops serve`` at an address, until the block is left."""
    command = [sys.executable, "-m", "edgeops", "serve", str(bundle), "--listen", address, *options]
    with running(command, address=address) as process:
        yield process


@contextmanager
def running(command: list[str], *, address: str, **settings: Any) -> Iterator[subprocess.Popen[bytes]]:  # noqa: ANN401 - Popen's
    """A server that listens at an address, until the block is left.

    Raises:
        RuntimeError: It ends, or does not listen within a time that suffices for everybody.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **settings)
    try:
        _wait_until_listening(process, address)
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _wait_until_listening(process: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + 3 * _PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            connect(address).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    process.kill()
    _, said = process.communicate()
    raise RuntimeError(f"nobody listens at {address}: {said[-2000:].decode(errors='replace')}")


def _tensor(name: str, array: NDArray[np.generic]) -> dict[str, object]:
    return {"name": name, "datatype": _DATATYPES[str(array.dtype)], "shape": list(array.shape)}


def _content_length(head: bytes) -> int:
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    if not lengths:
        raise RuntimeError(f"expected a Content-Length, got {head!r}")
    return int(lengths[0].partition(b":")[2])
