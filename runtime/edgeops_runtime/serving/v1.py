"""TensorFlow Serving's REST API (``/v1/models/…``): its paths, its JSON for tensors, and what they mean for a model of ours.

A request in, a response out. JSON only, so for people, small inputs and clients that speak nothing else; programs that can choose
use :mod:`edgeops_runtime.serving.v2` with binary tensors. The shapes: https://www.tensorflow.org/tfx/serving/api_rest.
"""

import json
import reprlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.errors import EdgeOpsError, MessageError, NotFoundError, TensorError
from edgeops.tensors import TensorSpec
from edgeops_runtime.engines.engine import Tensors
from edgeops_runtime.serving.http import Request, Response, error_response
from edgeops_runtime.serving.replies import breakdown, json_reply, refusal, wrong_method
from edgeops_runtime.serving.repository import Repository, Served

SIGNATURE = "serving_default"
_DTYPES = {
    "BOOL": "DT_BOOL",
    "UINT8": "DT_UINT8",
    "UINT16": "DT_UINT16",
    "UINT32": "DT_UINT32",
    "UINT64": "DT_UINT64",
    "INT8": "DT_INT8",
    "INT16": "DT_INT16",
    "INT32": "DT_INT32",
    "INT64": "DT_INT64",
    "FP16": "DT_HALF",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
}
_KINDS = {"b": "b", "f": "fiu", "i": "iu", "u": "iu"}
"""Kind of the tensor → kinds that numpy may find in its JSON."""


class _Predict(msgspec.Struct):
    """The body of a predict request; which of the two is there says the format of the answer too."""

    instances: Any = msgspec.UNSET
    inputs: Any = msgspec.UNSET
    signature_name: str = ""


_STRICT = msgspec.json.Decoder(_Predict)


