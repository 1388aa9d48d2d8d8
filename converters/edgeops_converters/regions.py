"""Fusable regions: what is quantised together or not at all, because an engine fuses what lies between. Pure."""

from collections.abc import Collection

from edgeops_converters.graph import FloatGraph, Layer, Node

_MOST_LAYERS = 3  # of a region: expansion, depthwise and projection of an inverted residual block


def regions_of(graph: FloatGraph) -> dict[str, int]:
    """Node of each layer → number of its region, counted from 0 in the order of the graph.

    A layer goes with the one before it when it alone reads it, through operators with one input at most.
    """
    follow = _Trails(graph)
    found: dict[str, int] = {}
    sizes: dict[int, int] = {}
    for layer in graph.layers:
        region = found.setdefault(layer.node, len(sizes))
        sizes[region] = sizes.get(region, 0) + 1
        _, follower = follow.behind(layer)
        if follower is not None and sizes[region] < _MOST_LAYERS:
            found.setdefault(follower, region)
    return found


def nodes_with(graph: FloatGraph, layers: Collection[str]) -> frozenset[str]:
    """These layers (by node), with the operators behind each that an engine fuses into it."""
    follow = _Trails(graph)
    behind = (follow.behind(layer)[0] for layer in graph.layers if layer.node in layers)
    return frozenset(layers).union(*behind)


class _Trails:
    """What stands behind layers in a graph."""

    def __init__(self, graph: FloatGraph) -> None:
        self._layers, self._ends = {layer.node for layer in graph.layers}, graph.ends
        self._readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for tensor in set(node.reads):
                self._readers.setdefault(tensor, []).append(node)

    def behind(self, layer: Layer) -> tuple[list[str], str | None]:
        """The operators with one input and one output that alone read what the layer gives, and the layer behind them."""
        passed: list[str] = []
        tensor = layer.output
        while tensor not in self._ends:
            readers = self._readers.get(tensor, [])
            if len(readers) != 1 or len(readers[0].reads) != 1 or len(readers[0].gives) != 1:
                break
            if readers[0].name in self._layers:
                return passed, readers[0].name
            passed.append(readers[0].name)
            tensor = readers[0].gives[0]
        return passed, None
