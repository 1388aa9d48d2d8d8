"""A model as ``torch.export`` sees it: captured, read and edited.

Parameters keep the path that they have in the user's model (behind ``module.``), and nodes keep the stack of layers that they
come from, so that files and reports name layers as their author does. The user's module itself is never written to.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeops.errors import ExportError
from edgeops.processing import Tensors
from edgeops_converters.extras import load, quiet
from edgeops_converters.failures import explain
from edgeops_converters.sources import BATCH, Model

if TYPE_CHECKING:
    import torch
    from torch import nn

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_PREFIX = "module."  # of what sources.py puts around the user's model
_WEIGHTS, _BIAS = 1, 2  # arguments of a convolution and of a linear layer


class Graph:
    """An ``fx`` graph of ATen operators that can be edited.

    Args:
        module: Takes tensors in order and gives a tuple in order; its graph is edited in place.
    """

    def __init__(self, module: "torch.fx.GraphModule") -> None:
        self.module = module
        self._aten = load("torch").ops.aten

    @property
    def nodes(self) -> list[Any]:
        """All nodes in order; a copy, so that the graph may change while it is walked."""
        return list(self.module.graph.nodes)

    @property
    def inputs(self) -> list[Any]:
        """The nodes of the inputs in order."""
        tensors = next(node for node in self.module.graph.nodes if node.op == "placeholder")
        return sorted(tensors.users, key=lambda node: node.args[1])

    def copied(self) -> "Graph":
        """Another graph that can be edited by itself; weights are shared until they are replaced."""
        fx = load("torch.fx")
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.module.graph, {}))
        return Graph(fx.GraphModule(self.module, graph))

    def calls(self, node: Any, *operators: str) -> bool:  # noqa: ANN401 - fx has no types here
        """Whether a node calls one of these ATen operators, in any overload."""
        return isinstance(node, load("torch.fx").Node) and node.op == "call_function" and self._name(node) in operators

    def calls_to(self, *operators: str) -> list[Any]:
        """The nodes that call one of these ATen operators."""
        return [node for node in self.nodes if self.calls(node, *operators)]

    def argument(self, node: Any, name: str) -> Any:  # noqa: ANN401 - fx has no types here
        """An argument of a call by its name in the operator's schema, with the schema's default."""
        for position, known in enumerate(node.target._schema.arguments):  # noqa: SLF001 - the only way to the names
            if known.name == name:
                given = node.args[position] if position < len(node.args) else known.default_value
                return node.kwargs.get(name, given)
        raise KeyError(name)

    def value(self, node: Any) -> Any:  # noqa: ANN401 - fx has no types here
        """The constant that a node stands for; ``None`` when it is none."""
        if not isinstance(node, load("torch.fx").Node) or node.op != "get_attr":
            return None
        found: Any = self.module
        for part in str(node.target).split("."):
            found = getattr(found, part)
        return found.detach() if isinstance(found, load("torch").Tensor) else None

    def own(self, node: Any) -> Any:  # noqa: ANN401 - fx has no types here
        """The constant that a node stands for, when nothing else in the graph reads it."""
        if self.value(node) is None or len(node.users) != 1:
            return None
        shared = [other for other in self.nodes if other.op == "get_attr" and other.target == node.target]
        return self.value(node) if len(shared) == 1 else None

    def example(self, node: Any) -> Any:  # noqa: ANN401 - fx has no types here
        """What the node gave when the model was captured, without values; ``None`` when it is not known."""
        found = node.meta.get("val") if isinstance(node, load("torch.fx").Node) else None
        return found if isinstance(found, load("torch").Tensor) else None

    def has_rank(self, node: Any, rank: int) -> bool:  # noqa: ANN401 - fx has no types here
        """Whether a node is known to give a tensor of this rank."""
        found = self.example(node)
        return found is not None and found.ndim == rank

    def call(self, operator: str, *arguments: Any, like: Any) -> Any:  # noqa: ANN401 - fx has no types here
        """Add a call at the place where the graph is being edited, as a part of the same layer as another node.

        Args:
            operator: ATen operator with overload, for example ``add.Tensor``.
            arguments: Nodes and plain values.
            like: The node whose layer it belongs to.
        """
        name, overload = operator.split(".")
        added = self.module.graph.call_function(getattr(getattr(self._aten, name), overload), arguments)
        added.meta = {key: kept for key, kept in like.meta.items() if key in {"nn_module_stack", "stack_trace"}}
        return added

    def before(self, node: Any) -> Any:  # noqa: ANN401 - fx has no types here
        """A context in which calls are added before a node."""
        return self.module.graph.inserting_before(node)

    def after(self, node: Any) -> Any:  # noqa: ANN401 - fx has no types here
        """A context in which calls are added behind a node."""
        return self.module.graph.inserting_after(node)

    def replace(self, node: Any, other: Any) -> None:  # noqa: ANN401 - fx has no types here
        """Let everything that reads a node read another one, and take the node out."""
        node.replace_all_uses_with(other)
        self.module.graph.erase_node(node)

    def set_value(self, path: str, value: Any) -> None:  # noqa: ANN401 - a tensor
        """Put a constant at a path of this graph's own tree of modules, which shares only tensors with the user's."""
        nn = load("torch").nn
        *above, last = path.split(".")
        place = self.module
        for part in above:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        if hasattr(place, last):
            delattr(place, last)
        place.register_parameter(last, nn.Parameter(value.contiguous(), requires_grad=False))

    def set_weights(self, node: Any, weights: Any) -> None:  # noqa: ANN401 - fx has no types here
        """Replace the weights of a convolution or linear layer, which must be its own."""
        self.set_value(str(node.args[_WEIGHTS].target), weights)

    def bias(self, node: Any) -> Any:  # noqa: ANN401 - fx has no types here
        """The bias of a convolution or linear layer: a node, or ``None``."""
        return node.args[_BIAS] if len(node.args) > _BIAS else node.kwargs.get("bias")

    def set_bias(self, node: Any, bias: Any) -> None:  # noqa: ANN401 - fx has no types here
        """Replace the bias of a convolution or linear layer, or give it one beside its weights."""
        held = self.bias(node)
        if held is not None:
            self.set_value(str(held.target), bias)
            return
        path = self._free_path(str(node.args[_WEIGHTS].target).removesuffix("weight") + "bias")
        self.set_value(path, bias)
        with self.before(node):
            added = self.module.graph.get_attr(path)
        node.args = (*node.args[:_BIAS], added, *node.args[_BIAS + 1 :])
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "bias"}

    def layer(self, node: Any) -> str:  # noqa: ANN401 - fx has no types here
        """The layer of the user's model that a node comes from."""
        if self.calls(node, *CONVOLUTIONS, "conv_transpose2d", "linear") and node.args[_WEIGHTS].op == "get_attr":
            return str(node.args[_WEIGHTS].target).removeprefix(_PREFIX).rpartition(".")[0]
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = str(stack[-1][0]) if stack else ""
        return path.removeprefix(_PREFIX) if path.startswith(_PREFIX) else str(node.name)

    def finish(self) -> None:
        """Take out what nothing reads, and make the module run the graph as it is now."""
        self.module.graph.eliminate_dead_code()
        self.module.delete_all_unused_submodules()
        self.module.graph.lint()
        self.module.recompile()

    def _name(self, node: Any) -> str:  # noqa: ANN401 - fx has no types here
        target = node.target
        is_aten = isinstance(target, load("torch")._ops.OpOverload) and target.namespace == "aten"  # noqa: SLF001 - the type
        return str(target.overloadpacket.__name__) if is_aten else ""

    def _free_path(self, path: str) -> str:
        taken = {str(node.target) for node in self.nodes if node.op == "get_attr"}
        return path if path not in taken else f"{path}_zeros"


