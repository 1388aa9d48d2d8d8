"""Inference requests and answers of the Open Inference Protocol: bytes to tensors and back, as JSON or binary.

Pure. Which paths there are is :mod:`edgeops_runtime.serving.v2`'s matter.
The protocol: https://github.com/kserve/open-inference-protocol; binary tensors are Triton's extension ``binary_tensor_data``.
"""

import contextlib
import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.errors import MessageError, TensorError
from edgeops.tensors import NUMPY_NAMES, PROTOCOL_NAMES, TensorSpec
from edgeops_runtime.engines.engine import Tensors
from edgeops_runtime.serving.http import Request, Response

_NAMES = {np.dtype(numpy_name): name for numpy_name, name in PROTOCOL_NAMES.items()}  # dtype.name takes 2 µs
_BINARY = "application/octet-stream"
# Little-endian on the wire. Made from text, which gives numpy's own object where the machine is little-endian, and so passes the
# pipeline's check by identity.
_DTYPES = {name: np.dtype(f"<{np.dtype(numpy_name).str[1:]}") for name, numpy_name in NUMPY_NAMES.items()}
_ABSENT = msgspec.Raw(b"")
_TEXT_LENGTH = b"inference-header-content-length"
_MAX_KNOWN = 64
_ALIGNMENT = 8
_LARGE_BYTES = 64 << 10


class TensorParameters(msgspec.Struct):
    """Parameters of a tensor."""

    binary_data_size: int | None = None
    binary_data: bool | None = None
    classification: int = 0


class InputTensor(msgspec.Struct):
    """An input as it came."""

    name: str
    shape: list[int]
    datatype: str
    parameters: TensorParameters | None = None
    data: msgspec.Raw = _ABSENT


class WantedOutput(msgspec.Struct):
    """An output that is asked for."""

    name: str
    parameters: TensorParameters | None = None


class RequestParameters(msgspec.Struct):
    """Parameters of a request; ``timeout`` is in microseconds from its arrival, 0 for none."""

    binary_data_output: bool = False
    timeout: int = 0


class InferRequest(msgspec.Struct):
    """A request without its binary data."""

    inputs: list[InputTensor]
    id: str = ""
    parameters: RequestParameters | None = None
    outputs: list[WantedOutput] | None = None


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


_DECODER = msgspec.json.Decoder(InferRequest)
_FLOATS = msgspec.json.Decoder(list[float])
_ENCODER = msgspec.json.Encoder()


class Asked(msgspec.Struct):
    """A request that was read.

    Attributes:
        message: Its JSON.
        feeds: Input name → array; read-only.
        wanted: Outputs to answer with, each with whether as binary.
        known: What is remembered of requests with the same JSON; ``None`` when that has tensors in it.
    """

    message: InferRequest
    feeds: Tensors
    wanted: list[tuple[TensorSpec, bool]]
    known: "_Known | None" = None


class _Known(msgspec.Struct):
    """How to read the binary part behind a JSON text that was seen before, and what the answer's JSON looked like."""

    message: InferRequest
    wanted: list[tuple[TensorSpec, bool]]
    tensors: tuple[tuple[str, np.dtype[Any], int, tuple[int, ...], int], ...]
    """Name, dtype, number of elements, shape, and where it begins in the binary part."""
    size_bytes: int
    answers: dict[tuple[tuple[int, ...], ...], tuple[bytes, tuple[tuple[str, str], ...]]] = {}
    """Shapes of the outputs → the JSON and the headers of the answer."""


