"""The search for a mixed precision: which regions to try in float, in which order, how many, and which file is taken. Pure.

Files are written, asked and timed in :mod:`edgeops_converters.mixing`; bounds are in :mod:`edgeops_converters.bounds`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from edgeops_converters.fidelity import Drop
from edgeops_converters.gate import Evidence, is_faithful, judge
from edgeops_converters.recipe import Recipe
from edgeops_converters.trials import Outcome, Trial

_LEAST_COST = 0.01


class Proof(StrEnum):
    """By which figure a loss is held against its limit."""

    BOUND = "bound"
    """By the largest that goes with the rows."""
    ESTIMATE = "estimate"
    """By what the rows show, where they are too few for the other."""


@dataclass(frozen=True)
class Sensitivity:
    """What it does to leave regions in float, all others in integers.

    Attributes:
        regions: Of the plan.
        gain: Noise that it takes away, as a share of the power of the outputs.
        cost: Latency that it adds, as a share of that of int8; where no latency is measured, size. More than 0.
    """

    regions: frozenset[int]
    gain: float
    cost: float


@dataclass(frozen=True)
class Point:
    """A file that may ship, and its figures on the rows of the search.

    Attributes:
        depth: How many of the ranked regions are in float.
        settings: The same in words.
        evidence: What the gate looks at.
        drop: Loss of accuracy; ``None`` without labels.
        most_lost: Its upper bound (without labels that of the disagreement), in percentage points; ``None`` when the outputs
            are no classes.
    """

    depth: int
    settings: str
    evidence: Evidence
    drop: Drop | None = None
    most_lost: float | None = None


def groups_of(regions: Sequence[int], *, most: int) -> list[frozenset[int]]:
    """Regions in groups of neighbours, no more groups than may be tried.

    >>> [sorted(group) for group in groups_of([0, 1, 2, 3, 4], most=3)]
    [[0, 1], [2, 3], [4]]
    """
    size = max(1, math.ceil(len(regions) / most))
    return [frozenset(regions[start : start + size]) for start in range(0, len(regions), size)]


def ranked(found: Sequence[Sensitivity]) -> list[Sensitivity]:
    """Best first: by noise taken away for what it costs; what takes none away comes last."""
    return sorted(found, key=lambda one: one.gain / one.cost if one.gain > 0 else one.gain, reverse=True)


def cost_of(before: float, after: float) -> float:
    """What a figure grows by, as a share; not less than what a difference of two medians is good to.

    >>> cost_of(2.0, 3.0), cost_of(2.0, 1.9)
    (0.5, 0.01)
    """
    return max((after - before) / before, _LEAST_COST)


def smallest_depth(deepest: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest depth that holds, by bisection; ``None`` when not even the deepest does.

    Where more depth does not always help, it is a depth that holds, with one just below it, or zero, that does not; and none that
    was asked and is smaller holds.

    Args:
        deepest: Depths go from 0 to this.
        holds: Asked about ``log2(deepest) + 2`` times; never twice about the same.

    >>> smallest_depth(9, lambda depth: depth >= 3)
    3
    """
    if holds(0):
        return 0
    low, high, known = 1, deepest, False
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high, known = middle, True
        else:
            low = middle + 1
    # The upper end was only taken to hold.
    return high if high > 0 and (known or holds(high)) else None


def front(figures: Sequence[tuple[float, ...]]) -> list[bool]:
    """Whether no other is better in one figure and as good in the others; less is better.

    >>> front([(1, 3), (2, 2), (2, 3)])
    [True, True, False]
    """
    return [
        not any(other != one and all(a <= b for a, b in zip(other, one, strict=True)) for other in figures)
        for one in figures
    ]


def is_within(point: Point, recipe: Recipe, proof: Proof) -> bool:
    """Whether it is like enough to the source."""
    is_proven = proof is Proof.ESTIMATE or point.most_lost is None or point.most_lost <= recipe.max_drop
    return is_proven and is_faithful(point.evidence, recipe.max_drop)


def reasons_against(point: Point, recipe: Recipe, proof: Proof) -> tuple[str, ...]:
    """Which limits it does not hold, and by how much."""
    said = judge(point.evidence, **recipe.limits).reasons
    if is_faithful(point.evidence, recipe.max_drop) and not is_within(point, recipe, proof):
        limit = f"where at most {recipe.max_drop:g} are accepted"
        said += (f"{estimate(point)} on the rows of the search, which may be {point.most_lost:.2f}, {limit}",)
    return said


