"""HardSigmoid and HardSwish in forms that both engines run in integers. For the int8 files only.

onnxruntime has no integer kernel for either, and computes them in float between a dequantisation and a quantisation; LiteRT has
one for HARD_SWISH that is slower than the float one, since XNNPACK does not take it. Both have fast ones for additions,
products and ``relu6``. In float they are slower in this form, so that the float files keep what the user wrote.

``hardsigmoid(x) = relu6(x + 3) / 6`` with the 3 in the bias of the layer before, and ``hardswish(x) = x · relu6(x + 3) / 6``
with the sixth in the weights of the layers behind. Where it cannot go there it is a product of its own, on the other side than
in the pattern that LiteRT's converter would turn back into HARD_SWISH.
"""

from typing import Any

from edgeops_converters.rewrites.graph import CONVOLUTIONS, Graph

_SIXTH = 1 / 6
# What a factor passes through unchanged, when it is the first argument that carries it.
_HOMOGENEOUS = (
    "mean", "adaptive_avg_pool2d", "avg_pool2d", "max_pool2d", "flatten", "view", "reshape", "squeeze", "unsqueeze", "permute",
    "transpose", "relu",
)  # fmt: skip


def integer_hard_sigmoids(graph: Graph) -> tuple[str, ...]:
    """Rewrite ``hardsigmoid``; see :data:`edgeops_converters.rewrites.INTEGER_PASSES`."""
    changed = []
    for node in graph.calls_to("hardsigmoid", "hardsigmoid_"):
        changed.append(graph.layer(node))
        with graph.before(node):
            clipped = _clipped(graph, node.args[0], node)
            graph.replace(node, graph.call("mul.Tensor", clipped, _SIXTH, like=node))
    return tuple(changed)


def integer_hard_swishes(graph: Graph) -> tuple[str, ...]:
    """Rewrite ``hardswish``, also where it is written out; see :data:`edgeops_converters.rewrites.INTEGER_PASSES`."""
    changed = []
    for node in graph.nodes:
        source = _swished(graph, node)
        if source is None:
            continue
        changed.append(graph.layer(node))
        behind = _layers_behind(graph, node)
        with graph.before(node):
            if behind is None:
                source_sixth = graph.call("mul.Tensor", source, _SIXTH, like=node)
            gate = graph.call("relu6.default", graph.call("add.Tensor", source, 3.0, like=node), like=node)
            product = graph.call("mul.Tensor", source if behind is not None else source_sixth, gate, like=node)
        graph.replace(node, product)
        for layer in behind or ():
            weights = graph.value(layer.args[1])
            graph.set_weights(layer, (weights.double() * _SIXTH).to(weights.dtype))
    return tuple(changed)


def _clipped(graph: Graph, source: Any, like: Any) -> Any:  # noqa: ANN401 - fx has no types here
    """``relu6(x + 3)``, with the 3 in the bias of the layer that gives ``x`` where that is its only use."""
    is_layer = graph.calls(source, *CONVOLUTIONS, "linear") and len(source.users) == 1
    if is_layer and graph.own(graph.bias(source)) is not None:
        graph.set_bias(source, graph.value(graph.bias(source)) + 3.0)
        return graph.call("relu6.default", source, like=like)
    return graph.call("relu6.default", graph.call("add.Tensor", source, 3.0, like=like), like=like)


def _swished(graph: Graph, node: Any) -> Any:  # noqa: ANN401 - fx has no types here
    """``x`` where a node is ``hardswish(x)``; ``None`` when it is something else."""
    if graph.calls(node, "hardswish", "hardswish_"):
        return node.args[0]
    divided = _sixth_of(graph, node)
    if divided is not None and graph.calls(divided, "mul"):  # x · relu6(x + 3) / 6
        return _pair(divided, lambda one: _shifted_clip(graph, one))
    if graph.calls(node, "mul"):  # x · (relu6(x + 3) / 6)
        return _pair(node, lambda one: _shifted_clip(graph, _sixth_of(graph, one)))
    return None


def _pair(product: Any, gate_of: Any) -> Any:  # noqa: ANN401 - fx has no types here
    """``x`` where one factor is ``x`` and the other what ``gate_of`` recognises as a gate of it."""
    first, second = product.args[:2]
    for source, gate in ((first, second), (second, first)):
        if gate_of(gate) is not None and gate_of(gate) is source:
            return source
    return None


def _sixth_of(graph: Graph, node: Any) -> Any:  # noqa: ANN401 - fx has no types here
    """``v`` where a node is ``v / 6``."""
    if graph.calls(node, "div") and node.args[1] == 6 and not node.kwargs:  # noqa: PLR2004 - hardswish's
        return node.args[0]
    if graph.calls(node, "mul") and isinstance(node.args[1], float) and abs(node.args[1] - _SIXTH) < 1e-7:  # noqa: PLR2004 - float32
        return node.args[0]
    return None


def _shifted_clip(graph: Graph, node: Any) -> Any:  # noqa: ANN401 - fx has no types here
    """``x`` where a node is ``relu6(x + 3)``."""
    is_clip = graph.calls(node, "relu6") or (
        graph.calls(node, "hardtanh", "clamp") and list(node.args[1:]) == [0, 6] and not node.kwargs
    )
    if is_clip and graph.calls(node.args[0], "add") and node.args[0].args[1] == 3 and not node.args[0].kwargs:  # noqa: PLR2004
        return node.args[0].args[0]
    return None


def _layers_behind(graph: Graph, node: Any) -> list[Any] | None:  # noqa: ANN401 - fx has no types here
    """The layers that a factor of a node reaches, with weights of their own; ``None`` when it also reaches something else."""
    carriers, layers, waiting = {node}, [], [node]
    while waiting:
        one = waiting.pop()
        for user in one.users:
            if user in carriers or user in layers:
                continue
            if graph.calls(user, *CONVOLUTIONS, "linear") and user.args[0] is one:
                if graph.own(user.args[1]) is None:
                    return None
                layers.append(user)
            elif graph.calls(user, *_HOMOGENEOUS, "mul") and _carries_once(graph, user, one):
                carriers.add(user)
                waiting.append(user)
            else:
                return None
    # A product of two things that both carry the factor would carry it twice.
    products = [one for one in carriers if one is not node and graph.calls(one, "mul")]
    return None if any(all(side in carriers for side in one.args[:2]) for one in products) else layers


def _carries_once(graph: Graph, user: Any, one: Any) -> bool:  # noqa: ANN401 - fx has no types here
    return one in user.args[:2] if graph.calls(user, "mul") else user.args[0] is one
