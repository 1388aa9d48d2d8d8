"""A module as a graph of operators whose weights are still the module's own: what pruning reads and what the rehearsal runs.

The graph is that of ``torch.export`` before any decomposition, in eval mode: convolutions, batch norms and additions as the
author wrote them. Weights are inputs of the graph and are looked up in the module by name whenever it runs, so that training
the module trains the graph.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeops.errors import ExportError
from edgeops.processing import Tensors
from edgeops_converters.extras import load, quiet
from edgeops_converters.failures import explain
from edgeops_converters.sources import BATCH

if TYPE_CHECKING:
    import torch
    from torch import fx, nn
    from torch.export import ExportedProgram

_TRACED_ROWS = 2


@dataclass(frozen=True)
class Trace:
    """A module's graph.

    Attributes:
        program: As exported; its placeholders are weights, constants and inputs.
        weights: Placeholder → name of the parameter or buffer in the module.
        constants: Placeholder → tensor that is neither.
        inputs: Placeholders of the inputs, in the order of ``parameters``.
        parameters: Names in ``forward``'s signature.
        is_dynamic: Whether the graph takes any number of rows.
    """

    program: "ExportedProgram"
    weights: "dict[fx.Node, str]"
    constants: "dict[fx.Node, torch.Tensor]"
    inputs: "tuple[fx.Node, ...]"
    parameters: tuple[str, ...]
    is_dynamic: bool

    @property
    def nodes(self) -> "list[fx.Node]":
        """In the order in which they run."""
        return list(self.program.graph.nodes)

    @property
    def outputs(self) -> "list[fx.Node]":
        """What the graph gives, in the order of the flattened outputs."""
        return list(self.program.graph.output_node().all_input_nodes)


def trace(module: "nn.Module", rows: Tensors, *, is_dynamic: bool) -> Trace:
    """Export a module in eval mode.

    Args:
        module: The user's.
        rows: At least two of every input, by the names of :func:`arguments`.
        is_dynamic: Whether the graph is to take any number of rows, where the module can; two otherwise.

    Raises:
        ExportError: It does not export; the message names the layer.
    """
    given = arguments(module, rows, _TRACED_ROWS)
    modes = {layer: layer.training for layer in module.modules()}
    module.eval()
    try:
        program = _export_dynamic(module, given) if is_dynamic else None
        if program is None:
            program = _export(module, given, None)
    except Exception as error:  # torch.export raises whatever the user's code and its own checks raise
        raise ExportError(f"{type(module).__name__}: cannot be traced: {explain(error, module)}") from error
    finally:
        for layer, mode in modes.items():
            layer.training = mode
    kinds = load("torch.export.graph_signature").InputKind
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    weights, constants, inputs = {}, {}, []
    for node in placeholders:
        spec = specs[node.name]
        if spec.kind == kinds.USER_INPUT:
            inputs.append(node)
        elif spec.target in program.constants:
            constants[node] = program.constants[spec.target]
        else:
            weights[node] = spec.target
    sizes = [node.meta["val"].shape[0] for node in inputs]
    return Trace(program, weights, constants, tuple(inputs), tuple(given), not any(isinstance(s, int) for s in sizes))


def arguments(module: "nn.Module", rows: Tensors, count: int | None = None) -> "dict[str, torch.Tensor]":
    """Parameter of ``forward`` → rows; one input goes to the one parameter, whatever it is called.

    Args:
        module: The user's.
        rows: Of every input.
        count: How many rows; all when ``None``, repeated when there are fewer.
    """
    torch = load("torch")
    parameters = inspect.signature(module.forward).parameters
    named = {name: rows[name] for name in parameters if name in rows}
    if len(named) < len(rows):
        required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
        named = {required[0]: next(iter(rows.values()))}
    return {
        name: torch.from_numpy(np.resize(array, (count if count is not None else len(array), *array.shape[1:])).copy())
        for name, array in named.items()
    }


def layer_of(node: "fx.Node") -> str:
    """The innermost layer of the user's model that an operator belongs to, for messages."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", "")
    kind = kind if isinstance(kind, str) else kind.__qualname__
    name = str(path).removeprefix("L['self'].") or "forward"
    return f"{name} ({kind.rsplit('.', 1)[-1]})"


def _export_dynamic(module: "nn.Module", given: "Mapping[str, torch.Tensor]") -> "ExportedProgram | None":
    """With any number of rows; ``None`` where the module fixes it."""
    torch = load("torch")
    try:
        return _export(module, given, {name: {0: torch.export.Dim(BATCH)} for name in given})
    except Exception:  # noqa: BLE001 - what is wrong with the module itself is said when it is exported for a fixed number
        return None


def _export(
    module: "nn.Module",
    given: "Mapping[str, torch.Tensor]",
    shapes: Any,  # noqa: ANN401 - torch.export's own
) -> "ExportedProgram":
    # By place where they are the first parameters, because that is how a loaded program can be called then.
    is_leading = list(given) == list(inspect.signature(module.forward).parameters)[: len(given)]
    places, names = (tuple(given.values()), {}) if is_leading else ((), dict(given))
    with quiet():
        return load("torch").export.export(module, places, names, dynamic_shapes=shapes)  # type: ignore[no-any-return]
