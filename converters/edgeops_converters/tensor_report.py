"""What a quantised activation held and which range was chosen for it, small enough for a report. Pure.

Histograms are taken in :mod:`edgeops_converters.histograms` and ranges chosen in :mod:`edgeops_converters.ranges`.
"""

import math

import msgspec
import numpy as np

from edgeops_converters.histograms import Histogram

BARS = 64
"""The most bars that a report keeps of a histogram."""


class TensorReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A quantised activation.

    Attributes:
        tensor: As the file calls it.
        first: Where the first bar begins.
        width: Of a bar.
        counts: Values in each bar, at most :data:`BARS` bars.
        zeros: How many of them were exactly zero.
        low: The least value that the integers reach; likewise ``high``.
        clipped: Share of the values beyond them; what lies in the bin of an end counts as inside.
        estimator: How the range was chosen, for example ``minmax``.
        reason: Why.
    """

    tensor: str
    first: float
    width: float
    counts: tuple[int, ...]
    zeros: int
    low: float
    high: float
    clipped: float
    estimator: str
    reason: str = ""


def summarize(
    tensor: str, histogram: Histogram, *, low: float, high: float, estimator: str, reason: str = ""
) -> TensorReport:
    """Join neighbouring bins until a report can hold them.

    >>> histogram = Histogram()
    >>> histogram.add(np.linspace(-1, 1, 1000))
    >>> told = summarize("x", histogram, low=-0.9, high=0.9, estimator="mse")
    >>> len(told.counts) <= BARS, sum(told.counts), round(told.clipped, 2)
    (True, 1000, 0.1)
    """
    counts, width = histogram.counts, histogram.width
    factor = max(1, math.ceil(len(counts) / BARS))
    bars = np.add.reduceat(counts, np.arange(0, len(counts), factor)) if len(counts) else counts
    beyond = (histogram.centres + width / 2 <= low) | (histogram.centres - width / 2 >= high)
    return TensorReport(
        tensor=tensor,
        first=float(histogram.centres[0]) - width / 2 if len(counts) else 0.0,
        width=width * factor,
        counts=tuple(int(count) for count in bars),
        zeros=histogram.zeros,
        low=low,
        high=high,
        clipped=float(counts[beyond].sum() / counts.sum()) if len(counts) else 0.0,
        estimator=estimator,
        reason=reason,
    )
