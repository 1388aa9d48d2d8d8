"""TFLite: ai-edge-quantizer's static int8 with our ranges and biases, and the float32 interface kept."""

import re
import tempfile
from collections.abc import Mapping, Sequence
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
from edgeops_converters.exporters.litert import tensor_names
from edgeops_converters.extras import load, quiet
from edgeops_converters.layers import FloatArray
from edgeops_converters.quantizers.litert_graph import LitertFile, LitertLayer, stream
from edgeops_converters.ranges import Range
from edgeops_converters.targets import Target

_SIGNATURE = "serving_default"


class LitertQuantizer:
    """Writes a fully quantised ``.tflite``; TFLite's activations are signed on every CPU."""

    def quantize(
        self,
        source: Artifact,
        calibration: Tensors,
        target: Path,
        *,
        cpu: Target,  # noqa: ARG002 - one file serves all
    ) -> Artifact:
        """See :class:`edgeops_converters.quantizers.Quantizer`."""
        quantizer, recipe = load("ai_edge_quantizer.quantizer"), load("ai_edge_quantizer.recipe")
        operation = load("ai_edge_quantizer.qtyping").TFLOperationName
        keys = {tensor: key for key, tensor in tensor_names(source.path)[0].items()}
        try:
            with quiet(), tempfile.TemporaryDirectory() as directory:
                float_file, few = LitertFile(source.path.read_bytes()), spread(calibration, CORRECTION_ROWS)
                float_file = _equalised(float_file, source, few)
                level = Path(directory) / "equalised.tflite"
                level.write_bytes(bytes(float_file.content))
                stock = quantizer.Quantizer(str(level))
                stock.load_quantization_recipe(recipe.static_wi8_ai8())
                for end in (operation.INPUT, operation.OUTPUT):
                    # Its default moves the interface to int8, and then the variants of one bundle would differ.
                    stock.update_quantization_recipe(".*", end, algorithm_key="no_quantize")
                for name in _readers_of_outputs(source.path):
                    # A tensor that is both an output and another layer's input gets two types from the quantizer, and the
                    # file does not load; so the layer that reads it stays float.
                    stock.update_quantization_recipe(
                        re.escape(name), operation.ALL_SUPPORTED, algorithm_key="no_quantize"
                    )
                batch = source.batch or 1
                survey = _survey(float_file, source, calibration)
                first = {keys[wire]: calibration[name][:1].repeat(batch, 0) for name, wire in source.inputs.items()}
                found = _stock_ranges(level, stock.get_quantization_recipe(), first)
                results = [
                    stock.quantize(
                        calibration_result=_replaced(found, survey.ranges(scheme)), enable_progress_report=False
                    )
                    for scheme in SCHEMES
                ]
            files = [LitertFile(bytes(result.quantized_model)) for result in results]
            noise = [_correct_biases(quantized, float_file, survey, source, few) for quantized in files]
            target.write_bytes(bytes(files[int(np.argmin(noise))].content))
        except Exception as error:  # ai-edge-quantizer raises plain exceptions of many kinds
            raise RecipeError(f"{source.file}: ai-edge-quantizer cannot quantise it: {error}") from error
        inputs, outputs = renamed(source.path, target)
        return Artifact(
            path=target,
            format=source.format,
            precision="int8",
            batch=source.batch,
            inputs={name: inputs[wire] for name, wire in source.inputs.items()},
            outputs={name: outputs[wire] for name, wire in source.outputs.items()},
        )


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


def _readers_of_outputs(path: Path) -> list[str]:
    """Names of what the layers give that read an output of the model."""
    schema = load("ai_edge_litert.schema_py_generated")
    graph = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0).subgraphs[0]
    outputs = {int(index) for index in graph.outputs}
    readers = [operator for operator in graph.operators if outputs & {int(index) for index in operator.inputs}]
    return [graph.tensors[int(index)].name.decode() for reader in readers for index in reader.outputs]


def _equalised(file: LitertFile, source: Artifact, rows: Tensors) -> LitertFile:
    """The float file with the channels between layers brought to one range."""
    pairs, peaks = file.pairs(), dict[int, FloatArray]()
    feeds = {file.indices[wire]: rows[name] for name, wire in source.inputs.items()}
    wanted = [second.input for _, second in pairs]
    for values in stream(bytes(file.content), feeds, wanted, batch=source.batch or 1):
        for index, array in values.items():
            seen = np.abs(array).reshape(-1, array.shape[-1]).max(axis=0).astype(np.float64)
            peaks[index] = np.maximum(peaks.get(index, 0.0), seen)
    weights = {
        one.weights: file.arranged(one, file.constant(one.weights).astype(np.float64)) for p in pairs for one in p
    }
    for first, second in pairs:
        factors = divisors(peaks[second.input], weights[second.weights], second.geometry.groups)
        weights[first.weights] = divided(weights[first.weights], factors)
        weights[second.weights] = multiplied(weights[second.weights], factors, second.geometry.groups)
        file.set_float(first.bias, divided(file.constant(first.bias).astype(np.float64), factors))
    for pair in pairs:
        for one in pair:
            file.set_float(one.weights, file.stored(one, weights[one.weights]))
    return LitertFile(bytes(file.content))


