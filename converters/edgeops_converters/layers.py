"""A convolution or matrix product as one thing, whatever file it stands in: what it answers, and what it sees. Pure.

By linearity the mean of a layer's output is the layer applied to the mean of its input, so that one array a layer says all that
bias correction has to know, however many rows there were. Reading layers out of files is the business of the quantizers.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Geometry:
    """Where a layer looks, one entry for each axis of space; a matrix product has none.

    Attributes:
        strides: Steps of the window.
        dilations: Distance of its taps.
        pads: Zeros before and after.
        groups: Of channels; as many as input channels in a depthwise convolution.
    """

    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[tuple[int, int], ...] = ()
    groups: int = 1


def mean_output(weights: FloatArray, mean_input: FloatArray, geometry: Geometry) -> FloatArray:
    """What each output channel is on average, without bias.

    Args:
        weights: Shape ``(out, in / groups, *kernel)``.
        mean_input: Over rows; shape ``(in, *space)``.
        geometry: As many axes as ``space``.

    Returns:
        Shape ``(out,)``.

    >>> mean_output(np.ones((1, 1, 3)), np.array([[1.0, 1.0, 1.0, 1.0]]), Geometry((1,), (1,), ((1, 1),))).round(2)
    array([2.5])
    """
    taps = _tap_means(mean_input, weights.shape[2:], geometry)
    groups = geometry.groups
    return np.asarray(
        np.einsum(
            "goik,gik->go",
            weights.reshape(groups, weights.shape[0] // groups, weights.shape[1], -1),
            taps.reshape(groups, weights.shape[1], -1),
        ).reshape(-1)
    )


def _tap_means(mean_input: FloatArray, kernel: tuple[int, ...], geometry: Geometry) -> FloatArray:
    """What each tap of the window sees on average; shape ``(in, *kernel)``."""
    padded = np.pad(mean_input, ((0, 0), *geometry.pads))
    axes = tuple(range(1, padded.ndim))
    taps = np.empty((len(mean_input), *kernel))
    for tap in itertools.product(*(range(extent) for extent in kernel)):
        window = [
            slice(offset * dilation, size - (extent - 1 - offset) * dilation, stride)
            for offset, extent, dilation, stride, size in zip(
                tap, kernel, geometry.dilations, geometry.strides, padded.shape[1:], strict=True
            )
        ]
        channels_at_tap: tuple[slice | int, ...] = (slice(None), *tap)
        taps[channels_at_tap] = padded[(slice(None), *window)].mean(axis=axes)
    return taps


def patches(
    inputs: NDArray[np.float32], kernel: tuple[int, ...], geometry: Geometry, *, most: int
) -> NDArray[np.float32]:
    """What the window of a layer sees, at all positions, or at random ones if there are too many.

    Args:
        inputs: Shape ``(rows, in, *space)``, float32.
        kernel: Extents of the window; empty for a matrix product.
        geometry: As many axes as ``space``.
        most: How many patches to give.

    Returns:
        Shape ``(patches, groups, in / groups · taps)``, the taps of a channel together as in the layer's weights.

    >>> row = np.arange(4, dtype=np.float32).reshape(1, 1, 4)
    >>> patches(row, (2,), Geometry((1,), (1,), ((1, 0),)), most=9)[:, 0].tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, 2.0], [2.0, 3.0]]
    """
    rows, channels = inputs.shape[:2]
    groups = geometry.groups
    padded = np.pad(inputs, ((0, 0), (0, 0), *geometry.pads))
    extents = [
        (size - (extent - 1) * dilation - 1) // stride + 1
        for size, extent, dilation, stride in zip(
            padded.shape[2:], kernel, geometry.dilations, geometry.strides, strict=True
        )
    ]
    total = rows * int(np.prod(extents, dtype=np.int64))
    places = np.arange(total) if total <= most else np.random.default_rng(total).integers(0, total, most)
    row, *position = np.unravel_index(places, (rows, *extents))
    seen = np.empty((len(places), channels, *kernel), np.float32)
    for tap in itertools.product(*(range(extent) for extent in kernel)):
        where = tuple(
            at * stride + offset * dilation
            for at, offset, dilation, stride in zip(position, tap, geometry.dilations, geometry.strides, strict=True)
        )
        at_tap: tuple[Any, ...] = (slice(None), slice(None), *tap)
        looked_at: tuple[Any, ...] = (row, slice(None), *where)
        seen[at_tap] = padded[looked_at]
    return seen.reshape(len(places), groups, -1)
