"""Where a variant stands in the bundle, and what is said of it."""

import numpy as np
import pytest

from edgeops.errors import GateError
from edgeops.manifest import Interval
from edgeops_converters.artifact import Artifact
from edgeops_converters.exam import Answers
from edgeops_converters.gate import Verdict
from edgeops_converters.measurement import Measurement, admitted, replaced_int8
from edgeops_converters.recipe import Recipe
from edgeops_converters.targets import Target


def measured(precision, latency_ms, *, form="onnx", passed=True):
    answers = Answers({"y": np.zeros((1, 2), np.float32)}, {}, None)
    return Measurement(
        Artifact(None, form, precision, None, {}, {}),
        answers,
        latency=Interval(value=latency_ms, low=latency_ms, high=latency_ms),
        float_latency_ms=2.0,
        verdict=Verdict(passed=passed, reasons=() if passed else ("it loses 9.00 points",)),
    )


def test_a_device_that_has_float_does_not_get_what_is_small_and_slower():
    known = [
        measured("int4-weights", 5.0),
        measured("float32", 2.0),
        measured("float16", 2.02),
        measured("dynamic", 1.5),
        measured("int8", 1.0),
    ]
    recipe = Recipe(
        formats=("onnx",),
        precisions=("float", "int8", "float16", "dynamic", "int4-weights"),
        max_drop=0.5,
        target=Target.X86,
    )
    order = [one.artifact.precision for one in admitted(known, recipe)]
    assert order == ["int8", "dynamic", "float16", "float32", "int4-weights"]


@pytest.mark.parametrize(
    ("precision", "latency_ms", "is_told"),
    [("int4-weights", 5.0, True), ("int4-weights", 2.02, False), ("dynamic", 5.0, False), ("float32", 2.0, False)],
)
def test_what_is_made_for_its_size_says_when_it_is_slower(precision, latency_ms, is_told):
    remarks = measured(precision, latency_ms).remarks
    assert bool(remarks) is is_told
    if is_told:
        assert "5.000 ms where float takes 2.000 ms" in remarks[0]


def mixed_recipe(*, force=False):
    return Recipe(("onnx", "tflite"), ("float", "int8", "mixed"), 0.5, Target.X86, force=force)


def test_a_mixed_precision_that_passes_takes_the_place_of_int8_that_does_not():
    known = [measured("int8", 1.0, passed=False), measured("mixed", 1.5), measured("float32", 2.0)]
    assert replaced_int8(known) == known[:1]
    assert [one.artifact.precision for one in admitted(known, mixed_recipe())] == ["mixed", "float32"]
    forced = [one.artifact.precision for one in admitted(known, mixed_recipe(force=True))]
    assert forced == ["int8", "mixed", "float32"]


def test_int8_that_passes_stays_beside_a_mixed_precision():
    known = [measured("int8", 1.0), measured("mixed", 1.5)]
    assert replaced_int8(known) == []
    assert [one.artifact.precision for one in admitted(known, mixed_recipe())] == ["int8", "mixed"]


@pytest.mark.parametrize("other", [measured("mixed", 1.5, passed=False), measured("mixed", 1.5, form="tflite")])
def test_int8_is_not_replaced_by_what_fails_too_or_is_of_another_format(other):
    with pytest.raises(GateError, match="onnx-int8: it loses"):
        admitted([measured("int8", 1.0, passed=False), other], mixed_recipe())
