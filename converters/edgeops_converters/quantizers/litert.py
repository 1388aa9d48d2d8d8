"""TFLite: ai-edge-quantizer's static int8 with our ranges, weights and biases, and the float32 interface kept."""

import math
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.errors import RecipeError
from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.calibration import Means
from edgeops_converters.correction import mean_squared_error
from edgeops_converters.exporters.litert import tensor_names
from edgeops_converters.extras import load, quiet
from edgeops_converters.graph import Layer, Node, NodeKind, Parameters, Values
from edgeops_converters.layers import FloatArray
from edgeops_converters.quantizers.litert_graph import LitertFile, LitertLayer, stream
from edgeops_converters.ranges import Range
from edgeops_converters.rounding import Grid
from edgeops_converters.targets import Target

_SIGNATURE = "serving_default"
_CHANNELWISE = {"RELU", "RELU6", "MAX_POOL_2D", "AVERAGE_POOL_2D"}


class LitertGraph:
    """A float ``.tflite`` in memory; see :class:`edgeops_converters.graph.FloatGraph`. Tensors go by name, nodes by position.

    Args:
        source: The file.
    """

    def __init__(self, source: Artifact) -> None:
        self.source = source
        self.channel_axis = -1
        self.ends = frozenset({*source.inputs.values(), *source.outputs.values()})
        self._open(source.path.read_bytes())

    def _open(self, content: bytes) -> None:
        self.file = LitertFile(content)
        self._held = {str(held.operator): held for held in self.file.layers()}
        self.layers: Sequence[Layer] = [self._layer(held) for held in self._held.values()]
        flowing = {*self.file.inputs, *(index for _, _, outputs in self.file.operators for index in outputs)}
        self.nodes: Sequence[Node] = [
            Node(
                str(position),
                tuple(self._name(index) for index in inputs if index in flowing),
                tuple(self._name(index) for index in outputs),
                *self._kind(position, inputs, flowing),
            )
            for position, (_, inputs, outputs) in enumerate(self.file.operators)
        ]

    def _kind(self, position: int, inputs: Sequence[int], flowing: Collection[int]) -> tuple[NodeKind, float]:
        """What an operator does to channels, and where it cuts values."""
        name, cap = self.file.kind(position), self.file.cap(position)
        if cap is None:
            return NodeKind.OTHER, math.inf
        if str(position) in self._held:
            return NodeKind.LAYER, cap
        if name == "ADD" and set(inputs) <= set(flowing):
            return NodeKind.SUM, cap
        return (NodeKind.CHANNELWISE, cap) if name in _CHANNELWISE else (NodeKind.OTHER, cap)

    def parameters(self, layer: Layer) -> Parameters:
        """See :class:`edgeops_converters.graph.FloatGraph`."""
        held = self._held[layer.node]
        weights, bias = (self.file.constant(index).astype(np.float64) for index in (held.weights, held.bias))
        return Parameters(self.file.arranged(held, weights), bias)

    def change(self, changed: Mapping[str, Parameters]) -> None:
        """See :class:`edgeops_converters.graph.FloatGraph`."""
        for node, parameters in changed.items():
            held = self._held[node]
            self.file.set_float(held.weights, self.file.stored(held, parameters.weights))
            self.file.set_float(held.bias, parameters.bias)
        self._open(bytes(self.file.content))

    def stream(self, rows: Tensors, tensors: Collection[str] | None = None) -> Iterator[Values]:
        """See :class:`edgeops_converters.graph.FloatGraph`."""
        wanted = (
            [self.file.indices[name] for name in tensors]
            if tensors is not None
            else [*self.file.inputs, *(index for _, _, outputs in self.file.operators for index in outputs)]
        )
        feeds = {self.file.indices[wire]: rows[name] for name, wire in self.source.inputs.items()}
        for values in stream(bytes(self.file.content), feeds, wanted, batch=self.source.batch or 1):
            yield {self._name(index): array for index, array in values.items()}

    def planes(self, layer: Layer, values: NDArray[Any]) -> NDArray[Any]:
        """See :class:`edgeops_converters.graph.FloatGraph`."""
        rows = self.file.rows_of(self._held[layer.node], values)
        return np.moveaxis(rows, -1, 1) if layer.geometry.strides else rows

    def _layer(self, held: LitertLayer) -> Layer:
        input_, output = (self._name(index) for index in (held.input, held.output))
        return Layer(output, str(held.operator), held.geometry, input_, output)

    def _name(self, index: int) -> str:
        return str(self.file.details[index]["name"])


