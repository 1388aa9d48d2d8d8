"""How much noise each layer of a compressed file has, in the order of its graph, measured on the real engines.

Float and compressed file answer the same rows side by side, and of every tensor that both have three sums a channel are kept, so
that memory is that of one batch, however many rows and layers there are. Cross-layer equalisation divides channels by powers of
two (:mod:`edgeops_converters.equalization`); they are multiplied back, or every channel that was equalised would count as noise.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.errors import EngineError
from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.calibration import spread
from edgeops_converters.extras import load
from edgeops_converters.layers import FloatArray
from edgeops_converters.quantizers.litert_graph import LitertFile
from edgeops_converters.quantizers.litert_graph import stream as stream_litert
from edgeops_converters.quantizers.onnx_graph import Codes, exposing, initializers
from edgeops_converters.quantizers.onnx_graph import stream as stream_onnx

ROWS = 24
"""So many rows tell the noise of a layer: the spread of SQNR over draws of them is below a decibel."""

_MOVING = {
    "QuantizeLinear", "DequantizeLinear", "QUANTIZE", "DEQUANTIZE", "Cast", "CAST", "Reshape", "RESHAPE", "Transpose",
    "TRANSPOSE", "Flatten", "Squeeze", "SQUEEZE", "Unsqueeze", "EXPAND_DIMS", "Identity", "Shape", "SHAPE",
}  # fmt: skip
"""Operators that change the form of values only; what they give is as noisy as what they got."""


_RESOLVED = 1e-13  # noise over signal that a difference of sums of doubles still shows


class LayerReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One layer of a compressed file.

    Attributes:
        name: As the file calls it.
        kind: Of operator, in the words of the format.
        precision: Type of what it gives: ``int8``, ``int16``, ``float32``, ….
        sqnr_db: Signal to noise of what it gives, against float; ``None`` when it is the same.
        input_sqnr_db: The least of what it gets; ``None`` when that is the same as in float, or is not known.
    """

    name: str
    kind: str
    precision: str
    sqnr_db: float | None
    input_sqnr_db: float | None = None

    @property
    def loss_db(self) -> float | None:
        """By how much the layer is noisier than what it got; ``None`` when one of them is not known."""
        if self.sqnr_db is None or self.input_sqnr_db is None:
            return None
        return self.input_sqnr_db - self.sqnr_db


def layer_noise(original: Artifact, compressed: Artifact, rows: Tensors) -> tuple[LayerReport, ...]:
    """Hold every layer of a compressed file against float.

    Args:
        original: The float file that it was made from, in the same format.
        compressed: The file to look at.
        rows: Inputs of the model; :data:`ROWS` of them are used, evenly spread.

    Returns:
        Layers in the order of the graph. Left out is what float has not under the same name, and what only moves values.

    Raises:
        EngineError: An engine does not run one of the files with its inner tensors shown.
    """
    try:
        return _MEASURES[compressed.format](original, compressed, spread(rows, ROWS))
    except Exception as error:  # the engines' exceptions share no base class
        raise EngineError(f"{compressed.file}: its layers cannot be looked at: {error}") from error


@dataclass(frozen=True)
class _Layer:
    """An operator of the compressed file; tensors by the names that float has for them."""

    name: str
    kind: str
    reads: tuple[str, ...]
    gives: str


@dataclass(frozen=True)
class _Pair:
    """One tensor of one batch, in float and in the compressed file; with channels along ``axis``."""

    expected: NDArray[Any]
    given: FloatArray
    precision: str
    axis: int


class _Noise:
    """Power of float, of the compressed, and their product, of each channel of a tensor."""

    def __init__(self) -> None:
        self.precision = ""
        self._sums: FloatArray = np.zeros((3, 1))

    def add(self, pair: _Pair) -> None:
        """Count one batch."""
        first, second = (_channels(array, pair.axis) for array in (pair.expected, pair.given))
        products = (np.einsum("cv,cv->c", *both) for both in ((first, first), (second, second), (first, second)))
        self._sums = self._sums + np.stack(list(products))
        self.precision = pair.precision

    def sqnr_db(self) -> float | None:
        """Signal to noise; ``None`` when there is no noise."""
        signal, power, product = self._sums
        gain = np.divide(product, power, out=np.ones_like(power), where=(power > 0) & (product > 0))
        # What was equalised is off by a power of two; by less than the square root of two is noise.
        factor = np.exp2(np.rint(np.log2(gain)))
        total = float(signal.sum())
        noise = float((signal - 2 * factor * product + factor**2 * power).sum())
        # A difference of sums has no more digits than they have.
        return 10 * math.log10(max(total, 1e-30) / noise) if noise > _RESOLVED * total else None


def _channels(array: NDArray[Any], axis: int) -> FloatArray:
    """Shape ``(channels, values)``; numbers without axes of their own count as one channel."""
    values = np.asarray(array, np.float64)
    if values.ndim < 2:  # noqa: PLR2004 - rows and channels
        return values.reshape(1, -1)
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _reports(layers: Sequence[_Layer], pairs: Iterable[tuple[str, _Pair]]) -> tuple[LayerReport, ...]:
    """What is known of each layer.

    Args:
        layers: In the order of the graph.
        pairs: Tensor, and what one batch had of it; one at a time, since all of a batch would double its memory.
    """
    noises: dict[str, _Noise] = {}
    for name, pair in pairs:
        if pair.expected.dtype.kind == "f" and pair.expected.shape == pair.given.shape:
            noises.setdefault(name, _Noise()).add(pair)
    figures = {name: noise.sqnr_db() for name, noise in noises.items()}
    found = []
    for layer in layers:
        if layer.kind in _MOVING or layer.gives not in figures:
            continue
        ahead = [figures[name] for name in layer.reads if name in figures]
        found.append(
            LayerReport(
                name=layer.name,
                kind=layer.kind,
                precision=noises[layer.gives].precision,
                sqnr_db=figures[layer.gives],
                input_sqnr_db=min((value for value in ahead if value is not None), default=None),
            )
        )
    return tuple(found)


