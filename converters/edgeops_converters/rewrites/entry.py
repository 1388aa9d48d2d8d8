"""A model that takes bytes: the caller's scale, mean and standard deviation go into it. Exact or not at all.

Preprocessing by ``scale`` and ``normalize`` makes ``x = a · (u − z)`` of a byte ``u``, with one ``a`` and ``z`` for each
channel. What channels have in common becomes the model's first steps, ``s · (u − z)`` with an integer ``z``, which is how an
8-bit tensor is read anyway, so that in an int8 file nothing is left of them (:mod:`edgeops_converters.quantizers.entry`). What
they have not goes into the weights and the bias of the first layer. The bias can take a mean only where no zeros are padded: a
padded zero stands for the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeops.manifest import Normalize, Operator, Scale
from edgeops_converters.extras import load
from edgeops_converters.layers import FloatArray
from edgeops_converters.rewrites.graph import CONVOLUTIONS, Graph

_LAST_BYTE = 255
_SAME_GAIN = 1e-6
_SAME_ZERO = 1e-3  # of a step of 255: a hundredth of what rounding the input to bytes has cost


@dataclass(frozen=True)
class Grid:
    """How a byte is read: ``gains · scale · (u − zero) + shifts``.

    Attributes:
        scale: Common to all channels.
        zero: Likewise.
        gains: Of each channel, about 1; shape ``(channels,)``.
        shifts: Likewise, about 0.
    """

    scale: float
    zero: int
    gains: FloatArray
    shifts: FloatArray

    @property
    def needs_weights(self) -> bool:
        """Whether the first layer's weights have to take a part."""
        return self.needs_bias or not np.allclose(self.gains, 1.0, rtol=_SAME_GAIN, atol=0.0)

    @property
    def needs_bias(self) -> bool:
        """Whether the first layer's bias has to take a part."""
        return bool(self.shifts.any())


def line(operators: Sequence[Operator], *, channels: int, axis: int, rank: int) -> tuple[FloatArray, FloatArray] | None:
    """Slope and offset of each channel of what operators do to one tensor; ``None`` when it is no line along the channels.

    Args:
        operators: In order, all of the same tensor.
        channels: Of the tensor.
        axis: Where the channels are, in the caller's layout.
        rank: Of the tensor.

    >>> line([Scale(tensor="x", factor=0.5, offset=-1.0)], channels=2, axis=1, rank=4)
    (array([0.5, 0.5]), array([-1., -1.]))
    """
    slope, offset = np.ones(channels), np.zeros(channels)
    for operator in operators:
        match operator:
            case Scale():
                slope, offset = slope * operator.factor, offset * operator.factor + operator.offset
            case Normalize() if operator.axis % rank == axis and len(operator.mean) == channels:
                mean, std = np.asarray(operator.mean), np.asarray(operator.std)
                slope, offset = slope / std, (offset - mean) / std
            case _:
                return None
    return slope, offset


def grid(slope: FloatArray, offset: FloatArray) -> Grid:
    """The grid with as much in common as there is.

    Args:
        slope: Of each channel; shape ``(channels,)``, none zero.
        offset: Likewise.

    >>> grid(np.array([0.5, 0.5]), np.array([-1.0, -1.0]))
    Grid(scale=0.5, zero=2, gains=array([1., 1.]), shifts=array([0., 0.]))
    """
    scale = float(np.abs(slope).max())
    zeros = -offset / slope
    zero = int(np.rint(zeros[0]))
    is_common = bool((np.abs(zeros - zero) <= _SAME_ZERO).all()) and 0 <= zero <= _LAST_BYTE
    if is_common:
        return Grid(scale, zero, slope / scale, np.zeros_like(offset))
    return Grid(scale, 0, slope / scale, offset)


def obstacle(graph: Graph, place: Any, found: Grid) -> str:  # noqa: ANN401 - fx has no types here
    """Why the model cannot take bytes on this grid at an input; empty when it can.

    Args:
        graph: Of the model.
        place: The node of the input.
        found: The grid.
    """
    if not found.needs_weights:
        return ""
    layer = _first_layer(graph, place)
    if layer is None:
        return "channels have different scales or means, and the first layer is no convolution or matrix product of its own"
    if found.needs_bias and _is_padded(graph, layer):
        return (
            f"its mean is not one whole number of 0 to 255 for all channels, and {graph.layer(layer)!r} pads with zeros, "
            "which then stand for something else"
        )
    return ""


def take_bytes(graph: Graph, place: Any, found: Grid) -> str:  # noqa: ANN401 - fx has no types here
    """Let an input take bytes; there must be no :func:`obstacle`. Gives the layer that took a part, empty when none had to."""
    layer = _first_layer(graph, place) if found.needs_weights else None
    if layer is not None:
        _fold(graph, layer, found)
    readers = list(place.users)
    with graph.after(place):
        floats = graph.call("to.dtype", place, load("torch").float32, like=place)
    with graph.after(floats):
        centred = graph.call("sub.Tensor", floats, float(found.zero), like=place)
    with graph.after(centred):
        scaled = graph.call("mul.Tensor", centred, found.scale, like=place)
    for reader in readers:
        reader.replace_input_with(place, scaled)
    return graph.layer(layer) if layer is not None else ""


def _first_layer(graph: Graph, place: Any) -> Any:  # noqa: ANN401 - fx has no types here
    """The one layer that reads an input, when its weights are its own."""
    readers = list(place.users)
    if len(readers) != 1 or not graph.calls(readers[0], *CONVOLUTIONS, "linear") or readers[0].args[0] is not place:
        return None
    bias = graph.bias(readers[0])
    is_own = graph.own(readers[0].args[1]) is not None and (bias is None or graph.own(bias) is not None)
    return readers[0] if is_own else None


def _is_padded(graph: Graph, layer: Any) -> bool:  # noqa: ANN401 - fx has no types here
    if graph.calls(layer, "linear"):
        return False
    padding = graph.argument(layer, "padding")
    return padding != "valid" if isinstance(padding, str) else any(padding)


def _fold(graph: Graph, layer: Any, found: Grid) -> None:  # noqa: ANN401 - fx has no types here
    torch = load("torch")
    weights = graph.value(layer.args[1])
    groups = 1 if graph.calls(layer, "linear") else graph.argument(layer, "groups")
    parts = weights.double().reshape(groups, len(weights) // groups, weights.shape[1], -1)
    gains, shifts = (
        torch.from_numpy(one).reshape(groups, 1, weights.shape[1], 1) for one in (found.gains, found.shifts)
    )
    if found.needs_bias:
        held = graph.bias(layer)
        before = graph.value(held).double() if held is not None else torch.zeros(len(weights), dtype=torch.float64)
        graph.set_bias(layer, (before + (parts * shifts).sum(dim=(2, 3)).reshape(-1)).to(weights.dtype))
    graph.set_weights(layer, (parts * gains).reshape(weights.shape).to(weights.dtype))
