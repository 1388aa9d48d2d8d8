"""How far a score has moved, with an interval that holds at every look. Pure.

The interval is the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas ("Time-uniform central limit
theory and asymptotic confidence sequences", Annals of Statistics 2024, theorem 2.2), widened by the reference's own error.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from edgeops_fleet.drift.bets import Bets
from edgeops_fleet.drift.scores import Counts

_TIGHTEST_AT_ROWS = 500
"""The sequence has to be tightest at some number of rows."""


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Of one score: how far its mean is from the reference's, and the half-width of the interval around that.

    Attributes:
        tolerated: Whether it lies inside what the detector takes for no change.
    """

    value: float
    half_width: float
    rows: int
    tolerated: bool


def shift_of(
    score: int,
    *,
    bets: Mapping[str, Bets],
    counts: Mapping[str, Counts],
    tolerance: float,
    design_effect: float,
    confidence: float,
) -> Shift:
    """The shift of a score over all strata, each against its own reference.

    Args:
        score: Index into :attr:`Bets.scores`, the same in every stratum.
        bets: Stratum → bets.
        counts: Stratum → counts of the rows that are looked at.
        tolerance: Of the detector.
        design_effect: Rows that count as one.
        confidence: Of the interval.
    """
    rows, moved, variance, reference_error, low, high = 0, 0.0, 0.0, 0.0, 0.0, 0.0
    for stratum, counted in counts.items():
        about = bets[stratum].scores[score]
        bins = counted.get(about.signal)
        number = int(bins.sum()) if bins is not None else 0
        if bins is None or not number:
            continue
        mean = float(bins @ about.values) / number
        rows += number
        moved += number * (mean - about.mean)
        spread = float(bins @ (about.values - mean) ** 2) / number
        # Where nothing varied, as with a share of zero, the interval is about that of the rule of three.
        variance += number * max(spread, about.variance, min(1 / number, 0.25))
        reference_error += number * math.sqrt(about.variance / max(about.rows, 1))
        low += number * about.error_low
        high += number * about.error_high
    if not rows:
        return Shift(value=0.0, half_width=1.0, rows=0, tolerated=True)
    value, error = moved / rows, NormalDist().inv_cdf((1 + confidence) / 2) * reference_error / rows
    width = math.sqrt(variance / rows) * _sequence(rows / design_effect, 1 - confidence) + error
    return Shift(
        value=value,
        half_width=width,
        rows=rows,
        tolerated=-tolerance - low / rows <= value <= tolerance + high / rows,
    )


def _sequence(rows: float, doubt: float) -> float:
    """Half-width of the confidence sequence in standard deviations of one row."""
    tuning = (-2 * math.log(doubt) + math.log(-2 * math.log(doubt) + 1)) / _TIGHTEST_AT_ROWS
    spread = rows * tuning + 1
    return math.sqrt(2 * spread / (rows * rows * tuning) * math.log(math.sqrt(spread) / doubt))
