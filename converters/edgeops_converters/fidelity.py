"""How faithful one model is to another: accuracy with its interval, paired drop, agreement, noise. Pure."""

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.manifest import Interval
from edgeops.processing import Tensors

_Z = 1.959964  # of the 95 % interval

ClassArray = NDArray[np.int64]


class Drop(msgspec.Struct, frozen=True, kw_only=True):
    """By how many percentage points a variant is less accurate than the source, on the same rows; negative: more accurate."""

    points: float
    low: float
    high: float


def wilson(successes: int, trials: int) -> Interval:
    """A share with its 95 % interval (Wilson, 1927).

    >>> [round(x, 3) for x in (lambda i: (i.value, i.low, i.high))(wilson(90, 100))]
    [0.9, 0.826, 0.945]
    """
    share = successes / trials
    scale = 1 + _Z**2 / trials
    centre = (share + _Z**2 / (2 * trials)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    return Interval(value=share, low=max(0.0, min(share, centre - half)), high=min(1.0, max(share, centre + half)))


def accuracy(classes: ClassArray, labels: ClassArray) -> Interval:
    """Share of rows whose class is the label; both of shape ``(n,)``."""
    return wilson(int((classes == labels).sum()), len(labels))


def paired_drop(source: ClassArray, variant: ClassArray, labels: ClassArray) -> Drop:
    """Loss of accuracy on the same rows, with the 95 % interval of a difference of paired shares.

    Only rows on which exactly one of the two is right count, so the interval is much narrower than the two accuracies'
    (Agresti, Categorical Data Analysis, section 11.1).

    >>> paired_drop(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), np.array([0, 0, 0, 0])).points
    25.0
    """
    lost, won = discordant(source, variant, labels)
    rows = len(labels)
    drop = (lost - won) / rows
    half = _Z * math.sqrt(max(0.0, (lost + won) / rows - drop**2) / rows)
    return Drop(points=100 * drop, low=100 * (drop - half), high=100 * (drop + half))


def discordant(source: ClassArray, variant: ClassArray, labels: ClassArray) -> tuple[int, int]:
    """On how many rows only the source is right, and only the variant; all of shape ``(n,)``."""
    was, is_ = source == labels, variant == labels
    return int((was & ~is_).sum()), int((~was & is_).sum())


def agreement(source: ClassArray, variant: ClassArray) -> float:
    """Share of rows with the same class; both of shape ``(n,)``."""
    return float((source == variant).mean())


def sqnr_db(source: Tensors, variant: Tensors) -> float | None:
    """Power of the source's outputs over the power of the difference, in decibel; ``None`` when there is no difference.

    >>> round(sqnr_db({"y": np.array([10.0, 10.0])}, {"y": np.array([11.0, 9.0])}))
    20
    """
    signal = sum(float(np.square(array, dtype=np.float64).sum()) for array in source.values())
    noise = sum(
        float(np.square(array.astype(np.float64) - variant[name]).sum()) for name, array in source.items()
    )  # fmt: skip
    if noise == 0:
        return None
    return 10 * math.log10(max(signal, 1e-30) / noise)
