"""Inference requests and answers of the Open Inference Protocol: bytes to tensors and back, as JSON or binary.

Pure. Which paths there are is :mod:`edgeops_runtime.serving.v2`'s matter.
The protocol: https://github.com/kserve/open-inference-protocol; binary tensors are Triton's extension ``binary_tensor_data``.
"""

import contextlib
import math
import sys
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.errors import MessageError, TensorError
from edgeops.tensors import NUMPY_NAMES, PROTOCOL_NAMES, TensorSpec
from edgeops_runtime.engines.engine import Tensors
from edgeops_runtime.serving.http import Request, Response, usual_head

_NAMES = {np.dtype(numpy_name): name for numpy_name, name in PROTOCOL_NAMES.items()}  # dtype.name takes 2 µs
_BINARY = "application/octet-stream"
# Little-endian on the wire. Made from text, which gives numpy's own object where the machine is little-endian, and so passes the
# pipeline's check by identity.
_DTYPES = {name: np.dtype(f"<{np.dtype(numpy_name).str[1:]}") for name, numpy_name in NUMPY_NAMES.items()}
_ABSENT = msgspec.Raw(b"")
_TEXT_LENGTH = b"inference-header-content-length"
_MAX_KNOWN = 64
_MAX_TEXT_BYTES = 4 << 10
_ALIGNMENT = 8
_LARGE_BYTES = 64 << 10


class TensorParameters(msgspec.Struct):
    """Parameters of a tensor."""

    binary_data_size: int | None = None
    binary_data: bool | None = None
    classification: int = 0
    shared_memory_region: str | None = None
    shared_memory_offset: int = 0
    shared_memory_byte_size: int | None = None


class Placement(NamedTuple):
    """Where in a shared memory region a tensor is."""

    region: str
    offset: int
    size_bytes: int


class PlacedTensor(NamedTuple):
    """An input that is in shared memory; the same for every request of the same text, whatever the memory holds."""

    part: Placement
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


Feeds = dict[str, NDArray[Any] | PlacedTensor]


