"""The Open Inference Protocol, version 2, over HTTP: which request means what, and tensors as JSON or binary.

Pure but for the model that answers: a :class:`~edgeops_runtime.serving.http.Request` in, a
:class:`~edgeops_runtime.serving.http.Response` out.
The protocol: https://github.com/kserve/open-inference-protocol; binary tensors are Triton's extension ``binary_tensor_data``.
"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops import __version__
from edgeops.errors import EngineError, MessageError, TensorError
from edgeops.tensors import NUMPY_NAMES, PROTOCOL_NAMES, TensorSpec
from edgeops_runtime.engines.engine import Tensors
from edgeops_runtime.serving.http import Request, Response, error_response
from edgeops_runtime.serving.model import Model
from edgeops_runtime.serving.pipeline import Answer

EXTENSIONS = ("binary_tensor_data",)
_NAMES = {np.dtype(numpy_name): name for numpy_name, name in PROTOCOL_NAMES.items()}  # dtype.name takes 2 µs
_BINARY = "application/octet-stream"
# Little-endian on the wire. Made from text, which gives numpy's own object where the machine is little-endian, and so passes the
# pipeline's check by identity.
_DTYPES = {name: np.dtype(f"<{np.dtype(numpy_name).str[1:]}") for name, numpy_name in NUMPY_NAMES.items()}
_PLATFORMS = {"onnxruntime": "onnx_onnxruntime", "litert": "tflite_litert", "tflite": "tflite_tflite-runtime"}

Observer = Callable[[str, Tensors, Answer], None]
"""Told of every answer: the request's id, the caller's inputs, the answer."""


_ABSENT = msgspec.Raw(b"")


class _TensorParameters(msgspec.Struct):
    binary_data_size: int | None = None
    binary_data: bool | None = None
    classification: int = 0


class _InputTensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: _TensorParameters | None = None
    data: msgspec.Raw = _ABSENT


class _WantedOutput(msgspec.Struct):
    name: str
    parameters: _TensorParameters | None = None


class _RequestParameters(msgspec.Struct):
    binary_data_output: bool = False


class _InferRequest(msgspec.Struct):
    inputs: list[_InputTensor]
    id: str = ""
    parameters: _RequestParameters | None = None
    outputs: list[_WantedOutput] | None = None


class _OutputTensor(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, int] | None = None
    data: list[Any] | None = None


class _InferResponse(msgspec.Struct, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[_OutputTensor]
    id: str = ""


_DECODER = msgspec.json.Decoder(_InferRequest)
_FLOATS = msgspec.json.Decoder(list[float])
_ENCODER = msgspec.json.Encoder()


class Service:
    """Answers the protocol's requests for one model; may be used from several threads."""

    def __init__(self, model: Model, *, observer: Observer | None = None) -> None:
        """Prepare.

        Args:
            model: Answers, and counts.
            observer: Told of every answer before it goes out; must be quick.
        """
        self._model = model
        self._observer = observer
        self._name = model.manifest.name
        self._version = model.manifest.version
        self._outputs = {spec.name: spec for spec in model.manifest.outputs}
        self._infer_paths = {
            f"/v2/models/{self._name}/infer".encode(),
            f"/v2/models/{self._name}/versions/{self._version}/infer".encode(),
        }

    def __call__(self, request: Request) -> Response:
        """Answer any request; never raises."""
        if request.path not in self._infer_paths:
            return self._describe(request)
        if request.method != b"POST":
            return _wrong_method("POST")
        start = time.perf_counter_ns()
        try:
            return self._infer(request, start)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not look like a broken network
            self._model.failed(start)
            return error_response(500, f"internal error: {type(error).__name__}: {error}")

    def _infer(self, request: Request, start: int) -> Response:
        encoding = request.headers.get(b"content-encoding")
        if encoding not in {None, b"identity"}:
            return error_response(415, f"content encoding {encoding!r}: expected none")
        try:
            message, feeds = decode_request(request)
            wanted = self._wanted_outputs(message)
            answer = self._model.answer(feeds, start)
        except (TensorError, MessageError) as error:
            return error_response(400, str(error))
        except EngineError as error:
            return error_response(500, str(error))
        response = self._encode(message, answer.outputs, wanted)
        if self._observer is not None:
            self._observer(message.id, feeds, answer)
        self._model.answered(answer, start)
        response.after = self._model.settle
        return response

    def _wanted_outputs(self, message: _InferRequest) -> list[tuple[TensorSpec, bool]]:
        """The outputs that the caller asked for, each with whether it is to be binary."""
        default = message.parameters is not None and message.parameters.binary_data_output
        if not message.outputs:
            return [(spec, default) for spec in self._outputs.values()]
        wanted = []
        for output in message.outputs:
            spec = self._outputs.get(output.name)
            if spec is None:
                raise TensorError(f"output {output.name!r}: expected one of {', '.join(self._outputs)}")
            parameters = output.parameters or _TensorParameters()
            if parameters.classification:
                raise MessageError(f"output {output.name!r}: the classification extension is not supported")
            wanted.append((spec, default if parameters.binary_data is None else parameters.binary_data))
        return wanted

    def _encode(self, message: _InferRequest, outputs: Tensors, wanted: Sequence[tuple[TensorSpec, bool]]) -> Response:
        described, blobs = [], []
        for spec, is_binary in wanted:
            array = outputs[spec.name]
            tensor = _OutputTensor(spec.name, _NAMES[array.dtype], array.shape)
            if is_binary:
                blob = array.astype(_DTYPES[tensor.datatype], copy=False).tobytes()
                tensor.parameters = {"binary_data_size": len(blob)}
                blobs.append(blob)
            else:
                tensor.data = array.ravel().tolist()
            described.append(tensor)
        text = _ENCODER.encode(_InferResponse(self._name, self._version, described, message.id))
        if not blobs:
            return Response(200, (text,))
        return Response(
            200, (text, *blobs), content_type=_BINARY, headers=(("Inference-Header-Content-Length", str(len(text))),)
        )

    def _describe(self, request: Request) -> Response:
        """Everything but inference."""
        parts = request.path.decode("latin-1").strip("/").split("/")
        answer = self._find(parts)
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
                return self._find_model(name, version, rest)
            case ["v2", "models", name, *rest]:
                return self._find_model(name, None, rest)
        return error_response(404, f"no such path /{'/'.join(parts)}; see GET /v2/models/{self._name}")

    def _find_model(self, name: str, version: str | None, rest: list[str]) -> dict[str, Any] | Response:
        if name != self._name or version not in {None, self._version}:
            asked = name if version is None else f"{name} version {version}"
            return error_response(404, f"no model {asked}; this is {self._name} version {self._version}")
        if not rest:
            return self._metadata()
        if rest == ["ready"]:
            return {"name": self._name, "ready": True}
        return error_response(404, f"no such path below the model: {'/'.join(rest)}; there are ready and infer")

    def _metadata(self) -> dict[str, Any]:
        manifest = self._model.manifest
        return {
            "name": self._name,
            "versions": [self._version],
            "platform": _PLATFORMS.get(self._model.engine, self._model.engine),
            "inputs": [_describe_tensor(spec) for spec in manifest.inputs],
            "outputs": [_describe_tensor(spec) for spec in manifest.outputs],
        }


