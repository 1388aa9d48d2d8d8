"""Reading the graph that ``torch.export`` makes of a module, with the user's names for the layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.processing import Tensors
from edgeops_converters.doctor.subject import Operator, Product, Subject
from edgeops_converters.extras import load, quiet
from edgeops_converters.failures import own_layer, user_line
from edgeops_converters.sources import BATCH, Model
from edgeops_converters.weights import named_weights

_PRODUCTS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "linear"}
_SCAFFOLD = {"sym_size", "_assert_scalar", "_assert_tensor_metadata", "dropout", "detach", "clone", "contiguous"}
"""What does nothing in a converted file."""


def read_module(model: Model, example: Tensors) -> Subject:
    """Export a module and read its graph.

    Args:
        model: With a module.
        example: At least two rows of every input.

    Raises:
        Exception: Whatever ``torch.export`` raises; :func:`edgeops_converters.failures.explain` says what it means.
    """
    weights = named_weights(model)
    graph, batch = _graph(model, example)
    places = [node for node in graph.nodes if node.op == "placeholder"]
    names = {str(place): spec.name for place, spec in zip(places, model.inputs, strict=True)}
    operators, products = [], []
    for node in graph.nodes:
        if (operator := _operator(node, names)) is None:
            continue
        operators.append(operator)
        if operator.kind in _PRODUCTS and (product := _product(node, operator, weights)) is not None:
            products.append(product)
    return Subject(model.inputs, batch, tuple(operators), tuple(products), weights, _dynamic(places, model))


def _graph(model: Model, example: Tensors) -> tuple[Any, int | None]:
    """The graph with weights as attributes, and the number of rows that it fixes."""
    torch = load("torch")
    module: Any = model.module
    if isinstance(module.module, torch.fx.GraphModule):
        return module.module.graph, model.batch  # of a .pt2; exporting it again would lose the names of its layers
    with quiet():
        rows = tuple(torch.from_numpy(np.ascontiguousarray(example[spec.name][:2])) for spec in model.inputs)
        shapes = (tuple({0: torch.export.Dim(BATCH)} for _ in rows),)
        try:
            return torch.export.export(module, rows, dynamic_shapes=shapes).module().graph, None
        except Exception:  # noqa: BLE001 - torch raises whatever it meets; the second attempt raises it again
            one = tuple(row[:1] for row in rows)
            return torch.export.export(module, one).module().graph, 1


def _dynamic(places: Sequence[Any], model: Model) -> dict[str, tuple[str, ...]]:
    found = {}
    for spec, place in zip(model.inputs, places, strict=True):
        shape = getattr(place.meta.get("val"), "shape", ())
        if open_ := tuple(f"dimension {index}" for index, size in enumerate(shape) if index and type(size) is not int):
            found[spec.name] = open_
    return found


def _operator(node: Any, names: Mapping[str, str]) -> Operator | None:  # noqa: ANN401 - a torch.fx.Node
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None:
        return None
    space, _, name = schema.name.partition("::")
    kind = name.rstrip("_") if space == "aten" else schema.name
    if kind in _SCAFFOLD:
        return None
    named = _named_arguments(node)
    inputs = tuple(names.get(str(one), str(one)) for one in node.all_input_nodes if one.op != "get_attr")
    layer, layer_kind = own_layer(node.meta.get("nn_module_stack") or {})
    first = next((one.meta.get("val") for one in node.all_input_nodes if one.op != "get_attr"), None)
    return Operator(
        kind=kind,
        layer=layer,
        layer_kind=layer_kind,
        # A layer of torch's own is found by its name; the user's own has many lines.
        line="" if layer_kind in vars(load("torch").nn) else user_line(node.meta.get("stack_trace") or ""),
        inputs=inputs,
        output=str(node),
        rank=getattr(first, "ndim", 0),
        arguments={name: value for name, value in named.items() if isinstance(value, (int, float, str, bool, list))},
    )


def _named_arguments(node: Any) -> dict[str, Any]:  # noqa: ANN401 - a torch.fx.Node
    declared = node.target._schema.arguments  # noqa: SLF001 - the only place where torch has the names
    given = dict(zip((argument.name for argument in declared), node.args, strict=False))
    defaults = {argument.name: argument.default_value for argument in declared if argument.has_default_value()}
    return {**defaults, **given, **node.kwargs}


def _product(node: Any, operator: Operator, weights: Mapping[str, NDArray[Any]]) -> Product | None:  # noqa: ANN401 - a torch.fx.Node
    named = _named_arguments(node)
    held = _held(named["weight"], weights)
    if held is None:
        return None
    groups = int(named.get("groups", 1))
    if operator.kind.startswith("conv_transpose"):  # stored as (in, out / groups, *kernel)
        inside, outside = held.shape[:2]
        held = held.reshape(groups, inside // groups, outside, *held.shape[2:]).swapaxes(1, 2)
        held = held.reshape(groups * outside, inside // groups, *held.shape[3:])
    norm = next((user for user in node.users if len(node.users) == 1 and _is_norm(user)), None)
    if norm is None:
        return Product(operator, held, named.get("bias") is not None, groups, operator.output)
    folded = held * _norm_factors(norm, weights, len(held)).reshape(-1, *[1] * (held.ndim - 1))
    return Product(operator, folded, has_bias=True, groups=groups, output=str(norm))


def _held(node: Any, weights: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:  # noqa: ANN401 - a torch.fx.Node
    if getattr(node, "op", "") != "get_attr":
        return None
    return weights.get(str(node.target).removeprefix("module."))


def _is_norm(node: Any) -> bool:  # noqa: ANN401 - a torch.fx.Node
    return str(getattr(node.target, "_schema", None)).startswith("aten::batch_norm")


def _norm_factors(node: Any, weights: Mapping[str, NDArray[Any]], channels: int) -> "NDArray[Any]":  # noqa: ANN401 - a torch.fx.Node
    named = _named_arguments(node)
    gamma, variance = _held(named["weight"], weights), _held(named["running_var"], weights)
    if variance is None:
        return np.ones(channels)
    return np.asarray((1 if gamma is None else gamma) / np.sqrt(variance + named["eps"]))
