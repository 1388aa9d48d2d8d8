"""TFLite: ai-edge-quantizer's static int8, with the float32 interface kept."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from edgeops.errors import RecipeError
from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.exporters.litert import tensor_names
from edgeops_converters.extras import load, quiet
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
            with quiet():
                stock = quantizer.Quantizer(str(source.path))
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
                rows = _Rows({keys[wire]: calibration[name] for name, wire in source.inputs.items()}, source.batch or 1)
                ranges = _calibrate(source.path, stock.get_quantization_recipe(), rows)
                result = stock.quantize(calibration_result=ranges, enable_progress_report=False)
                target.write_bytes(bytes(result.quantized_model))
        except Exception as error:  # ai-edge-quantizer raises plain exceptions of many kinds
            raise RecipeError(f"{source.file}: ai-edge-quantizer cannot quantise it: {error}") from error
        inputs, outputs = _renamed(source.path, target)
        return Artifact(
            path=target,
            format=source.format,
            precision="int8",
            batch=source.batch,
            inputs={name: inputs[wire] for name, wire in source.inputs.items()},
            outputs={name: outputs[wire] for name, wire in source.outputs.items()},
        )


def _renamed(source: Path, target: Path) -> tuple[dict[str, str], dict[str, str]]:
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


def _calibrate(path: Path, recipe: Any, rows: "_Rows") -> Any:  # noqa: ANN401 - ai-edge-quantizer has no types
    """The least and the greatest value of every tensor over all rows.

    The quantizer's own way is a moving average of them, which clips what is rare: 15 dB of the demo's network where this
    gives 32 dB.
    """
    manager = load("ai_edge_quantizer.recipe_manager").RecipeManager()
    manager.load_quantization_recipe(recipe)
    calibrator = load("ai_edge_quantizer.calibrator").Calibrator(str(path), num_threads=1, qsv_update_func=_widen)
    calibrator.calibrate({_SIGNATURE: rows}, manager)
    return calibrator.get_model_qsvs()


def _widen(known: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return {**known, "min": np.minimum(known["min"], new["min"]), "max": np.maximum(known["max"], new["max"])}


class _Rows(Sequence[dict[str, Any]]):
    """Calibration rows as the quantizer asks for them: one batch at a time, made on demand."""

    def __init__(self, tensors: Tensors, batch: int) -> None:
        self._tensors, self._batch = tensors, batch
        self._count = -(-len(next(iter(tensors.values()))) // batch)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | Sequence[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        wanted = np.arange(index * self._batch, (index + 1) * self._batch)
        return {key: array[np.minimum(wanted, len(array) - 1)] for key, array in self._tensors.items()}
