"""Weights to eight bits: a scale for each output channel, and integers that keep the answers rather than the weights. Pure.

Rounding every weight to the nearest integer ignores that inputs go together. The integers here are found column by column, and
what a column is off is made up for by the columns after it, given the second moments of the inputs (Frantar et al., "GPTQ:
accurate post-training quantization for generative pre-trained transformers", 2022, on the patches of a convolution; the solution
in closed form of what Nagel et al., "Up or down? Adaptive rounding", 2020, learn).

CPUs without an eight-bit dot product add two products in 16 bits first and saturate there: 255 · (a + b) must stay below 2¹⁵.
With ``is_paired`` no two neighbouring weights of one sign add up to more than 128, so that no input can make it happen.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeops_converters.layers import FloatArray

LIMIT = 127
"""Largest magnitude of a code."""
PAIR_LIMIT = 128
"""Largest sum of two neighbours of one sign: 255 · 128 < 2¹⁵."""

_BLOCK = 64  # columns whose corrections are kept back and applied at once
_SHRINK = np.linspace(1.0, 0.75, 5)  # of the scale, by clipping the largest weights
_STRETCH = np.linspace(1.9, 1.1, 5)  # of the scale, so that pairs fit
_DAMPING = 1e-3  # of the mean second moment, for inputs that never vary

Codes = NDArray[np.int8]


@dataclass(frozen=True)
class Grid:
    """Weights as integers.

    Attributes:
        codes: Shape ``(out, in / groups, *kernel)``, int8 within ±:data:`LIMIT`.
        scales: Shape ``(out,)``, positive.
        gain_db: How much less noise the layer's answers have than with every weight rounded to the nearest.
    """

    codes: Codes
    scales: FloatArray
    gain_db: float = 0.0

    @property
    def weights(self) -> FloatArray:
        """What the codes stand for; shape ``(out, in / groups, *kernel)``."""
        return np.asarray(self.codes * self.scales.reshape(-1, *[1] * (self.codes.ndim - 1)))


def round_weights(weights: FloatArray, moments: FloatArray, *, floor: FloatArray, is_paired: bool = False) -> Grid:
    """Round the weights of a layer.

    Args:
        weights: Shape ``(out, in / groups, *kernel)``.
        moments: Second moments of what each weight is multiplied with, shape ``(groups, taps, taps)``; the noise that quantising
            the inputs adds belongs on the diagonal.
        floor: Least scale of each channel, shape ``(out,)``, so that its bias fits 32 bits.
        is_paired: Whether neighbours must fit 16 bits together.

    >>> random = np.random.default_rng(0)
    >>> inputs = random.normal(size=(200, 1)) + 0.1 * random.normal(size=(200, 8))
    >>> weights = random.normal(size=(4, 8))
    >>> grid = round_weights(weights, (inputs.T @ inputs / 200)[None], floor=np.zeros(4))
    >>> nearest = np.rint(weights / grid.scales[:, None]) * grid.scales[:, None]
    >>> error = lambda rounded: float(np.square(inputs @ (rounded - weights).T).mean())
    >>> error(grid.weights) < 0.5 * error(nearest)
    True
    """
    groups, taps = moments.shape[:2]
    rows = np.asarray(weights, np.float64).reshape(groups, -1, taps)
    damped = moments + np.eye(taps) * (_DAMPING * np.trace(moments, axis1=1, axis2=2)[:, None, None] / taps + 1e-12)
    earlier = _earlier_neighbours(weights.shape[1:]) if is_paired else [[] for _ in range(taps)]
    least = np.maximum(floor, np.finfo(np.float32).tiny * 2**20).reshape(groups, -1)
    scales = _scales(rows, damped, least, earlier, is_paired=is_paired)
    nearest = _nearest(rows, scales, earlier)
    fed = _fed_back(rows, damped, scales, earlier)
    loss, other = (_loss(codes * scales[..., None] - rows, damped) for codes in (nearest, fed))
    best = np.where((other < loss)[..., None], fed, nearest)
    before, after = float(loss.sum()), float(np.minimum(loss, other).sum())
    return Grid(
        codes=best.reshape(weights.shape).astype(np.int8),
        scales=scales.reshape(-1),
        gain_db=float(10 * np.log10(before / after)) if after > 0 else 0.0,
    )


def saturates(codes: Codes) -> bool:
    """Whether two neighbours can overflow 16 bits together; shape ``(out, in / groups, *kernel)``.

    >>> saturates(np.array([[100, 29]], np.int8)), saturates(np.array([[100, -29]], np.int8))
    (True, False)
    """
    rows = codes.reshape(len(codes), -1).astype(np.int64)
    for column, others in enumerate(_earlier_neighbours(codes.shape[1:])):
        for other in others:
            for sign in (1, -1):
                pair = np.maximum(sign * rows[:, column], 0) + np.maximum(sign * rows[:, other], 0)
                if (pair > PAIR_LIMIT).any():
                    return True
    return False


def _earlier_neighbours(shape: tuple[int, ...]) -> list[list[int]]:
    """For each weight of ``(in / groups, *kernel)`` those before it that an engine may add it to.

    Engines lay the weights of a channel out with the input channels first or last; two that are next to each other in either
    order count.
    """
    taps = int(np.prod(shape))
    order = np.arange(taps).reshape(shape)
    found: list[list[int]] = [[] for _ in range(taps)]
    for layout in {tuple(order.reshape(-1)), tuple(np.moveaxis(order, 0, -1).reshape(-1))}:
        for one, other in itertools.pairwise(layout):
            later, sooner = max(one, other), min(one, other)
            if sooner not in found[later]:
                found[later].append(int(sooner))
    return found


def _scales(
    rows: FloatArray, moments: FloatArray, least: FloatArray, earlier: list[list[int]], *, is_paired: bool
) -> FloatArray:
    """For each channel the scale of the least noise, if every weight were rounded by itself; shape ``(groups, out)``."""
    whole = np.abs(rows).max(axis=-1) / LIMIT
    importance = np.diagonal(moments, axis1=1, axis2=2)[:, None, :]
    best, least_loss = np.maximum(whole, least), np.full(whole.shape, np.inf)
    for factor in np.concatenate([_STRETCH, _SHRINK]) if is_paired else _SHRINK:
        scales = np.maximum(whole * factor, least)
        codes = _nearest(rows, scales, earlier)
        loss = (np.square(codes * scales[..., None] - rows) * importance).sum(axis=-1)
        is_better = loss < least_loss * (1 - 1e-9)
        best, least_loss = np.where(is_better, scales, best), np.minimum(loss, least_loss)
    return np.asarray(best)


def _nearest(rows: FloatArray, scales: FloatArray, earlier: list[list[int]]) -> FloatArray:
    """Every weight to the nearest code that fits."""
    codes = np.clip(np.rint(rows / scales[..., None]), -LIMIT, LIMIT)
    if any(earlier):
        for column, others in enumerate(earlier):
            codes[..., column] = _fitting(codes[..., column], codes, others)
    return codes


def _fitting(column: FloatArray, codes: FloatArray, others: list[int]) -> FloatArray:
    """A column of codes cut to what its neighbours leave."""
    for other in others:
        beside = codes[..., other]
        column = np.clip(column, -PAIR_LIMIT + np.maximum(-beside, 0), PAIR_LIMIT - np.maximum(beside, 0))
    return column


def _fed_back(rows: FloatArray, moments: FloatArray, scales: FloatArray, earlier: list[list[int]]) -> FloatArray:
    """Column by column, each making up for those before it."""
    # The upper Cholesky factor of the inverse holds, row by row, how much the later columns give for an error in this one.
    factor = np.swapaxes(np.linalg.cholesky(np.linalg.inv(moments)), 1, 2)
    left, codes, taps = rows.copy(), np.zeros_like(rows), rows.shape[-1]
    for begin in range(0, taps, _BLOCK):
        end = min(begin + _BLOCK, taps)
        errors = np.zeros((*rows.shape[:2], end - begin))
        for column in range(begin, end):
            wanted = np.clip(np.rint(left[..., column] / scales), -LIMIT, LIMIT)
            codes[..., column] = _fitting(wanted, codes, earlier[column])
            error = (left[..., column] - codes[..., column] * scales) / factor[:, None, column, column]
            left[..., column:end] -= error[..., None] * factor[:, None, column, column:end]
            errors[..., column - begin] = error
        left[..., end:] -= errors @ factor[:, begin:end, end:]
    return codes


def _loss(errors: FloatArray, moments: FloatArray) -> FloatArray:
    """Expected squared error of each channel's answer; shape ``(groups, out)``."""
    return np.asarray(((errors @ moments) * errors).sum(axis=-1))
