"""What the search decides: order, depth, front, choice, and in which words."""

import math
import random
from dataclasses import replace

import pytest

from edgeops_converters.gate import Evidence
from edgeops_converters.recipe import Recipe
from edgeops_converters.search import (
    Point,
    Proof,
    Sensitivity,
    choose,
    cost_of,
    front,
    groups_of,
    is_within,
    nearest,
    ranked,
    reasons_against,
    smallest_depth,
    trials_of,
)
from edgeops_converters.targets import Target
from edgeops_converters.trials import Outcome

RECIPE = Recipe(("onnx",), ("float", "int8", "mixed"), 0.5, Target.X86)


def point(depth, drop=0.1, *, most_lost=0.4, **changes):
    known = {
        "latency_ms": 1.0 + 0.1 * depth,
        "float_latency_ms": 2.0,
        "drop_points": drop,
        "disagreement_points": 1.0,
        "sqnr_db": 30.0,
        "size_bytes": 1000 + 100 * depth,
    }
    return Point(depth, f"{depth} in float", Evidence(**{**known, **changes}), None, most_lost)


@pytest.mark.parametrize("deepest", range(34))
def test_bisection_finds_the_smallest_depth_that_holds_and_asks_few(deepest):
    for smallest in range(deepest + 2):
        asked = []

        def holds(depth, smallest=smallest, asked=asked):
            asked.append(depth)
            return depth >= smallest

        assert smallest_depth(deepest, holds) == (smallest if smallest <= deepest else None)
        assert len(set(asked)) == len(asked)
        assert len(asked) <= math.ceil(math.log2(max(deepest, 1))) + 2


def test_without_a_law_bisection_gives_a_depth_that_holds_beside_one_that_does_not():
    chance = random.Random(0)
    found = 0
    for _ in range(400):
        deepest = chance.randrange(1, 40)
        answers = [chance.random() < 0.5 for _ in range(deepest + 1)]
        asked = {}

        def holds(depth, answers=answers, asked=asked):
            return asked.setdefault(depth, answers[depth])

        depth = smallest_depth(deepest, holds)
        if depth is None:
            assert not any(asked.values())
            assert deepest in asked
            continue
        found += 1
        assert asked[depth]
        assert depth == 0 or asked[depth - 1] is False
        assert depth == min(one for one, held in asked.items() if held)
    assert found > 200


def test_the_best_gain_for_its_cost_comes_first_and_what_gains_nothing_last():
    cheap = Sensitivity(frozenset({0}), gain=0.2, cost=0.01)
    good = Sensitivity(frozenset({1}), gain=0.9, cost=0.1)
    none = Sensitivity(frozenset({2}), gain=0.0, cost=0.01)
    harm = Sensitivity(frozenset({3}), gain=-0.1, cost=0.5)
    assert ranked([harm, none, good, cheap]) == [cheap, good, none, harm]


def test_a_cost_is_never_nothing():
    assert cost_of(1.0, 1.5) == 0.5
    assert cost_of(1.0, 1.0) == cost_of(1.0, 0.7) > 0


@pytest.mark.parametrize(("count", "most"), [(0, 4), (3, 4), (4, 4), (5, 4), (97, 40)])
def test_groups_hold_every_region_once_in_order_and_are_not_too_many(count, most):
    groups = groups_of(range(count), most=most)
    assert [region for group in groups for region in sorted(group)] == list(range(count))
    assert len(groups) <= most


def test_the_front_is_what_nothing_beats():
    chance = random.Random(1)
    figures = [tuple(chance.randrange(6) for _ in range(3)) for _ in range(60)]
    for one, is_front in zip(figures, front(figures), strict=True):
        beaten = any(
            all(a <= b for a, b in zip(other, one, strict=True)) and any(a < b for a, b in zip(other, one, strict=True))
            for other in figures
        )
        assert is_front is not beaten
    assert front([(1, 1), (1, 1)]) == [True, True]


def test_a_bound_beyond_the_limit_refuses_what_the_estimate_accepts():
    doubtful = point(0, 0.2, most_lost=0.8)
    assert is_within(doubtful, RECIPE, Proof.ESTIMATE)
    assert not is_within(doubtful, RECIPE, Proof.BOUND)
    assert reasons_against(doubtful, RECIPE, Proof.ESTIMATE) == ()
    (said,) = reasons_against(doubtful, RECIPE, Proof.BOUND)
    assert "loses 0.20 points" in said
    assert "may be 0.80, where at most 0.5" in said


