"""A float model file as what quantisation sees of it: layers, what flows between them, and rows that run through. Protocols only.

Planning (:mod:`edgeops_converters.planning`) is written once, against :class:`FloatGraph`; each format has one in
:mod:`edgeops_converters.quantizers`.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from numpy.typing import NDArray

from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.layers import FloatArray, Geometry

Values = dict[str, NDArray[Any]]
"""Tensor of the graph → what it holds for some rows."""


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product with constant weights and a bias.

    Attributes:
        name: In the user's model, as far as the file still knows.
        node: In the graph.
        geometry: Where it looks.
        input: Tensor that it reads; likewise ``output``.
    """

    name: str
    node: str
    geometry: Geometry
    input: str
    output: str


class NodeKind(StrEnum):
    """What an operator does to a factor that its channels are multiplied with."""

    LAYER = "layer"
    """It has weights that can take the factor in."""
    SUM = "sum"
    """Lets it through if all that is added has it."""
    CHANNELWISE = "channelwise"
    """Lets it through: rectifiers, pools."""
    OTHER = "other"
    """Does not."""


@dataclass(frozen=True)
class Node:
    """Any operator of the graph.

    Attributes:
        name: Unique in the graph.
        reads: Tensors that are no constants; ``gives`` likewise.
        kind: What it does to channels.
        cap: Where it cuts what it gives; infinite where it does not.
    """

    name: str
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    kind: NodeKind = NodeKind.OTHER
    cap: float = math.inf


@dataclass(frozen=True)
class Parameters:
    """Of a layer.

    Attributes:
        weights: Shape ``(out, in / groups, *kernel)``.
        bias: Shape ``(out,)``.
    """

    weights: FloatArray
    bias: FloatArray


class FloatGraph(Protocol):
    """A float32 model file whose parameters can be changed in memory; the file itself stays as it is."""

    @property
    def source(self) -> Artifact:
        """The file."""

    @property
    def ends(self) -> frozenset[str]:
        """Inputs and outputs of the model."""

    @property
    def layers(self) -> Sequence[Layer]:
        """In the order of the graph."""

    @property
    def nodes(self) -> Sequence[Node]:
        """In the order of the graph, layers included."""

    @property
    def channel_axis(self) -> int:
        """Of every activation, counted with the rows."""

    def parameters(self, layer: Layer) -> Parameters:
        """What the layer multiplies with and adds, as it is now."""

    def change(self, changed: Mapping[str, Parameters]) -> None:
        """Give layers (by node) other parameters."""

    def stream(self, rows: Tensors, tensors: Collection[str] | None = None) -> Iterator[Values]:
        """Run rows a few at a time; memory does not depend on how many there are.

        Args:
            rows: Manifest name of each input → rows.
            tensors: What to give; all activations when ``None``.
        """

    def planes(self, layer: Layer, values: NDArray[Any]) -> NDArray[Any]:
        """What a layer reads as shape ``(rows, in, *space)``; a matrix product has as many rows as vectors."""
