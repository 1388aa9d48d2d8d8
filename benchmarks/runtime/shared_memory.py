"""A 602 kB image to a small model: in process, through shared memory and as a binary body over a Unix socket.

``python -m benchmarks.runtime.shared_memory``. The model averages each channel, so that the way of the tensor is what counts.
"""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.figures import Figure, interleaved_us
from edgeops.bundle import write_bundle
from edgeops.manifest import FileEntry, Lineage, Manifest, Variant
from edgeops.tensors import TensorSpec
from edgeops_runtime import load

ROUNDS = 2000
SHAPE = (1, 3, 224, 224)
_PLACEHOLDER = FileEntry(digest="sha256:" + "0" * 64, size_bytes=0)
_PATH = "/v2/models/mean/infer"


def measure(rounds: int = ROUNDS) -> list[Figure]:
    """The three ways, and a request without a tensor, to show what is the socket's and HTTP's."""
    image = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundle = _write_bundle(directory)
        model = stack.enter_context(load(bundle))
        caller = stack.enter_context(_server(bundle, directory / "socket"))
        key = stack.enter_context(_shared_file(image.tobytes() + bytes(64)))
        caller.ask("/v2/systemsharedmemory/region/image/register", {"key": key, "byte_size": image.nbytes + 64})
        shared = {"shared_memory_region": "image", "shared_memory_byte_size": image.nbytes}
        out = {"shared_memory_region": "image", "shared_memory_byte_size": 12, "shared_memory_offset": image.nbytes}
        requests = {
            "shared memory": _request(SHAPE, shared, out),
            "binary body": _request(SHAPE, {"binary_data_size": image.nbytes}, None, image.tobytes()),
            "no tensor": b"GET /v2/health/live HTTP/1.1\r\nHost: device\r\n\r\n",
        }
        calls: dict[str, Any] = {
            name: lambda request=request: caller.exchange(request) for name, request in requests.items()
        }
        medians = interleaved_us(calls | {"in process": lambda: model.infer({"x": image})}, rounds)
    inside = medians["in process"]
    return [
        Figure("602 kB: shared memory over a Unix socket", medians["shared memory"], "µs", "in process", inside),
        Figure("602 kB: binary body over a Unix socket", medians["binary body"], "µs", "in process", inside),
        Figure("no tensor: GET /v2/health/live over a Unix socket", medians["no tensor"], "µs"),
    ]


class _Caller:
    """One connection that is kept alive."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def ask(self, path: str, body: dict[str, Any]) -> bytes:
        text = json.dumps(body).encode()
        return self.exchange(f"POST {path} HTTP/1.1\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)

    def exchange(self, request: bytes) -> bytes:
        self._connection.sendall(request)
        answer = self._connection.recv(65536)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"unexpected answer: {answer[:300]!r}")
        return answer


@contextlib.contextmanager
def _server(bundle: Path, path: Path) -> Iterator[_Caller]:
    command = [sys.executable, "-m", "edgeops", "serve", str(bundle), "--listen", f"unix:{path}"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    connection = socket.socket(socket.AF_UNIX)
    try:
        deadline = time.monotonic() + 60
        while connection.connect_ex(str(path)):
            if time.monotonic() > deadline or server.poll() is not None:
                raise RuntimeError(f"no server at {path}")
            time.sleep(0.05)
        yield _Caller(connection)
    finally:
        connection.close()
        server.terminate()
        server.wait(30)


@contextlib.contextmanager
def _shared_file(content: bytes) -> Iterator[str]:
    path = Path("/dev/shm") / f"edgeops-{uuid.uuid4().hex}"
    path.write_bytes(content)
    try:
        yield path.name
    finally:
        path.unlink()


def _request(
    shape: tuple[int, ...], parameters: dict[str, Any], output: dict[str, Any] | None, data: bytes = b""
) -> bytes:
    body: dict[str, Any] = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": list(shape), "parameters": parameters}],
        "outputs": [{"name": "y", "parameters": output or {"binary_data": True}}],
    }
    text = json.dumps(body).encode()
    head = f"POST {_PATH} HTTP/1.1\r\nHost: device\r\nContent-Length: {len(text) + len(data)}\r\n"
    return f"{head}Inference-Header-Content-Length: {len(text)}\r\n\r\n".encode() + text + data


def _write_bundle(directory: Path) -> Path:
    """A bundle whose model averages each channel."""
    node = onnx.helper.make_node("GlobalAveragePool", ["x"], ["y"])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "mean",
        [value("x", onnx.TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [value("y", onnx.TensorProto.FLOAT, ["batch", 3, 1, 1])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, directory / "model.onnx")
    golden = np.ones(SHAPE, np.float32)
    np.savez(directory / "golden.npz", **{"input/x": golden, "output/onnx/y": golden[:, :, :1, :1]})
    variant = Variant(
        name="onnx",
        file="model.onnx",
        format="onnx",
        engines={"onnxruntime": "1.18"},
        precision="float32",
        inputs={"x": "x"},
        outputs={"y": "y"},
        tolerance=1e-3,
    )
    files = {name: directory / name for name in ("model.onnx", "golden.npz")}
    manifest = Manifest(
        name="mean",
        version="1.0.0",
        created="2026-01-01T00:00:00Z",
        inputs=(TensorSpec("x", "FP32", ("batch", 3, 224, 224)),),
        outputs=(TensorSpec("y", "FP32", ("batch", 3, 1, 1)),),
        variants=(variant,),
        golden="golden.npz",
        files=dict.fromkeys(files, _PLACEHOLDER),
        lineage=Lineage(source="benchmarks", source_digest="", data_digest=""),
    )
    return write_bundle(directory / "mean-1.0.0", manifest, files).path


if __name__ == "__main__":
    for figure in measure():
        print(
            figure.name,
            f"{figure.value:.1f} {figure.unit}",
            figure.shown_alternative,
            figure.shown_comparison,
            sep="; ",
        )
