"""Reading and running ONNX graphs for quantisation: layers, what flows between them, and the integers of a QDQ file."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.extras import load, quiet
from edgeops_converters.graph import Node, NodeKind
from edgeops_converters.layers import FloatArray, Geometry

_CHANNELWISE = {"Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
_CHUNK_BYTES = 96 << 20  # of all tensors that are looked at once


@dataclass(frozen=True)
class OnnxLayer:
    """A convolution or matrix product of a graph.

    Attributes:
        name: Of its node.
        label: In the user's model: the path of its weights, where the file still has it.
        geometry: Where it looks.
        input: Tensor that it reads; likewise ``output``.
        weights: Name of its weight tensor; likewise ``bias``.
        is_transposed: Whether the weights are stored as ``(in, out)``.
    """

    name: str
    label: str
    geometry: Geometry
    input: str
    output: str
    weights: str
    bias: str
    is_transposed: bool = False

    def arrange(self, array: NDArray[Any]) -> FloatArray:
        """Stored weights as shape ``(out, in / groups, *kernel)``."""
        return np.asarray(array.T if self.is_transposed else array, np.float64)


def initializers(graph: Any) -> dict[str, NDArray[Any]]:  # noqa: ANN401 - onnx has no types
    """Name → value of every constant."""
    to_array = load("onnx").numpy_helper.to_array
    return {tensor.name: to_array(tensor) for tensor in graph.initializer}


def read_layers(graph: Any) -> list[OnnxLayer]:  # noqa: ANN401 - onnx has no types
    """Convolutions and matrix products with constant weights and a bias that are theirs alone, in the order of the graph."""
    found: list[OnnxLayer] = []
    constants = {tensor.name for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        attributes = {one.name: load("onnx").helper.get_attribute_value(one) for one in node.attribute}
        held = list(node.input[1:])
        if len(held) != 2 or any(name not in constants or readers[name] > 1 for name in held):  # noqa: PLR2004 - weights, bias
            continue
        taken = {layer.label for layer in found}
        if node.op_type == "Conv" and attributes.get("auto_pad", b"NOTSET") == b"NOTSET":
            found.append(_layer(node, _geometry(attributes), taken))
        elif node.op_type == "Gemm" and _is_plain(attributes):
            found.append(_layer(node, Geometry(), taken, is_transposed=not attributes.get("transB", 0)))
    return found


def read_nodes(graph: Any) -> list[Node]:  # noqa: ANN401 - onnx has no types
    """Every operator, with what it does to channels."""
    constants, layers = initializers(graph), {layer.name for layer in read_layers(graph)}
    givers = {name: node.op_type for node in graph.node for name in node.output}
    found = []
    for node in graph.node:
        reads = tuple(name for name in node.input if name and name not in constants)
        kind, cap = _kind(node, layers, constants, givers)
        found.append(Node(node.name, reads, tuple(name for name in node.output if name), kind, cap))
    return found


def _kind(
    node: Any,  # noqa: ANN401 - onnx has no types
    layers: Collection[str],
    constants: Mapping[str, NDArray[Any]],
    givers: Mapping[str, str],
) -> tuple[NodeKind, float]:
    """What an operator does to channels, and where it cuts values."""
    held = [constants[name] for name in node.input if name in constants]
    if node.name in layers:
        return NodeKind.LAYER, math.inf
    if node.op_type == "Add" and not held:
        return NodeKind.SUM, math.inf
    if node.op_type in _CHANNELWISE:
        return NodeKind.CHANNELWISE, math.inf
    if node.op_type == "Clip" and len(held) == 2 and float(held[0].reshape(-1)[0]) == 0:  # noqa: PLR2004 - both ends
        return NodeKind.CHANNELWISE, float(held[1].reshape(-1)[0])
    # Behind a global pool the channels are all that there is.
    if node.op_type in {"Reshape", "Flatten"} and givers.get(node.input[0]) == "GlobalAveragePool":
        return NodeKind.CHANNELWISE, math.inf
    return NodeKind.OTHER, math.inf


def complete(graph: Any) -> None:  # noqa: ANN401 - onnx has no types
    """Give every node a name, every convolution a bias, and matrix products with constants the form that has one."""
    onnx = load("onnx")
    weights, taken = initializers(graph), {node.name for node in graph.node}
    for index, node in enumerate(graph.node):
        if not node.name:
            node.name = next(name for name in _candidates(f"{node.op_type}_{index}") if name not in taken)
            taken.add(node.name)
        if node.op_type == "Conv" and len(node.input) == 2 and node.input[1] in weights:  # noqa: PLR2004 - no bias
            bias = f"{node.name}_bias"
            graph.initializer.append(
                onnx.numpy_helper.from_array(np.zeros(len(weights[node.input[1]]), np.float32), bias)
            )
            node.input.append(bias)
    _products_to_gemm(graph, weights)


def _products_to_gemm(graph: Any, constants: Mapping[str, NDArray[Any]]) -> None:  # noqa: ANN401 - onnx has no types
    """MatMul with a constant, and the addition behind it, as Gemm: that has a 32-bit bias, where an addition has eight bits."""
    onnx = load("onnx")
    shapes = {
        value.name: [one.dim_value if one.HasField("dim_value") else None for one in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input)
    }
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    ends, dropped, made = {value.name for value in graph.output}, set[str](), dict[str, list[Any]]()
    for node in graph.node:
        shape = shapes.get(node.input[0]) if node.op_type == "MatMul" else None
        held = constants.get(node.input[1]) if shape else None
        if shape is None or held is None or held.ndim != 2 or len(shape) < 2 or None in shape[1:]:  # noqa: PLR2004 - a matrix
            continue
        added, bias = _addition(node.output[0], readers, constants, ends, len(held[0]))
        output = added.output[0] if added is not None else node.output[0]
        if bias is None:
            bias = f"{node.name}_bias"
            graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(len(held[0]), np.float32), bias))
        if added is not None:
            dropped.add(added.name)
        made[node.name] = _gemm(node, bias, output, [*shape[:-1], *held.shape], graph=graph)
    nodes = [one for node in graph.node if node.name not in dropped for one in made.get(node.name, [node])]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _addition(
    tensor: str, readers: Mapping[str, list[Any]], constants: Mapping[str, NDArray[Any]], ends: set[str], channels: int
) -> tuple[Any, str | None]:
    """The node that alone reads a product and adds a constant vector, and the name of that vector."""
    behind = readers.get(tensor, [])
    if len(behind) != 1 or behind[0].op_type != "Add" or tensor in ends:
        return None, None
    other = next((name for name in behind[0].input if name != tensor), "")
    if other not in constants or constants[other].shape != (channels,):
        return None, None
    return behind[0], other


def _gemm(node: Any, bias: str, output: str, shape: list[int | None], *, graph: Any) -> list[Any]:  # noqa: ANN401 - onnx has no types
    """A product of shape ``(*rows, in, out)`` as Gemm, which takes matrices only."""
    onnx = load("onnx")
    make = onnx.helper.make_node
    *rows, inputs, outputs = shape
    if len(rows) == 1:
        return [make("Gemm", [node.input[0], node.input[1], bias], [output], name=node.name)]
    flat, product = f"{node.name}_rows", f"{node.name}_product"
    shapes = {f"{flat}_shape": [-1, inputs], f"{product}_shape": [-1, *rows[1:], outputs]}
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(value, np.int64), name) for name, value in shapes.items()
    )
    return [
        make("Reshape", [node.input[0], f"{flat}_shape"], [flat], name=f"{node.name}_flatten"),
        make("Gemm", [flat, node.input[1], bias], [product], name=node.name),
        make("Reshape", [product, f"{product}_shape"], [output], name=f"{node.name}_restore"),
    ]


def exposing(model: Any, names: Iterable[str]) -> Any:  # noqa: ANN401 - onnx has no types
    """A copy of the model with more tensors as outputs."""
    onnx = load("onnx")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return copy


def prefix(model: Any, names: Iterable[str]) -> Any:  # noqa: ANN401 - onnx has no types
    """A copy of the model with only what these tensors take, and only them as outputs."""
    onnx = load("onnx")
    wanted, nodes = set(names), []
    outputs = sorted(wanted)
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            nodes.append(node)
            wanted.update(node.input)
    copy = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    copy.graph.name = model.graph.name
    copy.graph.node.extend(reversed(nodes))
    copy.graph.input.extend(model.graph.input)
    copy.graph.initializer.extend(one for one in model.graph.initializer if one.name in wanted)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return copy


def stream(
    model: Any,  # noqa: ANN401 - onnx has no types
    source: Artifact,
    rows: Tensors,
    *,
    is_plain: bool = False,
) -> Iterator[dict[str, NDArray[Any]]]:
    """Run rows a few at a time and give inputs and outputs of the model; memory does not depend on the number of rows.

    Args:
        model: With everything exposed that is wanted.
        source: Says how the inputs are called and how many rows it takes at once.
        rows: Manifest name → rows.
        is_plain: Without fusing anything, so that every tensor has the value that its name says.

    Yields:
        Tensor name → array.
    """
    ort = load("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # neighbours need the cores too
    if is_plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with quiet():
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    total = len(next(iter(rows.values())))
    start, size = 0, source.batch or 1
    while start < total:
        wanted = np.arange(start, start + size)
        count = min(size, total - start)
        # A fixed batch is filled up with copies of the last row.
        indices = np.minimum(wanted, total - 1) if source.batch else wanted[:count]
        feed = {wire: rows[name][indices] for name, wire in source.inputs.items()}
        values = dict(zip(names, session.run(names, feed), strict=True))
        yield values | feed
        start += size
        if source.batch is None:
            size = max(
                1, min(64, _CHUNK_BYTES * len(indices) // max(1, sum(array.nbytes for array in values.values())))
            )


@dataclass(frozen=True)
class Codes:
    """A tensor as integers: ``(integers − zero) × scale`` is what they stand for.

    Attributes:
        tensor: Name of the integers.
        scale: A number, or one for each channel.
        zero: Likewise.
        axis: Of the channels.
        scale_tensor: Name of the scale, where it is to be changed.
    """

    tensor: str
    scale: FloatArray
    zero: FloatArray
    axis: int
    scale_tensor: str = ""

    def decode(self, integers: NDArray[Any]) -> FloatArray:
        """What the integers stand for."""
        return (integers.astype(np.float64) - self._along(self.zero, integers.ndim)) * self._along(
            self.scale, integers.ndim
        )

    def encode(self, values: FloatArray) -> NDArray[np.int32]:
        """The nearest 32-bit integers; the zero point of a bias is 0."""
        limit = np.iinfo(np.int32)
        scale = np.where(self.scale > 0, self.scale, 1.0)
        return np.clip(np.rint(values / scale), limit.min, limit.max).astype(np.int32)

    def _along(self, values: FloatArray, rank: int) -> FloatArray:
        if values.size == 1:
            return values.reshape(())
        shape = [1] * rank
        shape[self.axis] = values.size
        return values.reshape(shape)


@dataclass(frozen=True)
class IntegerLayer:
    """A layer of a QDQ file.

    Attributes:
        input: The integers that it reads; likewise ``bias``.
        codes: Of its weights.
        weights: What they stand for, as stored.
    """

    input: Codes
    bias: Codes
    codes: Codes
    weights: FloatArray


def read_integer_layers(graph: Any) -> dict[str, IntegerLayer]:  # noqa: ANN401 - onnx has no types
    """Name → layer, of those with data, weights and bias in integers."""
    constants = initializers(graph)
    codes = {
        node.output[0]: _codes(node, constants)
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[1] in constants
    }
    found = {}
    for node in graph.node:
        parts = [codes.get(name) for name in node.input]
        if node.op_type not in {"Conv", "Gemm"} or len(parts) != 3 or None in parts:  # noqa: PLR2004 - data, weights, bias
            continue
        data, weights, bias = (part for part in parts if part is not None)
        if weights.tensor in constants and bias.tensor in constants and data.tensor not in constants:
            found[node.name] = IntegerLayer(data, bias, weights, weights.decode(constants[weights.tensor]))
    return found


def _codes(node: Any, constants: Mapping[str, NDArray[Any]]) -> Codes:  # noqa: ANN401 - onnx has no types
    attributes = {one.name: load("onnx").helper.get_attribute_value(one) for one in node.attribute}
    scale = np.asarray(constants[node.input[1]], np.float64)
    has_zero = len(node.input) > 2 and bool(node.input[2])  # noqa: PLR2004 - data, scale, zero point
    zero = np.asarray(constants[node.input[2]], np.float64) if has_zero else np.zeros_like(scale)
    return Codes(node.input[0], scale, zero, int(attributes.get("axis", 1)), scale_tensor=node.input[1])


def _layer(node: Any, geometry: Geometry, taken: set[str], *, is_transposed: bool = False) -> OnnxLayer:  # noqa: ANN401 - onnx has no types
    return OnnxLayer(
        name=node.name,
        label=next(label for label in _candidates(label_of(node) or str(node.name)) if label not in taken),
        geometry=geometry,
        input=node.input[0],
        output=node.output[0],
        weights=node.input[1],
        bias=node.input[2],
        is_transposed=is_transposed,
    )


def label_of(node: Any) -> str | None:  # noqa: ANN401 - onnx has no types
    """The module that weights or bias of a node belong to; ``None`` where neither has its name."""
    for name, kind in zip(node.input[1:], ("weight", "bias"), strict=False):
        path, dot, what = str(name).removeprefix("module.").rpartition(".")
        if dot and what == kind:
            return path
    return None


def _geometry(attributes: Mapping[str, Any]) -> Geometry:
    axes = len(attributes["kernel_shape"])
    pads = list(attributes.get("pads", [0] * 2 * axes))
    return Geometry(
        strides=tuple(attributes.get("strides", [1] * axes)),
        dilations=tuple(attributes.get("dilations", [1] * axes)),
        pads=tuple(zip(pads[:axes], pads[axes:], strict=True)),
        groups=int(attributes.get("group", 1)),
    )


def _is_plain(attributes: Mapping[str, Any]) -> bool:
    return not attributes.get("transA", 0) and attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0


def _candidates(name: str) -> Iterator[str]:
    yield name
    index = 0
    while True:
        index += 1
        yield f"{name}_{index}"