class Wanted(NamedTuple):
    """An output that is to be written, as JSON, as binary data, or into shared memory."""

    spec: TensorSpec
    is_binary: bool
    part: Placement | None = None


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
    parameters: dict[str, int | str] | None = None
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
        feeds: Input name → array, read-only; or where in shared memory it is.
        wanted: Outputs to answer with, each with how.
        is_placed: Whether a tensor is, or goes, into shared memory.
        known: What is remembered of requests with the same JSON; ``None`` when that has tensors in it.
    """

    message: InferRequest
    feeds: Feeds
    wanted: list[Wanted]
    is_placed: bool
    known: "_Known | None" = None


class _Known(msgspec.Struct):
    """How to read the binary part behind a JSON text that was seen before, and what the answer's JSON looked like."""

    message: InferRequest
    wanted: list[Wanted]
    tensors: tuple[tuple[str, np.dtype[Any], int, tuple[int, ...], int], ...]
    """Name, dtype, number of elements, shape, and where it begins in the binary part."""
    placed: dict[str, PlacedTensor]
    is_placed: bool
    size_bytes: int
    only_input: tuple[str, np.dtype[Any], tuple[int, ...]] | None
    """Name, dtype and shape, where one tensor is all that there is."""
    only_output: str | None
    """Name, where one binary tensor is all that is wanted."""
    answers: dict[tuple[Any, ...], tuple[bytes, tuple[tuple[str, str], ...], bytes]] = {}
    """Shapes of the outputs (of an only one, its own) → JSON, headers and head of the answer."""


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
        # Without the header all of the body is JSON, worth a look only where its tensors are in shared memory.
        start = int(length[:20]) if length is not None and length.isdigit() else len(body)
        if length is not None or start <= _MAX_TEXT_BYTES:
            known = self._known.get(bytes(body[:start]))
            if known is not None and len(body) == start + known.size_bytes:
                return Asked(known.message, _read_known(known, body, start), known.wanted, known.is_placed, known)
        message, feeds = decode_request(request)
        wanted = wanted_outputs(message, self._outputs)
        is_placed = any(isinstance(feed, PlacedTensor) for feed in feeds.values()) or any(one.part for one in wanted)
        asked = Asked(message, feeds, wanted, is_placed)
        if length is not None or (is_placed and start <= _MAX_TEXT_BYTES):
            asked.known = self._learn(asked, bytes(body[:start]))
        return asked

    def encode(self, asked: Asked, outputs: Tensors) -> Response:
        """Write an answer."""
        known = asked.known
        if known is None:
            return encode_response(asked.message, outputs, asked.wanted, model=self._model, version=self._version)
        if known.only_output is not None:
            array = outputs[known.only_output]
            written = known.answers.get(array.shape)
            if written is not None:
                return Response(200, (written[0], to_bytes(array)), _BINARY, written[1], None, written[2])
        if not known.wanted or not all(one.is_binary or one.part for one in known.wanted):
            return encode_response(asked.message, outputs, asked.wanted, model=self._model, version=self._version)
        arrays = [outputs[one.spec.name] for one in known.wanted]
        shapes = arrays[0].shape if known.only_output is not None else tuple([array.shape for array in arrays])
        answer = known.answers.get(shapes)
        if answer is None:
            response = encode_response(asked.message, outputs, asked.wanted, model=self._model, version=self._version)
            if len(known.answers) < _MAX_KNOWN:
                response.head = usual_head(response)
                known.answers[shapes] = (bytes(response.body[0]), response.headers, response.head)
            return response
        text, headers, head = answer
        if not headers:
            return Response(200, (text,), head=head)
        blobs = [to_bytes(array) for array, one in zip(arrays, known.wanted, strict=True) if one.part is None]
        return Response(200, (text, *blobs), _BINARY, headers, head=head)

    def _learn(self, asked: Asked, text: bytes) -> _Known | None:
        tensors, placed, end = [], {}, 0
        for tensor in asked.message.inputs:
            feed = asked.feeds[tensor.name]
            if isinstance(feed, PlacedTensor):
                placed[tensor.name] = feed
                continue
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
        alone = tensors[0] if len(tensors) == 1 and not placed else None
        known = _Known(
            message=asked.message,
            wanted=asked.wanted,
            tensors=tuple(tensors),
            placed=placed,
            is_placed=asked.is_placed,
            size_bytes=end,
            only_input=(alone[0], alone[1], alone[3]) if alone is not None else None,
            only_output=_only_output(asked.wanted),
        )
        self._known[text] = known
        return known


def _only_output(wanted: list[Wanted]) -> str | None:
    if len(wanted) == 1 and wanted[0].is_binary and wanted[0].part is None:
        return wanted[0].spec.name
    return None


def _read_known(known: _Known, body: bytes | memoryview, start: int) -> Feeds:
    if known.only_input is not None and type(body) is bytes:
        name, dtype, shape = known.only_input
        return {name: np.ndarray(shape, dtype, body[start:])}
    feeds: Feeds = {**known.placed}
    if not known.tensors:
        return feeds
    if type(body) is bytes and start % _ALIGNMENT:
        # Cut off, the binary part begins where memory does, so that its tensors lie well.
        body, start = body[start:], 0
    for name, dtype, count, shape, offset in known.tensors:
        array = np.frombuffer(body, dtype, count, start + offset).reshape(shape)
        feeds[name] = array if array.flags.aligned else array.copy()
    return feeds


def to_bytes(array: NDArray[Any]) -> bytes | memoryview:
    """The bytes of an array as they go on the wire; a large one is not copied."""
    if array.nbytes < _LARGE_BYTES and sys.byteorder == "little":
        return array.tobytes()
    little = array.astype(_DTYPES[_NAMES[array.dtype]], copy=False)
    if little.nbytes < _LARGE_BYTES or not little.flags.c_contiguous:
        return little.tobytes()
    return little.reshape(-1).view(np.uint8).data


