import math

import pytest

from benchmarks.converter.bars import (
    BARS,
    MEMORY,
    MIXED,
    OURS,
    Bar,
    Limit,
    Measure,
    Place,
    Reading,
    judge,
)
from benchmarks.limits import Bound, Verdict

AGREEMENT = Limit(Measure.AGREEMENT, Bound.AT_LEAST, 0.92)
SPEED = Limit(Measure.SPEED, Bound.AT_LEAST, 2.0)
DROP = Limit(Measure.DROP, Bound.AT_MOST, 0.5)
NET = Bar("nets", ("net",), ("onnx",), (AGREEMENT, SPEED))
HERE = Place("net", "onnx", OURS)


def readings(**values: float) -> dict[Measure, Reading]:
    return {Measure[name.upper()]: Reading(value) for name, value in values.items()}


def test_figures_on_the_limit_meet_a_bar() -> None:
    (outcome,) = judge([NET], {HERE: readings(agreement=0.92, speed=2.0)}, measured=["net"])

    assert outcome.verdict is Verdict.MET
    assert outcome.got == "0.92, 2"


@pytest.mark.parametrize("figures", [{"agreement": 0.919, "speed": 3.0}, {"agreement": 0.99, "speed": 1.99}])
def test_one_condition_that_fails_fails_the_bar(figures: dict[str, float]) -> None:
    (outcome,) = judge([NET], {HERE: readings(**figures)}, measured=["net"])

    assert outcome.verdict is Verdict.NOT_MET


def test_figure_that_is_not_a_number_meets_nothing() -> None:
    assert not DROP.admits(math.nan)
    assert not AGREEMENT.admits(math.nan)


def test_missing_figure_of_a_measured_subject_fails_its_bar() -> None:
    (outcome,) = judge([NET], {HERE: readings(agreement=0.99)}, measured=["net"])

    assert outcome.verdict is Verdict.NOT_MET
    assert outcome.got == "0.99, none"


def test_subject_that_took_no_part_is_not_measured() -> None:
    (outcome,) = judge([NET], {}, measured=[])

    assert outcome.verdict is Verdict.NOT_MEASURED


def test_bar_against_a_rival_that_took_no_part_is_not_measured() -> None:
    bar = Bar("time", ("net",), ("onnx",), (Limit(Measure.SECONDS, Bound.AT_MOST, 1),), needs_rival=True)
    (alone,) = judge([bar], {HERE: readings(speed=2.0)}, measured=["net"])
    (slower,) = judge([bar], {HERE: readings(seconds=1.5)}, measured=["net"])

    assert alone.verdict is Verdict.NOT_MEASURED
    assert slower.verdict is Verdict.NOT_MET


def test_drop_is_judged_by_its_value_and_shown_with_its_interval() -> None:
    bar = Bar("nets", ("net",), ("onnx",), (DROP,))
    (outcome,) = judge([bar], {HERE: {Measure.DROP: Reading(0.4, 0.1, 0.7)}}, measured=["net"])

    assert outcome.verdict is Verdict.MET
    assert outcome.got == "0.4 [0.1, 0.7]"


def test_best_of_stock_is_taken_for_each_measure_and_never_ours() -> None:
    figures = {
        HERE: readings(agreement=0.99, speed=9.0),
        Place("net", "onnx", MIXED): readings(agreement=0.999, speed=8.0),
        Place("net", "onnx", "fast"): readings(agreement=0.5, speed=2.1),
        Place("net", "onnx", "faithful"): readings(agreement=0.8, speed=0.4),
        Place("net", "tflite", "elsewhere"): readings(agreement=1.0, speed=7.0),
    }
    (outcome,) = judge([NET], figures, measured=["net"])

    assert outcome.stock == "0.8, 2.1"


def test_smallest_drop_is_the_best_of_stock() -> None:
    bar = Bar("nets", ("net",), ("onnx",), (DROP,))
    figures = {Place("net", "onnx", "one"): readings(drop=3.0), Place("net", "onnx", "other"): readings(drop=0.2)}
    (outcome,) = judge([bar], figures, measured=["net"])

    assert outcome.stock == "0.2"


def test_every_bar_is_for_subjects_that_exist() -> None:
    from benchmarks.converter.subjects import SUBJECTS

    assert {subject for bar in BARS for subject in bar.subjects} <= {*SUBJECTS, MEMORY}
    assert set(SUBJECTS) <= {subject for bar in BARS for subject in bar.subjects}
