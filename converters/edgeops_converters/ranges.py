"""From a histogram of activations to the range that eight bits are to cover. Pure.

Every range holds zero, because padding and rectifiers need it exactly, and is never empty.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeops_converters.histograms import Histogram

LEVELS = 255
"""Steps between the least and the greatest value of eight bits."""

_LEAST_SPAN = 1e-8
_GRID = 128
_FINER = 16
_CODES = 128  # of the entropy estimator
_MOST_BINS = 1 << 16  # of the distances from zero: more when all values are alike and far away


@dataclass(frozen=True)
class Range:
    """What the integers cover; ``low`` ≤ 0 ≤ ``high``."""

    low: float
    high: float

    @property
    def step(self) -> float:
        """Between two neighbouring integers."""
        return (self.high - self.low) / LEVELS


def minmax(histogram: Histogram) -> Range:
    """The least and the greatest value.

    >>> histogram = Histogram()
    >>> histogram.add(np.array([0.5, 2.0]))
    >>> minmax(histogram)
    Range(low=0.0, high=2.0)
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    return Range(low, high if high - low > _LEAST_SPAN else low + _LEAST_SPAN)


def percentile(histogram: Histogram, share: float = 0.9999) -> Range:
    """What holds this share of the values, the rest cut off at both ends alike."""
    whole = minmax(histogram)
    if not len(histogram.counts):
        return whole
    cumulative = np.cumsum(histogram.counts) / histogram.counts.sum()
    tail = (1 - share) / 2
    low = histogram.centres[np.searchsorted(cumulative, tail, side="right")] - histogram.width / 2
    high = histogram.centres[np.searchsorted(cumulative, 1 - tail)] + histogram.width / 2
    return _within(whole, low, high)


def least_squares(histogram: Histogram) -> Range:
    """The range of the least mean squared quantisation error, over a grid of both ends that is then refined.

    Sung, Shin and Hwang, "Resiliency of deep neural networks under quantization" (2015), with both ends free.
    """
    whole, moments = minmax(histogram), _Moments(histogram)
    lows, highs = np.linspace(whole.low, 0, _GRID), np.linspace(whole.high, 0, _GRID)
    best = moments.least(lows, highs)
    around = np.linspace(-1, 1, 2 * _FINER + 1) / (_GRID - 1)
    low, high = best.low + around * whole.low, best.high + around * whole.high
    return moments.least(np.clip(low, whole.low, 0), np.clip(high, 0, whole.high))


def entropy(histogram: Histogram) -> Range:
    """The cut whose 128 codes lose the least information (Migacz, "8-bit inference with TensorRT", 2017)."""
    whole = minmax(histogram)
    if (whole.high - whole.low) / histogram.width > _MOST_BINS:
        return whole
    magnitudes = _magnitudes(histogram)
    if len(magnitudes) <= _CODES:
        return whole
    cuts = range(_CODES, len(magnitudes) + 1, max(1, len(magnitudes) // 256))
    best = min(cuts, key=lambda cut: _divergence(magnitudes, cut))
    reach = histogram.width * best
    return _within(whole, -reach, reach)


def squared_error(histogram: Histogram, candidate: Range) -> float:
    """The expected sum of squared errors of the counted values in this range."""
    return float(_Moments(histogram).errors(np.array([candidate.low]), np.array([candidate.high]))[0, 0])


ESTIMATORS: dict[str, Callable[[Histogram], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": least_squares,
    "entropy": entropy,
}
"""Name → how a range is found."""


class _Moments:
    """Sums over the tails of a histogram, so that the error of a range takes a look-up and no pass."""

    def __init__(self, histogram: Histogram) -> None:
        counts, centres = histogram.counts.astype(np.float64), histogram.centres
        self._left = (histogram.centres - histogram.width / 2) if len(centres) else centres
        self._width = histogram.width
        self._inside = float(counts.sum()) - histogram.zeros
        self._sums = np.stack([np.concatenate([[0.0], np.cumsum(counts * centres**power)]) for power in (0, 1, 2)])

    def errors(self, lows: NDArray[np.float64], highs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shape ``(lows, highs)``: a step² / 12 of every value inside, the squared distance of every one outside."""
        steps = (highs[None, :] - lows[:, None]) / LEVELS
        below, above = self._below(lows), self._above(highs)
        outside = below[0][:, None] + above[0][None, :]
        inside = np.maximum(self._inside - outside, 0) * steps**2 / 12
        return inside + below[1][:, None] + above[1][None, :]

    def least(self, lows: NDArray[np.float64], highs: NDArray[np.float64]) -> Range:
        """The best of all pairs of ends."""
        spans = highs[None, :] - lows[:, None]
        errors = np.where(spans > _LEAST_SPAN, self.errors(lows, highs), np.inf)
        row, column = np.unravel_index(int(errors.argmin()), errors.shape)
        low, high = float(lows[row]), float(highs[column])
        return Range(low, high if high - low > _LEAST_SPAN else low + _LEAST_SPAN)

    def _below(self, ends: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self._squares(self._sums[:, np.searchsorted(self._left + self._width, ends, side="right")], ends)

    def _above(self, ends: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        sums = self._sums[:, -1:] - self._sums[:, np.searchsorted(self._left, ends, side="left")]
        return self._squares(sums, ends)

    @staticmethod
    def _squares(
        sums: NDArray[np.float64], ends: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return sums[0], np.maximum(sums[2] - 2 * ends * sums[1] + ends**2 * sums[0], 0)


def _within(whole: Range, low: float, high: float) -> Range:
    low, high = max(whole.low, min(low, 0.0)), min(whole.high, max(high, 0.0))
    return Range(float(low), float(high)) if high - low > _LEAST_SPAN else whole


def _magnitudes(histogram: Histogram) -> NDArray[np.float64]:
    """Counts by distance from zero, in bins of the same width; exact zeros left out."""
    distances = np.floor(np.abs(histogram.centres) / histogram.width).astype(np.int64)
    counts = np.bincount(distances, weights=histogram.counts).astype(np.float64)
    counts[:1] = np.maximum(counts[:1] - histogram.zeros, 0)
    return counts


def _divergence(counts: NDArray[np.float64], cut: int) -> float:
    """Kullback-Leibler divergence of the cut distribution from its 128 codes."""
    wanted = counts[:cut].copy()
    wanted[-1] += counts[cut:].sum()
    codes = np.arange(cut) * _CODES // cut
    occupied = counts[:cut] > 0
    sums = np.bincount(codes, weights=counts[:cut], minlength=_CODES)
    shares = np.bincount(codes, weights=occupied, minlength=_CODES)
    given = np.where(occupied, sums[codes] / np.maximum(shares[codes], 1), 0)
    present = (wanted > 0) & (given > 0)
    lost = wanted[(wanted > 0) & (given == 0)].sum()
    if not wanted.sum() or not given.sum():
        return float("inf")
    p, q = wanted[present] / wanted.sum(), given[present] / given.sum()
    return float((p * np.log(p / q)).sum() + (lost / wanted.sum()) * np.log(1e6))
