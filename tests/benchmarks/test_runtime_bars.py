import importlib
import inspect
import math

import msgspec
import pytest

from benchmarks.figures import Figure
from benchmarks.limits import Bound, Verdict
from benchmarks.runtime import proofs
from benchmarks.runtime.__main__ import Report, main
from benchmarks.runtime.bars import BARS, Bar, Quantity, judge
from benchmarks.runtime.parts import PARTS

ABOVE = Bar("calls", "hot_path", "one call", Quantity.DIFFERENCE, Bound.AT_MOST, 1.0)
TIMES = Bar("calls", "hot_path", "one call", Quantity.RATIO, Bound.AT_MOST, 0.1)
VALUE = Bar("memory", "footprint", "agent", Quantity.VALUE, Bound.AT_MOST, 30.0)


def verdict(bar: Bar, *figures: Figure) -> Verdict:
    (outcome,) = judge([bar], {bar.part: figures})
    return outcome.verdict


@pytest.mark.parametrize(
    ("bar", "figure", "expected"),
    [
        (ABOVE, Figure("one call", 6.0, "µs", "bare", 5.0), Verdict.MET),
        (ABOVE, Figure("one call", 6.1, "µs", "bare", 5.0), Verdict.NOT_MET),
        (TIMES, Figure("one call", 10.0, "µs", "theirs", 100.0), Verdict.MET),
        (TIMES, Figure("one call", 10.1, "µs", "theirs", 100.0), Verdict.NOT_MET),
        (VALUE, Figure("agent", 30.0, "MB", "elsewhere", 1.0), Verdict.MET),
        (VALUE, Figure("agent", 30.1, "MB"), Verdict.NOT_MET),
    ],
)
def test_what_is_limited_is_the_value_the_difference_or_the_ratio(bar: Bar, figure: Figure, expected: Verdict) -> None:
    assert verdict(bar, figure) is expected


def test_figure_that_is_not_a_number_meets_nothing() -> None:
    assert verdict(VALUE, Figure("agent", math.nan, "MB")) is Verdict.NOT_MET


def test_difference_of_a_figure_without_an_alternative_meets_nothing() -> None:
    assert verdict(ABOVE, Figure("one call", 0.1, "µs")) is Verdict.NOT_MET


def test_figure_that_a_measured_part_lacks_fails_its_bar() -> None:
    (outcome,) = judge([VALUE], {"footprint": [Figure("worker", 1.0, "MB")]})

    assert (outcome.verdict, outcome.got) == (Verdict.NOT_MET, "none")


def test_name_may_go_on_where_no_figure_has_exactly_that_one() -> None:
    small, large = Figure("agent, on a small disk", 1.0, "MB"), Figure("agent", 31.0, "MB")

    assert verdict(VALUE, small) is Verdict.MET
    assert verdict(VALUE, small, large) is Verdict.NOT_MET


def test_figure_that_is_left_out_is_not_measured() -> None:
    assert verdict(VALUE, Figure.without_value("agent", "not installed")) is Verdict.NOT_MEASURED


def test_part_that_took_no_part_is_not_measured() -> None:
    (outcome,) = judge([VALUE], {"hot_path": []})

    assert outcome.verdict is Verdict.NOT_MEASURED


def test_outcome_says_what_was_asked_and_what_came() -> None:
    (outcome,) = judge([ABOVE], {"hot_path": [Figure("one call", 6.5, "µs", "bare", 5.0)]})

    assert (outcome.asked, outcome.got) == ("≤ 1 µs above", "1.5 µs above")


def test_part_that_failed_meets_none_of_its_bars() -> None:
    report = Report({}, failed={"spinning": "RuntimeError: broken"})
    report.conclude()

    verdicts = {outcome.part: outcome.verdict for outcome in report.bars}
    assert verdicts["spinning"] is Verdict.NOT_MET
    assert verdicts["hot_path"] is Verdict.NOT_MEASURED


def test_report_with_what_was_left_out_is_written_as_json() -> None:
    report = Report({"cpu": "one"}, figures={"rivals": [Figure.without_value("ours", "not installed")]})
    report.conclude()
    again = msgspec.json.decode(msgspec.json.encode(report))

    assert again["figures"]["rivals"][0] == {
        "name": "ours", "value": None, "unit": "", "alternative": "", "alternative_value": None, "left_out": "not installed"
    }  # fmt: skip
    assert len(again["bars"]) == len(BARS)


def test_every_bar_is_for_a_part_that_exists() -> None:
    assert {bar.part for bar in BARS} <= set(PARTS)


def test_no_two_bars_are_for_the_same_figure() -> None:
    assert len({(bar.part, bar.figure, bar.quantity) for bar in BARS}) == len(BARS)


@pytest.mark.parametrize("name", PARTS)
def test_part_takes_the_settings_that_it_gets_and_the_command_has_them(name: str) -> None:
    options = {parameter.name for parameter in main.params}
    assert set(PARTS[name].settings) <= options
    measure = importlib.import_module(f"benchmarks.runtime.{name}").measure
    assert set(PARTS[name].settings) <= set(inspect.signature(measure).parameters)


def test_every_proof_has_a_bar() -> None:
    asked = {bar.figure.removesuffix(": failed") for bar in BARS if bar.part == "proofs"}

    assert asked == set(proofs.PROOFS)


def test_report_of_pytest_is_counted() -> None:
    report = '<testsuites><testsuite name="pytest" errors="1" failures="2" skipped="3" tests="10"/></testsuites>'

    assert proofs.count(report) == proofs.Tally(passed=4, failed=3, skipped=3)
