"""How large a loss can be that a few rows show: one-sided bounds of paired counts. Pure.

Intervals for a person to read are in :mod:`edgeops_converters.fidelity`; a bound decides, so it must hold for small counts too,
where an interval from a normal distribution does not: of rows that all agree it would say that nothing can ever differ.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np

CONFIDENCE = 0.95
"""Of every bound here, one-sided."""

_HALVINGS = 60


def most_lost(lost: int, won: int, rows: int) -> float:
    """The largest loss of accuracy that goes with these rows, as a share.

    The exact bounds of both shares (Clopper and Pearson, Biometrika 26, 1934) are joined by the squares of their distances
    (Zou and Donner, Statistics in Medicine 27, 2008), which without a row won is the exact bound of the share lost. That the
    two shares exclude each other is left aside; it is less than the exact bounds are too wide.

    Args:
        lost: Rows on which the source is right and the variant is not.
        won: Rows on which it is the other way round.
        rows: All rows, also those on which both are right or both are wrong.

    >>> round(100 * most_lost(0, 0, 1000), 3), round(100 * most_lost(10, 8, 2000), 3)
    (0.299, 0.501)
    """
    over = _largest(lost, rows) - lost / rows
    under = won / rows - _smallest(won, rows)
    return (lost - won) / rows + math.hypot(over, under)


def rows_to_prove(share: float) -> int | None:
    """How many rows it takes until a loss of half a share is proven to be at most that share; ``None``: no number does.

    With fewer, a bound asks for hardly a row lost, and so for chance rather than for a better model.

    >>> rows_to_prove(0.005), rows_to_prove(0.08), rows_to_prove(0.0)
    (2400, 150, None)
    """
    if share <= 0:
        return None
    # The bound falls towards the share itself, half of what is asked, so that this ends.
    return next(
        rows for lost in itertools.count(1) if _largest(lost, rows := math.ceil(2 * lost / min(share, 1.0))) <= share
    )


def _largest(count: int, rows: int) -> float:
    """The share above which so few are no longer to be expected."""
    if count == rows:
        return 1.0
    return _root(lambda share: _at_most(count, rows, share) - (1 - CONFIDENCE))


def _smallest(count: int, rows: int) -> float:
    """The share below which so many are no longer to be expected."""
    if count == 0:
        return 0.0
    return _root(lambda share: _at_most(count - 1, rows, share) - CONFIDENCE)


def _root(falling: Callable[[float], float]) -> float:
    """Where a function falls through zero, between 0 and 1."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def _at_most(count: int, rows: int, share: float) -> float:
    """Probability of at most so many of the rows, for a share between 0 and 1."""
    counts = np.arange(count + 1)
    # Logarithms of the binomial coefficients, one from the other.
    steps = np.log(rows - counts[:-1]) - np.log(counts[1:])
    logs = np.concatenate([[0.0], np.cumsum(steps)]) + counts * math.log(share) + (rows - counts) * math.log1p(-share)
    return float(np.exp(logs).sum())