def decode_request(request: Request) -> tuple[InferRequest, Feeds]:
    """The message and the tensors of an inference request; of those in shared memory, where they are.

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


def _decode_tensors(message: InferRequest, body: bytes | memoryview, binary_start: int) -> tuple[Feeds, int]:
    """The tensors, and where the binary data ends."""
    feeds: Feeds = {}
    for tensor in message.inputs:
        if tensor.name in feeds:
            raise TensorError(f"tensor {tensor.name!r}: given twice")
        size = tensor.parameters.binary_data_size if tensor.parameters is not None else None
        try:
            if (part := _placement(tensor.name, tensor.parameters)) is not None:
                feeds[tensor.name] = _placed_tensor(tensor, part)
            elif size is None:
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


def _placed_tensor(tensor: InputTensor, part: Placement) -> PlacedTensor:
    dtype, size = _dtype(tensor), _elements(tensor)
    if tensor.data is not _ABSENT or (tensor.parameters and tensor.parameters.binary_data_size is not None):
        raise TensorError(f"tensor {tensor.name!r}: expected data or shared_memory_region, got both")
    if part.size_bytes != size * dtype.itemsize:
        raise TensorError(
            f"tensor {tensor.name!r}: expected {size * dtype.itemsize} bytes of shared memory for {tensor.datatype} "
            f"{tensor.shape}, got shared_memory_byte_size {part.size_bytes}"
        )
    return PlacedTensor(part, tuple(tensor.shape), dtype)


def _placement(name: str, parameters: TensorParameters | None) -> Placement | None:
    """Where in shared memory a tensor is or goes; ``None`` when it does not."""
    if parameters is None or (parameters.shared_memory_region is None and parameters.shared_memory_byte_size is None):
        return None
    region, size = parameters.shared_memory_region, parameters.shared_memory_byte_size
    if region is None or size is None or size < 0 or parameters.shared_memory_offset < 0:
        raise TensorError(
            f"tensor {name!r}: expected shared_memory_region, shared_memory_byte_size and perhaps shared_memory_offset, "
            "sizes of 0 or more"
        )
    return Placement(region, parameters.shared_memory_offset, size)


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


def wanted_outputs(message: InferRequest, outputs: Sequence[TensorSpec]) -> list[Wanted]:
    """The outputs that the caller asked for, each with how it is to be written.

    Raises:
        TensorError: There is no such output.
        MessageError: It is asked for in a way that is not supported.
    """
    specs = {spec.name: spec for spec in outputs}
    default = message.parameters is not None and message.parameters.binary_data_output
    if not message.outputs:
        return [Wanted(spec, default) for spec in outputs]
    wanted = []
    for output in message.outputs:
        spec = specs.get(output.name)
        if spec is None:
            raise TensorError(f"output {output.name!r}: expected one of {', '.join(specs)}")
        parameters = output.parameters or TensorParameters()
        if parameters.classification:
            raise MessageError(f"output {output.name!r}: the classification extension is not supported")
        is_binary = default if parameters.binary_data is None else parameters.binary_data
        wanted.append(Wanted(spec, is_binary, _placement(output.name, parameters)))
    return wanted


def encode_response(
    message: InferRequest, outputs: Tensors, wanted: Iterable[Wanted], *, model: str, version: str
) -> Response:
    """The answer; outputs that go into shared memory have been written there."""
    described: list[_OutputTensor] = []
    blobs: list[bytes | memoryview] = []
    for spec, is_binary, part in wanted:
        array = outputs[spec.name]
        tensor = _OutputTensor(spec.name, _NAMES[array.dtype], array.shape)
        if part is not None:
            tensor.parameters = {"shared_memory_region": part.region, "shared_memory_byte_size": array.nbytes}
            if part.offset:
                tensor.parameters["shared_memory_offset"] = part.offset
        elif is_binary:
            blob = to_bytes(array)
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