class Service:
    """Answers the protocol's requests for the models of a repository; may be used from several threads."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def __call__(self, request: Request) -> Response:
        """Answer any request; never raises."""
        start = time.perf_counter_ns()
        path, _, verb = request.path.decode("latin-1").strip("/").partition(":")
        try:
            match path.split("/"):
                case ["v1", "models", name, "metadata"] if not verb:
                    return _described(request, _metadata(self._repository.find(name)))
                case ["v1", "models", name, *which, "metadata"] if not verb and which:
                    return _described(request, _metadata(self._chosen(name, which)))
                case ["v1", "models", name] if not verb:
                    return _described(request, _status(self._repository.versions(name).values()))
                case ["v1", "models", name, *which] if not verb:
                    return _described(request, _status([self._chosen(name, which)]))
                case ["v1", "models", name, *which] if verb == "predict":
                    served = self._chosen(name, which)
                    return wrong_method("POST") if request.method != b"POST" else _answer(served, request, start)
        except NotFoundError as error:
            return error_response(404, str(error))
        return error_response(
            404,
            f"no such path {request.path.decode('latin-1')}; there are GET /v1/models/NAME[/metadata] and POST …:predict",
        )

    def _chosen(self, name: str, which: Sequence[str]) -> Served:
        match which:
            case []:
                return self._repository.find(name)
            case ["versions", version]:
                return self._repository.find(name, version)
            case ["labels", label]:
                return self._repository.labelled(name, label)
        raise NotFoundError(f"no such path below the model: {'/'.join(which)}; there are versions/V and labels/L")


def _answer(served: Served, request: Request, start: int) -> Response:
    try:
        return _predict(served, request, start)
    except EdgeOpsError as error:
        return refusal(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not look like a broken network
        served.failed(start)
        return breakdown(error)


def _predict(served: Served, request: Request, start: int) -> Response:
    if request.headers.get(b"content-encoding") not in {None, b"identity"}:
        return error_response(415, "content encoding: expected none")
    body = decode_body(request.body)
    specs = served.model.manifest.inputs
    columns: Mapping[str, Any]
    rows = None
    if body.instances is not msgspec.UNSET:
        columns, rows = _columns_of_rows(body.instances, specs)
    else:
        columns = _named(body.inputs, specs, "inputs")
    feeds = {name: tensor_of(value, _spec(name, specs)) for name, value in columns.items()}
    answer = served.answer(feeds, start, deadline=request.deadline)
    outputs = {spec.name: answer.outputs[spec.name] for spec in served.model.manifest.outputs}
    value = {"outputs": _columnar(outputs)} if rows is None else {"predictions": _rowwise(outputs, rows)}
    response = json_reply(value)
    served.answered("", feeds, answer, start)
    if served.is_due:
        response.after = served.settle
    return response


def decode_body(body: bytes | memoryview) -> _Predict:
    """The body of a predict request.

    ``NaN``, ``Infinity`` and ``-Infinity`` are read, which no JSON parser has to know.

    Raises:
        MessageError: It is no such request.
    """
    try:
        try:
            predict = _STRICT.decode(body)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            predict = msgspec.convert(json.loads(bytes(body)), _Predict)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"expected a predict request in JSON: {error}") from error
    if (predict.instances is msgspec.UNSET) == (predict.inputs is msgspec.UNSET):
        raise MessageError("expected either 'instances' (rows) or 'inputs' (columns), got both or neither")
    if predict.signature_name not in {"", SIGNATURE}:
        raise MessageError(f"signature_name: expected {SIGNATURE!r} or none, got {predict.signature_name[:60]!r}")
    return predict


def tensor_of(value: Any, spec: TensorSpec) -> NDArray[Any]:  # noqa: ANN401 - whatever JSON can say
    """A tensor from nested lists.

    Raises:
        TensorError: They are ragged, or hold something else than the tensor's kind of numbers.
    """
    wanted = np.dtype(spec.numpy_dtype)
    try:
        found = np.array(value)
        if found.dtype.kind not in _KINDS[wanted.kind] or (found.dtype.kind == "f" and not found.size):
            raise TensorError(
                f"tensor {spec.name!r}: expected {spec.dtype} values in nested lists, got {_quoted(value)}"
                + (", and b64 is for strings, which no model here takes" if "b64" in _quoted(value) else "")
            )
        if wanted.kind in "iu" and found.size:
            _check_range(found, wanted, spec)
        with np.errstate(over="ignore"):
            return found.astype(wanted, copy=False)
    except (ValueError, OverflowError, RecursionError) as error:
        raise TensorError(f"tensor {spec.name!r}: expected nested lists of equal lengths: {error}") from error


def _check_range(found: NDArray[Any], wanted: np.dtype[Any], spec: TensorSpec) -> None:
    limits = np.iinfo(wanted)
    low, high = int(found.min()), int(found.max())
    if low < limits.min or high > limits.max:
        raise TensorError(
            f"tensor {spec.name!r}: expected {spec.dtype} values from {limits.min} to {limits.max}, "
            f"got {low if low < limits.min else high}"
        )


def _columns_of_rows(instances: Any, specs: Sequence[TensorSpec]) -> tuple[dict[str, list[Any]], int]:  # noqa: ANN401
    """Name → one value for each row, and the number of rows."""
    if not isinstance(instances, list) or not instances:
        raise MessageError(f"instances: expected a list of one row or more, got {_quoted(instances)}")
    if not isinstance(instances[0], dict):
        return {_only(specs, "instances").name: instances}, len(instances)
    names = instances[0].keys()
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for index, row in enumerate(instances):
        if not isinstance(row, dict) or row.keys() != names:
            raise MessageError(f"instances[{index}]: expected an object with {', '.join(names)}, got {_quoted(row)}")
        for name, value in row.items():
            columns[name].append(value)
    return columns, len(instances)


def _named(value: Any, specs: Sequence[TensorSpec], where: str) -> Mapping[str, Any]:  # noqa: ANN401
    return value if isinstance(value, dict) and "b64" not in value else {_only(specs, where).name: value}


def _only(specs: Sequence[TensorSpec], where: str) -> TensorSpec:
    if len(specs) != 1:
        raise MessageError(
            f"{where}: expected objects with the inputs {', '.join(spec.name for spec in specs)} by name"
        )
    return specs[0]


def _spec(name: str, specs: Iterable[TensorSpec]) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise TensorError(f"input {name[:60]!r}: expected one of {', '.join(spec.name for spec in specs)}")


def _columnar(outputs: Tensors) -> Any:  # noqa: ANN401 - nested lists, or an object of them
    lists = {name: array.tolist() for name, array in outputs.items()}
    return lists if len(lists) > 1 else next(iter(lists.values()))


def _rowwise(outputs: Tensors, rows: int) -> list[Any]:
    for name, array in outputs.items():
        if array.shape[:1] != (rows,):
            raise TensorError(
                f"output {name!r}: expected {rows} rows, as there are instances, got the shape {list(array.shape)}; "
                "ask with 'inputs' instead"
            )
    lists = [array.tolist() for array in outputs.values()]
    if len(lists) == 1:
        return list(lists[0])
    return [dict(zip(outputs, row, strict=True)) for row in zip(*lists, strict=True)]


def _described(request: Request, value: Any) -> Response:  # noqa: ANN401
    return json_reply(value) if request.method in {b"GET", b"HEAD"} else wrong_method("GET")


def _status(served: Iterable[Served]) -> dict[str, Any]:
    good = {"error_code": "OK", "error_message": ""}
    return {"model_version_status": [{"version": one.version, "state": "AVAILABLE", "status": good} for one in served]}


def _metadata(served: Served) -> dict[str, Any]:
    manifest = served.model.manifest
    signature = {
        "inputs": {spec.name: _tensor_info(spec) for spec in manifest.inputs},
        "outputs": {spec.name: _tensor_info(spec) for spec in manifest.outputs},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": served.name, "signature_name": "", "version": served.version},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    }


def _tensor_info(spec: TensorSpec) -> dict[str, Any]:
    sizes = [
        {"size": "-1" if isinstance(size, str) else str(size), "name": size if isinstance(size, str) else ""}
        for size in spec.shape
    ]
    return {"dtype": _DTYPES[spec.dtype], "tensor_shape": {"dim": sizes, "unknown_rank": False}, "name": spec.name}


def _quoted(value: Any) -> str:  # noqa: ANN401
    return reprlib.repr(value)  # What came may be large, and nested deeply.