def _measure_onnx(original: Artifact, compressed: Artifact, rows: Tensors) -> tuple[LayerReport, ...]:
    onnx = load("onnx")
    floats, integers = (onnx.load(str(one.path)) for one in (original, compressed))
    inputs = {*original.inputs.values()}
    graph = _QdqGraph(integers.graph, inputs | {name for node in floats.graph.node for name in node.output if name})
    streams = [
        # A batch of one size for both, so that they stay in step.
        stream_onnx(exposing(model, names - inputs), replace(one, batch=one.batch or 1), rows, is_plain=is_plain)
        for model, names, one, is_plain in (
            (floats, set(graph.codes), original, True),
            (integers, {codes.tensor for codes in graph.codes.values()}, compressed, False),
        )
    ]

    def pairs() -> Iterator[tuple[str, _Pair]]:
        for expected, given in zip(*streams, strict=True):
            for name, codes in graph.codes.items():
                precision = graph.precisions.get(name, str(given[codes.tensor].dtype))
                yield name, _Pair(expected[name], codes.decode(given[codes.tensor]), precision, axis=1)

    return _reports(graph.layers, pairs())


class _QdqGraph:
    """Which tensor of a compressed graph stands for which of float's.

    Attributes:
        codes: Tensor of float → the integers that stand for it, or where there are none the tensor itself.
        precisions: Tensor of float → type of these integers.
        layers: Operators, in order.
    """

    def __init__(self, graph: Any, known: set[str]) -> None:  # noqa: ANN401 - onnx has no types
        constants = initializers(graph)
        given = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
        self.codes = {name: Codes(name, np.ones(()), np.zeros(()), 1) for name in known & given}
        self.precisions: dict[str, str] = {}
        self._behind: dict[str, str] = {}
        for node in graph.node:
            if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
                self._behind[node.output[0]] = node.input[0]
            if node.op_type == "QuantizeLinear" and {*node.input[1:]} <= set(constants):
                name = self._float_name(node.input[0])
                scale, *rest = (constants[one] for one in node.input[1:])
                zero = rest[0] if rest else np.zeros_like(scale, np.uint8)
                self.precisions[name] = str(zero.dtype).removeprefix("u")
                if node.input[0] in self.codes:
                    self.codes[name] = Codes(node.output[0], scale.astype(np.float64), zero.astype(np.float64), 1)
        self.layers = [
            _Layer(node.name, node.op_type, tuple(map(self._float_name, node.input)), self._float_name(node.output[0]))
            for node in graph.node
        ]

    def _float_name(self, name: str) -> str:
        """The tensor of float that one stands for, behind any number of quantisations."""
        while name in self._behind:
            name = self._behind[name]
        return name.removesuffix("_QuantizeLinear_Input")


def _measure_litert(original: Artifact, compressed: Artifact, rows: Tensors) -> tuple[LayerReport, ...]:
    floats, integers = (LitertFile(one.path.read_bytes()) for one in (original, compressed))
    known = {floats.details[index]["name"]: index for index in _computed(floats)}
    kinds = _kinds()
    names = {index: integers.details[index]["name"] for index in _computed(integers)}
    tensors = {names[index]: index for index in _computed(integers) if names[index] in known}
    for kind, inputs, outputs in integers.operators:
        if kinds[kind] not in {"QUANTIZE", "DEQUANTIZE"}:
            continue
        names[outputs[0]] = names.get(inputs[0], "")  # what comes from a constant has no counterpart
        if integers.details[inputs[0]]["dtype"] is np.float32 and names[outputs[0]] in tensors:
            # What the next layer gets of an input, or of a layer in float.
            tensors[names[outputs[0]]] = outputs[0]
    sides = (
        (floats, original, [known[name] for name in tensors]),
        (integers, compressed, list(tensors.values())),
    )
    streams = [
        stream_litert(
            bytes(file.content),
            {file.indices[wire]: rows[name] for name, wire in one.inputs.items()},
            wanted,
            batch=one.batch or 1,
        )
        for file, one, wanted in sides
    ]

    def pairs() -> Iterator[tuple[str, _Pair]]:
        for expected, given in zip(*streams, strict=True):
            for name, index in tensors.items():
                precision = np.dtype(integers.details[index]["dtype"]).name
                yield name, _Pair(expected[known[name]], integers.decoded(index, given[index]), precision, axis=-1)

    layers = [
        _Layer(
            integers.details[outputs[0]]["name"],
            kinds[kind],
            tuple(names.get(index, "") for index in inputs),
            names[outputs[0]],
        )
        for kind, inputs, outputs in integers.operators
    ]
    return _reports(layers, pairs())


def _computed(file: LitertFile) -> list[int]:
    """Tensors that are no constants: inputs, and what the operators give."""
    return [*file.inputs, *(index for _, _, outputs in file.operators for index in outputs)]


def _kinds() -> dict[int, str]:
    """Number → name of every operator of the schema."""
    builtin = load("ai_edge_litert.schema_py_generated").BuiltinOperator
    return {number: name for name, number in vars(builtin).items() if isinstance(number, int)}


_MEASURES: dict[str, Callable[[Artifact, Artifact, Tensors], tuple[LayerReport, ...]]] = {
    "onnx": _measure_onnx,
    "tflite": _measure_litert,
}
