"""TFLite: the float model inside a file whose tensors are integers with scales."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.errors import ExportError
from edgeops_converters.litert_file import compact, has_scale, holds_data, kind_of, packed, schema, sign, unpacked
from edgeops_converters.model_file import ModelFile


def dequantize_litert(file: ModelFile) -> ModelFile:
    """See :data:`edgeops_converters.dequantizers.DEQUANTIZERS`; float16 weights become float32 too."""
    model = unpacked(file.content)
    sign(model)
    graph, types = model.subgraphs[0], schema().TensorType
    for tensor in graph.tensors:
        data = model.buffers[tensor.buffer].data
        is_constant = holds_data(model, tensor)
        if has_scale(tensor):
            _become_float(model, tensor, _decoded(tensor, data) if is_constant else None)
        elif tensor.type == types.FLOAT16 and is_constant:
            _become_float(model, tensor, np.frombuffer(data.tobytes(), "<f2").astype("<f4"))
    _bypass(model)
    _check_biases(model)
    compact(model)
    ends = {end.tensorIndex: end.name.decode() for end in model.signatureDefs[0].outputs}
    names = {ends[index]: graph.tensors[index].name.decode() for index in graph.outputs}
    return replace(file, precision="float32", content=packed(model), output_tensors=names, notes=())


def _become_float(model: Any, tensor: Any, values: NDArray[Any] | None) -> None:  # noqa: ANN401 - LiteRT has no types
    tensor.type, tensor.quantization = schema().TensorType.FLOAT32, None
    if values is None:
        return
    buffer = schema().BufferT()
    buffer.data = np.frombuffer(values.astype("<f4").tobytes(), np.uint8)
    model.buffers.append(buffer)
    tensor.buffer = len(model.buffers) - 1


def _decoded(tensor: Any, data: NDArray[np.uint8]) -> NDArray[np.float64]:  # noqa: ANN401 - LiteRT has no types
    """What the integers of a constant stand for."""
    parameters, types = tensor.quantization, schema().TensorType
    name = tensor.name.decode()
    if parameters.detailsType or tensor.sparsity is not None:
        raise ExportError(f"tensor {name!r}: sparse weights, or those with a scale for each block, stay as they are")
    formats = {types.INT8: "<i1", types.UINT8: "<u1", types.INT16: "<i2", types.INT32: "<i4", types.INT64: "<i8"}
    shape = [int(size) for size in tensor.shape] if tensor.shape is not None else []
    count = int(np.prod(shape))
    if tensor.type == types.INT4:
        both = np.stack([data & 15, data >> 4], axis=-1).reshape(-1)[:count].astype(np.int8)
        integers = np.where(both > 7, both - 16, both)  # noqa: PLR2004 - two's complement in four bits
    elif tensor.type in formats:
        integers = np.frombuffer(data.tobytes(), formats[tensor.type])
    else:
        raise ExportError(f"tensor {name!r}: quantised in type {tensor.type}, which is not taken apart")
    values = integers.reshape(shape).astype(np.float64)
    scale = np.asarray(parameters.scale, np.float64)
    given = parameters.zeroPoint
    zero = np.zeros_like(scale) if given is None or not len(given) else np.asarray(given, np.float64)
    along = [1] * len(shape)
    if scale.size > 1:
        along[int(parameters.quantizedDimension)] = scale.size
    zero = np.broadcast_to(zero, scale.shape)
    return np.asarray((values - zero.reshape(along)) * scale.reshape(along))


def _check_biases(model: Any) -> None:  # noqa: ANN401 - LiteRT has no types
    builtin, graph = schema().BuiltinOperator, model.subgraphs[0]
    layers = {builtin.CONV_2D, builtin.DEPTHWISE_CONV_2D, builtin.FULLY_CONNECTED}
    for operator in graph.operators:
        if kind_of(model, operator) not in layers or len(operator.inputs) < 3 or operator.inputs[2] < 0:  # noqa: PLR2004 - data, weights, bias
            continue
        bias = graph.tensors[int(operator.inputs[2])]
        if bias.type in {schema().TensorType.INT32, schema().TensorType.INT64}:
            raise ExportError(f"tensor {bias.name.decode(errors='replace')!r}: a bias in integers without a scale")


def _bypass(model: Any) -> None:  # noqa: ANN401 - LiteRT has no types
    """Take out the operators between integers and float, which have float on both sides now."""
    builtin, graph = schema().BuiltinOperator, model.subgraphs[0]
    constants = {index for index, tensor in enumerate(graph.tensors) if holds_data(model, tensor)}
    produced = {int(index) for operator in graph.operators for index in operator.outputs}
    same: dict[int, int] = {}
    kept = []
    for operator in graph.operators:
        operator.inputs = [same.get(int(index), int(index)) for index in operator.inputs]
        is_between = kind_of(model, operator) in {builtin.QUANTIZE, builtin.DEQUANTIZE}
        if not is_between:
            kept.append(operator)
            continue
        source, target = operator.inputs[0], int(operator.outputs[0])
        if graph.tensors[source].type != graph.tensors[target].type:
            raise ExportError(
                f"tensor {graph.tensors[source].name.decode(errors='replace')!r}: integers without a scale"
            )
        same[target] = source
    for position, index in enumerate(graph.outputs):
        source = same.get(index, index)
        if source == index:
            continue
        if source in constants or source not in produced or source in graph.outputs:
            raise ExportError(
                f"output {graph.tensors[index].name.decode(errors='replace')!r} is an input, a constant or another output"
            )
        old, new = graph.tensors[index], graph.tensors[source]
        old.name, new.name = new.name, old.name
        graph.outputs[position] = source
        for end in model.signatureDefs[0].outputs:
            end.tensorIndex = source if end.tensorIndex == index else end.tensorIndex
    graph.operators = kept
