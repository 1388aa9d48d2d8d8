"""The doctor: what will not export, what will not quantise, what will run in float or lose accuracy, and what to change.

It looks before any work is done: it opens the model, reads its graph, tries the exporters, and changes nothing. A new rule is
a function in the module of its family.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeops.errors import ExportError
from edgeops.processing import Tensors
from edgeops_converters.doctor.activations import examine_activations
from edgeops_converters.doctor.diagnosis import FORMATS, Diagnosis, Finding, Level, Where, sort
from edgeops_converters.doctor.examples import example_rows
from edgeops_converters.doctor.interface import examine_interface
from edgeops_converters.doctor.layers import examine_layers
from edgeops_converters.doctor.onnx_graph import read_onnx
from edgeops_converters.doctor.operators import examine_operators
from edgeops_converters.doctor.subject import Subject
from edgeops_converters.doctor.torch_graph import read_module
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.failures import explain
from edgeops_converters.recipe import Recipe
from edgeops_converters.samples import SampleSource, read_calibration
from edgeops_converters.sources import Model, open_model
from edgeops_converters.targets import parse_targets
from edgeops_converters.weights import named_weights

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Diagnosis", "Finding", "Level", "Where", "examine"]

_EXAMPLE_ROWS = 4


def examine(
    source: "nn.Module | str | Path",
    *,
    data: SampleSource | None = None,
    formats: Sequence[str] = ("onnx", "tflite"),
    target: str | None = None,
    allow_pickle: bool = False,
    on_step: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Look at a model before converting it.

    Args:
        source: As :func:`edgeops_converters.convert` takes it.
        data: Calibration rows, as the model itself takes them; without them the source has to say what it takes.
        formats: Of ``onnx``, ``tflite``.
        target: ``x86``, ``x86-vnni`` or ``arm``; this machine when ``None``.
        allow_pickle: Load a pickled module, which can run any code.
        on_step: Told the name of each step when it begins.

    Raises:
        RecipeError: The rows cannot be used, or there are none.
        ExportError: There is no such model, or it fails on the rows.
        MissingExtraError: A library of the ``convert`` extra is not installed.
    """
    recipe = Recipe(tuple(formats), ("int8",), max_drop=0.5, target=parse_targets(target)[0])
    tell = on_step or (lambda _step: None)
    tell("open the source")
    if data is not None:
        rows = read_calibration(data).inputs
    elif isinstance(source, (str, Path)):
        rows = example_rows(source)
    else:
        raise ExportError("a module says nothing about its inputs; give data")
    example = {name: array[:_EXAMPLE_ROWS] for name, array in rows.items()}
    model = open_model(source, example, allow_pickle=allow_pickle)
    if model.file is not None and model.file.format != "onnx":
        raise ExportError(f"{model.label}: the doctor reads torch and ONNX models; edgeops inspect shows this file")
    tell("read the graph")
    subject, findings = _read(model, example)
    findings += [*examine_interface(subject), *examine_operators(subject), *examine_layers(subject, recipe.target)]
    if data is not None:
        tell("run some rows")
        findings += examine_activations(model, rows)
    wanted = [form for form in recipe.formats if not EXPORTERS[form].refusal(model)]
    for form in wanted:
        tell(f"try the export to {form}")
        findings += _try_export(model, example, form)
    return Diagnosis(
        source=model.label,
        formats=recipe.formats,
        target=str(recipe.target),
        operators=len(subject.operators),
        findings=sort(one for one in findings if one.where is Where.EVERYWHERE or FORMATS[one.where] in wanted),
    )


def _read(model: Model, example: Tensors) -> tuple[Subject, list[Finding]]:
    """The graph; where torch cannot follow the model, its weights, and the exporters say why."""
    if model.module is None:
        return read_onnx(model), []
    try:
        return read_module(model, example), []
    except Exception as error:  # noqa: BLE001 - the user's own code runs here, and torch raises what it meets
        what = "the graph cannot be read, so that only its weights were looked at"
        note = Finding(level=Level.NOTE, rule="no-graph", what=f"{what}: {explain(error, model.module).said}")
        return Subject(model.inputs, None, (), (), named_weights(model)), [note]


def _try_export(model: Model, example: Tensors, form: str) -> list[Finding]:
    with tempfile.TemporaryDirectory(prefix="edgeops-doctor-") as scratch:
        try:
            artifact = EXPORTERS[form].export(model, example, Path(scratch) / f"model.{form}")
        except ExportError as error:
            return [_blocked(error, model, form)]
    return [Finding(level=Level.NOTE, rule="export", what=note) for note in artifact.notes]


def _blocked(error: ExportError, model: Model, form: str) -> Finding:
    where = next(where for where, name in FORMATS.items() if name == form)
    if error.__cause__ is None or model.module is None:
        said = str(error).removeprefix(f"{model.label}: ")
        return Finding(level=Level.BLOCKS, rule="does-not-export", where=where, what=said)
    why = explain(error.__cause__, model.module)
    return Finding(
        level=Level.BLOCKS, rule="does-not-export", where=where, layer=why.layer, kind=why.kind, line=why.line,
        what=f"does not export: {why.said}", change=why.change,
    )  # fmt: skip
