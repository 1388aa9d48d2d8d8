"""A 602 kB image to a small model: in process, through shared memory and as a binary body over a Unix socket.

The model averages each channel, so that the way of the tensor is what counts.
"""

import contextlib
import json
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, interleaved_us
from benchmarks.runtime import models
from benchmarks.runtime.exchange import Exchange, binary_request, post, serving
from edgeops_runtime import load

_SHAPE = (1, *models.LARGE_IMAGE)
_ANSWER_BYTES = 12
_ROOM_BYTES = 64
_NO_TENSOR = b"GET /v2/health/live HTTP/1.1\r\nHost: device\r\n\r\n"


def measure(rounds: int = 4000) -> list[Figure]:
    """The three ways, and a request without a tensor, to show what is the socket's and HTTP's."""
    image = np.random.default_rng(1).random(_SHAPE, dtype=np.float32)
    feeds = {"input": image}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundle, address = models.pooling(directory), f"unix:{directory / 'serve.sock'}"
        model = stack.enter_context(load(bundle.path))
        stack.enter_context(serving(bundle.path, address))
        key = stack.enter_context(_shared_file(image.tobytes() + bytes(_ROOM_BYTES)))
        with Exchange(address, _registration(key, image.nbytes + _ROOM_BYTES)) as register:
            register()
        requests = {
            "shared memory": _shared_request(image.nbytes),
            "binary body": binary_request("pooling", feeds),
            "no tensor": _NO_TENSOR,
        }
        exchanges = {name: stack.enter_context(Exchange(address, request)) for name, request in requests.items()}
        medians = interleaved_us({**exchanges, "in process": lambda: model.infer(feeds)}, rounds)
    inside = medians["in process"]
    return [
        Figure("602 kB: shared memory over a Unix socket", medians["shared memory"], "µs", "in process", inside),
        Figure("602 kB: binary body over a Unix socket", medians["binary body"], "µs", "in process", inside),
        Figure("no tensor: GET /v2/health/live over a Unix socket", medians["no tensor"], "µs"),
    ]


@contextlib.contextmanager
def _shared_file(content: bytes) -> Iterator[str]:
    path = Path("/dev/shm") / f"edgeops-{uuid.uuid4().hex}"
    path.write_bytes(content)
    try:
        yield path.name
    finally:
        path.unlink()


def _registration(key: str, size_bytes: int) -> bytes:
    body = json.dumps({"key": key, "byte_size": size_bytes}).encode()
    return post("/v2/systemsharedmemory/region/image/register", body, "")


def _shared_request(image_bytes: int) -> bytes:
    """Image and answer lie in one region, one after the other."""
    region = {"shared_memory_region": "image"}
    entry = region | {"shared_memory_byte_size": image_bytes}
    exit_ = region | {"shared_memory_byte_size": _ANSWER_BYTES, "shared_memory_offset": image_bytes}
    body = {
        "inputs": [{"name": "input", "datatype": "FP32", "shape": list(_SHAPE), "parameters": entry}],
        "outputs": [{"name": "output", "parameters": exit_}],
    }
    return post("/v2/models/pooling/infer", json.dumps(body).encode(), "")
