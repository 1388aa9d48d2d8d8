"""Is a drift harmful? A betting test on the error rate of labelled samples, valid after every label.

Drift is a change of the data; harm is a change of what the model gets right, and only labels can show it. The test bets that the
error rate is above what the reference promises plus a tolerance (Waudby-Smith and Ramdas, "Estimating means of bounded random
variables by betting", JRSS-B 2024). Labels must come from samples that were drawn uniformly from the drifted cohort. Where
samples come from, and who labels them, is left to others. Pure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgeops.errors import InputError

FloatArray = NDArray[np.float64]

_ALTERNATIVES = 32
"""Error rates that are bet on; a finer grid gains little."""

_BASELINE_CONFIDENCE = 0.95


class HarmState(StrEnum):
    """The three answers."""

    BENIGN = "benign"
    """The error rate is surely within what is tolerated."""
    HARMFUL = "harmful"
    """It is surely above that."""
    UNKNOWN = "unknown"
    """More labels are needed."""


@dataclass(frozen=True, kw_only=True)
class Harm:
    """An assessment.

    Attributes:
        error_rate: Of the labelled samples; ``None`` without any.
        interval: Confidence interval of the true error rate, valid at every look.
        tolerated: The error rate above which drift is harmful: the baseline's, plus its sampling error, plus the tolerance.
        e_value: Largest evidence for harm after any of the labels; harmful from ``1 / alpha`` on.
        labels: How many there are.
        labels_to_alarm: After how many labels it was found harmful; ``None`` when it was not.
        reason: All of this in a sentence.
    """

    state: HarmState
    error_rate: float | None
    interval: tuple[float, float]
    tolerated: float
    e_value: float
    labels: int
    labels_to_alarm: int | None
    reason: str


def assess(
    labelled: Sequence[bool], *, baseline: tuple[int, int], tolerance: float = 0.05, alpha: float = 0.05
) -> Harm:
    """Judge labelled samples against the accuracy that the reference promises.

    Args:
        labelled: Whether the model was right, in the order in which the labels came.
        baseline: Correct and labelled rows of the reference (:attr:`edgeops.signals.Reference.accuracy`).
        tolerance: How much higher the error rate may be, as a share.
        alpha: Probability of calling harmful what is not, and of a wrong interval, over all looks together.

    Raises:
        InputError: The baseline has no rows or more correct ones than rows, or tolerance or alpha is out of range.

    >>> assess([True, False] * 40, baseline=(900, 1000)).state
    <HarmState.HARMFUL: 'harmful'>
    >>> assess([True, False], baseline=(900, 1000)).state
    <HarmState.UNKNOWN: 'unknown'>
    """
    correct, rows = baseline
    if not 0 <= correct <= rows or rows == 0:
        raise InputError(f"harm: expected a baseline (correct, labelled) with 0 <= correct <= labelled, got {baseline}")
    if not (0 <= tolerance < 1 and 0 < alpha < 1):
        raise InputError(
            f"harm: expected 0 <= tolerance < 1 and 0 < alpha < 1, got tolerance {tolerance} and alpha {alpha}"
        )
    wrong = np.logical_not(np.asarray(labelled, dtype=bool))
    tolerated = min(upper_rate(rows - correct, rows, confidence=_BASELINE_CONFIDENCE) + tolerance, 1.0)
    evidence = log_evidence_above(wrong, tolerated)
    crossed = np.flatnonzero(evidence >= math.log(1 / alpha))
    interval = confidence_interval(wrong, alpha=alpha)
    state = HarmState.UNKNOWN
    if len(crossed):
        state = HarmState.HARMFUL
    elif interval[1] <= tolerated and len(wrong):
        state = HarmState.BENIGN
    error_rate = float(wrong.mean()) if len(wrong) else None
    return Harm(
        state=state,
        error_rate=error_rate,
        interval=interval,
        tolerated=tolerated,
        e_value=float(np.exp(min(float(evidence.max(initial=0.0)), 700.0))),
        labels=len(wrong),
        labels_to_alarm=int(crossed[0]) + 1 if len(crossed) else None,
        reason=_reason(state, error_rate, interval=interval, tolerated=tolerated, labels=len(wrong)),
    )


def log_evidence_above(wrong: NDArray[np.bool_], limit: float) -> FloatArray:
    """Evidence that the error rate is above a limit, after each label.

    A bet of λ on each label, ``1 + λ (wrong - limit)``, is the likelihood ratio of the rate ``q = limit + λ limit (1 - limit)``
    against the limit; the capital is spread evenly over a grid of such rates.

    Args:
        wrong: Shape ``(labels,)``.
        limit: Error rate of the hypothesis "not above".

    Returns:
        Shape ``(labels,)``, logarithms of e-values.
    """
    if limit >= 1:
        return np.zeros(len(wrong))
    rates = limit + (1 - limit) * (np.arange(_ALTERNATIVES) + 0.5) / _ALTERNATIVES
    failures = np.cumsum(wrong, dtype=np.float64)[:, None]
    successes = np.arange(1, len(wrong) + 1)[:, None] - failures
    # An error under "no error at all" is proof; a limit of exactly zero cannot come from `assess`, but the formula should hold.
    floor = max(limit, 1e-300)
    ratios: FloatArray = failures * np.log(rates / floor) + successes * np.log((1 - rates) / (1 - limit))
    return _log_mean(ratios)


def confidence_interval(wrong: NDArray[np.bool_], *, alpha: float) -> tuple[float, float]:
    """The error rates that no bet refutes after these labels; right at every look with probability ``1 - alpha``.

    >>> low, high = confidence_interval(np.zeros(100, dtype=bool), alpha=0.05)
    >>> low, high < 0.09
    (0.0, True)
    """
    count = len(wrong)
    if not count:
        return 0.0, 1.0
    failures = int(wrong.sum())
    candidates = np.linspace(0.0, 1.0, 1001)
    # Mixture over all alternatives at once (Robbins, 1970): the likelihood averaged over a uniform rate, against the candidate's.
    average = math.lgamma(failures + 1) + math.lgamma(count - failures + 1) - math.lgamma(count + 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = _times(failures, np.log(candidates)) + _times(count - failures, np.log1p(-candidates))
    held = candidates[average - likelihood < math.log(1 / alpha)]
    step = float(candidates[1])
    return max(float(held.min()) - step, 0.0), min(float(held.max()) + step, 1.0)


def upper_rate(events: int, rows: int, *, confidence: float) -> float:
    """Wilson's upper bound on a rate: what the baseline's own small sample may have hidden.

    >>> round(upper_rate(100, 1000, confidence=0.95), 4)
    0.1167
    """
    z = NormalDist().inv_cdf(confidence)
    rate, denominator = events / rows, 1 + z * z / rows
    centre = rate + z * z / (2 * rows)
    width = z * math.sqrt(rate * (1 - rate) / rows + z * z / (4 * rows * rows))
    return min((centre + width) / denominator, 1.0)


def _times(count: int, logarithms: FloatArray) -> FloatArray:
    """``count · log`` with nothing times minus infinity being nothing."""
    return count * logarithms if count else np.zeros_like(logarithms)


def _log_mean(logarithms: FloatArray) -> FloatArray:
    top = logarithms.max(axis=1, keepdims=True, initial=-1e300)
    result: FloatArray = top[:, 0] + np.log(np.exp(logarithms - top).mean(axis=1))
    return result


def _reason(
    state: HarmState, error_rate: float | None, *, interval: tuple[float, float], tolerated: float, labels: int
) -> str:
    if error_rate is None:
        return "no labels yet"
    seen = (
        f"error rate {error_rate:.1%} ({interval[0]:.1%} to {interval[1]:.1%}) on {labels} labels, "
        f"{tolerated:.1%} is tolerated"
    )
    match state:
        case HarmState.HARMFUL:
            return f"{seen}: harmful"
        case HarmState.BENIGN:
            return f"{seen}: benign"
        case _:
            return f"{seen}: more labels are needed"
