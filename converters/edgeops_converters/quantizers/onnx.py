"""ONNX: QDQ by onnxruntime's quantiser, with our ranges, weights and biases, in the types that the CPU has kernels for."""

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.errors import RecipeError
from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.calibration import Means
from edgeops_converters.correction import mean_squared_error
from edgeops_converters.extras import load, quiet
from edgeops_converters.graph import Layer, Node, Parameters, Values
from edgeops_converters.layers import FloatArray
from edgeops_converters.onnx_file import strip
from edgeops_converters.quantizers.onnx_graph import (
    OnnxLayer,
    complete,
    exposing,
    initializers,
    prefix,
    read_integer_layers,
    read_layers,
    read_nodes,
    stream,
)
from edgeops_converters.ranges import Range
from edgeops_converters.rounding import Grid
from edgeops_converters.targets import Target


class OnnxGraph:
    """A float ``.onnx`` in memory; see :class:`edgeops_converters.graph.FloatGraph`.

    Args:
        source: The file.

    Raises:
        RecipeError: onnxruntime cannot prepare it.
    """

    def __init__(self, source: Artifact) -> None:
        self.source = source
        try:
            self.model = _prepared(source.path)
        except Exception as error:  # onnxruntime's passes raise plain exceptions of many kinds
            raise RecipeError(f"{source.file}: onnxruntime cannot prepare it for quantisation: {error}") from error
        self._constants = {name: np.asarray(array) for name, array in initializers(self.model.graph).items()}
        self._held = {layer.name: layer for layer in read_layers(self.model.graph)}
        self.ends = frozenset({*source.inputs.values(), *source.outputs.values()})
        self.layers: Sequence[Layer] = [_layer(held) for held in self._held.values()]
        self.nodes: Sequence[Node] = read_nodes(self.model.graph)
        self.channel_axis = 1

    def parameters(self, layer: Layer) -> Parameters:
        """See :class:`edgeops_converters.graph.FloatGraph`."""
        held = self._held[layer.node]
        return Parameters(
            held.arrange(self._constants[held.weights]), np.asarray(self._constants[held.bias], np.float64)
        )

    def change(self, changed: Mapping[str, Parameters]) -> None:
        """See :class:`edgeops_converters.graph.FloatGraph`."""
        values: dict[str, NDArray[np.float32]] = {}
        for node, parameters in changed.items():
            held = self._held[node]
            values[held.weights] = held.arrange(parameters.weights).astype(np.float32)
            values[held.bias] = parameters.bias.astype(np.float32)
        self._constants |= values
        _set_initializers(self.model.graph, values)

    def stream(self, rows: Tensors, tensors: Collection[str] | None = None) -> Iterator[Values]:
        """See :class:`edgeops_converters.graph.FloatGraph`."""
        names = tensors if tensors is not None else [name for node in self.nodes for name in node.gives]
        yield from stream(exposing(self.model, names), self.source, rows, is_plain=True)

    def planes(self, layer: Layer, values: NDArray[Any]) -> NDArray[Any]:
        """See :class:`edgeops_converters.graph.FloatGraph`."""
        return values if layer.geometry.strides else values.reshape(-1, values.shape[-1])


class OnnxQuantizer:
    """Writes a QDQ ``.onnx``; onnxruntime fuses it into integer kernels when it loads the file."""

    def read(self, source: Artifact) -> OnnxGraph:
        """See :class:`edgeops_converters.quantizers.Quantizer`."""
        return OnnxGraph(source)

    def write(
        self,
        graph: OnnxGraph,
        ranges: Mapping[str, Range],
        *,
        left_out: Collection[str],
        target: Target,
    ) -> "OnnxIntegers":
        """See :class:`edgeops_converters.quantizers.Quantizer`."""
        try:
            model = _quantized(graph.model, ranges, left_out, target)
        except Exception as error:  # onnxruntime's quantiser raises plain exceptions of many kinds
            raise RecipeError(f"{graph.source.file}: onnxruntime cannot quantise it: {error}") from error
        return OnnxIntegers(model, graph, is_exact=not target.runs_here)


