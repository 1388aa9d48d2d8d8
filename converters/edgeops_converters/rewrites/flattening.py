"""A linear layer on a flattened image as a convolution over the whole image, which is the same sum.

Flattening takes channels first, so that LiteRT, which keeps them last, has to turn the image round before it. A convolution
needs no order, and its weights are only seen in another shape.
"""

from typing import Any

from edgeops_converters.rewrites.graph import Graph

_IMAGE_RANK, _MATRIX_RANK = 4, 2


def convolve_flattened(graph: Graph) -> tuple[str, ...]:
    """Rewrite where nothing else reads the flattened image; see :data:`edgeops_converters.rewrites.PASSES`."""
    changed = []
    for linear in graph.calls_to("linear"):
        image, weights = _image(graph, linear.args[0]), graph.own(linear.args[1])
        if image is None or weights is None:
            continue
        changed.append(graph.layer(linear))
        _, channels, height, width = graph.example(image).shape
        graph.set_weights(linear, weights.reshape(len(weights), channels, height, width))
        with graph.before(linear):
            summed = graph.call("conv2d.default", image, linear.args[1], graph.bias(linear), like=linear)
            graph.replace(linear, graph.call("flatten.using_ints", summed, 1, like=linear))
    return tuple(changed)


def _image(graph: Graph, flat: Any) -> Any:  # noqa: ANN401 - fx has no types here
    """The image that a node flattens, row by row; ``None`` when it does something else or is read elsewhere too."""
    if not graph.calls(flat, "flatten", "view", "reshape") or len(flat.users) != 1:
        return None
    source = flat.args[0]
    if not (graph.has_rank(source, _IMAGE_RANK) and graph.has_rank(flat, _MATRIX_RANK)):
        return None
    _, channels, height, width = graph.example(source).shape
    is_whole = graph.example(flat).shape[1] == channels * height * width and height * width > 1
    return source if is_whole else None