def capture(model: Model, example: Tensors) -> tuple[Graph, int | None]:
    """Trace a torch model, for any number of rows where it takes them.

    Args:
        model: With a module.
        example: Rows of every input.

    Returns:
        The graph, and the number of rows that it takes at once; ``None`` when any.

    Raises:
        ExportError: It cannot be traced; the message says why.
    """
    if model.module is None:
        raise ExportError(f"{model.label}: no torch module to trace")
    if model.batch is not None:
        return _captured(model, model.module, example, rows=model.batch), model.batch
    try:
        return _captured(model, model.module, example, rows=None), None
    except ExportError:
        return _captured(model, model.module, example, rows=1), 1


def _captured(model: Model, module: "nn.Module", example: Tensors, *, rows: int | None) -> Graph:
    try:
        return Graph(_positional(trace(model, example, rows=rows)))
    except Exception as error:  # torch.export raises whatever the user's code and its own passes raise
        raise ExportError(explain(error, module)) from error


def trace(model: Model, example: Tensors, *, rows: int | None) -> Any:  # noqa: ANN401 - torch.export has no types here
    """The exported program of a module, for so many rows; ``None`` means any number. Raises what torch and the model raise."""
    torch = load("torch")
    names = [spec.name for spec in model.inputs]
    arguments = tuple(torch.from_numpy(rows_of(example[name], rows or 2)) for name in names)
    shapes = None if rows else (tuple({0: torch.export.Dim(BATCH)} for _ in names),)
    with quiet():
        return torch.export.export(model.module, arguments, dynamic_shapes=shapes)


def rows_of(array: Any, count: int) -> Any:  # noqa: ANN401 - any array
    """So many rows, repeated from the first ones."""
    return np.resize(array, (count, *array.shape[1:])).copy()


def _positional(program: Any) -> "torch.fx.GraphModule":  # noqa: ANN401 - torch.export has no types here
    """The program as a module with weights as attributes, one variable argument, and no checks of its own."""
    fx = load("torch.fx")
    with quiet():
        module = program.module()
    graph, places = fx.Graph(), {}
    given = graph.placeholder("*tensors")
    count = 0
    outputs: Sequence[Any] = ()
    for node in module.graph.nodes:
        if node.op == "placeholder":
            places[node] = graph.call_function(_item(), (given, count))
            places[node].meta = dict(node.meta)
            count += 1
        elif node.op == "output":
            outputs = tuple(places[one] if isinstance(one, fx.Node) else one for one in node.args[0])
        elif not (node.op == "call_module" and node.target == "_guards_fn"):
            places[node] = graph.node_copy(node, places.__getitem__)
    graph.output(outputs)
    return fx.GraphModule(module, graph)  # type: ignore[no-any-return]  # loaded lazily


def _item() -> Any:  # noqa: ANN401 - a function
    return load("operator").getitem
