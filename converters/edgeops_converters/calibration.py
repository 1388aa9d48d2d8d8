"""What flows through a float model: a histogram of every tensor, and the mean input of every layer, in constant memory. Pure."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.processing import Tensors
from edgeops_converters.histograms import Histogram
from edgeops_converters.layers import FloatArray

CORRECTION_ROWS = 64
"""Calibration rows that rounding and bias correction look at, spread evenly over all."""


def spread(rows: Tensors, most: int) -> Tensors:
    """At most so many rows, evenly over all.

    >>> spread({"x": np.arange(10)}, 4)["x"]
    array([0, 3, 6, 9])
    """
    count = len(next(iter(rows.values())))
    indices = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))
    return {name: array[indices] for name, array in rows.items()}


class Survey:
    """Counts the tensors of a float model."""

    def __init__(self) -> None:
        self.histograms: dict[str, Histogram] = {}

    def add(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Count tensors of one batch; what is not floating-point is left out."""
        for name, array in values.items():
            if array.dtype.kind == "f":
                self.histograms.setdefault(name, Histogram()).add(array)


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