def choose(points: Sequence[Point], recipe: Recipe, proof: Proof) -> Point | None:
    """The cheapest that holds all limits, which is the one with the fewest regions in float; ``None`` when none does."""
    holding = [point for point in points if not reasons_against(point, recipe, proof)]
    return min(holding, key=lambda point: point.depth, default=None)


def nearest(points: Sequence[Point], recipe: Recipe) -> Point:
    """Where none holds all limits: the cheapest that is like the source, or else what is most like it."""

    def distance(point: Point) -> tuple[bool, float, int]:
        is_like = is_faithful(point.evidence, recipe.max_drop)
        return not is_like, 0.0 if is_like else loss_of(point.evidence), point.depth

    return min(points, key=distance)


def trials_of(
    points: Sequence[Point], reference: Point, taken: Point | None, recipe: Recipe, proof: Proof, *, form: str
) -> list[Trial]:
    """What the report says of each file that might have shipped, and of float.

    Args:
        points: All that were tried.
        reference: Float.
        taken: What was chosen of them.
        recipe: The limits.
        proof: How losses were held against theirs.
        form: Of the files.
    """
    everything = [*sorted(points, key=lambda point: point.depth), reference]
    beaten_by_none = front(
        [(one.evidence.latency_ms or 0.0, one.evidence.size_bytes, loss_of(one.evidence)) for one in everything]
    )
    trials = []
    for one, is_pareto in zip(everything, beaten_by_none, strict=True):
        outcome, reason = _outcome(one, reference, taken, recipe, proof)
        trials.append(
            as_trial(one, name=_name(one, reference, form), outcome=outcome, reason=reason, is_pareto=is_pareto)
        )
    return trials


def as_trial(
    point: Point, *, name: str, outcome: Outcome, reason: str, is_pareto: bool = False, is_probe: bool = False
) -> Trial:
    """A point as the report has it."""
    evidence = point.evidence
    return Trial(
        name=name,
        settings=point.settings,
        size_bytes=evidence.size_bytes,
        latency_ms=evidence.latency_ms,
        drop=point.drop,
        agreement=None if evidence.disagreement_points is None else 1 - evidence.disagreement_points / 100,
        sqnr_db=evidence.sqnr_db,
        outcome=outcome,
        reason=reason,
        is_pareto=is_pareto,
        is_probe=is_probe,
    )


def loss_of(evidence: Evidence) -> float:
    """What less is better of: points of accuracy, of disagreement, or decibel of noise."""
    if not evidence.is_finite:
        return math.inf
    if evidence.drop_points is not None:
        return evidence.drop_points
    if evidence.disagreement_points is not None:
        return evidence.disagreement_points
    return -math.inf if evidence.sqnr_db is None else -evidence.sqnr_db


def in_words(point: Point) -> str:
    """What a point loses, with its bound where there is one."""
    if point.most_lost is None:
        return estimate(point)
    return f"{estimate(point)}, at most {point.most_lost:.2f} (95 %)"


def estimate(point: Point) -> str:
    """What the rows show that a point loses."""
    evidence = point.evidence
    if evidence.drop_points is not None:
        return f"it loses {evidence.drop_points:.2f} points"
    if evidence.disagreement_points is not None:
        return f"it disagrees with the source on {evidence.disagreement_points:.2f} %"
    return "it answers the same" if evidence.sqnr_db is None else f"it has {evidence.sqnr_db:.1f} dB"


def _name(point: Point, reference: Point, form: str) -> str:
    if point is reference:
        return f"{form}-float"
    return f"{form}-mixed-{point.depth}" if point.depth else f"{form}-int8"


def _outcome(point: Point, reference: Point, taken: Point | None, recipe: Recipe, proof: Proof) -> tuple[Outcome, str]:
    if point is reference:
        return Outcome.PASSED, "what the others are measured against"
    if point is taken:
        return Outcome.CHOSEN, f"{in_words(point)}; the fewest layers in float that hold all limits"
    against = reasons_against(point, recipe, proof)
    if against:
        return Outcome.REFUSED, "; ".join(against)
    return Outcome.PASSED, f"{in_words(point)}; fewer layers in float do too"
