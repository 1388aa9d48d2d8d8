"""Cross-layer equalisation: channels brought to ranges that eight bits suit, the function unchanged. Pure.

After Nagel et al., "Data-free quantization through weight equalization and bias correction" (2019), section 4.1, with three
differences. What the channels held on calibration data stands in the place of the writers' weights: those have a scale for each
channel already. Residual connections are gone along, not stopped at. And how far to go is decided by the noise to be expected in
the readers' answers: a wide channel costs the activations of all others, a narrow one the readers' weights.
It holds through rectifiers, since ``relu(x / s) = relu(x) / s``. Factors are powers of two, so that nothing is rounded.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeops_converters.layers import FloatArray
from edgeops_converters.ranges import LEVELS
from edgeops_converters.rounding import LIMIT

_MOST = 24.0  # of an exponent
_SHARES = (0.25, 0.5, 0.75, 1.0)  # of the way to one range
_WORTH = 0.95  # of the noise that may be left, for a change to be made
_LEARNT = 0.35  # of the noise of nearest rounding that is left when weights are rounded for the answers


@dataclass(frozen=True)
class Extent:
    """What the channels of a tensor held; each of shape ``(channels,)``.

    Attributes:
        low: The least value, 0 or less.
        high: The greatest, 0 or more.
        power: Mean square.
    """

    low: FloatArray
    high: FloatArray
    power: FloatArray

    @property
    def peak(self) -> FloatArray:
        """The largest magnitude."""
        return np.maximum(-self.low, self.high)


@dataclass(frozen=True)
class Reader:
    """A layer that multiplies channels.

    Attributes:
        weights: Shape ``(out, in / groups, *kernel)``.
        groups: Of channels.
        power: Mean square of each channel that it reads, shape ``(in,)``.
    """

    weights: FloatArray
    groups: int
    power: FloatArray


def divisors(extents: Sequence[Extent], readers: Sequence[Reader], *, cap: float = math.inf) -> FloatArray:
    """What to divide each channel by where it is written, and to multiply it with where it is read.

    Args:
        extents: Of every tensor that has these channels.
        readers: Every layer that reads one of them.
        cap: Where a rectifier between cuts values. A channel that it cuts stays as it is; another may grow up to the cap, so
            that only values beyond what calibration saw are cut, as the range of eight bits would cut them.

    Returns:
        Shape ``(channels,)``; 1 for all where nothing is worth its cost.

    >>> wide = Extent(np.zeros(3), np.array([64.0, 1.0, 1.0]), np.array([400.0, 0.1, 0.1]))
    >>> divisors([wide], [Reader(np.ones((3, 1, 3, 3)), 3, wide.power)])
    array([64.,  1.,  1.])
    """
    peaks = np.max([extent.peak for extent in extents], axis=0)
    is_alive = peaks > 0
    none = np.ones_like(peaks)
    if not is_alive.any():
        return np.asarray(none)
    safe = np.where(is_alive, peaks, 1.0)
    # With a cap the channels that reach it are the measure; without, any will do.
    whole = np.log2(safe) - (math.log2(cap) if math.isfinite(cap) else np.median(np.log2(safe[is_alive])))
    reads = np.max([_largest(reader) for reader in readers], axis=0)
    balanced = (
        whole / 2 - np.log2(np.where(reads > 0, reads / np.median(reads[reads > 0]), 1.0)) / 2 if reads.any() else whole
    )
    candidates = [share * whole for share in _SHARES] + ([balanced] if math.isinf(cap) else [])
    best, least = none, _WORTH * expected_noise(none, extents, readers)
    for exponents in candidates:
        rounded = np.rint(np.clip(exponents, -_MOST, _MOST))
        if math.isfinite(cap):
            is_cut = safe >= cap * (1 - 1e-6)
            rounded = np.where(is_cut, 0.0, np.maximum(rounded, np.ceil(np.log2(safe / cap) - 1e-9)))
        factors = np.where(is_alive, np.exp2(rounded), 1.0)
        noise = expected_noise(factors, extents, readers)
        if noise < least:
            best, least = factors, noise
    return np.asarray(best)


def expected_noise(factors: FloatArray, extents: Sequence[Extent], readers: Sequence[Reader]) -> float:
    """Power of the noise in the readers' answers with channels divided by factors, shape ``(channels,)``.

    Rounding adds a step² / 12 to every value: steps of the activations reach an answer through the weights, steps of the weights
    through the activations.
    """
    spans = [float((extent.high / factors).max() - (extent.low / factors).min()) for extent in extents]
    activations = sum((span / LEVELS) ** 2 / 12 for span in spans)
    total = 0.0
    for reader in readers:
        parts = _parts(reader)
        scaled = parts * factors.reshape(reader.groups, 1, -1, 1)
        total += activations * float(np.square(scaled).sum())
        steps = np.abs(scaled).max(axis=(2, 3)) / LIMIT
        power = (reader.power / factors**2).reshape(reader.groups, -1).sum(axis=1, keepdims=True) * parts.shape[-1]
        total += _LEARNT * float((steps**2 / 12 * power).sum())
    return total


def extents_of(sums: Mapping[str, FloatArray]) -> dict[str, Extent]:
    """Tensor → extent, from least, greatest, sum of squares and count of each channel, shape ``(4, channels)``."""
    return {
        name: Extent(np.minimum(low, 0), np.maximum(high, 0), squares / count)
        for name, (low, high, squares, count) in sums.items()
    }


def multiplied(weights: FloatArray, factors: FloatArray, groups: int) -> FloatArray:
    """Weights of shape ``(out, in / groups, *kernel)`` with each input channel times its factor, shape ``(in,)``."""
    parts = weights.reshape(groups, len(weights) // groups, weights.shape[1], -1)
    return np.asarray((parts * factors.reshape(groups, 1, weights.shape[1], 1)).reshape(weights.shape))


def divided(weights: FloatArray, factors: FloatArray) -> FloatArray:
    """Weights or biases of shape ``(out, …)`` with each output channel divided by its factor, shape ``(out,)``."""
    return np.asarray(weights / factors.reshape(-1, *[1] * (weights.ndim - 1)))


def _parts(reader: Reader) -> FloatArray:
    """Shape ``(groups, out / groups, in / groups, taps)``."""
    weights = reader.weights
    return weights.reshape(reader.groups, len(weights) // reader.groups, weights.shape[1], -1)


def _largest(reader: Reader) -> FloatArray:
    """The largest weight that multiplies each channel, shape ``(in,)``."""
    return np.asarray(np.abs(_parts(reader)).max(axis=(1, 3)).reshape(-1))