class LitertQuantizer:
    """Writes a fully quantised ``.tflite``; TFLite's activations are signed on every CPU."""

    def read(self, source: Artifact) -> LitertGraph:
        """See :class:`edgeops_converters.quantizers.Quantizer`."""
        return LitertGraph(source)

    def write(
        self,
        graph: LitertGraph,
        ranges: Mapping[str, Range],
        *,
        left_out: Collection[str],
        target: Target,  # noqa: ARG002 - one file serves all
    ) -> "LitertIntegers":
        """See :class:`edgeops_converters.quantizers.Quantizer`."""
        quantizer, recipe = load("ai_edge_quantizer.quantizer"), load("ai_edge_quantizer.recipe")
        operation = load("ai_edge_quantizer.qtyping").TFLOperationName
        source = graph.source
        try:
            with quiet(), tempfile.TemporaryDirectory() as directory:
                level = Path(directory) / "equalised.tflite"
                level.write_bytes(bytes(graph.file.content))
                stock = quantizer.Quantizer(str(level))
                stock.load_quantization_recipe(recipe.static_wi8_ai8())
                for end in (operation.INPUT, operation.OUTPUT):
                    # Its default moves the interface to int8, and then the variants of one bundle would differ.
                    stock.update_quantization_recipe(".*", end, algorithm_key="no_quantize")
                # A tensor that is both an output and another layer's input gets two types from the quantizer, and the
                # file does not load; so the layer that reads it stays float.
                for name in {*graph.file.readers_of_outputs, *_given_by(graph, left_out)}:
                    stock.update_quantization_recipe(
                        f"^{re.escape(name)}(;.*)?$", operation.ALL_SUPPORTED, algorithm_key="no_quantize"
                    )
                keys = {tensor: key for key, tensor in tensor_names(source.path)[0].items()}
                blank = {
                    keys[detail["name"]]: np.zeros(detail["shape"], detail["dtype"])
                    for detail in (graph.file.details[index] for index in graph.file.inputs)
                }
                found = _stock_ranges(level, stock.get_quantization_recipe(), blank)
                result = stock.quantize(calibration_result=_replaced(found, ranges), enable_progress_report=False)
            return LitertIntegers(LitertFile(bytes(result.quantized_model)), graph)
        except Exception as error:  # ai-edge-quantizer raises plain exceptions of many kinds
            raise RecipeError(f"{source.file}: ai-edge-quantizer cannot quantise it: {error}") from error


