"""Rewrites of ONNX graphs: what the exporter of torch takes apart, and what a user's own ``.onnx`` file has.

Means over height and width become GlobalAveragePool, which onnxruntime has an integer kernel for. HardSwish and HardSigmoid
become additions, products and clips (:mod:`edgeops_converters.rewrites.hard_activations` says why), for the int8 files only.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from edgeops_converters.extras import load
from edgeops_converters.rewrites.layout import TO_FIRST, TO_LAST

_IMAGE_RANK = 4
_CLIP_AS_INPUTS = 11  # opset from which Clip takes its bounds as tensors

Step = tuple[str, Sequence[str], dict[str, Any]]
"""Operator, inputs and attributes of a node to be made."""


class OnnxGraph:
    """A graph that can be edited.

    Args:
        model: Edited in place.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - onnx has no types
        self.onnx = load("onnx")
        self.graph = model.graph
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.opset = max((one.version for one in model.opset_import if one.domain in {"", "ai.onnx"}), default=0)
        self._shapes = _shapes(self.onnx, model)
        self._taken = {name for node in model.graph.node for name in (node.name, *node.input, *node.output)}

    def nodes(self, *kinds: str) -> list[tuple[int, Any]]:
        """Position and node of each node of these kinds, last first, so that positions stay true while it is edited."""
        return [(at, node) for at, node in reversed(list(enumerate(self.graph.node))) if node.op_type in kinds]

    def rank(self, name: str) -> int | None:
        """Number of axes of a float32 tensor; ``None`` for another one, or when it is not known."""
        return self._shapes.get(name)

    def attribute(self, node: Any, name: str, default: Any) -> Any:  # noqa: ANN401 - onnx has no types
        """An attribute, or what the operator has without it."""
        found = [one for one in node.attribute if one.name == name]
        return self.onnx.helper.get_attribute_value(found[0]) if found else default

    def integers(self, name: str) -> list[int] | None:
        """The values of a constant; ``None`` when it is none."""
        if name not in self.constants:
            return None
        return [int(one) for one in self.onnx.numpy_helper.to_array(self.constants[name]).reshape(-1)]

    def number(self, near: str, value: float) -> str:
        """Add a constant."""
        name = self.free(f"{near}_constant")
        self.graph.initializer.append(self.onnx.numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    def free(self, name: str) -> str:
        """A name that nothing has yet."""
        found, count = name, 0
        while found in self._taken or found in self.constants:
            count += 1
            found = f"{name}_{count}"
        self._taken.add(found)
        return found

    def replace(self, at: int, steps: Sequence[Step]) -> None:
        """Put a chain of operators in the place of a node with one output.

        Args:
            at: Position of the node.
            steps: Operator, inputs and attributes; an input ``""`` is what the step before gives.
        """
        old = self.graph.node[at]
        name, output = old.name or output_name(old), old.output[0]
        del self.graph.node[at]
        before = ""
        for index, (kind, inputs, attributes) in enumerate(steps):
            gives = output if index == len(steps) - 1 else self.free(f"{output}_{kind.lower()}")
            takes = [one or before for one in inputs]
            made = self.onnx.helper.make_node(kind, takes, [gives], name=self.free(f"{name}_{kind}"), **attributes)
            self.graph.node.insert(at + index, made)
            before = gives


def output_name(node: Any) -> str:  # noqa: ANN401 - onnx has no types
    """The name of what a node gives, for a node without one."""
    return str(node.output[0])


def pool_means(graph: OnnxGraph) -> tuple[str, ...]:
    """Rewrite ReduceMean over height and width; gives the names of the nodes."""
    changed = []
    for at, node in graph.nodes("ReduceMean"):
        axes = list(graph.attribute(node, "axes", [])) or (
            graph.integers(node.input[1]) if len(node.input) > 1 else None
        )
        if graph.rank(node.input[0]) != _IMAGE_RANK or {axis % _IMAGE_RANK for axis in axes or ()} != {2, 3}:
            continue
        changed.append(node.name or output_name(node))
        steps: list[Step] = [("GlobalAveragePool", [node.input[0]], {})]
        if not graph.attribute(node, "keepdims", 1):
            steps.append(("Flatten", [""], {"axis": 1}))
        graph.replace(at, steps)
    return tuple(reversed(changed))


def integer_hard_activations(graph: OnnxGraph) -> tuple[str, ...]:
    """Rewrite HardSigmoid and HardSwish; gives the names of the nodes."""
    changed = []
    for at, node in graph.nodes("HardSigmoid", "HardSwish"):
        source, output = node.input[0], output_name(node)
        if graph.rank(source) is None or graph.opset < _CLIP_AS_INPUTS:
            continue
        changed.append(node.name or output)
        is_swish = node.op_type == "HardSwish"
        alpha, beta = (
            (1 / 6, 0.5) if is_swish else (graph.attribute(node, "alpha", 0.2), graph.attribute(node, "beta", 0.5))
        )
        low, one, slope, offset = (graph.number(output, value) for value in (0.0, 1.0, float(alpha), float(beta)))
        gate: list[Step] = [("Mul", [source, slope], {}), ("Add", ["", offset], {}), ("Clip", ["", low, one], {})]
        graph.replace(at, [*gate, ("Mul", [source, ""], {})] if is_swish else gate)
    return tuple(reversed(changed))


Pass = Callable[[OnnxGraph], tuple[str, ...]]

PASSES: dict[str, Pass] = {"means over space as global average pooling": pool_means}
"""What is done → the pass; for every ONNX file."""
INTEGER_PASSES: dict[str, Pass] = {"hard activations in integers": integer_hard_activations}
"""The same, for what int8 files are made from."""


def apply(passes: dict[str, Pass], model: Any) -> dict[str, tuple[str, ...]]:  # noqa: ANN401 - onnx has no types
    """Run passes in order on a model; gives what was done, and at which nodes."""
    done = {title: run(OnnxGraph(model)) for title, run in passes.items()}
    return {title: names for title, names in done.items() if names}


def turn_inputs(model: Any, names: Collection[str]) -> None:  # noqa: ANN401 - onnx has no types
    """Let some image inputs take channels last; one transpose each."""
    graph, helper = OnnxGraph(model), load("onnx").helper
    for value in model.graph.input:
        if value.name not in names:
            continue
        turned = graph.free(f"{value.name}_channels_first")
        for node in model.graph.node:
            for at, name in enumerate(node.input):
                if name == value.name:
                    node.input[at] = turned
        axes = list(value.type.tensor_type.shape.dim)
        copies = [type(axes[0]).FromString(axes[axis].SerializeToString()) for axis in TO_LAST]
        for axis, copied in zip(axes, copies, strict=True):
            axis.CopyFrom(copied)
        model.graph.node.insert(
            0,
            helper.make_node(
                "Transpose", [value.name], [turned], name=graph.free(f"{turned}_node"), perm=list(TO_FIRST)
            ),
        )


def _shapes(onnx: Any, model: Any) -> dict[str, int]:  # noqa: ANN401 - onnx has no types
    """Name → rank of the float32 tensors that are known."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    known = [(one.name, one.type.tensor_type) for one in (*inferred.input, *inferred.value_info, *inferred.output)]
    return {
        name: len(found.shape.dim)
        for name, found in known
        if found.HasField("shape") and found.elem_type == onnx.TensorProto.FLOAT
    }
