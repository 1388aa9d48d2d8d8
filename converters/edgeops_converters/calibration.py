"""What flows through a float model: a histogram of every tensor, and the mean input of every layer, in constant memory. Pure."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.processing import Tensors
from edgeops_converters.histograms import Histogram
from edgeops_converters.layers import FloatArray
from edgeops_converters.ranges import Range, least_squares, minmax

CORRECTION_ROWS = 64
"""Calibration rows that bias correction looks at, spread evenly over all."""

SCHEMES: tuple[Callable[[Histogram], Range], ...] = (minmax, least_squares)
"""Ways to set ranges that are tried, biases corrected, on the engine itself; the one with the least noise is kept."""


def spread(rows: Tensors, most: int) -> Tensors:
    """At most so many rows, evenly over all.

    >>> spread({"x": np.arange(10)}, 4)["x"]
    array([0, 3, 6, 9])
    """
    count = len(next(iter(rows.values())))
    indices = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))
    return {name: array[indices] for name, array in rows.items()}


class Survey:
    """Counts the tensors of a float model, and takes ranges from the counts.

    Args:
        ends: Inputs and outputs of the model: they keep the least and the greatest value. The largest output is the answer, and
            an image of bytes has a grid that only its whole range meets.
    """

    def __init__(self, *, ends: Iterable[str]) -> None:
        self._ends = frozenset(ends)
        self._histograms: dict[str, Histogram] = {}

    def add(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Count tensors of one batch; what is not floating-point is left out."""
        for name, array in values.items():
            if array.dtype.kind == "f":
                self._histograms.setdefault(name, Histogram()).add(array)

    def ranges(self, estimator: Callable[[Histogram], Range]) -> dict[str, Range]:
        """Tensor → what eight bits are to cover."""
        return {
            name: (minmax if name in self._ends else estimator)(histogram)
            for name, histogram in self._histograms.items()
        }

    def span(self, name: str) -> float:
        """The width of what was seen of a tensor, zero included."""
        whole = minmax(self._histograms[name])
        return whole.high - whole.low


class Means:
    """Means over rows that come a few at a time."""

    def __init__(self) -> None:
        self._sums: dict[str, FloatArray] = {}
        self._rows: dict[str, int] = {}

    def add(self, name: str, rows: NDArray[Any]) -> None:
        """Add rows, shape ``(rows, …)``."""
        total = rows.sum(axis=0, dtype=np.int64 if rows.dtype.kind in "iu" else np.float64).astype(np.float64)
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._rows[name] = self._rows.get(name, 0) + len(rows)

    def mean(self, name: str) -> FloatArray:
        """Shape ``(…)``."""
        return self._sums[name] / self._rows[name]
