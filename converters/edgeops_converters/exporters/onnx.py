"""ONNX: ``torch.onnx.export`` with a dynamic batch, or the user's own file."""

from pathlib import Path
from typing import Any

import numpy as np

from edgeops.errors import ExportError
from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.exporters.naming import name_onnx
from edgeops_converters.extras import load, quiet
from edgeops_converters.failures import explain
from edgeops_converters.onnx_file import check_age, strip
from edgeops_converters.rewrites import onnx as rewrites
from edgeops_converters.sources import BATCH, Model, as_float


class OnnxExporter:
    """Writes one self-contained ``.onnx`` file."""

    def refusal(self, model: Model) -> str:
        """See :class:`edgeops_converters.exporters.Exporter`."""
        if model.file is None or model.file.format == "onnx":
            return ""
        return f"{model.label} is TFLite, which gives TFLite only; for ONNX give the model that it was made from"

    def export(self, model: Model, example: Tensors, target: Path) -> Artifact:
        """See :class:`edgeops_converters.exporters.Exporter`."""
        if model.file is not None:
            return as_float(model, example).write(target)
        onnx = load("onnx")
        graph, batch, notes = _from_torch(model, example)
        strip(graph)
        check_age(graph, model.label)
        rewrites.apply(rewrites.PASSES, graph)
        name_onnx(graph.graph)
        onnx.save(graph, str(target))
        return Artifact(
            path=target,
            format="onnx",
            precision="float32",
            batch=batch,
            inputs={spec.name: spec.name for spec in model.inputs},
            outputs={spec.name: spec.name for spec in model.outputs},
            notes=notes,
        )


def _from_torch(model: Model, example: Tensors) -> tuple[Any, int | None, tuple[str, ...]]:
    """Export with any number of rows; where the model fixes it, with one row at a time."""
    if model.batch is not None:
        return _export(model, example, rows=model.batch), model.batch, ()
    try:
        return _export(model, example, rows=None), None, ()
    except ExportError as dynamic:
        try:
            graph = _export(model, example, rows=1)
        except ExportError:
            raise dynamic from dynamic.__cause__
        return graph, 1, (f"ONNX takes one row at a time, because the model fixes the batch ({dynamic})",)


def _export(model: Model, example: Tensors, *, rows: int | None) -> Any:  # noqa: ANN401 - onnx has no types
    torch = load("torch")
    if model.module is None:
        raise ExportError(f"{model.label}: no torch module to export")
    names = [spec.name for spec in model.inputs]
    count = rows or 2
    arguments = tuple(
        torch.from_numpy(np.resize(example[name], (count, *example[name].shape[1:])).copy()) for name in names
    )
    shapes = None if rows else (tuple({0: torch.export.Dim(BATCH)} for _ in names),)
    try:
        with quiet():
            program = torch.onnx.export(
                model.module,
                arguments,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=names,
                output_names=[spec.name for spec in model.outputs],
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever the user's code and its own passes raise
        raise ExportError(f"{model.label}: does not export to ONNX: {explain(error, model.module)}") from error
    graph = program.model_proto
    if rows is None and not all(_is_dynamic(value) for value in graph.graph.input):
        raise ExportError(
            f"{model.label}: the exported graph takes {count} rows only; use x.shape[0] or -1 in reshapes"
        )
    return graph


def _is_dynamic(value: Any) -> bool:  # noqa: ANN401 - onnx has no types
    return not value.type.tensor_type.shape.dim[0].HasField("dim_value")
