"""A bias for every layer: integer kernels want one, and bias correction sets it.

Not for a linear layer on more than rows: in ONNX that is a matrix product, and its bias an addition of its own.
"""

from typing import Any

from edgeops_converters.extras import load
from edgeops_converters.rewrites.graph import CONVOLUTIONS, Graph

_MATRIX_RANK = 2


def complete_biases(graph: Graph) -> tuple[str, ...]:
    """Add zeros where there is none; see :data:`edgeops_converters.rewrites.PASSES`."""
    changed = []
    for node in graph.calls_to(*CONVOLUTIONS, "linear"):
        weights = graph.value(node.args[1])
        if weights is not None and graph.bias(node) is None and _has_place(graph, node):
            graph.set_bias(node, load("torch").zeros(len(weights), dtype=weights.dtype))
            changed.append(graph.layer(node))
    return tuple(changed)


def _has_place(graph: Graph, node: Any) -> bool:  # noqa: ANN401 - fx has no types here
    return not graph.calls(node, "linear") or graph.has_rank(node, _MATRIX_RANK)
