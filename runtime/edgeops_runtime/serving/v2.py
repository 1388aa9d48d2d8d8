"""The Open Inference Protocol, version 2, over HTTP: which request means what.

A request in, a response out. How tensors are written is :mod:`edgeops_runtime.serving.codec`'s matter, who answers
:mod:`edgeops_runtime.serving.repository`'s.
"""

import math
import time
from functools import lru_cache
from typing import Any

import msgspec

from edgeops import __version__
from edgeops.errors import (
    DeadlineError,
    EdgeOpsError,
    InputError,
    NotFoundError,
    OverloadedError,
)
from edgeops.tensors import TensorSpec
from edgeops_runtime.serving.http import Request, Response, error_response
from edgeops_runtime.serving.repository import Repository, Served

EXTENSIONS = ("binary_tensor_data",)
_PLATFORMS = {"onnxruntime": "onnx_onnxruntime", "litert": "tflite_litert", "tflite": "tflite_tflite-runtime"}
_ENCODER = msgspec.json.Encoder()


class Service:
    """Answers the protocol's requests for the models of a repository; may be used from several threads."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def __call__(self, request: Request) -> Response:
        """Answer any request; never raises."""
        start = time.perf_counter_ns()
        try:
            target = _infer_target(request.path)
            if target is None:
                return self._describe(request)
            served = self._repository.find(*target)
        except NotFoundError as error:
            return error_response(404, str(error))
        if request.method != b"POST":
            return _wrong_method("POST")
        try:
            return _infer(served, request, start)
        except EdgeOpsError as error:
            return refusal(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not look like a broken network
            served.failed(start)
            return error_response(500, f"internal error: {type(error).__name__}: {error}")

    def _describe(self, request: Request) -> Response:
        """Everything but inference."""
        answer = self._find(_parts(request.path))
        if isinstance(answer, Response):
            return answer
        if request.method not in {b"GET", b"HEAD"}:
            return _wrong_method("GET")
        return Response(200, (_ENCODER.encode(answer),))

    def _find(self, parts: list[str]) -> dict[str, Any] | Response:
        match parts:
            case ["v2"]:
                return {"name": "edgeops", "version": __version__, "extensions": EXTENSIONS}
            case ["v2", "health", "live"]:
                return {"live": True}
            case ["v2", "health", "ready"]:
                return {"ready": True, "live": True}
            case ["v2", "models", name, "versions", version, *rest]:
                return _find_below(self._repository.find(name, version), rest)
            case ["v2", "models", name, *rest]:
                return _find_below(self._repository.find(name), rest)
        paths = ", ".join(f"/v2/models/{served.name}" for served in self._repository.served)
        return error_response(404, f"no such path /{'/'.join(parts)}; see GET {paths or '/v2'}")


def refusal(error: EdgeOpsError) -> Response:
    """The answer to a request that ended in an error: whose fault it is says the status."""
    match error:
        case NotFoundError():
            return error_response(404, str(error))
        case InputError():
            return error_response(400, str(error))
        case OverloadedError():
            wait = str(max(1, math.ceil(error.retry_after_s)))
            return error_response(503, str(error), headers=(("Retry-After", wait),))
        case DeadlineError():
            return error_response(504, str(error))
    return error_response(500, str(error))


@lru_cache(maxsize=64)
def _infer_target(path: bytes) -> tuple[str, str | None] | None:
    """The model, and the version if one is named, that a path asks for an inference; ``None``: it asks for something else."""
    match _parts(path):
        case ["v2", "models", name, "infer"]:
            return name, None
        case ["v2", "models", name, "versions", version, "infer"]:
            return name, version
    return None


def _parts(path: bytes) -> list[str]:
    return path.decode("latin-1").strip("/").split("/")


def _infer(served: Served, request: Request, start: int) -> Response:
    encoding = request.headers.get(b"content-encoding")
    if encoding not in {None, b"identity"}:
        return error_response(415, f"content encoding {encoding!r}: expected none")
    asked = served.codec.decode(request)
    parameters = asked.message.parameters
    deadline = start + parameters.timeout * 1000 if parameters is not None and parameters.timeout > 0 else None
    answer = served.answer(asked.feeds, start, deadline=deadline)
    response = served.codec.encode(asked, answer.outputs)
    served.answered(asked.message.id, asked.feeds, answer, start)
    if served.is_due:
        response.after = served.settle
    return response


def _find_below(served: Served, rest: list[str]) -> dict[str, Any] | Response:
    if not rest:
        return _metadata(served)
    if rest == ["ready"]:
        return {"name": served.name, "ready": True}
    return error_response(404, f"no such path below the model: {'/'.join(rest)}; there are ready and infer")


def _metadata(served: Served) -> dict[str, Any]:
    manifest, engine = served.model.manifest, served.model.engine
    return {
        "name": served.name,
        "versions": [served.version],
        "platform": _PLATFORMS.get(engine, engine),
        "inputs": [_describe_tensor(spec) for spec in manifest.inputs],
        "outputs": [_describe_tensor(spec) for spec in manifest.outputs],
    }


def _describe_tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if isinstance(size, str) else size for size in spec.shape]
    return {"name": spec.name, "datatype": spec.dtype, "shape": shape}


def _wrong_method(allowed: str) -> Response:
    return error_response(405, f"expected the method {allowed}", headers=(("Allow", allowed),))
