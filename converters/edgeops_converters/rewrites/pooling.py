"""The mean over height and width as a global average pooling that keeps both axes until it is done.

``x.mean((2, 3))`` gives up the two axes while it adds, and for that LiteRT first turns the image back from channels last: a
transpose near the end of most networks. A mean that keeps them, and a flattening of what is left, needs none.
"""

from typing import Any

from edgeops_converters.rewrites.graph import Graph

_IMAGE_RANK, _LINE_RANK = 4, 3
_SPACE = {2, 3}


def pool_means(graph: Graph) -> tuple[str, ...]:
    """Rewrite means over space; see :data:`edgeops_converters.rewrites.PASSES`."""
    changed = []
    for mean in graph.calls_to("mean"):
        image = _image(graph, mean)
        if image is not None:
            changed.append(graph.layer(mean))
            with graph.before(mean):
                pooled = graph.call("mean.dim", image, [2, 3], True, like=mean)
                graph.replace(mean, graph.call("flatten.using_ints", pooled, 1, like=mean))
    return tuple(changed)


def _image(graph: Graph, mean: Any) -> Any:  # noqa: ANN401 - fx has no types here
    """The image of which a node takes the mean over height and width, giving both up; ``None`` when it does something else."""
    if str(mean.target) != "aten.mean.dim" or graph.argument(mean, "keepdim"):
        return None
    if graph.argument(mean, "dtype") is not None:
        return None
    source, axes = mean.args[0], list(graph.argument(mean, "dim") or ())
    if graph.has_rank(source, _IMAGE_RANK):
        return source if {axis % _IMAGE_RANK for axis in axes} == _SPACE else None
    # The same in two steps: a flattening of both axes into one, and its mean.
    is_line = graph.has_rank(source, _LINE_RANK) and [axis % _LINE_RANK for axis in axes] == [2]
    if is_line and graph.calls(source, "flatten", "view", "reshape") and graph.has_rank(source.args[0], _IMAGE_RANK):
        image, line = graph.example(source.args[0]), graph.example(source)
        height, width = image.shape[2:]
        return source.args[0] if image.shape[1] == line.shape[1] and height * width == line.shape[2] else None
    return None
