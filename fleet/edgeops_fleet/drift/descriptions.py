"""PSI, Jensen–Shannon and Kolmogorov–Smirnov from bins, each with the critical value for the sample sizes at hand.

They are shown because people know them, and never alarm: fixed limits such as "PSI above 0.1" fire on nearly every small window
and on no large one, and a test that is repeated every window raises a false alarm sooner or later. Pure.
"""

import math
from statistics import NormalDist

import numpy as np

from edgeops_fleet.drift.scores import FloatArray

SIGNIFICANCE = 0.05


def psi(window: FloatArray, reference: FloatArray) -> float:
    """Population stability index; half a row is added to every bin, so that an empty one is finite.

    Args:
        window: Counts by bin, shape ``(bins,)``.
        reference: Likewise.

    >>> psi(np.array([50.0, 50.0]), np.array([500.0, 500.0]))
    0.0
    """
    first, second = _shares(window), _shares(reference)
    return float(((first - second) * np.log(first / second)).sum())


def psi_critical(window_rows: float, reference_rows: float, bins: int) -> float:
    """What PSI exceeds in 5 % of cases without any change: χ²(bins - 1) · (1/n + 1/m).

    Potgieter et al., "Population stability index: the distribution under no change", arXiv 2307.11878.

    >>> round(psi_critical(100, 100, 10), 2)
    0.34
    """
    if not (window_rows and reference_rows) or bins < 2:  # noqa: PLR2004 - one bin cannot differ
        return math.inf
    return chi_squared_quantile(bins - 1, 1 - SIGNIFICANCE) * (1 / window_rows + 1 / reference_rows)


def jensen_shannon(window: FloatArray, reference: FloatArray) -> float:
    """Jensen–Shannon divergence, in nats: 0 to log 2. Same smoothing as :func:`psi`."""
    first, second = _shares(window), _shares(reference)
    middle = (first + second) / 2
    return float((first * np.log(first / middle) + second * np.log(second / middle)).sum() / 2)


def jensen_shannon_critical(window_rows: float, reference_rows: float, bins: int) -> float:
    """What the divergence exceeds in 5 % of cases without any change: an eighth of PSI's, to second order."""
    return psi_critical(window_rows, reference_rows, bins) / 8


def kolmogorov_smirnov(window: FloatArray, reference: FloatArray) -> float:
    """The largest difference of the cumulative shares at the edges of the bins.

    >>> round(kolmogorov_smirnov(np.array([10.0, 0.0]), np.array([50.0, 50.0])), 3)
    0.5
    """
    first, second = (counts / max(float(counts.sum()), 1.0) for counts in (window, reference))
    return float(np.abs(np.cumsum(first - second)).max())


def kolmogorov_smirnov_critical(window_rows: float, reference_rows: float) -> float:
    """What the distance exceeds in at most 5 % of cases without any change; with bins it is less often.

    >>> round(kolmogorov_smirnov_critical(100, 100), 3)
    0.192
    """
    if not (window_rows and reference_rows):
        return math.inf
    return math.sqrt(-math.log(SIGNIFICANCE / 2) / 2 * (1 / window_rows + 1 / reference_rows))


def chi_squared_quantile(degrees: int, probability: float) -> float:
    """Wilson and Hilferty's approximation, good to about 1 % from two degrees on.

    >>> round(chi_squared_quantile(9, 0.95), 1)
    16.9
    """
    spread = 2 / (9 * degrees)
    return float(degrees * (1 - spread + NormalDist().inv_cdf(probability) * math.sqrt(spread)) ** 3)


def _shares(counts: FloatArray) -> FloatArray:
    smoothed = counts + 0.5
    result: FloatArray = smoothed / smoothed.sum()
    return result
