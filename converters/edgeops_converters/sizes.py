"""Where the bytes of a model file go: weights, biases, and the rest, which is what a format costs."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from edgeops_converters.artifact import Artifact
from edgeops_converters.extras import load

_BIAS = 2  # the place of the bias among the inputs of a convolution or matrix product, in both formats


class Sizes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes of a model file.

    Attributes:
        weights: Constants that are multiplied, looked up or added, except biases.
        biases: Of convolutions and matrix products.
        rest: The graph, names, scales, zero points and shapes.
    """

    weights: int
    biases: int
    rest: int


def break_down(artifact: Artifact) -> Sizes:
    """Count the bytes of a model file, which its engine is known to load."""
    weights, biases = _COUNTS[artifact.format](artifact.path)
    return Sizes(weights=weights, biases=biases, rest=artifact.size_bytes - weights - biases)


def _count_onnx(path: Path) -> tuple[int, int]:
    onnx = load("onnx")
    graph = onnx.load(str(path)).graph
    decoded, parameters = {}, set()
    for node in graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            parameters.update(node.input[1:])
            decoded[node.output[0]] = node.input[0]
    biases = {
        decoded.get(node.input[_BIAS], node.input[_BIAS])
        for node in graph.node
        if node.op_type in {"Conv", "ConvTranspose", "Gemm"} and len(node.input) > _BIAS
    }
    sizes = {
        tensor.name: int(onnx.numpy_helper.to_array(tensor).nbytes)
        for tensor in graph.initializer
        # Shapes, axes and indices are 64-bit integers.
        if tensor.name not in parameters and tensor.data_type != onnx.TensorProto.INT64
    }
    bias_bytes = sum(size for name, size in sizes.items() if name in biases)
    return sum(sizes.values()) - bias_bytes, bias_bytes


def _count_litert(path: Path) -> tuple[int, int]:
    schema = load("ai_edge_litert.schema_py_generated")
    model, builtin = schema.Model.GetRootAs(path.read_bytes(), 0), schema.BuiltinOperator
    products = {builtin.CONV_2D, builtin.DEPTHWISE_CONV_2D, builtin.FULLY_CONNECTED}
    graph = model.Subgraphs(0)
    biases = set()
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = model.OperatorCodes(operator.OpcodeIndex())
        if max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) in products and operator.InputsLength() > _BIAS:
            biases.add(operator.Inputs(_BIAS))
    sizes, bias_buffers = {}, set[int]()
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        buffer = model.Buffers(tensor.Buffer())
        # Shapes, axes and indices are 32-bit integers, as biases are.
        is_bias = index in biases
        if is_bias or tensor.Type() not in {schema.TensorType.INT32, schema.TensorType.INT64}:
            sizes[tensor.Buffer()] = buffer.DataLength() or buffer.Size()
            bias_buffers.update({tensor.Buffer()} if is_bias else ())
    bias_bytes = sum(sizes[buffer] for buffer in bias_buffers)
    return sum(sizes.values()) - bias_bytes, bias_bytes


_COUNTS: dict[str, Callable[[Path], tuple[int, int]]] = {"onnx": _count_onnx, "tflite": _count_litert}