def decode_request(request: Request) -> tuple[_InferRequest, Tensors]:
    """The message and the tensors of an inference request.

    Raises:
        MessageError: The JSON or the lengths are wrong.
        TensorError: A tensor's dtype, shape and data do not go together.
    """
    body = request.body
    header_length = request.headers.get(b"inference-header-content-length")
    if header_length is None:
        text, binary_start = body, len(body)
    else:
        if not header_length.isdigit() or int(header_length[:20]) > len(body):
            raise MessageError(
                f"Inference-Header-Content-Length: expected a number up to the body's {len(body)} bytes, "
                f"got {header_length.decode('latin-1')}"
            )
        binary_start = int(header_length)
        text = body[:binary_start]
    try:
        message = _DECODER.decode(text)
        feeds, end = _decode_tensors(message, body, binary_start)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"expected an inference request in JSON: {error}") from error
    if end != len(body):
        raise MessageError(
            f"expected {end} bytes in all by the tensors' binary_data_size, got a body of {len(body)} bytes"
        )
    return message, feeds


def _decode_tensors(message: _InferRequest, body: bytes, binary_start: int) -> tuple[Tensors, int]:
    """The tensors, and where the binary data ends."""
    feeds: Tensors = {}
    for tensor in message.inputs:
        if tensor.name in feeds:
            raise TensorError(f"tensor {tensor.name!r}: given twice")
        size = tensor.parameters.binary_data_size if tensor.parameters is not None else None
        try:
            if size is None:
                feeds[tensor.name] = _json_tensor(tensor)
            else:
                feeds[tensor.name] = _binary_tensor(tensor, body, binary_start, size)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise
        except (ValueError, OverflowError) as error:
            # Sizes and numbers beyond numpy's are wrong requests, and must not count as errors of the device.
            raise TensorError(
                f"tensor {tensor.name!r}: not a {tensor.datatype} tensor of that shape: {error}"
            ) from error
        binary_start += size or 0
    return feeds, binary_start