class OnnxIntegers:
    """A QDQ model in memory; see :class:`edgeops_converters.quantizers.Integers`.

    Args:
        model: As the library wrote it.
        graph: The float model that it was made of.
        is_exact: Whether to run rows in exact arithmetic rather than on this CPU's kernels, because it is made for others.
    """

    def __init__(self, model: Any, graph: OnnxGraph, *, is_exact: bool) -> None:  # noqa: ANN401 - onnx has no types
        self._model, self._graph, self._is_exact = model, graph, is_exact
        found = read_integer_layers(model.graph)
        self._layers = {layer.node: found[layer.node] for layer in graph.layers if layer.node in found}

    @property
    def nodes(self) -> frozenset[str]:
        """See :class:`edgeops_converters.quantizers.Integers`."""
        return frozenset(self._layers)

    def weights(self, node: str) -> FloatArray:
        """See :class:`edgeops_converters.quantizers.Integers`."""
        held = self._held(node)
        return held.arrange(self._layers[node].weights)

    def set_weights(self, grids: Mapping[str, Grid]) -> None:
        """See :class:`edgeops_converters.quantizers.Integers`."""
        values: dict[str, NDArray[Any]] = {}
        for node, grid in grids.items():
            layer, held = self._layers[node], self._held(node)
            weights, bias = layer.codes, layer.bias
            values[weights.tensor] = (grid.codes.T if held.is_transposed else grid.codes).astype(np.int8)
            values[weights.scale_tensor] = grid.scales.astype(np.float32)
            values[bias.scale_tensor] = (grid.scales * float(layer.input.scale.reshape(-1)[0])).astype(np.float32)
        _set_initializers(self._model.graph, values)
        self._layers |= {node: one for node, one in read_integer_layers(self._model.graph).items() if node in grids}

    def set_biases(self, biases: Mapping[str, FloatArray]) -> None:
        """See :class:`edgeops_converters.quantizers.Integers`."""
        codes = {node: self._layers[node].bias for node in biases}
        _set_initializers(
            self._model.graph, {codes[node].tensor: codes[node].encode(bias) for node, bias in biases.items()}
        )

    def mean_inputs(self, nodes: Sequence[str], rows: Tensors) -> dict[str, FloatArray]:
        """See :class:`edgeops_converters.quantizers.Integers`."""
        names, means = {self._layers[node].input.tensor for node in nodes}, Means()
        for values in stream(prefix(self._model, names), self._graph.source, rows, is_plain=self._is_exact):
            for name in names:
                means.add(name, values[name])
        codes = {node: self._layers[node].input for node in nodes}
        return {node: code.decode(means.mean(code.tensor)) for node, code in codes.items()}

    def noise(self, expected: Tensors, rows: Tensors) -> float:
        """See :class:`edgeops_converters.quantizers.Integers`."""
        answered: dict[str, list[NDArray[Any]]] = {wire: [] for wire in expected}
        for values in stream(self._model, self._graph.source, rows, is_plain=self._is_exact):
            for wire, parts in answered.items():
                parts.append(values[wire])
        return mean_squared_error(expected, {wire: np.concatenate(parts) for wire, parts in answered.items()})

    def save(self, target: Path, *, precision: str) -> Artifact:
        """See :class:`edgeops_converters.quantizers.Integers`."""
        strip(self._model)
        load("onnx").save(self._model, str(target))
        return replace(self._graph.source, path=target, precision=precision, notes=())

    def _held(self, node: str) -> OnnxLayer:
        return self._graph._held[node]  # noqa: SLF001 - the other half of this module


def _layer(held: OnnxLayer) -> Layer:
    return Layer(held.label, held.name, held.geometry, held.input, held.output)


def _prepared(path: Path) -> Any:  # noqa: ANN401 - onnx has no types
    """The float model with shapes inferred, norms folded, and products in the form that has a bias."""
    onnx = load("onnx")
    with quiet(), tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        load("onnxruntime.quantization.shape_inference").quant_pre_process(
            str(path), str(prepared), skip_symbolic_shape=True
        )
        model = onnx.load(str(prepared))
    complete(model.graph)
    return model


def _quantized(model: Any, ranges: Mapping[str, Range], left_out: Collection[str], target: Target) -> Any:  # noqa: ANN401 - onnx has no types
    """The QDQ model."""
    onnx, quantization = load("onnx"), load("onnxruntime.quantization")
    calibrate, registry = load("onnxruntime.quantization.calibrate"), load("onnxruntime.quantization.registry")
    data = {
        name: calibrate.TensorData(lowest=np.float32(found.low), highest=np.float32(found.high))
        for name, found in ranges.items()
    }
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # onnxruntime's defaults (S8S8, one scale a tensor) leave a third of EfficientNet's convolutions in float on x86
    # and more than half of its answers changed.
    with quiet():
        quantizer = load("onnxruntime.quantization.qdq_quantizer").QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=False,
            weight_qType=quantization.QuantType.QInt8,
            activation_qType=quantization.QuantType.QInt8 if target.is_signed else quantization.QuantType.QUInt8,
            tensors_range=calibrate.TensorsData(calibrate.CalibrationMethod.MinMax, data),
            nodes_to_quantize=[],
            nodes_to_exclude=sorted(left_out),
            op_types_to_quantize=sorted({*registry.QLinearOpsRegistry, *registry.QDQRegistry}),
            extra_options={},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    return quantizer.model.model


def _set_initializers(graph: Any, values: Mapping[str, NDArray[Any]]) -> None:  # noqa: ANN401 - onnx has no types
    """Give constants other values."""
    to_tensor = load("onnx").numpy_helper.from_array
    for tensor in graph.initializer:
        if tensor.name in values:
            held = values[tensor.name]
            tensor.CopyFrom(to_tensor(np.ascontiguousarray(held.reshape(tuple(tensor.dims))), tensor.name))