class Codec:
    """Reads requests for one model and writes its answers; may be used from several threads.

    Clients send the same JSON again and again in front of binary tensors. So it is read once, and so is the answer's written;
    what differs is the bytes of the tensors.
    """

    def __init__(self, outputs: Sequence[TensorSpec], *, model: str, version: str) -> None:
        self._outputs = outputs
        self._model, self._version = model, version
        self._known: dict[bytes, _Known] = {}

    def decode(self, request: Request) -> Asked:
        """Read a request.

        Raises:
            MessageError: The JSON or the lengths are wrong.
            TensorError: A tensor's dtype, shape and data do not go together, or there is no such output.
        """
        body, length = request.body, request.headers.get(_TEXT_LENGTH)
        if length is not None and length.isdigit():
            start = int(length[:20])
            known = self._known.get(bytes(body[:start]))
            if known is not None and len(body) == start + known.size_bytes:
                return Asked(known.message, _read_known(known, body, start), known.wanted, known)
        message, feeds = decode_request(request)
        wanted = wanted_outputs(message, self._outputs)
        return Asked(message, feeds, wanted, self._learn(message, wanted, body, length))

    def encode(self, asked: Asked, outputs: Tensors) -> Response:
        """Write an answer."""
        known = asked.known
        if known is None or not known.wanted or not all(is_binary for _, is_binary in known.wanted):
            return encode_response(asked.message, outputs, asked.wanted, model=self._model, version=self._version)
        arrays = [outputs[spec.name] for spec, _ in known.wanted]
        shapes = tuple([array.shape for array in arrays])
        answer = known.answers.get(shapes)
        if answer is None:
            response = encode_response(asked.message, outputs, asked.wanted, model=self._model, version=self._version)
            if len(known.answers) < _MAX_KNOWN:
                known.answers[shapes] = (bytes(response.body[0]), response.headers)
            return response
        return Response(200, (answer[0], *map(_blob, arrays)), _BINARY, answer[1])

    def _learn(
        self,
        message: InferRequest,
        wanted: list[tuple[TensorSpec, bool]],
        body: bytes | memoryview,
        length: bytes | None,
    ) -> _Known | None:
        if length is None:
            return None
        tensors, end = [], 0
        for tensor in message.inputs:
            size = tensor.parameters.binary_data_size if tensor.parameters is not None else None
            if size is None:
                return None
            dtype = _DTYPES[tensor.datatype]
            tensors.append((tensor.name, dtype, size // dtype.itemsize, tuple(tensor.shape), end))
            end += size
        if not all(dtype.isnative for _, dtype, *_ in tensors):
            return None
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        known = _Known(message, wanted, tuple(tensors), end)
        self._known[bytes(body[: int(length)])] = known
        return known


def _read_known(known: _Known, body: bytes | memoryview, start: int) -> Tensors:
    if type(body) is bytes and start % _ALIGNMENT:
        # Cut off, the binary part begins where memory does, so that its tensors lie well.
        body, start = body[start:], 0
    feeds: Tensors = {}
    for name, dtype, count, shape, offset in known.tensors:
        array = np.frombuffer(body, dtype, count, start + offset).reshape(shape)
        feeds[name] = array if array.flags.aligned else array.copy()
    return feeds


def _blob(array: NDArray[Any]) -> bytes | memoryview:
    """The bytes of an array as they go on the wire; a large one is not copied."""
    little = array.astype(_DTYPES[_NAMES[array.dtype]], copy=False)
    if little.nbytes < _LARGE_BYTES or not little.flags.c_contiguous:
        return little.tobytes()
    return little.reshape(-1).view(np.uint8).data


def decode_request(request: Request) -> tuple[InferRequest, Tensors]:
    """The message and the tensors of an inference request.

    Raises:
        MessageError: The JSON or the lengths are wrong.
        TensorError: A tensor's dtype, shape and data do not go together.
    """
    body = request.body
    header_length = request.headers.get(_TEXT_LENGTH)
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


def _decode_tensors(message: InferRequest, body: bytes | memoryview, binary_start: int) -> tuple[Tensors, int]:
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


def _binary_tensor(tensor: InputTensor, body: bytes | memoryview, start: int, size: int) -> NDArray[Any]:
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


def _json_tensor(tensor: InputTensor) -> NDArray[Any]:
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


def _numbers(tensor: InputTensor, kind: str) -> list[Any]:
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


def _dtype(tensor: InputTensor) -> np.dtype[Any]:
    dtype = _DTYPES.get(tensor.datatype)
    if dtype is None:
        raise TensorError(
            f"tensor {tensor.name!r}: expected one of the datatypes {', '.join(_DTYPES)}, got {tensor.datatype!r}"
        )
    return dtype


def _elements(tensor: InputTensor) -> int:
    if any(size < 0 for size in tensor.shape):
        raise TensorError(f"tensor {tensor.name!r}: expected sizes of 0 or more, got shape {tensor.shape}")
    return math.prod(tensor.shape)


def wanted_outputs(message: InferRequest, outputs: Sequence[TensorSpec]) -> list[tuple[TensorSpec, bool]]:
    """The outputs that the caller asked for, each with whether it is to be binary.

    Raises:
        TensorError: There is no such output.
        MessageError: It is asked for in a way that is not supported.
    """
    specs = {spec.name: spec for spec in outputs}
    default = message.parameters is not None and message.parameters.binary_data_output
    if not message.outputs:
        return [(spec, default) for spec in outputs]
    wanted = []
    for output in message.outputs:
        spec = specs.get(output.name)
        if spec is None:
            raise TensorError(f"output {output.name!r}: expected one of {', '.join(specs)}")
        parameters = output.parameters or TensorParameters()
        if parameters.classification:
            raise MessageError(f"output {output.name!r}: the classification extension is not supported")
        wanted.append((spec, default if parameters.binary_data is None else parameters.binary_data))
    return wanted


def encode_response(
    message: InferRequest, outputs: Tensors, wanted: Iterable[tuple[TensorSpec, bool]], *, model: str, version: str
) -> Response:
    """The answer."""
    described: list[_OutputTensor] = []
    blobs: list[bytes | memoryview] = []
    for spec, is_binary in wanted:
        array = outputs[spec.name]
        tensor = _OutputTensor(spec.name, _NAMES[array.dtype], array.shape)
        if is_binary:
            blob = _blob(array)
            tensor.parameters = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            tensor.data = array.ravel().tolist()
        described.append(tensor)
    text = _ENCODER.encode(_InferResponse(model, version, described, message.id))
    if not blobs:
        return Response(200, (text,))
    return Response(
        200, (text, *blobs), content_type=_BINARY, headers=(("Inference-Header-Content-Length", str(len(text))),)
    )
