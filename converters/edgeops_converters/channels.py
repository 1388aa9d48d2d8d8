"""Channels that hang together: what can be multiplied by one factor where it is written, and by its inverse where it is read.

Between two layers with a rectifier it is one tensor; along residual connections it is every tensor that is added, and every layer
that writes or reads one of them. Pure; what factors are good is the business of :mod:`edgeops_converters.equalization`.
"""

import math
from dataclasses import dataclass

from edgeops_converters.graph import FloatGraph, Layer, NodeKind


@dataclass(frozen=True)
class Channels:
    """Tensors whose channels get the same factors or none.

    Attributes:
        tensors: All of them.
        writers: Layers that give one; ``readers`` likewise. In the order of the graph.
        cap: Where a rectifier between them cuts values; infinite where none does.
    """

    tensors: frozenset[str]
    writers: tuple[Layer, ...]
    readers: tuple[Layer, ...]
    cap: float


def channels_of(graph: FloatGraph) -> list[Channels]:
    """All channels of a graph that layers alone write and read, in the order of the first reader."""
    joined, layers = _Joined(), {layer.node: layer for layer in graph.layers}
    blocked, caps = set(graph.ends), dict.fromkeys((name for node in graph.nodes for name in node.reads), math.inf)
    for node in graph.nodes:
        if node.kind in {NodeKind.SUM, NodeKind.CHANNELWISE}:
            joined.join((*node.reads, *node.gives))
        elif node.kind is NodeKind.OTHER:
            blocked |= {*node.reads, *node.gives}
        caps |= dict.fromkeys(node.gives, node.cap)
    groups: dict[str, set[str]] = {}
    for tensor in caps:
        groups.setdefault(joined.root(tensor), set()).add(tensor)
    found = []
    for tensors in groups.values():
        writers = tuple(layer for layer in layers.values() if layer.output in tensors)
        readers = tuple(layer for layer in layers.values() if layer.input in tensors)
        if writers and readers and not tensors & blocked and _is_aligned(graph, writers, readers):
            found.append(Channels(frozenset(tensors), writers, readers, min(caps[tensor] for tensor in tensors)))
    order = {layer.node: index for index, layer in enumerate(graph.layers)}
    return sorted(found, key=lambda group: order[group.readers[0].node])


def _is_aligned(graph: FloatGraph, writers: tuple[Layer, ...], readers: tuple[Layer, ...]) -> bool:
    """Whether all write and read as many channels; a matrix product can take an image apart."""
    written = {len(graph.parameters(layer).bias) for layer in writers}
    read = {graph.parameters(layer).weights.shape[1] * layer.geometry.groups for layer in readers}
    return len(written | read) == 1


class _Joined:
    """Sets of tensors that grow together."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def root(self, tensor: str) -> str:
        while tensor in self._above:
            tensor = self._above[tensor]
        return tensor

    def join(self, tensors: tuple[str, ...]) -> None:
        first, *others = (self.root(tensor) for tensor in tensors)
        for other in others:
            if self.root(other) != self.root(first):
                self._above[self.root(other)] = self.root(first)
