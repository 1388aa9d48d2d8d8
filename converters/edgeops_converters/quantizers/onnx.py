"""ONNX: QDQ by onnxruntime's quantiser, per channel, with our ranges and biases, in the types that the CPU has kernels for."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.errors import RecipeError
from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.calibration import CORRECTION_ROWS, SCHEMES, Means, Survey, spread
from edgeops_converters.correction import Correctable, correct, levels_of, mean_squared_error
from edgeops_converters.equalization import divided, divisors, multiplied
from edgeops_converters.exporters.onnx import strip
from edgeops_converters.extras import load, quiet
from edgeops_converters.layers import FloatArray
from edgeops_converters.quantizers.onnx_graph import (
    IntegerLayer,
    complete,
    exposing,
    initializers,
    prefix,
    read_integer_layers,
    read_layers,
    read_pairs,
    stream,
)
from edgeops_converters.ranges import Range
from edgeops_converters.targets import Target


class OnnxQuantizer:
    """Writes a QDQ ``.onnx``; onnxruntime fuses it into integer kernels when it loads the file."""

    def quantize(self, source: Artifact, calibration: Tensors, target: Path, *, cpu: Target) -> Artifact:
        """See :class:`edgeops_converters.quantizers.Quantizer`."""
        onnx = load("onnx")
        try:
            model = _prepared(source)
            few = spread(calibration, CORRECTION_ROWS)
            _equalise(model, source, few)
            survey = _survey(model, source, calibration)
            graphs = [_quantized(model, survey.ranges(scheme), cpu) for scheme in SCHEMES]
            noise = [_correct_biases(graph, model, survey, source, few) for graph in graphs]
            graph = graphs[int(np.argmin(noise))]
        except Exception as error:  # onnxruntime's quantiser raises plain exceptions of many kinds
            raise RecipeError(f"{source.file}: onnxruntime cannot quantise it: {error}") from error
        strip(graph)
        onnx.save(graph, str(target))
        return replace(source, path=target, precision="int8", notes=())


def _prepared(source: Artifact) -> Any:  # noqa: ANN401 - onnx has no types
    """The float model with shapes inferred, norms folded, and a bias wherever one can be."""
    onnx = load("onnx")
    with quiet(), tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "prepared.onnx"
        load("onnxruntime.quantization.shape_inference").quant_pre_process(
            str(source.path), str(path), skip_symbolic_shape=True
        )
        model = onnx.load(str(path))
    complete(model.graph)
    return model


def _equalise(model: Any, source: Artifact, rows: Tensors) -> None:  # noqa: ANN401 - onnx has no types
    """Bring the channels between layers to one range."""
    pairs = read_pairs(model.graph)
    peaks: dict[str, FloatArray] = {}
    for values in stream(exposing(model, {second.input for _, second in pairs}), source, rows, is_plain=True):
        for _, second in pairs:
            seen = (
                np.abs(np.moveaxis(values[second.input], 1, 0)).reshape(values[second.input].shape[1], -1).max(axis=1)
            )
            peaks[second.input] = np.maximum(peaks.get(second.input, 0.0), seen.astype(np.float64))
    constants = {name: array.astype(np.float64) for name, array in initializers(model.graph).items()}
    changed: dict[str, FloatArray] = {}
    for first, second in pairs:
        ahead, behind = first.arrange(constants[first.weights]), second.arrange(constants[second.weights])
        factors = divisors(peaks[second.input], behind, second.geometry.groups)
        constants[first.weights] = first.arrange(divided(ahead, factors))
        constants[second.weights] = second.arrange(multiplied(behind, factors, second.geometry.groups))
        constants[first.bias] = divided(constants[first.bias], factors)
        changed |= {name: constants[name] for name in (first.weights, first.bias, second.weights)}
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(load("onnx").numpy_helper.from_array(changed[tensor.name].astype(np.float32), tensor.name))


def _survey(model: Any, source: Artifact, rows: Tensors) -> Survey:  # noqa: ANN401 - onnx has no types
    """What flows through the float model."""
    survey = Survey(ends={*source.inputs.values(), *source.outputs.values()})
    names = [name for node in model.graph.node for name in node.output if name]
    for values in stream(exposing(model, names), source, rows, is_plain=True):
        survey.add(values)
    return survey


def _quantized(model: Any, ranges: Mapping[str, Range], cpu: Target) -> Any:  # noqa: ANN401 - onnx has no types
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
            activation_qType=quantization.QuantType.QUInt8 if cpu is Target.X86 else quantization.QuantType.QInt8,
            tensors_range=calibrate.TensorsData(calibrate.CalibrationMethod.MinMax, data),
            nodes_to_quantize=[],
            nodes_to_exclude=[],
            op_types_to_quantize=sorted({*registry.QLinearOpsRegistry, *registry.QDQRegistry}),
            extra_options={},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    return quantizer.model.model


def _correct_biases(
    quantized: Any,  # noqa: ANN401 - onnx has no types
    model: Any,  # noqa: ANN401 - onnx is imported on use
    survey: Survey,
    source: Artifact,
    rows: Tensors,
) -> float:
    """Set the integer biases so that every layer answers on average what it answers in float; gives the noise that is left."""
    integers = read_integer_layers(quantized.graph)
    layers = [layer for layer in read_layers(model.graph) if layer.name in integers]
    constants, means = initializers(model.graph), Means()
    answers: dict[str, list[NDArray[Any]]] = {wire: [] for wire in source.outputs.values()}
    inputs = {layer.input for layer in layers}
    for values in stream(exposing(model, inputs), source, rows, is_plain=True):
        for name in inputs:
            means.add(name, values[name])
        for wire, parts in answers.items():
            parts.append(values[wire])
    correctable = {
        layer.name: Correctable(
            geometry=layer.geometry,
            weights=layer.arrange(constants[layer.weights]),
            rounded=layer.arrange(integers[layer.name].weights),
            bias=np.asarray(constants[layer.bias], np.float64),
            mean_input=means.mean(layer.input),
            span=survey.span(layer.output),
        )
        for layer in layers
    }
    expected = {wire: np.concatenate(parts) for wire, parts in answers.items()}
    probe = _Probe(quantized, {name: integers[name] for name in correctable}, expected, source, rows)
    reads, gives = ({node.name: list(getattr(node, end)) for node in model.graph.node} for end in ("input", "output"))
    probe.set_biases({name: layer.bias for name, layer in correctable.items()})
    return correct(correctable, levels_of(reads, gives, set(correctable)), probe)


class _Probe:
    """The QDQ model with its integer layer inputs exposed; see :class:`edgeops_converters.correction.Probe`."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - onnx is imported on use - onnx has no types
        layers: Mapping[str, IntegerLayer],
        answers: Tensors,
        source: Artifact,
        rows: Tensors,
    ) -> None:
        self._model, self._layers, self._answers, self._source, self._rows = model, layers, answers, source, rows

    def set_biases(self, biases: Mapping[str, FloatArray]) -> None:
        """Round biases to the grid of the integer accumulators and write them into the model."""
        to_tensor = load("onnx").numpy_helper.from_array
        wanted = {self._layers[name].bias.tensor: self._layers[name].bias.encode(bias) for name, bias in biases.items()}
        for tensor in self._model.graph.initializer:
            if tensor.name in wanted:
                tensor.CopyFrom(to_tensor(wanted[tensor.name], tensor.name))

    def mean_inputs(self, layers: Sequence[str]) -> dict[str, FloatArray]:
        """Run the rows through onnxruntime's fused kernels, as far as these layers."""
        names, means = {self._layers[layer].input.tensor for layer in layers}, Means()
        for values in stream(prefix(self._model, names), self._source, self._rows):
            for name in names:
                means.add(name, values[name])
        codes = {layer: self._layers[layer].input for layer in layers}
        return {layer: code.decode(means.mean(code.tensor)) for layer, code in codes.items()}

    def noise(self) -> float:
        """Run the whole model."""
        answered: dict[str, list[NDArray[Any]]] = {wire: [] for wire in self._answers}
        for values in stream(self._model, self._source, self._rows):
            for wire, parts in answered.items():
                parts.append(values[wire])
        return mean_squared_error(self._answers, {wire: np.concatenate(parts) for wire, parts in answered.items()})
