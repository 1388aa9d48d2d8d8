"""The order of an image's axes: the caller's, and that of the model.

A camera gives rows of pixels, channels last; torch has channels first. LiteRT's kernels want channels last, so that a model
which takes them needs no transpose there, and onnxruntime a single one where the image comes in.
"""

from enum import StrEnum
from typing import Any

import numpy as np

from edgeops.errors import RecipeError
from edgeops.processing import Tensors
from edgeops.tensors import TensorSpec
from edgeops_converters.extras import load
from edgeops_converters.rewrites.graph import Graph
from edgeops_converters.sources import Model

IMAGE_RANK = 4
TO_FIRST = (0, 3, 1, 2)
"""The axes of an image with channels last, in the order of one with channels first."""
TO_LAST = (0, 2, 3, 1)
"""The way back."""


class Layout(StrEnum):
    """How callers give images."""

    NCHW = "nchw"
    """As the torch model takes them."""
    NHWC = "nhwc"
    """Channels last; the bundle turns them round."""

    @property
    def channel_axis(self) -> int:
        """Where the channels of an image are."""
        return 3 if self is Layout.NHWC else 1


def parse_layout(text: str) -> Layout:
    """Read a layout.

    Raises:
        RecipeError: It is none.
    """
    try:
        return Layout(text)
    except ValueError as error:
        raise RecipeError(f"input layout {text!r}: expected one of {', '.join(Layout)}") from error


def as_model_takes(rows: Tensors, layout: Layout) -> Tensors:
    """The caller's rows in the order of the model; images only."""
    if layout is Layout.NCHW:
        return rows
    return {
        name: np.ascontiguousarray(array.transpose(TO_FIRST)) if array.ndim == IMAGE_RANK else array
        for name, array in rows.items()
    }


def spec_of_caller(spec: TensorSpec, layout: Layout) -> TensorSpec:
    """An input of the model as the caller gives it."""
    if layout is Layout.NCHW or len(spec.shape) != IMAGE_RANK:
        return spec
    shape = tuple(spec.shape[axis] for axis in TO_LAST)
    return TensorSpec(name=spec.name, dtype=spec.dtype, shape=shape, layout=layout.upper())


def turn_inputs(graph: Graph, model: Model) -> None:
    """Let a captured model take channels last."""
    for place, spec in zip(graph.inputs, model.inputs, strict=True):
        if len(spec.shape) == IMAGE_RANK:
            readers = list(place.users)
            with graph.after(place):
                turned = graph.call("permute.default", place, list(TO_FIRST), like=place)
            with graph.after(turned):
                # Where memory is still in the caller's order, torch takes some operators apart with strides.
                plain = graph.call("contiguous.default", turned, like=place)
            for reader in readers:
                reader.replace_input_with(place, plain)


def turned_module(model: Model) -> Any:  # noqa: ANN401 - torch is loaded lazily
    """The module of a model that could not be captured, taking channels last."""
    torch = load("torch")
    inner: Any = model.module
    is_image = [len(spec.shape) == IMAGE_RANK for spec in model.inputs]

    class ChannelsLast(torch.nn.Module):  # type: ignore[misc,name-defined]  # the base class is loaded lazily
        def __init__(self) -> None:
            super().__init__()
            self.module = inner
            self.training = False

        def forward(self, *tensors: Any) -> Any:  # noqa: ANN401 - torch tensors, loaded lazily
            pairs = zip(tensors, is_image, strict=True)
            return self.module(*(one.permute(TO_FIRST).contiguous() if turns else one for one, turns in pairs))

    return ChannelsLast()
