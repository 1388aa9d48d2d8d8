"""The Open Inference Protocol, version 2, over HTTP: which request means what.

A request in, a response out. How tensors are written is :mod:`edgeops_runtime.serving.codec`'s matter, who answers
:mod:`edgeops_runtime.serving.repository`'s. Beside the protocol itself there are Triton's extensions for binary tensors, shared
memory and statistics; its extension for loading models is :mod:`edgeops_runtime.serving.admin`'s.
"""

import time
from functools import lru_cache
from typing import Any, cast
from urllib.parse import unquote

import msgspec

from edgeops import __version__
from edgeops.errors import EdgeOpsError, MessageError, NotFoundError
from edgeops.tensors import TensorSpec
from edgeops_runtime.engines.engine import Tensors
from edgeops_runtime.serving.http import Request, Response, error_response
from edgeops_runtime.serving.replies import breakdown, json_reply, refusal, wrong_method
from edgeops_runtime.serving.repository import Repository, Served
from edgeops_runtime.serving.shared_memory import Regions, Registration
from edgeops_runtime.serving.statistics import model_statistics

EXTENSIONS = ("binary_tensor_data", "statistics")
_SHARED_MEMORY = "system_shared_memory"
_PLATFORMS = {"onnxruntime": "onnx_onnxruntime", "litert": "tflite_litert", "tflite": "tflite_tflite-runtime"}
_REGISTRATION = msgspec.json.Decoder(Registration)


class Service:
    """Answers the protocol's requests for the models of a repository; may be used from several threads.

    Args:
        repository: Its models.
        regions: Where tensors in shared memory are; without it there is none.
    """

    def __init__(self, repository: Repository, regions: Regions | None = None) -> None:
        self._repository = repository
        self._regions = regions or Regions()

    def __call__(self, request: Request) -> Response:
        """Answer any request; never raises."""
        start = time.perf_counter_ns()
        try:
            target = _infer_target(request.path)
            if target is None:
                return self._describe(request)
            served = self._repository.find(*target)
        except EdgeOpsError as error:
            return refusal(error)
        if request.method != b"POST":
            return wrong_method("POST")
        try:
            return self._infer(served, request, start)
        except EdgeOpsError as error:
            return refusal(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not look like a broken network
            served.failed(start)
            return breakdown(error)

    def _infer(self, served: Served, request: Request, start: int) -> Response:
        encoding = request.headers.get(b"content-encoding")
        if encoding not in {None, b"identity"}:
            return error_response(415, f"content encoding {encoding!r}: expected none")
        asked = served.codec.decode(request)
        parameters = asked.message.parameters
        deadline = start + parameters.timeout * 1000 if parameters is not None and parameters.timeout > 0 else None
        if request.deadline is not None:
            deadline = request.deadline if deadline is None else min(deadline, request.deadline)
        if asked.is_placed:
            feeds = self._regions.resolve(asked.feeds, asked.wanted, request.peer_uid)
        else:
            feeds = cast("Tensors", asked.feeds)
        answer = served.answer(feeds, start, deadline=deadline)
        if asked.is_placed:
            self._regions.write(asked.wanted, answer.outputs, request.peer_uid)
        response = served.codec.encode(asked, answer.outputs)
        served.answered(asked.message.id, feeds, answer, start, is_borrowed=asked.is_placed)
        if served.is_due:
            response.after = served.settle
        return response

    def _describe(self, request: Request) -> Response:
        """Everything but inference."""
        parts = _parts(request.path)
        if parts[:2] == ["v2", "systemsharedmemory"]:
            return self._share(request, parts[2:])
        answer = self._find(parts, request.peer_uid)
        if isinstance(answer, Response):
            return answer
        if request.method not in {b"GET", b"HEAD"}:
            return wrong_method("GET")
        return json_reply(answer)

    def _find(self, parts: list[str], peer_uid: int | None) -> dict[str, Any] | Response:
        match parts:
            case ["v2"]:
                return self.metadata(peer_uid)
            case ["v2", "health", "live"]:
                return {"live": True}
            case ["v2", "health", "ready"]:
                return self._readiness({"live": True})
            case ["v2", "models", "stats"]:
                return model_statistics(self._repository.served)
            case ["v2", "models", name, "stats"]:
                return model_statistics(self._repository.versions(name).values())
            case ["v2", "models", name, "versions", version, *rest]:
                return self._find_below(self._repository.find(name, version), rest)
            case ["v2", "models", name, *rest]:
                return self._find_below(self._repository.find(name), rest)
            case ["v2", "repository", *_]:
                raise NotFoundError(
                    "models are loaded and listed on the admin socket only: edgeops serve --admin unix:/path"
                )
        paths = ", ".join(f"/v2/models/{served.name}" for served in self._repository.served)
        raise NotFoundError(f"no such path /{'/'.join(parts)}; see GET {paths or '/v2'}")

    def metadata(self, peer_uid: int | None, *more: str) -> dict[str, Any]:
        """What the server says of itself; ``more`` are extensions that are offered beside ours."""
        shared = (_SHARED_MEMORY,) if self._regions.is_open_to(peer_uid) else ()
        return {"name": "edgeops", "version": __version__, "extensions": (*EXTENSIONS, *shared, *more)}

    def _readiness(self, more: dict[str, Any]) -> dict[str, Any] | Response:
        if not self._repository.is_ready:
            return error_response(503, "not ready: there is no model, or the server is about to end")
        return {"ready": True, **more}

    def _find_below(self, served: Served, rest: list[str]) -> dict[str, Any] | Response:
        match rest:
            case []:
                return self._metadata(served)
            case ["ready"]:
                return self._readiness({"name": served.name})
            case ["stats"]:
                return model_statistics([served])
        raise NotFoundError(f"no such path below the model: {'/'.join(rest)}; there are ready, stats and infer")

    def _metadata(self, served: Served) -> dict[str, Any]:
        manifest, engine = served.model.manifest, served.model.engine
        return {
            "name": served.name,
            "versions": [one.version for one in self._repository.versions(served.name).values()],
            "platform": _PLATFORMS.get(engine, engine),
            "inputs": [_describe_tensor(spec) for spec in manifest.inputs],
            "outputs": [_describe_tensor(spec) for spec in manifest.outputs],
        }

    def _share(self, request: Request, rest: list[str]) -> Response:
        """Shared memory: status, register, unregister."""
        match rest:
            case ["region", quoted, verb]:
                name: str | None = unquote(quoted)
            case [verb]:
                name = None
            case _:
                verb = ""
                name = None
        if verb not in {"status", "register", "unregister"} or (verb == "register" and name is None):
            raise NotFoundError(
                "no such path below systemsharedmemory; there are status, unregister, and region/NAME/register"
            )
        if verb == "status":
            if request.method not in {b"GET", b"HEAD"}:
                return wrong_method("GET")
            return json_reply(self._regions.status(name, request.peer_uid))
        if request.method != b"POST":
            return wrong_method("POST")
        if name is not None and verb == "register":
            self._regions.register(name, _registration(request.body), request.peer_uid)
        else:
            self._regions.unregister(name, request.peer_uid)
        return json_reply({})


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


def _registration(body: bytes | memoryview) -> Registration:
    try:
        return _REGISTRATION.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"expected key, byte_size and perhaps offset in JSON: {error}") from error


def _describe_tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if isinstance(size, str) else size for size in spec.shape]
    return {"name": spec.name, "datatype": spec.dtype, "shape": shape}
