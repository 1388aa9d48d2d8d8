"""The weights of a model under the names that its author gave them, and those of them that cannot be."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.errors import ExportError
from edgeops_converters.extras import load
from edgeops_converters.sources import Model

_STATISTICS = ("running_mean", "running_var")
"""Buffers that are learned; other buffers may hold infinity for good reason, as the mask of an attention does."""


def named_weights(model: Model) -> dict[str, NDArray[Any]]:
    """Weights by name.

    Returns:
        Parameters and statistics of the norms of a module, or initialisers of an ONNX file, in memory that they share
        with it where numpy has the type; bfloat16 becomes float32.
    """
    if model.file is not None and model.file.format == "onnx":
        onnx = load("onnx")
        tensors = onnx.load_from_string(model.file.content).graph.initializer
        return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in tensors}
    if model.module is None:
        return {}
    torch = load("torch")
    named = [
        *model.module.named_parameters(),
        *((name, tensor) for name, tensor in model.module.named_buffers() if name.endswith(_STATISTICS)),
    ]
    return {
        name.removeprefix("module."): (tensor.float() if tensor.dtype is torch.bfloat16 else tensor)
        .detach()
        .cpu()
        .numpy()
        for name, tensor in named
    }


def not_finite(weights: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, str]]:
    """Name of each weight that has NaN or infinity, and what is wrong with it.

    >>> list(not_finite({"head.bias": np.array([0.0, np.nan])}))
    [('head.bias', '1 of 2 values are NaN or Inf')]
    """
    for name, values in weights.items():
        if np.issubdtype(values.dtype, np.floating) and not (finite := np.isfinite(values)).all():
            yield name, f"{values.size - int(finite.sum())} of {values.size} values are NaN or Inf"


def check_finite(model: Model) -> None:
    """Refuse a model whose weights are not numbers.

    Raises:
        ExportError: It names the first such weight, and how many others there are.
    """
    wrong = list(not_finite(named_weights(model)))
    if wrong:
        name, said = wrong[0]
        others = f", and in {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ExportError(
            f"{model.label}: weight {name!r}: {said}{others}; the training diverged, go back to a checkpoint"
        )
