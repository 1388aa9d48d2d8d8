"""Cross-layer equalisation: channels between two layers brought to one range, the function unchanged. Pure.

Nagel et al., "Data-free quantization through weight equalization and bias correction" (2019), section 4.1, with what the channels
held on calibration data in the place of the first layer's weights: those have a scale for each channel already. It holds through
a rectifier, since ``relu(x / s) = relu(x) / s``. Factors are powers of two, so that nothing is rounded.
"""

import numpy as np

from edgeops_converters.layers import FloatArray

_MOST = 24.0  # of the exponent
_LOPSIDED = 16.0  # the largest channel over the median: half of the channels have fewer than 16 of 255 steps


def divisors(peaks: FloatArray, weights: FloatArray, groups: int) -> FloatArray:
    """What to divide each channel by, and multiply the next layer's weights with.

    Args:
        peaks: The largest magnitude of each channel; shape ``(in,)``.
        weights: Of the layer that reads them; shape ``(out, in / groups, *kernel)``.
        groups: Of that layer. In a depthwise one every channel has a scale of its own, so that its weights have no say.

    Returns:
        Shape ``(in,)``; 1 for channels that were always zero or are not read, and for all where the channels are near enough:
        there it costs the next layer's weights more than it gives (0.8 dB of EfficientNet-Lite0).

    >>> divisors(np.array([256.0, 1.0, 1.0, 0.0]), np.ones((4, 1, 3, 3)), 4)
    array([256.,   1.,   1.,   1.])
    """
    parts = np.abs(weights).reshape(groups, len(weights) // groups, weights.shape[1], -1)
    reads = parts.max(axis=(1, 3)).reshape(-1)
    is_alive = (peaks > 0) & (reads > 0)
    if not is_alive.any() or peaks[is_alive].max() < _LOPSIDED * np.median(peaks[is_alive]):
        return np.ones_like(peaks)
    safe = np.where(is_alive, peaks, 1.0)
    exponents = (
        np.log2(safe) if weights.shape[1] == 1 else (np.log2(safe) - np.log2(np.where(is_alive, reads, 1.0))) / 2
    )
    exponents = np.clip(exponents - np.median(exponents[is_alive]), -_MOST, _MOST)
    return np.asarray(np.where(is_alive, np.exp2(np.rint(exponents)), 1.0))


def multiplied(weights: FloatArray, factors: FloatArray, groups: int) -> FloatArray:
    """Weights of shape ``(out, in / groups, *kernel)`` with each input channel times its factor, shape ``(in,)``."""
    parts = weights.reshape(groups, len(weights) // groups, weights.shape[1], -1)
    return np.asarray((parts * factors.reshape(groups, 1, weights.shape[1], 1)).reshape(weights.shape))


def divided(weights: FloatArray, factors: FloatArray) -> FloatArray:
    """Weights or biases of shape ``(out, …)`` with each output channel divided by its factor, shape ``(out,)``."""
    return np.asarray(weights / factors.reshape(-1, *[1] * (weights.ndim - 1)))
