"""How well a score tells two groups apart, and how much of that another score loses. Pure."""

import math

import numpy as np
from numpy.typing import NDArray

from edgeops_converters.fidelity import Drop

_Z = 1.959964  # of the 95 % interval

FloatArray = NDArray[np.float64]


def area(scores: FloatArray, labels: NDArray[np.int64]) -> float:
    """Area under the ROC curve: how often a row with label 1 scores above one with label 0, ties counting half.

    >>> area(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    0.75
    """
    above, _ = _placements(scores, labels)
    return float(above.mean())


def paired_area_drop(source: FloatArray, variant: FloatArray, labels: NDArray[np.int64]) -> Drop:
    """By how many points the area is smaller, with the 95 % interval for two scores of the same rows (DeLong et al., 1988).

    >>> paired_area_drop(np.array([0.0, 1, 2, 3]), np.array([0.0, 2, 1, 3]), np.array([0, 0, 1, 1])).points
    25.0
    """
    above, below = (
        first - second
        for first, second in zip(_placements(source, labels), _placements(variant, labels), strict=True)
    )  # fmt: skip
    drop = float(above.mean())
    half = _Z * math.sqrt(float(above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below)))
    return Drop(points=100 * drop, low=100 * (drop - half), high=100 * (drop + half))


def _placements(scores: FloatArray, labels: NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
    """Of each row with label 1 the share of the others below it; of each row with label 0 the share of the others above it."""
    high, low = scores[labels == 1], scores[labels == 0]
    return _share_below(high, low), 1 - _share_below(low, high)


def _share_below(scores: FloatArray, others: FloatArray) -> FloatArray:
    ordered = np.sort(others)
    strictly, with_ties = np.searchsorted(ordered, scores, "left"), np.searchsorted(ordered, scores, "right")
    return (strictly + with_ties) / (2 * len(others))
