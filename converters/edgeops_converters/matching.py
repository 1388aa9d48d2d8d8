"""Two files of one model held against each other: which layer is which, and which tensor, by what they hold.

Formats name, order, fuse and lay out things in their own ways, so names say nothing. A layer is told by its weights, which both
files have from one model; a tensor by its statistics over the same rows, which no layout changes. Where two tensors hold
the same, taking one for the other does no harm, since ranges are all that is carried over.
"""

import numpy as np
from numpy.typing import NDArray

from edgeops.processing import Tensors
from edgeops_converters.calibration import spread
from edgeops_converters.graph import FloatGraph, Parameters

_ROWS = 8
_NEAR = 1e-3  # of the largest value: engines differ in the last digits, and more after many layers


def match_layers(first: FloatGraph, second: FloatGraph) -> dict[str, str]:
    """Node in the first file → node in the second, of layers with the same weights in the same order.

    Both must still have the parameters of the model.
    """
    left = [(layer.node, second.parameters(layer)) for layer in second.layers]
    found: dict[str, str] = {}
    for layer in first.layers:
        held = first.parameters(layer)
        place = next((index for index, (_, other) in enumerate(left) if _is_same(held, other)), None)
        if place is not None:
            found[layer.node] = left.pop(place)[0]
    return found


def match_tensors(first: FloatGraph, second: FloatGraph, rows: Tensors) -> dict[str, str]:
    """Tensor of the second file → tensor of the first that holds the same for the same rows, where there is one."""
    few = spread(rows, _ROWS)
    known = _statistics(first, few)
    names, figures = list(known), np.array(list(known.values())).reshape(len(known), -1)
    found: dict[str, str] = {}
    for name, values in _statistics(second, few).items():
        distance = np.abs(figures - values).max(axis=1) / max(np.abs(values[:2]).max(), 1e-12)
        nearest = int(distance.argmin())
        if distance[nearest] < _NEAR:
            found[name] = names[nearest]
    return found


def _is_same(one: Parameters, other: Parameters) -> bool:
    """Whether weights and bias are the same but for the last digits; a kernel may have an axis of one tap more."""
    if one.weights.size != other.weights.size or one.bias.shape != other.bias.shape:
        return False
    flat, there = (parameters.weights.reshape(len(parameters.bias), -1) for parameters in (one, other))
    return _is_near(flat, there) and _is_near(one.bias, other.bias)


def _is_near(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    return bool(np.abs(one - other).max(initial=0) <= _NEAR * np.abs(one).max(initial=0))


def _statistics(graph: FloatGraph, rows: Tensors) -> dict[str, NDArray[np.float64]]:
    """Least, greatest, mean and root mean square of every floating-point tensor over the rows."""
    sums: dict[str, NDArray[np.float64]] = {}
    for values in graph.stream(rows):
        for name, array in values.items():
            if array.dtype.kind != "f" or not array.size:
                continue
            flat = array.astype(np.float64)
            new = np.array([flat.min(), flat.max(), flat.sum(), np.square(flat).sum(), flat.size])
            old = sums.get(name)
            if old is not None:
                new = np.array([min(old[0], new[0]), max(old[1], new[1]), *(old[2:] + new[2:])])
            sums[name] = new
    return {
        name: np.array([low, high, total / size, np.sqrt(squares / size)])
        for name, (low, high, total, squares, size) in sums.items()
    }
