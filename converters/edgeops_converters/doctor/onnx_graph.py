"""Reading an ONNX file, with the names of its nodes and its weights, into the vocabulary of the rules."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops_converters.doctor.subject import Operator, Product, Subject
from edgeops_converters.extras import load
from edgeops_converters.sources import Model
from edgeops_converters.weights import named_weights

_KINDS = {
    "Clip": "clamp", "Concat": "cat", "Conv": "conv2d", "ConvTranspose": "conv_transpose2d",
    "Gather": "embedding", "GlobalAveragePool": "adaptive_avg_pool2d", "Gemm": "linear", "GRU": "gru", "GroupNormalization":
    "group_norm", "HardSigmoid": "hardsigmoid", "HardSwish": "hardswish", "InstanceNormalization": "instance_norm",
    "LayerNormalization": "layer_norm", "LSTM": "lstm", "LogSoftmax": "log_softmax", "PRelu": "prelu",
    "RMSNormalization": "rms_norm", "RNN": "rnn_tanh", "ReduceMax": "amax", "ReduceMean": "mean", "ReduceMin": "amin",
    "ReduceSum": "sum", "CumSum": "cumsum", "Greater": "gt", "GreaterOrEqual": "ge", "Less": "lt", "LessOrEqual": "le",
    "MatMul": "matmul", "AveragePool": "avg_pool2d",
}  # fmt: skip
"""Operators of ONNX whose counterpart in ATen is not the same name in snake case."""
_VECTORS = {"pads": "padding", "strides": "stride", "axes": "dim", "mode": "mode"}
_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def read_onnx(model: Model) -> Subject:
    """Read the graph of an ONNX source."""
    onnx = load("onnx")
    graph = onnx.shape_inference.infer_shapes(
        onnx.load_from_string(model.file.content if model.file is not None else b"")
    ).graph
    weights = named_weights(model)
    constants = weights | {
        node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    readers = Counter(name for node in graph.node for name in node.input)
    followers = {name: node for node in graph.node for name in node.input if readers[name] == 1}
    operators, products = [], []
    for node in graph.node:
        if node.op_type in {"Constant", "Identity", "Dropout"}:
            continue
        operator = _operator(node, constants, ranks)
        operators.append(operator)
        if node.op_type in _PRODUCTS and len(node.input) > 1 and node.input[1] in constants:
            products.append(_product(node, operator, constants, followers.get(node.output[0])))
    dynamic = {
        value.name: names
        for value in graph.input
        if value.name not in weights and (names := _open_dimensions(value.type.tensor_type.shape))
    }
    return Subject(model.inputs, model.batch, tuple(operators), tuple(products), weights, dynamic)


def _open_dimensions(shape: Any) -> tuple[str, ...]:  # noqa: ANN401 - onnx has no types
    return tuple(
        one.dim_param or f"dimension {index}"
        for index, one in enumerate(shape.dim)
        if index and not one.HasField("dim_value")
    )


def _operator(node: Any, constants: Mapping[str, NDArray[Any]], ranks: Mapping[str, int]) -> Operator:  # noqa: ANN401 - onnx has no types
    attributes = {one.name: load("onnx").helper.get_attribute_value(one) for one in node.attribute}
    arguments = {_VECTORS[name]: value for name, value in attributes.items() if name in _VECTORS}
    if isinstance(mode := arguments.get("mode"), bytes):
        arguments["mode"] = mode.decode()
    if node.op_type.startswith("Reduce") and len(node.input) > 1 and node.input[1] in constants:
        arguments["dim"] = constants[node.input[1]].tolist()
    return Operator(
        kind=_kind(node, constants, arguments.get("mode")),
        layer=node.name or f"the {node.op_type} that gives {node.output[0]}",
        layer_kind=node.op_type,
        inputs=tuple(name for name in node.input if name and name not in constants),
        output=node.output[0],
        rank=ranks.get(node.input[0], 0) if node.input else 0,
        arguments=arguments,
    )


def _kind(node: Any, constants: Mapping[str, NDArray[Any]], mode: object) -> str:  # noqa: ANN401 - onnx has no types
    if node.op_type == "MatMul" and node.input[1] in constants:
        return "linear"
    if node.op_type == "Resize":
        return "upsample_nearest2d" if mode == "nearest" else "upsample_bilinear2d"
    if node.domain not in {"", "ai.onnx"}:
        return f"{node.domain}::{node.op_type}"
    return _KINDS.get(node.op_type, re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", node.op_type).lower())


def _product(node: Any, operator: Operator, constants: Mapping[str, NDArray[Any]], follower: Any) -> Product:  # noqa: ANN401 - onnx has no types
    weights = constants[node.input[1]]
    attributes = {one.name: one.i for one in node.attribute if one.name in {"group", "transB"}}
    groups = int(attributes.get("group", 1))
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not attributes.get("transB")):
        weights = np.moveaxis(weights, -1, 0)
    elif node.op_type == "ConvTranspose":  # stored as (in, out / groups, *kernel)
        inside, outside = weights.shape[:2]
        weights = weights.reshape(groups, inside // groups, outside, *weights.shape[2:]).swapaxes(1, 2)
        weights = weights.reshape(groups * outside, inside // groups, *weights.shape[3:])
    kind = follower.op_type if follower is not None else ""
    if kind == "BatchNormalization":
        gamma, variance = constants[follower.input[1]], constants[follower.input[4]]
        epsilon = next((one.f for one in follower.attribute if one.name == "epsilon"), 1e-5)
        weights = weights * (gamma / np.sqrt(variance + epsilon)).reshape(-1, *[1] * (weights.ndim - 1))
        return Product(operator, weights, has_bias=True, groups=groups, output=follower.output[0])
    is_added = kind == "Add" and any(name in constants for name in follower.input)
    has_bias = len(node.input) > 2 or is_added  # noqa: PLR2004 - data, weights, bias
    return Product(operator, weights, has_bias, groups, follower.output[0] if is_added else operator.output)
