"""Batch norms folded into the convolution or linear layer before them: ``γ(Wx + b − μ)/σ + β`` is one such layer."""

from typing import Any

from edgeops_converters.extras import load
from edgeops_converters.rewrites.graph import CONVOLUTIONS, Graph

_MATRIX_RANK = 2


def fold_batch_norms(graph: Graph) -> tuple[str, ...]:
    """Fold where nothing else reads the layer or its weights; see :data:`edgeops_converters.rewrites.PASSES`."""
    changed = []
    for norm in graph.calls_to("batch_norm"):
        layer = norm.args[0]
        if _takes(graph, layer) and not graph.argument(norm, "training"):
            changed.append(graph.layer(norm))
            _fold(graph, layer, norm)
    return tuple(changed)


def _takes(graph: Graph, layer: Any) -> bool:  # noqa: ANN401 - fx has no types here
    """Whether a layer's output channels are those of the norm, and the layer's alone."""
    is_linear = graph.calls(layer, "linear") and graph.has_rank(layer, _MATRIX_RANK)
    if not (is_linear or graph.calls(layer, *CONVOLUTIONS)) or len(layer.users) != 1:
        return False
    bias = graph.bias(layer)
    return graph.own(layer.args[1]) is not None and (bias is None or graph.own(bias) is not None)


def _fold(graph: Graph, layer: Any, norm: Any) -> None:  # noqa: ANN401 - fx has no types here
    torch = load("torch")
    weights = graph.value(layer.args[1])
    # In double precision, so that the fold itself rounds once.
    mean, variance = (graph.value(graph.argument(norm, name)).double() for name in ("running_mean", "running_var"))
    gain, offset = (graph.value(graph.argument(norm, name)) for name in ("weight", "bias"))
    factor = torch.rsqrt(variance + graph.argument(norm, "eps")) * (1.0 if gain is None else gain.double())
    bias = graph.value(graph.bias(layer)).double() if graph.bias(layer) is not None else torch.zeros_like(mean)
    shifted = (bias - mean) * factor + (0.0 if offset is None else offset.double())
    scaled = weights.double() * factor.reshape(-1, *[1] * (weights.ndim - 1))
    graph.set_weights(layer, scaled.to(weights.dtype))
    graph.set_bias(layer, shifted.to(weights.dtype))
    graph.replace(norm, layer)
