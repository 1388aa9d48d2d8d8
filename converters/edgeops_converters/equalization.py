"""Cross-layer equalisation: channels between two layers brought to one range, the function unchanged. Pure.

Nagel et al., "Data-free quantization through weight equalization and bias correction" (2019), section 4.1, with what the channels
held on calibration data in the place of the first layer's weights: those have a scale for each channel already. It holds through
a rectifier, since ``relu(x / s) = relu(x) / s``. Factors are powers of two, so that nothing is rounded.
"""

import math

import numpy as np

from edgeops_converters.layers import FloatArray

_MOST = 24.0  # of the exponent
_LOPSIDED = 16.0  # the largest channel over the median: half of the channels have fewer than 16 of 255 steps


def divisors(peaks: FloatArray, weights: FloatArray, groups: int, *, cap: float = math.inf) -> FloatArray:
    """What to divide each channel by, and multiply the next layer's weights with.

    Args:
        peaks: The largest magnitude of each channel; shape ``(in,)``.
        weights: Of the layer that reads them; shape ``(out, in / groups, *kernel)``.
        groups: Of that layer. In a depthwise one every channel has a scale of its own, so that its weights have no say.
        cap: Where the rectifier between cuts values. A channel that it cuts stays as it is; another may grow up to the cap, so
            that only values beyond what calibration saw are cut, as the range of eight bits would cut them.

    Returns:
        Shape ``(in,)``; 1 for channels that were always zero or are not read, and, unless the reader is depthwise, for all where
        the channels are near enough: there it costs the reader's weights more than it gives (0.8 dB of EfficientNet-Lite0).

    >>> divisors(np.array([256.0, 1.0, 1.0, 0.0]), np.ones((4, 1, 3, 3)), 4)
    array([256.,   1.,   1.,   1.])
    >>> divisors(np.array([6.0, 3.0, 0.7]), np.ones((3, 1, 3, 3)), 3, cap=6.0)
    array([1.   , 0.5  , 0.125])
    """
    parts = np.abs(weights).reshape(groups, len(weights) // groups, weights.shape[1], -1)
    reads = parts.max(axis=(1, 3)).reshape(-1)
    is_alive = (peaks > 0) & (reads > 0)
    is_depthwise = weights.shape[1] == 1
    if not is_alive.any():
        return np.ones_like(peaks)
    safe, median = np.where(is_alive, peaks, 1.0), np.median(peaks[is_alive])
    if not is_depthwise and peaks[is_alive].max() < _LOPSIDED * median:
        return np.ones_like(peaks)
    exponents = np.log2(safe) if is_depthwise else (np.log2(safe) - np.log2(np.where(is_alive, reads, 1.0))) / 2
    if math.isfinite(cap):
        least = np.ceil(np.log2(safe / cap) - 1e-9)  # below it the cap would cut what it did not
        exponents = np.rint(exponents - exponents[is_alive].max()) if not is_depthwise else least
        exponents = np.where(safe >= cap * (1 - 1e-6), 0.0, np.maximum(exponents, least))
    else:
        exponents = np.rint(exponents - np.median(exponents[is_alive]))
    return np.asarray(np.where(is_alive, np.exp2(np.clip(exponents, -_MOST, _MOST)), 1.0))


def multiplied(weights: FloatArray, factors: FloatArray, groups: int) -> FloatArray:
    """Weights of shape ``(out, in / groups, *kernel)`` with each input channel times its factor, shape ``(in,)``."""
    parts = weights.reshape(groups, len(weights) // groups, weights.shape[1], -1)
    return np.asarray((parts * factors.reshape(groups, 1, weights.shape[1], 1)).reshape(weights.shape))


def divided(weights: FloatArray, factors: FloatArray) -> FloatArray:
    """Weights or biases of shape ``(out, …)`` with each output channel divided by its factor, shape ``(out,)``."""
    return np.asarray(weights / factors.reshape(-1, *[1] * (weights.ndim - 1)))
