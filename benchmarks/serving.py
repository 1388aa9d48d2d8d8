"""The hot path: in-process calls against the bare engine, and the HTTP round trip against the in-process call."""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
from ai_edge_litert.interpreter import Interpreter

from benchmarks.figures import Figure, interleaved_us
from benchmarks.subject import Subject
from edgeops.bundle import Bundle
from edgeops_runtime import load


def measure(subject: Subject, rounds: int) -> list[Figure]:
    """In-process, profile, HTTP."""
    return [*_in_process(subject, rounds), *_profile(subject), *_http(subject, rounds)]


def _in_process(subject: Subject, rounds: int) -> list[Figure]:
    figures = []
    image = subject.dataset.exam.images[:1]
    for variant_name in ("onnx-int8", "tflite-int8"):
        bundle = subject.bundle
        variant = bundle.manifest.variant(variant_name)
        prepared = (image.astype(np.float32) / 255).astype(np.float32)
        with (
            tempfile.TemporaryDirectory() as directory,
            load(bundle.path, variant=variant_name) as model,
            load(_without_reference(bundle, variant_name, Path(directory)), variant=variant_name) as plain,
        ):
            calls: dict[str, Callable[[], object]] = {
                "bare": _bare_call(bundle, variant_name, prepared),
                "ours": lambda model=model: model.infer({"image": image}),
                "plain": lambda model=plain: model.infer({"image": image}),
            }
            medians = interleaved_us(calls, rounds)
        bare = "session.run" if variant.format == "onnx" else "set, invoke, get"
        figures += [
            Figure(f"{variant_name}: in-process call, all included", medians["ours"], "µs", bare, medians["bare"]),
            Figure(
                f"{variant_name}: the same, to show what the profile costs",
                medians["ours"],
                "µs",
                "no profile",
                medians["plain"],
            ),
        ]
    return figures


def _without_reference(bundle: Bundle, variant_name: str, directory: Path) -> Path:
    """The same bundle as a device without a drift baseline has it."""
    for name in ("manifest.json", bundle.manifest.golden, bundle.manifest.variant(variant_name).file):
        shutil.copy(bundle.file(name), directory / name)
    return directory


def _bare_call(bundle: Bundle, variant_name: str, prepared: np.ndarray) -> Callable[[], object]:
    variant = bundle.manifest.variant(variant_name)
    path, name = str(bundle.file(variant.file)), variant.inputs["image"]
    if variant.format == "onnx":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {name: prepared})
    interpreter = Interpreter(path, num_threads=1)
    interpreter.allocate_tensors()
    entry, exit_ = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def call() -> object:
        interpreter.set_tensor(entry, prepared)
        interpreter.invoke()
        return interpreter.get_tensor(exit_)

    return call


def _profile(subject: Subject) -> list[Figure]:
    rows = subject.dataset.exam.images[:512]
    with load(subject.bundle.path, variant="onnx-int8") as model:
        for index in range(len(rows)):
            model.infer({"image": rows[index : index + 1]})
        window = model.window()
    raw = msgspec.msgpack.encode(window.profile)
    return [
        Figure(
            f"drift profile of {window.rows} rows, on the wire",
            len(zlib.compress(raw, 6)),
            "bytes",
            "uncompressed",
            len(raw),
        )
    ]


def _http(subject: Subject, rounds: int) -> list[Figure]:
    image = subject.dataset.exam.images[:1]
    with tempfile.TemporaryDirectory() as directory, load(subject.bundle.path, variant="onnx-int8") as model:
        path = Path(directory) / "serve.sock"
        command = [sys.executable, "-m", "edgeops", "serve", str(subject.bundle.path), "--variant", "onnx-int8"]
        server = subprocess.Popen([*command, "--listen", f"unix:{path}"], stdout=subprocess.DEVNULL)
        try:
            connection = _connect(path, server)
            request = _request(subject.bundle.manifest.name, image)
            medians = interleaved_us(
                {"http": lambda: _round_trip(connection, request), "in process": lambda: model.infer({"image": image})},
                rounds,
            )
            connection.close()
        finally:
            server.terminate()
            server.wait(10)
    return [
        Figure(
            "onnx-int8: V2 binary over a Unix socket, round trip",
            medians["http"],
            "µs",
            "in process",
            medians["in process"],
        )
    ]


def _connect(path: Path, server: subprocess.Popen[bytes]) -> socket.socket:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and server.poll() is None:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            time.sleep(0.05)
        else:
            return connection
    raise RuntimeError(f"no server at {path}")


def _request(model: str, image: np.ndarray) -> bytes:
    tensor = {
        "name": "image",
        "datatype": "UINT8",
        "shape": list(image.shape),
        "parameters": {"binary_data_size": image.nbytes},
    }
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body = header + image.tobytes()
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: device\r\nContent-Length: {len(body)}\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\n\r\n"
    )
    return head.encode() + body


def _round_trip(connection: socket.socket, request: bytes) -> bytes:
    connection.sendall(request)
    answer = connection.recv(65536)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"unexpected answer: {answer[:300]!r}")
    head, _, body = answer.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    missing = int(lengths[0].partition(b":")[2]) - len(body)
    while missing > 0:
        missing -= len(connection.recv(65536))
    return answer