@pytest.mark.parametrize(
    ("changes", "limits", "said"),
    [
        ({"drop_points": 0.9}, {}, "loses 0.90 points of accuracy where at most 0.5"),
        ({"latency_ms": 3.0}, {}, "3.000 ms where float in the same format takes 2.000 ms"),
        ({"latency_ms": 1.5}, {"max_latency_ms": 1.2}, "1.500 ms where at most 1.2 ms"),
        ({"size_bytes": 3000}, {"max_bytes": 2500}, "3,000 bytes where at most 2,500"),
        ({"is_finite": False}, {}, "NaN or Inf"),
    ],
)
def test_every_limit_refuses_with_both_figures(changes, limits, said):
    (reason,) = reasons_against(point(1, **changes), replace(RECIPE, **limits), Proof.BOUND)
    assert said in reason


def test_outputs_that_are_no_classes_are_held_to_their_noise_under_either_proof():
    loud = point(0, None, most_lost=None, disagreement_points=None, sqnr_db=9.0)
    quiet = replace(loud, evidence=replace(loud.evidence, sqnr_db=20.0))
    for proof in Proof:
        assert not is_within(loud, RECIPE, proof)
        assert is_within(quiet, RECIPE, proof)


def test_the_fewest_in_float_of_what_holds_everything_is_chosen():
    points = [point(4), point(2), point(1, 0.9, most_lost=1.5), point(0, 3.0, most_lost=4.0)]
    assert choose(points, RECIPE, Proof.BOUND).depth == 2
    assert choose(points, replace(RECIPE, max_latency_ms=1.15), Proof.BOUND) is None
    assert choose([], RECIPE, Proof.BOUND) is None


def test_where_nothing_holds_everything_the_nearest_is_like_the_source_and_cheap_or_else_most_like_it():
    slow = [point(depth, latency_ms=5.0 + depth) for depth in (3, 1)]
    assert nearest([*slow, point(0, 2.0)], RECIPE).depth == 1
    assert nearest([point(0, 2.0), point(3, 1.0), point(4, 1.5)], RECIPE).depth == 3
    assert nearest([point(0, is_finite=False), point(3, 9.0)], RECIPE).depth == 3


def test_the_trials_say_what_was_chosen_passed_and_refused_and_mark_the_front():
    points = [point(0, 2.0, most_lost=3.0), point(2), point(4), point(6, 0.0, latency_ms=9.0)]
    reference = point(-1, 0.0, latency_ms=2.0, size_bytes=4000)
    trials = {one.name: one for one in trials_of(points, reference, points[1], RECIPE, Proof.BOUND, form="onnx")}
    assert list(trials) == ["onnx-int8", "onnx-mixed-2", "onnx-mixed-4", "onnx-mixed-6", "onnx-float"]
    outcomes = [one.outcome for one in trials.values()]
    assert outcomes == [Outcome.REFUSED, Outcome.CHOSEN, Outcome.PASSED, Outcome.REFUSED, Outcome.PASSED]
    assert "loses 2.00 points" in trials["onnx-int8"].reason
    assert "at most 0.40 (95 %)" in trials["onnx-mixed-2"].reason
    assert "9.000 ms" in trials["onnx-mixed-6"].reason
    assert [name for name, one in trials.items() if one.is_pareto] == [
        "onnx-int8",
        "onnx-mixed-2",
        "onnx-mixed-6",
        "onnx-float",
    ]
    assert trials["onnx-mixed-2"].agreement == pytest.approx(0.99)


def test_without_latencies_the_front_is_of_size_and_loss():
    points = [point(0, latency_ms=None), point(1, latency_ms=None)]
    trials = trials_of(
        points, point(-1, 0.0, latency_ms=None, size_bytes=9000), points[0], RECIPE, Proof.BOUND, form="onnx"
    )
    assert [one.is_pareto for one in trials] == [True, False, True]
    assert all(one.latency_ms is None for one in trials)
