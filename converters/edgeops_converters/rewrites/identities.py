"""Removal of what does nothing: dropout outside training, copies, casts to the same type, ``x · 1`` and ``x + 0``."""

from typing import Any

from edgeops_converters.extras import load
from edgeops_converters.rewrites.graph import Graph

_COPIES = ("alias", "clone", "contiguous", "detach", "detach_", "lift_fresh_copy")
_CASTS = ("to", "_to_copy")
_DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")


def remove_identities(graph: Graph) -> tuple[str, ...]:
    """Take out operators that give what they get; see :data:`edgeops_converters.rewrites.PASSES`."""
    for node in graph.calls_to("_assert_tensor_metadata"):
        graph.module.graph.erase_node(node)
    changed = []
    for node in graph.nodes:
        if _is_identity(graph, node):
            changed.append(graph.layer(node))
            graph.replace(node, node.args[0])
    return tuple(changed)


def _is_identity(graph: Graph, node: Any) -> bool:  # noqa: ANN401 - fx has no types here
    if graph.calls(node, *_DROPOUTS):
        return not graph.argument(node, "train")
    if graph.calls(node, *_COPIES):
        return True
    if graph.calls(node, *_CASTS):
        return _keeps_type(graph, node)
    neutral = 1 if graph.calls(node, "mul", "div") else 0 if graph.calls(node, "add", "sub") else None
    if neutral is None or isinstance(node.args[1], load("torch.fx").Node) or node.args[1] != neutral or node.kwargs:
        return False
    return _keeps_type(graph, node)


def _keeps_type(graph: Graph, node: Any) -> bool:  # noqa: ANN401 - fx has no types here
    before, after = graph.example(node.args[0]), graph.example(node)
    return before is not None and after is not None and before.dtype == after.dtype and before.device == after.device
