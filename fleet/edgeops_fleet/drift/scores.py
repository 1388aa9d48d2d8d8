"""From a reference to bounded scores: what about a signal is watched, what its mean should be, how well that is known.

A *score* gives each bin of a signal a value between 0 and 1; its mean over the rows of a window is what the detector compares
with the reference. Ordered signals have three: the mean rank (moves with the location), the spread (moves with the scale) and
the share of rows that were not finite. A class signal has the share of each class. Pure.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgeops.signals import EVERYTHING, Reference, Signal, Statistic

FloatArray = NDArray[np.float64]
Counts = Mapping[str, NDArray[np.int64]]
"""Signal name → counts of shape ``(bins,)``."""

_ANSWERS = frozenset({Statistic.CONFIDENCE, Statistic.ENTROPY, Statistic.CLASS})

MAX_CLASSES = 32
"""The most frequent classes are watched one by one; the rest of a large label set together."""


class ScoreKind(StrEnum):
    """What a score looks at."""

    MEAN_RANK = "mean rank"
    SPREAD = "spread"
    SHARE = "share"
    """Of the rows that fall into certain bins."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Score:
    """One score of one signal in one stratum of a reference.

    Attributes:
        is_answer: Whether the signal looks at what the model answers, rather than at what it is given.
        bins: For a share: which rows, in words; empty otherwise.
        values: Shape ``(bins,)``, float64, each in [0, 1].
        shares: Shape ``(bins,)``, float64: the share of the reference's rows in each bin.
        mean: Mean over the reference's rows.
        variance: Over the reference's rows.
        rows: How many rows that were.
        error_low: The true mean of the reference's population is above ``mean - error_low``, at the confidence that was asked.
        error_high: And below ``mean + error_high``.
    """

    signal: str
    is_answer: bool
    kind: ScoreKind
    bins: str = ""
    values: FloatArray
    shares: FloatArray
    mean: float
    variance: float
    rows: int
    error_low: float
    error_high: float

    @property
    def label(self) -> str:
        """For people: what is watched, without the signal's name."""
        return f"share of {self.bins}" if self.kind is ScoreKind.SHARE else str(self.kind)


def scores_of(reference: Reference, stratum: str, *, confidence: float) -> tuple[Score, ...]:
    """All scores of a reference, in one stratum.

    The order and number are the same for every stratum, so that evidence from several strata adds up bet by bet.

    Args:
        reference: The baseline.
        stratum: A key of the signals' counts; unknown ones mean all rows.
        confidence: With which all errors (``error_low``, ``error_high``) hold at once, by Bonferroni's inequality.
    """
    plans = [(signal, plan) for signal in reference.signals for plan in _plans(signal)]
    doubt = (1 - confidence) / (2 * max(len(plans), 1))
    return tuple(
        _score(signal, plan, np.asarray(signal.counts_of(stratum), dtype=np.float64), doubt) for signal, plan in plans
    )


def mid_ranks(counts: FloatArray) -> FloatArray:
    """The mid-rank of each bin: the share of rows below it plus half the share in it.

    >>> mid_ranks(np.array([1.0, 2.0, 1.0])).tolist()
    [0.125, 0.5, 0.875]
    """
    total = max(float(counts.sum()), 1.0)
    ranks: FloatArray = (np.cumsum(counts) - counts / 2) / total
    return ranks


def rate_bounds(rate: float, rows: int, doubt: float) -> tuple[float, float]:
    """Chernoff's bounds on a probability from an observed rate, each of the two wrong with probability ``doubt`` at most.

    They invert the binary relative entropy, ``kl(rate, p) = log(1 / doubt) / rows`` (Hoeffding, 1963, theorem 1).

    >>> low, high = rate_bounds(0.0, 1000, 0.05)
    >>> low, round(high, 5)
    (0.0, 0.00299)
    """
    if rows == 0:
        return 0.0, 1.0
    budget = math.log(1 / doubt) / rows
    return _invert(rate, 0.0, budget), _invert(rate, 1.0, budget)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    kind: ScoreKind
    bins: tuple[int, ...] = ()
    label: str = ""