def _survey(file: LitertFile, source: Artifact, rows: Tensors) -> Survey:
    """What flows through the float model."""
    survey = Survey(ends={*source.inputs.values(), *source.outputs.values()})
    feeds = {file.indices[wire]: rows[name] for name, wire in source.inputs.items()}
    wanted = [*feeds, *(index for _, _, outputs in file.operators for index in outputs)]
    for values in stream(bytes(file.content), feeds, wanted, batch=source.batch or 1):
        survey.add({file.details[index]["name"]: array for index, array in values.items()})
    return survey


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


def _correct_biases(
    quantized: LitertFile, float_file: LitertFile, survey: Survey, source: Artifact, rows: Tensors
) -> float:
    """Set the integer biases so that every layer answers on average what it answers in float; gives the noise that is left."""
    integers, floats = quantized.layers(), float_file.layers()
    if [layer.kind for layer in integers] != [layer.kind for layer in floats]:
        integers = floats = []  # the quantizer took a layer apart or joined two; there is nothing to hold them against
    pairs = {
        str(integer.operator): (layer, integer)
        for layer, integer in zip(floats, integers, strict=True)
        if quantized.is_integer(integer)
    }
    feeds = {float_file.indices[wire]: rows[name] for name, wire in source.inputs.items()}
    probe = _Probe(quantized, float_file, pairs, feeds, batch=source.batch or 1)
    means = probe.float_means()
    correctable = {
        name: Correctable(
            geometry=layer.geometry,
            weights=float_file.arranged(layer, float_file.constant(layer.weights).astype(np.float64)),
            rounded=quantized.arranged(
                integer, quantized.decoded(integer.weights, quantized.constant(integer.weights))
            ),
            bias=float_file.constant(layer.bias).astype(np.float64),
            mean_input=means[name],
            span=survey.span(float_file.details[layer.output]["name"]),
        )
        for name, (layer, integer) in pairs.items()
    }
    reads = {str(index): [str(one) for one in inputs] for index, (_, inputs, _) in enumerate(quantized.operators)}
    gives = {str(index): [str(one) for one in outputs] for index, (_, _, outputs) in enumerate(quantized.operators)}
    return correct(correctable, levels_of(reads, gives, set(pairs)), probe)


class _Probe:
    """Float and integer file side by side; see :class:`edgeops_converters.correction.Probe`."""

    def __init__(
        self,
        quantized: LitertFile,
        float_file: LitertFile,
        pairs: Mapping[str, tuple[LitertLayer, LitertLayer]],
        feeds: Mapping[int, NDArray[Any]],
        *,
        batch: int,
    ) -> None:
        self._quantized, self._float, self._pairs, self._batch = quantized, float_file, pairs, batch
        self._float_feeds = feeds
        self._feeds = {quantized.inputs[float_file.inputs.index(index)]: rows for index, rows in feeds.items()}
        self._answers = self._answer(float_file, feeds)

    def float_means(self) -> dict[str, FloatArray]:
        """Layer → mean input of float."""
        layers = {name: layer for name, (layer, _) in self._pairs.items()}
        return self._means(self._float, bytes(self._float.content), self._float_feeds, layers)

    def set_biases(self, biases: Mapping[str, FloatArray]) -> None:
        """Write biases into the file."""
        for name, bias in biases.items():
            self._quantized.set_bias(self._pairs[name][1], bias)

    def mean_inputs(self, layers: Sequence[str]) -> dict[str, FloatArray]:
        """Run the rows through LiteRT's integer kernels, as far as these layers."""
        wanted = {name: self._pairs[name][1] for name in layers}
        content = self._quantized.until(max(layer.operator for layer in wanted.values()))
        return self._means(self._quantized, content, self._feeds, wanted)

    def noise(self) -> float:
        """Run the whole file."""
        return mean_squared_error(self._answers, self._answer(self._quantized, self._feeds))

    def _means(
        self,
        file: LitertFile,
        content: bytes,
        feeds: Mapping[int, NDArray[Any]],
        layers: Mapping[str, LitertLayer],
    ) -> dict[str, FloatArray]:
        means, wanted = Means(), sorted({layer.input for layer in layers.values()})
        for values in stream(content, feeds, wanted, batch=self._batch):
            for name, layer in layers.items():
                means.add(name, file.rows_of(layer, values[layer.input]))
        # Channels come last in the file, and first in a layer.
        return {name: np.moveaxis(file.decoded(layer.input, means.mean(name)), -1, 0) for name, layer in layers.items()}

    def _answer(self, file: LitertFile, feeds: Mapping[int, NDArray[Any]]) -> Tensors:
        parts = list(stream(bytes(file.content), feeds, file.outputs, batch=self._batch))
        return {
            str(position): np.concatenate([part[index] for part in parts])
            for position, index in enumerate(file.outputs)
        }
