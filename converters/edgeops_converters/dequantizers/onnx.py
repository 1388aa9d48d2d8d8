"""ONNX: the float model inside a graph of QuantizeLinear and DequantizeLinear.

onnxruntime's quantiser takes a rectifier out where the integers behind it cannot hold what it would cut off; it is put back.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.errors import ExportError
from edgeops_converters.extras import load
from edgeops_converters.model_file import ModelFile

_RECTIFIED = {"Add", "BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul", "Mul", "Sub"}
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def dequantize_onnx(file: ModelFile) -> ModelFile:
    """See :data:`edgeops_converters.dequantizers.DEQUANTIZERS`."""
    onnx = load("onnx")
    model = onnx.load_model_from_string(file.content)
    graph = model.graph
    nested = [node.name or node.op_type for node in graph.node if any(one.HasField("g") for one in node.attribute)]
    if nested or model.functions:
        raise ExportError(
            f"a quantised model with branches or functions ({', '.join(nested) or 'functions'}) stays as it is"
        )
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = _float_nodes(graph, constants)
    used = {name for node in nodes for name in node.input}
    _replace(graph.node, nodes)
    _replace(graph.initializer, [tensor for name, tensor in constants.items() if name in used])
    del graph.value_info[:]  # they name types that are no more
    return replace(file, precision="float32", content=model.SerializeToString(deterministic=True), notes=())


def _float_nodes(graph: Any, constants: dict[str, Any]) -> list[Any]:  # noqa: ANN401 - onnx has no types
    """The nodes without those between float and integers; decoded weights join the constants."""
    onnx = load("onnx")
    inputs, outputs = {value.name for value in graph.input}, {value.name for value in graph.output}
    makers = {name: node.op_type for node in graph.node for name in node.output}
    same: dict[str, str] = {}  # tensor → the float tensor that it stands for
    kept = []
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = same.get(name, name)
        is_decoding, is_encoding = node.op_type == _DEQUANTIZE, node.op_type == _QUANTIZE
        is_codes = is_decoding and node.input[0] in inputs and not _is_float(graph, node.input[0])
        is_end = is_codes or (is_encoding and node.output[0] in outputs)
        if is_decoding and node.input[0] in constants:
            constants[node.output[0]] = onnx.numpy_helper.from_array(_decoded(node, constants), node.output[0])
        elif is_end or not (is_decoding or is_encoding):
            kept.append(node)  # at an end the caller gives or takes integers
        else:
            rectifier = _rectifier(node, constants) if makers.get(node.input[0]) in _RECTIFIED else None
            kept += [rectifier] if rectifier is not None else []
            same[node.output[0]] = node.input[0] if rectifier is None else rectifier.output[0]
            if node.output[0] in outputs:
                kept.append(onnx.helper.make_node("Identity", [same[node.output[0]]], [node.output[0]], name=node.name))
    return kept


def _rectifier(node: Any, constants: dict[str, Any]) -> Any:  # noqa: ANN401 - onnx has no types
    """What a node cuts off when nothing below zero is among its integers; ``None`` otherwise."""
    onnx, bounds = load("onnx"), _bounds(node, constants)
    if bounds is None:
        return None
    names = [f"{node.output[0]}_{end}" for end in ("low", "high")]
    constants |= {name: onnx.numpy_helper.from_array(bound, name) for name, bound in zip(names, bounds, strict=True)}
    return onnx.helper.make_node("Clip", [node.input[0], *names], [f"{node.output[0]}_rectified"], name=node.name)


def _replace(field: Any, items: Iterable[Any]) -> None:  # noqa: ANN401 - protobuf has no types
    """Fill a repeated field anew; what is in it goes with it, so that copies are needed."""
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)


def _bounds(node: Any, constants: Any) -> tuple[Any, Any] | None:  # noqa: ANN401 - onnx has no types
    """Zero and the largest number that the integers hold, where nothing below zero is among them."""
    if node.op_type != _QUANTIZE or not all(name in constants for name in node.input[1:] if name):
        return None
    arrays = [load("onnx").numpy_helper.to_array(constants[name]) for name in node.input[1:] if name]
    scale, zero = arrays[0], arrays[1] if len(arrays) > 1 else np.zeros((), np.uint8)
    if scale.size > 1 or zero.dtype.kind not in "iu" or int(zero.reshape(())) != np.iinfo(zero.dtype).min:
        return None
    span = np.iinfo(zero.dtype).max - np.iinfo(zero.dtype).min
    return np.zeros((), scale.dtype), np.asarray(scale.reshape(()) * scale.dtype.type(span))


def _is_float(graph: Any, name: str) -> bool:  # noqa: ANN401 - onnx has no types
    types = load("onnx").TensorProto
    found = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    return found.get(name) in {types.FLOAT, types.FLOAT16}


def _decoded(node: Any, constants: Any) -> NDArray[np.float32]:  # noqa: ANN401 - onnx has no types
    """What the integers of a constant stand for; the operator's definition."""
    onnx = load("onnx")
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    if attributes.get("block_size", 0):
        raise ExportError(f"{node.name or node.output[0]}: weights with a scale for each block stay as they are")
    missing = [name for name in node.input if name and name not in constants]
    if missing:
        raise ExportError(f"{node.name or node.output[0]}: the scale {missing[0]!r} of constant weights is no constant")
    arrays = [onnx.numpy_helper.to_array(constants[name]).astype(np.float64) for name in node.input if name]
    values, scale = arrays[:2]
    zero = arrays[2] if len(arrays) > 2 else np.zeros_like(scale)  # noqa: PLR2004 - data, scale, zero point
    if scale.size > 1:
        shape = [1] * values.ndim
        shape[int(attributes.get("axis", 1))] = scale.size
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    else:
        scale, zero = scale.reshape(()), zero.reshape(())
    return np.asarray((values - zero) * scale, np.float32)
