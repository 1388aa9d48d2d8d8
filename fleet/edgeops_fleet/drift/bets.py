"""Bets against "nothing has changed": how a window of counts becomes evidence.

For a score φ with reference mean μ, known up to u, and a tolerance τ, the null hypothesis is ``|E φ - μ| ≤ τ + u``. A bet stakes
a fraction λ of its capital on each row, for a rise or for a fall: capital is multiplied by ``1 + λ (±(φ - μ) - τ - u)``, which is
1 at most on average while the hypothesis holds, so capital is an e-value (Waudby-Smith and Ramdas, "Estimating means of bounded
random variables by betting", JRSS-B 2024). A row's logarithm depends on its bin alone, so a whole window is a product of a matrix
with its counts, and merged windows are as good as separate ones. Pure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np

from edgeops_fleet.drift.scores import Counts, FloatArray, Score, ScoreKind

FRACTIONS: FloatArray = 0.95 * 2.0 ** -np.arange(6.0)
"""Stakes, as shares of the largest that cannot go bankrupt; nobody knows the size of the change beforehand."""

SIDES = (1.0, -1.0)
"""A rise, a fall."""

BETS_PER_SCORE = len(SIDES) * len(FRACTIONS)


_STEEPEST_TILT = 200.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Bets:
    """All bets of one stratum of a reference; bet ``i`` is on score ``i // BETS_PER_SCORE``.

    Attributes:
        scores: What is bet on; those of a signal stand together.
        by_score: One array for each score, of shape ``(BETS_PER_SCORE, bins)``: the logarithm of what a row in the bin does to
            the capital.
        by_signal: The same, stacked for each signal.
        log_weights: Shape ``(bets,)``: logarithm of the share of the starting capital; signals have equal shares.
    """

    scores: tuple[Score, ...]
    by_score: tuple[FloatArray, ...]
    by_signal: dict[str, FloatArray]
    log_weights: FloatArray

    def evidence(self, counts: Counts, *, design_effect: float = 1.0) -> FloatArray:
        """The logarithm of what a window does to the capital of each bet.

        Args:
            counts: Of the window; a signal that is not there says nothing.
            design_effect: Rows that count as one. Where every row comes this many times over, dividing is exact; for smoother
                correlation it is the usual effective sample size, an approximation.

        Returns:
            Shape ``(bets,)``, float64.
        """
        return np.concatenate(
            [
                factors @ counts[signal] / design_effect if signal in counts else np.zeros(len(factors))
                for signal, factors in self.by_signal.items()
            ]
        )


def place_bets(scores: Sequence[Score], *, tolerance: float) -> Bets:
    """Bets on a rise and on a fall of every score, at several stakes; scores of a signal must stand together."""
    groups = {signal: list(group) for signal, group in groupby(scores, key=lambda score: score.signal)}
    by_score = {id(score): log_factors(score, tolerance=tolerance) for score in scores}
    shares = [1.0 / (len(groups) * len(groups[score.signal]) * BETS_PER_SCORE) for score in scores]
    return Bets(
        scores=tuple(scores),
        by_score=tuple(by_score.values()),
        by_signal={
            signal: np.concatenate([by_score[id(score)] for score in group]) for signal, group in groups.items()
        },
        log_weights=np.log(np.repeat(shares, BETS_PER_SCORE)),
    )


def log_factors(score: Score, *, tolerance: float) -> FloatArray:
    """What a row in each bin does to the capital of each bet on a score: shape ``(BETS_PER_SCORE, bins)``, logarithms."""
    rows = []
    for side in SIDES:
        error = score.error_high if side > 0 else score.error_low
        gains = side * (score.values - score.mean) - tolerance - error
        # The mean lies between the values, so some bin always loses; the tiny number is for a tolerance and an error of zero.
        stakes = FRACTIONS / max(-float(gains.min()), 1e-9)
        rows.append(np.log1p(stakes[:, None] * gains[None, :]))
    return np.concatenate(rows)


def rows_to_detect(bets: Bets, *, shift: float, log_threshold: float) -> float:
    """How many rows show a shift of the mean rank by ``shift`` in a typical signal; infinite when the reference is too small.

    The shifted rows are thought of as the reference's, tilted exponentially until the mean has moved; a signal whose bins
    cannot move that far is left out; the median over signals is taken.
    """
    needed = [(log_threshold - log_weight) / gain if gain > 0 else math.inf for log_weight, gain in _gains(bets, shift)]
    return float(np.median(needed)) if needed else math.inf


@lru_cache(maxsize=256)
def _gains(bets: Bets, shift: float) -> tuple[tuple[float, float], ...]:
    """For each mean rank that can be shifted so far: the weight of its bets, and what a shifted row adds to the best of them."""
    gains = []
    for index, score in enumerate(bets.scores):
        if score.kind is not ScoreKind.MEAN_RANK:
            continue
        shifted = [shares for side in SIDES if (shares := tilted(score, side * shift)) is not None]
        if shifted:
            gain = max(float((bets.by_score[index] @ shares).max()) for shares in shifted)
            gains.append((float(bets.log_weights[index * BETS_PER_SCORE]), gain))
    return tuple(gains)


def tilted(score: Score, shift: float) -> FloatArray | None:
    """The reference's shares by bin, tilted exponentially until the score's mean has moved by ``shift``.

    Returns:
        Shape ``(bins,)``, adding up to 1; ``None`` when no tilt does it.
    """
    held = score.values[score.shares > 0]
    goal = score.mean + shift
    if not len(held) or not held.min() < goal < held.max():
        return None
    low, high = -_STEEPEST_TILT, _STEEPEST_TILT
    for _ in range(60):
        middle = (low + high) / 2
        shares = _tilt(score, middle)
        if float(shares @ score.values) < goal:
            low = middle
        else:
            high = middle
    return _tilt(score, (low + high) / 2)


def _tilt(score: Score, strength: float) -> FloatArray:
    exponents = strength * (score.values - score.mean)
    shares: FloatArray = score.shares * np.exp(exponents - exponents.max())
    return shares / float(shares.sum())
