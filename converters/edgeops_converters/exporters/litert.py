"""TFLite: ``litert_torch.convert`` with one row at a time, or the batch that the source fixes; from ONNX by onnx2tf."""

from pathlib import Path

import numpy as np

from edgeops.errors import ExportError
from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.exporters import onnx2tf
from edgeops_converters.exporters.naming import name_litert
from edgeops_converters.extras import load, quiet
from edgeops_converters.failures import explain
from edgeops_converters.sources import Model, as_float
from edgeops_converters.weights import named_weights


class LitertExporter:
    """Writes one ``.tflite`` file."""

    def refusal(self, model: Model) -> str:
        """See :class:`edgeops_converters.exporters.Exporter`."""
        if model.file is None or model.file.format == "tflite":
            return ""
        if model.file.is_quantized:
            return f"{model.label} is int8 already and stays as it is, in ONNX only; --requantize gives TFLite too"
        if onnx2tf.find_program() is None:
            return f"{model.label} is ONNX; for TFLite onnx2tf is needed, which is not installed: {onnx2tf.INSTALL}"
        return ""

    def export(self, model: Model, example: Tensors, target: Path) -> Artifact:
        """See :class:`edgeops_converters.exporters.Exporter`."""
        if model.file is not None and model.file.format == "tflite":
            return as_float(model, example).write(target)
        if model.module is None:
            return onnx2tf.convert_onnx(model, example).write(target)
        torch, litert = load("torch"), load("litert_torch")
        batch = model.batch or 1
        arguments = tuple(
            torch.from_numpy(np.resize(example[spec.name], (batch, *example[spec.name].shape[1:])).copy())
            for spec in model.inputs
        )
        is_wide = any(spec.dtype.endswith("64") for spec in (*model.inputs, *model.outputs))
        try:
            with quiet():
                litert.config.show_progress = False
                # Without x64, 64-bit inputs and outputs would silently become 32-bit, and variants would differ.
                litert.convert(model.module, arguments, enable_x64=is_wide).export(str(target))
        except Exception as error:  # jax, torch and MLIR errors share no base class
            raise ExportError(f"{model.label}: does not export to TFLite: {explain(error, model.module)}") from error
        target.write_bytes(name_litert(target.read_bytes(), named_weights(model)))
        inputs, outputs = tensor_names(target)
        return Artifact(
            path=target,
            format="tflite",
            precision="float32",
            batch=batch,
            inputs={spec.name: inputs[f"args_{index}"] for index, spec in enumerate(model.inputs)},
            outputs={spec.name: outputs[f"output_{index}"] for index, spec in enumerate(model.outputs)},
        )


def tensor_names(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Name in the signature → tensor name in the graph, for inputs and outputs."""
    with quiet():
        interpreter = load("ai_edge_litert.interpreter").Interpreter(model_path=str(path))
        runner = interpreter.get_signature_runner()
        inputs = {name: detail["name"] for name, detail in runner.get_input_details().items()}
        outputs = {name: detail["name"] for name, detail in runner.get_output_details().items()}
    return inputs, outputs