class LitertIntegers:
    """A quantised ``.tflite`` in memory; see :class:`edgeops_converters.quantizers.Integers`."""

    def __init__(self, file: LitertFile, graph: LitertGraph) -> None:
        self._file, self._graph = file, graph
        floats, integers = graph.file.layers(), file.layers()
        if [layer.kind for layer in integers] != [layer.kind for layer in floats]:
            floats = (
                integers
            ) = []  # the quantizer took a layer apart or joined two; there is nothing to hold them against
        self._layers = {
            str(layer.operator): integer
            for layer, integer in zip(floats, integers, strict=True)
            if file.is_integer(integer) and file.has_scale_a_channel(integer)
        }

    @property
    def nodes(self) -> frozenset[str]:
        """See :class:`edgeops_converters.quantizers.Integers`."""
        return frozenset(self._layers)

    def weights(self, node: str) -> FloatArray:
        """See :class:`edgeops_converters.quantizers.Integers`."""
        layer = self._layers[node]
        return self._file.arranged(layer, self._file.decoded(layer.weights, self._file.constant(layer.weights)))

    def set_weights(self, grids: Mapping[str, Grid]) -> None:
        """See :class:`edgeops_converters.quantizers.Integers`."""
        for node, grid in grids.items():
            layer = self._layers[node]
            self._file.set_codes(layer, self._file.stored(layer, grid.codes), grid.scales)
        self._file = LitertFile(bytes(self._file.content))

    def set_biases(self, biases: Mapping[str, FloatArray]) -> None:
        """See :class:`edgeops_converters.quantizers.Integers`."""
        for node, bias in biases.items():
            self._file.set_bias(self._layers[node], bias)

    def mean_inputs(self, nodes: Sequence[str], rows: Tensors) -> dict[str, FloatArray]:
        """See :class:`edgeops_converters.quantizers.Integers`."""
        layers, means = {node: self._layers[node] for node in nodes}, Means()
        content = self._file.until(max(layer.operator for layer in layers.values()))
        wanted = sorted({layer.input for layer in layers.values()})
        for values in stream(content, self._feeds(rows), wanted, batch=self._graph.source.batch or 1):
            for node, layer in layers.items():
                means.add(node, self._file.rows_of(layer, values[layer.input]))
        # Channels come last in the file, and first in a layer.
        return {
            node: np.moveaxis(self._file.decoded(layer.input, means.mean(node)), -1, 0)
            for node, layer in layers.items()
        }

    def noise(self, expected: Tensors, rows: Tensors) -> float:
        """See :class:`edgeops_converters.quantizers.Integers`."""
        # The quantizer renames outputs, and keeps their order.
        order = [self._graph.file.details[index]["name"] for index in self._graph.file.outputs]
        parts = list(
            stream(
                bytes(self._file.content),
                self._feeds(rows),
                self._file.outputs,
                batch=self._graph.source.batch or 1,
            )
        )
        answered = {
            name: np.concatenate([part[index] for part in parts])
            for name, index in zip(order, self._file.outputs, strict=True)
        }
        return mean_squared_error(expected, answered)

    def save(self, target: Path, *, precision: str) -> Artifact:
        """See :class:`edgeops_converters.quantizers.Integers`."""
        source = self._graph.source
        target.write_bytes(bytes(self._file.content))
        inputs, outputs = renamed(source.path, target)
        return Artifact(
            path=target,
            format=source.format,
            precision=precision,
            batch=source.batch,
            inputs={name: inputs[wire] for name, wire in source.inputs.items()},
            outputs={name: outputs[wire] for name, wire in source.outputs.items()},
        )

    def _feeds(self, rows: Tensors) -> dict[int, NDArray[Any]]:
        floats = self._graph.file
        names = {wire: name for name, wire in self._graph.source.inputs.items()}
        return {
            integer: rows[names[floats.details[index]["name"]]]
            for index, integer in zip(floats.inputs, self._file.inputs, strict=True)
        }


def _given_by(graph: LitertGraph, nodes: Collection[str]) -> list[str]:
    """Names of what operators give, by which the quantizer knows them."""
    return [name for node in graph.nodes if node.name in nodes for name in node.gives]


def renamed(source: Path, target: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Tensor name before → after, for inputs and outputs, which keep their order; the signature may name what is gone."""
    interpreter = load("ai_edge_litert.interpreter").Interpreter
    with quiet():
        before, after = interpreter(model_path=str(source)), interpreter(model_path=str(target))
    pairs = (
        (before.get_input_details(), after.get_input_details()),
        (before.get_output_details(), after.get_output_details()),
    )
    inputs, outputs = ({old["name"]: new["name"] for old, new in zip(*pair, strict=True)} for pair in pairs)
    return inputs, outputs


def _stock_ranges(path: Path, recipe: Any, row: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - ai-edge-quantizer has no types
    """What the quantizer itself finds on one batch: which tensors it asks about, and in which form."""
    manager = load("ai_edge_quantizer.recipe_manager").RecipeManager()
    manager.load_quantization_recipe(recipe)
    calibrator = load("ai_edge_quantizer.calibrator").Calibrator(str(path), num_threads=1)
    calibrator.calibrate({_SIGNATURE: [row]}, manager)
    found: dict[str, Any] = calibrator.get_model_qsvs()
    return found


def _replaced(found: Mapping[str, Any], ranges: Mapping[str, Range]) -> dict[str, Any]:
    """The quantizer's ranges with ours in their place.

    Its own are a moving average of the least and the greatest value, which clips what is rare: 15 dB of the demo's network where
    the whole range gives 32 dB.
    """
    return {
        name: {
            **known,
            "min": np.full_like(known["min"], ranges[name].low),
            "max": np.full_like(known["max"], ranges[name].high),
        }
        if name in ranges
        else known
        for name, known in found.items()
    }