def _binary_tensor(tensor: _InputTensor, body: bytes, start: int, size: int) -> NDArray[Any]:
    dtype = _dtype(tensor)
    expected = _elements(tensor) * dtype.itemsize
    if tensor.data is not _ABSENT:
        raise TensorError(f"tensor {tensor.name!r}: expected data or binary_data_size, got both")
    if size != expected:
        raise TensorError(
            f"tensor {tensor.name!r}: expected {expected} bytes of binary data for {tensor.datatype} {tensor.shape}, "
            f"got binary_data_size {size}"
        )
    if start + size > len(body):
        raise TensorError(
            f"tensor {tensor.name!r}: expected {size} bytes of binary data, got {max(len(body) - start, 0)}"
        )
    array = np.frombuffer(body, dtype, expected // dtype.itemsize, start).reshape(tensor.shape)
    if not array.flags.aligned or not dtype.isnative:
        return array.astype(NUMPY_NAMES[tensor.datatype])
    return array


def _json_tensor(tensor: _InputTensor) -> NDArray[Any]:
    dtype = _dtype(tensor)
    if tensor.data is _ABSENT:
        raise TensorError(f"tensor {tensor.name!r}: expected data or the parameter binary_data_size, got neither")
    values = _numbers(tensor, dtype.kind)
    expected = _elements(tensor)
    if len(values) != expected:
        raise TensorError(
            f"tensor {tensor.name!r}: expected {expected} values for shape {tensor.shape}, got {len(values)}"
        )
    if dtype.kind in "iu" and values:
        limits = np.iinfo(dtype)
        low, high = min(values), max(values)
        if low < limits.min or high > limits.max:
            raise TensorError(
                f"tensor {tensor.name!r}: expected {tensor.datatype} values from {limits.min} to {limits.max}, "
                f"got {low if low < limits.min else high}"
            )
    with np.errstate(over="ignore"):
        return np.array(values, dtype=NUMPY_NAMES[tensor.datatype]).reshape(tensor.shape)


def _numbers(tensor: _InputTensor, kind: str) -> list[Any]:
    """The flat values of JSON data, whether it came flat or nested by the shape."""
    if kind == "f":
        with contextlib.suppress(msgspec.ValidationError):  # Nested, or no numbers: both are looked at below.
            return _FLOATS.decode(tensor.data)
    values = msgspec.json.decode(tensor.data)
    if not isinstance(values, list):
        raise TensorError(f"tensor {tensor.name!r}: expected data to be a list, got {type(values).__name__}")
    while values and all(isinstance(value, list) for value in values):
        values = list(chain.from_iterable(values))
    allowed = {"b": (bool,), "f": (int, float), "i": (int,), "u": (int,)}[kind]
    for value in values:
        if not isinstance(value, allowed) or (kind != "b" and isinstance(value, bool)):
            raise TensorError(f"tensor {tensor.name!r}: expected {tensor.datatype} values, got {str(value)[:60]}")
    return values


def _dtype(tensor: _InputTensor) -> np.dtype[Any]:
    dtype = _DTYPES.get(tensor.datatype)
    if dtype is None:
        raise TensorError(
            f"tensor {tensor.name!r}: expected one of the datatypes {', '.join(_DTYPES)}, got {tensor.datatype!r}"
        )
    return dtype


def _elements(tensor: _InputTensor) -> int:
    if any(size < 0 for size in tensor.shape):
        raise TensorError(f"tensor {tensor.name!r}: expected sizes of 0 or more, got shape {tensor.shape}")
    return math.prod(tensor.shape)


def _describe_tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if isinstance(size, str) else size for size in spec.shape]
    return {"name": spec.name, "datatype": spec.dtype, "shape": shape}


def _wrong_method(allowed: str) -> Response:
    return error_response(405, f"expected the method {allowed}", headers=[("Allow", allowed)])
