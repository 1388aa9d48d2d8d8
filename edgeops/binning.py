"""From arrays to bins: the statistics of :mod:`edgeops.signals`, vectorised with numpy.

The converter counts the reference with this code and the device counts its profile with this code, so that the two can be
compared bin by bin.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.signals import Signal, Statistic

FloatArray = NDArray[np.float32]

_PROBABILITY_FLOOR = 1e-12


def statistic_values(signal: Signal, rows: NDArray[np.generic]) -> FloatArray:
    """The number that a signal sees in each row.

    Args:
        signal: Its statistic, index and softmax are used.
        rows: Shape ``(n, …)``, any numeric dtype.

    Returns:
        Shape ``(n,)``, float32; NaN where a row has a value that is not finite.
    """
    flat = rows.reshape(len(rows), math.prod(rows.shape[1:])).astype(np.float32, copy=False)
    if signal.softmax:
        flat = softmax(flat)
    with np.errstate(all="ignore"):
        values = _reduce(signal, rows, flat)
        return np.where(np.isfinite(flat.sum(axis=1)), values, np.nan).astype(np.float32)


def bin_indices(signal: Signal, values: FloatArray) -> NDArray[np.intp]:
    """The bin of each value: shape ``(n,)``; the last bin for what is not finite."""
    indices = np.searchsorted(np.asarray(signal.edges, dtype=np.float32), values, side="right")
    indices[~np.isfinite(values)] = signal.bins - 1
    return indices


def count_rows(signals: Sequence[Signal], tensors: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.int64]]:
    """Count rows into the bins of every signal.

    Args:
        signals: What to count.
        tensors: Tensor name → rows, each of shape ``(n, …)``.

    Returns:
        Signal name → counts of shape ``(bins,)``.
    """
    return {
        signal.name: np.bincount(
            bin_indices(signal, statistic_values(signal, tensors[signal.tensor])), minlength=signal.bins
        )
        for signal in signals
    }


def softmax(logits: FloatArray) -> FloatArray:
    """Softmax along the last axis, float32."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: FloatArray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def _reduce(signal: Signal, rows: NDArray[np.generic], flat: FloatArray) -> NDArray[np.floating[Any]]:
    values: NDArray[np.floating[Any]]
    match signal.statistic:
        case Statistic.VALUE:
            values = flat[:, signal.index]
        case Statistic.MEAN:
            values = flat.mean(axis=1)
        case Statistic.STD:
            values = flat.std(axis=1)
        case Statistic.GRADIENT:
            wide = flat.reshape(len(rows), math.prod(rows.shape[1:-1]), rows.shape[-1])
            values = np.abs(np.diff(wide, axis=-1)).mean(axis=(1, 2))
        case Statistic.PROJECTION:
            values = flat @ projection(signal.index, flat.shape[1])
        case Statistic.CONFIDENCE:
            values = flat.max(axis=1)
        case Statistic.ENTROPY:
            values = -(flat * np.log(np.maximum(flat, _PROBABILITY_FLOOR))).sum(axis=1)
        case Statistic.CLASS:
            values = flat.argmax(axis=1).astype(np.float32)
    return values


@lru_cache(maxsize=64)
def projection(seed: int, size: int) -> FloatArray:
    """A fixed ±1 vector of unit length: shape ``(size,)``, float32, the same on every machine."""
    signs = np.random.Generator(np.random.PCG64(seed)).integers(0, 2, size=size, dtype=np.int8)
    vector: FloatArray = ((2 * signs.astype(np.float32) - 1) / np.sqrt(np.float32(size))).astype(np.float32)
    return vector
