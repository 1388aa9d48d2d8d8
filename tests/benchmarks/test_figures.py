import itertools
import math

import pytest

from benchmarks.figures import Figure, blocks_us, interleaved_us, quantile


def test_figure_is_compared_to_its_alternative() -> None:
    figure = Figure("one call", 6.0, "µs", "bare", 4.0)

    assert (figure.difference, figure.ratio) == (2.0, 1.5)
    assert figure.shown_comparison == "1.50x, +2 µs"


def test_figure_without_an_alternative_is_compared_to_nothing() -> None:
    figure = Figure("one call", 6.0, "µs")

    assert (figure.difference, figure.ratio, figure.shown_comparison) == (None, None, "")


def test_alternative_of_zero_has_a_difference_and_no_ratio() -> None:
    figure = Figure("failed", 2.0, "", "without", 0.0)

    assert (figure.difference, figure.ratio) == (2.0, None)


def test_figure_that_is_left_out_is_no_number() -> None:
    figure = Figure.without_value("one call", "not installed")

    assert math.isnan(figure.value)
    assert figure.left_out == "not installed"


def test_candidates_take_turns_and_each_has_its_own_median() -> None:
    order: list[str] = []
    step = {"fast": 1000, "slow": 5000}
    passed = 0

    def call(name: str) -> None:
        nonlocal passed
        order.append(name)
        passed += step[name]

    medians = interleaved_us({name: lambda name=name: call(name) for name in step}, 40, clock=lambda: passed)

    assert medians == {"fast": 1.0, "slow": 5.0}
    turns = [name for name, _ in itertools.groupby(order)]
    assert turns[2:] == ["fast", "slow"] * 2  # after each was warmed up


def test_what_comes_every_so_many_calls_is_in_the_mean_of_a_block_and_not_in_a_median() -> None:
    passed = calls = 0

    def call() -> None:
        nonlocal passed, calls
        calls += 1
        passed += 1000 + (64_000 if calls % 64 == 0 else 0)

    assert interleaved_us({"one": call}, 400, clock=lambda: passed) == {"one": 1.0}
    assert blocks_us({"one": call}, 1280, clock=lambda: passed) == {"one": pytest.approx(2.0, rel=0.02)}


@pytest.mark.parametrize(("share", "expected"), [(0.5, 500.0), (0.999, 999.0), (1.0, 1000.0), (0.0, 1.0)])
def test_quantile_is_a_value_that_was_there(share: float, expected: float) -> None:
    assert quantile([float(value) for value in range(1000, 0, -1)], share) == expected
