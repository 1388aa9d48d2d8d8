"""Streaming histograms of activations: one pass, constant memory, and the same result in any order. Pure.

The bin width is always a power of two and the bins start at multiples of it, so that two neighbours merge exactly when the range
grows; the width is the least at which all values seen fit. What range follows from a histogram is decided in
:mod:`edgeops_converters.ranges`.
"""

import math

import numpy as np
from numpy.typing import NDArray

BINS = 2048
_LEAST_EXPONENT = -120  # of the width: that of zeros only, far below what a float32 activation resolves
_MOST_VALUES = 1 << 16  # of one call that are counted; the least and the greatest value are taken over all of them


class Histogram:
    """Counts of what a tensor held, in at most :data:`BINS` bins that together reach as far as needed.

    Attributes:
        low: The least value, exact; 0 when there were no values, likewise ``high``.
        high: The greatest value, exact.
        zeros: How many of the counted values were exactly zero; they have no quantisation error in any range with zero.

    >>> one, other = Histogram(), Histogram()
    >>> one.add(np.array([0.0, 1.0])); other.add(np.array([-3.0]))
    >>> one.merge(other)
    >>> one.low, one.high, one.zeros, int(one.counts.sum())
    (-3.0, 1.0, 1, 3)
    """

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.zeros = 0
        self._exponent = _LEAST_EXPONENT
        self._first = 0  # the index of the first bin: it begins at first × width
        self._counts: NDArray[np.int64] = np.zeros(0, np.int64)

    @property
    def width(self) -> float:
        """Of one bin."""
        return math.ldexp(1.0, self._exponent)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Shape ``(bins,)``, at most :data:`BINS`."""
        return self._counts

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin, shape ``(bins,)``."""
        indices = np.arange(len(self._counts), dtype=np.float64)
        return (indices + (self._first + 0.5)) * self.width

    def add(self, values: NDArray[np.generic]) -> None:
        """Count the finite ones of an array of any shape and real dtype; of a large array an even sample.

        >>> histogram = Histogram()
        >>> for scale in (1, 1000):
        ...     histogram.add(scale * np.linspace(-1, 1, 5000))
        >>> len(histogram.counts) <= BINS, histogram.width, int(histogram.counts.sum())
        (True, 1.0, 10000)
        """
        flat = np.asarray(values).reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            flat = flat[np.isfinite(flat)]
            if not flat.size:
                return
            low, high = float(flat.min()), float(flat.max())
        self._reach(low, high)
        sample = flat[:: _stride(flat.size)].astype(np.float64)
        self.zeros += int((sample == 0).sum())
        indices = np.floor(np.ldexp(sample, -self._exponent)).astype(np.int64) - self._first
        self._counts += np.bincount(indices, minlength=len(self._counts))

    def merge(self, other: "Histogram") -> None:
        """Add the counts of another; neither order nor grouping changes the result."""
        if not len(other.counts):
            return
        self._reach(other.low, other.high)
        moved = other._coarsened(self._exponent)  # noqa: SLF001 - the same class
        self._counts[moved[0] - self._first :][: len(moved[1])] += moved[1]
        self.zeros += other.zeros

    def _reach(self, low: float, high: float) -> None:
        """Widen range and bins until both values fall into one."""
        if len(self._counts):
            low, high = min(low, self.low), max(high, self.high)
        exponent = max(self._exponent, _least_exponent(low, high)) if len(self._counts) else _least_exponent(low, high)
        begin, counts = self._coarsened(exponent)
        first, last = _bin(low, exponent), _bin(high, exponent)
        grown = np.zeros(last - first + 1, np.int64)
        grown[begin - first :][: len(counts)] = counts
        self.low, self.high = low, high
        self._exponent, self._first, self._counts = exponent, first, grown

    def _coarsened(self, exponent: int) -> tuple[int, NDArray[np.int64]]:
        """First bin and counts at a greater width."""
        if not len(self._counts):
            return _bin(self.low, exponent), self._counts
        factor = 1 << (exponent - self._exponent)
        if factor == 1:
            return self._first, self._counts
        first = self._first // factor
        # Python's integers: after a tensor of zeros the factor is beyond 64 bits.
        indices = [(self._first + index) // factor - first for index in range(len(self._counts))]
        return first, np.bincount(indices, weights=self._counts).astype(np.int64)


def _bin(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _least_exponent(low: float, high: float) -> int:
    span = (high - low) / BINS
    exponent = max(_LEAST_EXPONENT, math.frexp(span)[1] - 2 if span else _LEAST_EXPONENT)
    magnitude = max(abs(low), abs(high))
    exponent = max(exponent, math.frexp(magnitude)[1] - 52 if magnitude else exponent)  # of a double
    while _bin(high, exponent) - _bin(low, exponent) >= BINS:
        exponent += 1
    return exponent


def _stride(size: int) -> int:
    """Every how manieth value is counted; shares no factor with the size, so that every channel has its turn."""
    stride = -(-size // _MOST_VALUES)
    while stride > 1 and math.gcd(stride, size) > 1:
        stride += 1
    return stride
