"""What EdgeOps makes of a model: the one place that says how it is asked."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.converter.subjects import Rows
from edgeops.errors import EdgeOpsError
from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.exam import Exam, class_output
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.mixing import Quiz
from edgeops_converters.planned_files import make_planned
from edgeops_converters.recipe import Recipe
from edgeops_converters.rewrites import rewrite
from edgeops_converters.samples import Samples
from edgeops_converters.sources import Model
from edgeops_converters.steps import Steps
from edgeops_converters.targets import this_machine

FORMATS = ("onnx", "tflite")
_EXAMPLE_ROWS = 4
_MIXED_LOSS = 2.0  # points of disagreement on the search rows


@dataclass(frozen=True)
class Made:
    """Model files, by format.

    Attributes:
        floats: The exported model, from which the stock tools start as well.
        int8: All of it in int8.
        mixed: The most faithful mixed-precision point that is no slower than asked, where the search gave one.
        seconds: What making the int8 file took, from the exported one, without search; the plan for both formats is in each.
        refused: Why there is no file.
    """

    floats: Mapping[str, Artifact]
    int8: Mapping[str, Artifact]
    mixed: Mapping[str, Artifact]
    seconds: Mapping[str, float]
    refused: Mapping[str, str]


def make(model: Model, calibration: Tensors, search: Rows, target: Path) -> Made:
    """Convert a model to every format, as ``edgeops convert`` does between opening the source and measuring.

    Args:
        model: What to convert.
        calibration: Rows of every input.
        search: Held-out rows to choose the mixed precision on, where they have no labels; int8 alone does not look at them.
        target: An existing directory for the files.
    """
    example = {name: rows[:_EXAMPLE_ROWS] for name, rows in calibration.items()}
    rewritten, steps = rewrite(model, example), Steps(_tell, clock=time.perf_counter)
    floats, refused = _export(rewritten.model, example, target, "float")
    bases = floats
    if rewritten.integers is not rewritten.model:
        bases, again = _export(rewritten.integers, example, target, "base")
        refused |= again
    is_searched = search.labels is None and len(search) > 0
    precisions = ("float", "int8", "mixed") if is_searched else ("float", "int8")
    recipe = Recipe(formats=tuple(bases), precisions=precisions, max_drop=_MIXED_LOSS, target=this_machine())
    try:
        quiz = _quiz(model, search) if is_searched else None
        lead = floats[next(iter(bases))]
        planned = make_planned(list(bases.values()), lead, calibration, recipe, target, steps=steps, quiz=quiz)
    except EdgeOpsError as error:
        return Made(floats, {}, {}, {}, refused | dict.fromkeys(floats, str(error)))
    made = {
        precision: {one.format: one for one in planned.artifacts if one.precision == precision}
        for precision in precisions
    }
    planning_s = steps.seconds["plan int8"]
    seconds = {form: planning_s + steps.seconds[f"quantise {form}"] for form in made["int8"]}
    return Made(floats, made["int8"], made.get("mixed", {}), seconds, refused)


def _export(model: Model, example: Tensors, target: Path, name: str) -> tuple[dict[str, Artifact], dict[str, str]]:
    """Format → file, and format → why there is none."""
    files, refused = {}, {}
    for form in FORMATS:
        try:
            files[form] = EXPORTERS[form].export(model, example, target / f"{name}.{form}")
        except EdgeOpsError as error:
            refused[form] = str(error)
    return files, refused


def _quiz(model: Model, search: Rows) -> Quiz:
    classes = class_output(model.inputs, model.outputs, is_told=False)
    exam = Exam(Samples("search rows", search.inputs), search.inputs, (), classes)
    return Quiz(exam, exam.ask(model.answer, batch=model.batch))


def _tell(step: str) -> None:
    print(f"    {step}", file=sys.stderr)
