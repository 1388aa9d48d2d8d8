"""Rules about ranges, which need data: an input that says nothing, and single values that take the range from all others."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.processing import Tensors
from edgeops_converters.doctor.diagnosis import Finding, Level
from edgeops_converters.extras import load, quiet
from edgeops_converters.samples import is_constant
from edgeops_converters.sessions import OnnxSession
from edgeops_converters.sources import Model

ROWS = 32
"""So many rows are looked at."""
_USUAL = 99.9
_FAR = 16.0  # beyond it the usual values have 4 of 8 bits


def examine_activations(model: Model, rows: Tensors) -> Iterator[Finding]:
    """Run some rows, and look at what flows between the layers.

    Args:
        model: What to run.
        rows: As the model takes them.
    """
    for name, array in rows.items():
        if is_constant(array):
            yield Finding(
                level=Level.COSTS,
                rule="constant-input",
                layer=name,
                kind="input",
                what=f"all {len(array)} rows have the one value {array.flat[0]}: no range can be learned from it",
                change="calibration rows that look like the field",
            )
    few = {name: array[:ROWS] for name, array in rows.items()}
    for layer, kind, ratio in _torch_ratios(model, few) if model.file is None else _onnx_ratios(model, few):
        if ratio > _FAR:
            yield Finding(
                level=Level.COSTS,
                rule="outliers",
                layer=layer,
                kind=kind,
                what=f"the largest value is {ratio:.0f} times what {_USUAL}% stay below, and all share one range",
                change="clamp it (ReLU6), or train with weight decay; EdgeOps cuts the range where that is nearer to float",
            )


def outlier_ratio(values: NDArray[Any]) -> float:
    """The largest magnitude against that below which 99.9 % lie; 1 when either is zero.

    >>> outlier_ratio(np.array([1.0] * 9999 + [50.0]))
    50.0
    """
    magnitudes = np.abs(np.asarray(values, np.float32))
    usual, largest = float(np.percentile(magnitudes, _USUAL)), float(magnitudes.max())
    return largest / usual if usual > 0 and np.isfinite(largest) else 1.0


def _torch_ratios(model: Model, rows: Tensors) -> Iterator[tuple[str, str, float]]:
    """Of what every layer without layers in it gives."""
    torch, found = load("torch"), dict[str, tuple[str, float]]()
    module: Any = model.module
    handles = []
    for name, layer in module.named_modules():
        if name and not list(layer.children()):
            handles.append(layer.register_forward_hook(_keeper(name.removeprefix("module."), found)))
    try:
        with torch.inference_mode(), quiet():
            batch = model.batch or len(next(iter(rows.values())))
            module(
                *(
                    torch.from_numpy(np.resize(rows[spec.name], (batch, *rows[spec.name].shape[1:])))
                    for spec in model.inputs
                )
            )
    finally:
        for handle in handles:
            handle.remove()
    for name, (kind, ratio) in found.items():
        yield name, kind, ratio


def _keeper(name: str, found: dict[str, tuple[str, float]]) -> Any:  # noqa: ANN401 - a hook of torch
    def keep(layer: Any, _given: Any, output: Any) -> None:  # noqa: ANN401 - torch's
        if hasattr(output, "numpy") and output.is_floating_point():
            found[name] = type(layer).__name__, outlier_ratio(output.float().numpy())

    return keep


def _onnx_ratios(model: Model, rows: Tensors) -> Iterator[tuple[str, str, float]]:
    """Of what every node gives in float."""
    onnx = load("onnx")
    graph = onnx.load_from_string(model.file.content if model.file is not None else b"")
    givers = {node.output[0]: node for node in graph.graph.node if node.op_type != "Constant"}
    known = {value.name for value in graph.graph.output}
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in givers if name not in known)
    with tempfile.TemporaryDirectory(prefix="edgeops-doctor-") as scratch:
        path = Path(scratch) / "exposed.onnx"
        onnx.save(graph, str(path))
        session = OnnxSession(path, {name: name for name in rows}, {name: name for name in givers})
    batch = model.batch or len(next(iter(rows.values())))
    for name, array in session.run(
        {key: np.resize(part, (batch, *part.shape[1:])) for key, part in rows.items()}
    ).items():
        if np.issubdtype(array.dtype, np.floating) and array.size:
            yield givers[name].name or name, givers[name].op_type, outlier_ratio(array)