def _plans(signal: Signal) -> list[_Plan]:
    """Which scores a signal has."""
    not_finite = _Plan(kind=ScoreKind.SHARE, bins=(signal.bins - 1,), label="rows that are not finite")
    if signal.statistic is not Statistic.CLASS:
        return [_Plan(kind=ScoreKind.MEAN_RANK), _Plan(kind=ScoreKind.SPREAD), not_finite]
    counts = signal.counts[EVERYTHING][:-1]
    frequent = sorted(range(len(counts)), key=lambda index: (-counts[index], index))
    alone, together = sorted(frequent[:MAX_CLASSES]), tuple(sorted(frequent[MAX_CLASSES:]))
    shares = [_Plan(kind=ScoreKind.SHARE, bins=(index,), label=f"class {index}") for index in alone]
    if together:
        shares.append(_Plan(kind=ScoreKind.SHARE, bins=together, label="all rarer classes"))
    return [*shares, not_finite]


def _score(signal: Signal, plan: _Plan, counts: FloatArray, doubt: float) -> Score:
    rows = int(counts.sum())
    shares = counts / max(rows, 1)
    values = _values(plan, counts)
    mean = float(shares @ values)
    variance = float(shares @ (values - mean) ** 2)
    if plan.kind is ScoreKind.SHARE:
        low, high = rate_bounds(mean, rows, doubt)
        errors = (mean - low, high - mean)
    else:
        errors = (_mean_error(values, mean=mean, variance=variance, rows=rows, doubt=doubt),) * 2
    return Score(
        signal=signal.name,
        is_answer=signal.softmax or signal.statistic in _ANSWERS,
        kind=plan.kind,
        bins=plan.label,
        values=values,
        shares=shares,
        mean=mean,
        variance=variance,
        rows=rows,
        error_low=errors[0],
        error_high=errors[1],
    )


def _values(plan: _Plan, counts: FloatArray) -> FloatArray:
    if plan.kind is ScoreKind.SHARE:
        values = np.zeros(len(counts))
        values[list(plan.bins)] = 1.0
        return values
    ranks = mid_ranks(counts[:-1])
    finite = ranks if plan.kind is ScoreKind.MEAN_RANK else (2 * ranks - 1) ** 2
    # A row that is not finite has no rank; it gets the mean, so that it speaks neither for nor against a change.
    total = float(counts[:-1].sum())
    neutral = float(counts[:-1] @ finite) / total if total else 0.5
    return np.append(finite, neutral)


def _mean_error(values: FloatArray, *, mean: float, variance: float, rows: int, doubt: float) -> float:
    """The sampling error of a score's mean, when ranks and mean come from the same rows.

    For the mean rank this is no approximation of an approximation: with ranks taken from reference rows Y, the mean under the
    population is exactly ``1 - mean(F(Y))``, an average of independent bounded values with variance 1/12 at most; for the
    spread it holds to first order, with the same variance as the score itself. The second term is for what a small sample may
    have missed altogether: a share of rows of ``log(1 / doubt) / rows``, as far from the mean as a bin can be.
    """
    if rows == 0:
        return 1.0
    normal = NormalDist().inv_cdf(1 - doubt) * math.sqrt(variance / rows)
    missed = float(np.abs(values - mean).max()) * math.log(1 / doubt) / rows
    return min(normal + missed, 1.0)


def _invert(rate: float, far: float, budget: float) -> float:
    """The probability between ``rate`` and ``far`` whose relative entropy from ``rate`` is the budget."""
    near = rate
    for _ in range(60):
        middle = (near + far) / 2
        if _relative_entropy(rate, middle) <= budget:
            near = middle
        else:
            far = middle
    return near


def _relative_entropy(rate: float, probability: float) -> float:
    total = 0.0
    for observed, expected in ((rate, probability), (1 - rate, 1 - probability)):
        if observed > 0:
            if expected <= 0:
                return math.inf
            total += observed * math.log(observed / expected)
    return total
