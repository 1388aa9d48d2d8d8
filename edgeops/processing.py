"""Pre- and post-processing: the manifest's operators executed on arrays, the same code on the device and the workstation.

Everything is computed in float32. What the operators mean is in :mod:`edgeops.manifest`; this module only runs them. The
caller's inputs go through ``preprocess`` into the engine; what the engine gives goes through ``postprocess`` to the caller.
Golden vectors hold both ends as the caller sees them; drift signals look at what enters and leaves the engine, that is,
inputs after ``preprocess`` and outputs before ``postprocess``.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.binning import FloatArray
from edgeops.errors import TensorError
from edgeops.manifest import Normalize, Operator, Scale, Softmax

Tensors = dict[str, NDArray[Any]]


def apply(operators: Iterable[Operator], tensors: Mapping[str, NDArray[Any]]) -> Tensors:
    """Run operators in order.

    Args:
        operators: ``preprocess`` or ``postprocess`` of a manifest.
        tensors: Tensor name → rows, each of shape ``(n, …)``, any numeric dtype; never written to.

    Returns:
        All tensors: float32 where an operator was applied, the same array where none was.

    Raises:
        TensorError: An operator names a tensor that is not there, an axis that it does not have, or has another number of
            means than that axis has indices.
    """
    result = dict(tensors)
    for operator in operators:
        if operator.tensor not in result:
            raise TensorError(f"{_name(operator)}: no tensor {operator.tensor!r}; there are {sorted(result)}")
        result[operator.tensor] = _run(operator, result[operator.tensor])
    return result


def _run(operator: Operator, array: NDArray[Any]) -> FloatArray:
    values = np.asarray(array, dtype=np.float32)
    match operator:
        case Scale():
            return values * np.float32(operator.factor) + np.float32(operator.offset)
        case Normalize():
            mean, std = _coefficients(operator, values.shape)
            return (values - mean) / std
        case Softmax():
            return _softmax(operator, values)


@lru_cache(maxsize=64)
def _coefficients(operator: Normalize, shape: tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
    """Mean and std, shaped so that they broadcast along the operator's axis."""
    _check_axis(operator, operator.axis, shape)
    if shape[operator.axis] != len(operator.mean):
        raise TensorError(
            f"{_name(operator)}: {len(operator.mean)} means for axis {operator.axis} of shape {list(shape)}, "
            f"expected {shape[operator.axis]}"
        )
    broadcast = [1] * len(shape)
    broadcast[operator.axis] = len(operator.mean)
    mean = np.asarray(operator.mean, dtype=np.float32).reshape(broadcast)
    return mean, np.asarray(operator.std, dtype=np.float32).reshape(broadcast)


def _softmax(operator: Softmax, values: FloatArray) -> FloatArray:
    _check_axis(operator, operator.axis, values.shape)
    exponentials = np.exp(values - values.max(axis=operator.axis, keepdims=True))
    result: FloatArray = exponentials / exponentials.sum(axis=operator.axis, keepdims=True)
    return result


def _check_axis(operator: Operator, axis: int, shape: tuple[int, ...]) -> None:
    if not -len(shape) <= axis < len(shape):
        raise TensorError(f"{_name(operator)}: axis {axis} does not exist in shape {list(shape)}")


def _name(operator: Operator) -> str:
    return f"{type(operator).__name__.lower()} {operator.tensor!r}"
