"""What EdgeOps makes of a model: the one place that says how it is asked."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.converter.subjects import Rows
from edgeops.errors import EdgeOpsError
from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.quantization import carry_out, plan_for
from edgeops_converters.sources import Model
from edgeops_converters.targets import this_machine

FORMATS = ("onnx", "tflite")
_EXAMPLE_ROWS = 4


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
    """Convert a model to every format.

    Args:
        model: What to convert.
        calibration: Rows of every input.
        search: Held-out rows to choose among candidates on; what makes int8 alone does not look at them.
        target: An existing directory for the files.
    """
    del search  # there is no mixed precision to choose yet
    example = {name: rows[:_EXAMPLE_ROWS] for name, rows in calibration.items()}
    floats, int8, seconds, refused = {}, {}, {}, {}
    for form in FORMATS:
        try:
            floats[form] = EXPORTERS[form].export(model, example, target / f"float.{form}")
        except EdgeOpsError as error:
            refused[form] = str(error)
    try:
        begun = time.perf_counter()
        planned, subjects = plan_for(list(floats.values()), calibration, target=this_machine())
        planning_s = time.perf_counter() - begun
    except EdgeOpsError as error:
        return Made(floats, {}, {}, {}, refused | dict.fromkeys(floats, str(error)))
    for form, subject in subjects.items():
        try:
            begun = time.perf_counter()
            int8[form] = carry_out(planned.plan, subject, target / f"int8.{form}", cpu=this_machine())
            seconds[form] = planning_s + time.perf_counter() - begun
        except EdgeOpsError as error:
            refused[form] = str(error)
    return Made(floats, int8, {}, seconds, refused)
