"""The entry of an int8 file that takes bytes: bytes that are only renamed on their way in are read as they are.

A model that takes bytes begins with ``s · (u − z)`` (:mod:`edgeops_converters.rewrites.entry`), and an int8 file quantises what
comes out of it. When that is quantised on the grid of the bytes themselves, the whole chain maps each byte to itself, or for
signed 8 bit to itself less 128. :func:`entry_ranges` says which tensors of a float file must get which range so that it is so;
:func:`fuse_entry` then takes the chain out of the finished file. It is tried on all 256 bytes, in the engine, and left alone
unless it is exact.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops_converters.artifact import Artifact
from edgeops_converters.extras import load, quiet
from edgeops_converters.litert_file import packed
from edgeops_converters.quantizers.litert_graph import LitertFile, stream
from edgeops_converters.ranges import Range

_BYTES = np.arange(256, dtype=np.uint8)
_MOVES = ("Transpose",)
_REQUANTISATION = 2  # operators, which is what a chain becomes
_STEPS = ("Cast", "Sub", "Mul", "QuantizeLinear", "DequantizeLinear", *_MOVES)
_LITERT_STEPS = ("CAST", "SUB", "MUL", "QUANTIZE", "TRANSPOSE")


def entry_ranges(artifact: Artifact) -> dict[str, Range]:
    """Tensors between the bytes and the first layer of a float file, and the exact range of each.

    Args:
        artifact: A float file; one whose inputs are no bytes has none.
    """
    return _RANGES[artifact.format](artifact.path)


def fuse_entry(artifact: Artifact) -> bool:
    """Let the first layer of an int8 file read bytes; the file is changed in place.

    Args:
        artifact: A finished int8 file.

    Returns:
        Whether anything was changed: not when no input takes bytes, or when the chain behind one is not exact.
    """
    return _FUSERS[artifact.format](artifact.path)


@dataclass(frozen=True)
class _Chain:
    """What lies between an input of bytes and the first layer, in an ONNX graph.

    Attributes:
        source: Name of the input.
        nodes: In order, each the only reader of the one before.
    """

    source: str
    nodes: tuple[Any, ...]


def _onnx_chains(graph: Any) -> list[_Chain]:  # noqa: ANN401 - onnx has no types
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    ends = {value.name for value in graph.output}
    bytes_type = load("onnx").TensorProto.UINT8
    chains = []
    for value in graph.input:
        if value.type.tensor_type.elem_type != bytes_type:
            continue
        nodes, name = [], value.name
        while len(readers.get(name, [])) == 1 and name not in ends and readers[name][0].op_type in _STEPS:
            nodes.append(readers[name][0])
            name = nodes[-1].output[0]
        chains.append(_Chain(value.name, tuple(nodes)))
    return chains


def _onnx_values(model: Any, chain: _Chain) -> dict[str, NDArray[Any]]:  # noqa: ANN401 - onnx has no types
    """What each tensor of a chain is for each of the 256 bytes, by onnxruntime."""
    onnx, ort = load("onnx"), load("onnxruntime")
    small = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    small.graph.name = "entry"
    small.graph.initializer.extend(model.graph.initializer)
    small.graph.node.extend(node for node in model.graph.node if _is_constant(node, model))
    renamed: dict[str, str] = {}
    for node in chain.nodes:
        if node.op_type in _MOVES:  # where a byte lies changes nothing of its value
            renamed[node.output[0]] = renamed.get(node.input[0], node.input[0])
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for at, name in enumerate(copy.input):
            copy.input[at] = renamed.get(name, name)
        small.graph.node.append(copy)
        small.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    small.graph.input.append(onnx.helper.make_tensor_value_info(chain.source, onnx.TensorProto.UINT8, [len(_BYTES)]))
    if not small.graph.output:
        return {}
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with quiet():
        session = ort.InferenceSession(small.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {chain.source: _BYTES}), strict=True))


def _is_constant(node: Any, model: Any) -> bool:  # noqa: ANN401 - onnx has no types
    """Whether a node reads constants only."""
    held = {tensor.name for tensor in model.graph.initializer}
    return bool(node.input) and {name for name in node.input if name} <= held


def _onnx_ranges(path: Path) -> dict[str, Range]:
    model = load("onnx").load(str(path))
    return {
        name: Range(float(values.min()), float(values.max()))
        for chain in _onnx_chains(model.graph)
        for name, values in _onnx_values(model, chain).items()
        if np.issubdtype(values.dtype, np.floating)
    }


def _fuse_onnx(path: Path) -> bool:
    onnx = load("onnx")
    model = onnx.load(str(path))
    fused = [_fuse_onnx_chain(model, chain) for chain in _onnx_chains(model.graph)]
    if not any(fused):
        return False
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return True


def _fuse_onnx_chain(model: Any, chain: _Chain) -> bool:  # noqa: ANN401 - onnx has no types
    last = next((at for at in reversed(range(len(chain.nodes))) if chain.nodes[at].op_type == "QuantizeLinear"), None)
    if last is None:
        return False
    end, chain = chain.nodes[last], _Chain(chain.source, chain.nodes[: last + 1])
    values = _onnx_values(model, chain)[end.output[0]]
    is_same = values.dtype == np.uint8 and np.array_equal(values, _BYTES)
    is_shifted = values.dtype == np.int8 and np.array_equal(values, _BYTES.astype(np.int16) - 128)
    if not (is_same or is_shifted):
        return False
    moves = [node for node in chain.nodes if node.op_type in _MOVES]
    if is_shifted and len(chain.nodes) - len(moves) <= _REQUANTISATION:
        return False
    made, name = [], chain.source
    for index, old in enumerate(moves):
        move = type(old)()
        move.CopyFrom(old)
        move.input[0], move.output[0] = name, f"{chain.source}_moved_{index}"
        made.append(move)
        name = move.output[0]
    made += _requantised(model, end, name) if is_shifted else []
    position = min(list(model.graph.node).index(node) for node in chain.nodes)
    for node in chain.nodes:
        model.graph.node.remove(node)
    for index, node in enumerate(made):
        model.graph.node.insert(position + index, node)
    if is_same:
        _read_instead(model.graph, end.output[0], name)
    return True


def _read_instead(graph: Any, old: str, new: str) -> None:  # noqa: ANN401 - onnx has no types
    for node in graph.node:
        for at, read in enumerate(node.input):
            if read == old:
                node.input[at] = new


def _requantised(model: Any, end: Any, name: str) -> list[Any]:  # noqa: ANN401 - onnx has no types
    """Unsigned bytes on the grid of ``end`` to signed ones: onnxruntime has no kernel that does it in one."""
    onnx = load("onnx")
    zeros = next(tensor for tensor in model.graph.initializer if tensor.name == end.input[2])
    zero = onnx.numpy_helper.to_array(zeros).astype(np.int16) + 128
    model.graph.initializer.append(onnx.numpy_helper.from_array(zero.astype(np.uint8), f"{name}_zero"))
    read = onnx.helper.make_node(
        "DequantizeLinear", [name, end.input[1], f"{name}_zero"], [f"{name}_read"], name=f"{name}_read_node"
    )
    again = type(end)()
    again.CopyFrom(end)
    again.input[0] = read.output[0]
    return [read, again]


def _litert_chain(file: LitertFile, start: int) -> list[int]:
    """Operators, by position, between an input and the first layer, each the only reader of the one before."""
    builtin = load("ai_edge_litert.schema_py_generated").BuiltinOperator
    kinds = {getattr(builtin, name) for name in _LITERT_STEPS}
    operators, chain, tensor = file.operators, list[int](), start
    while True:
        readers = [at for at, (_, inputs, _) in enumerate(operators) if tensor in inputs]
        if len(readers) != 1 or tensor in file.outputs or operators[readers[0]][0] not in kinds:
            return chain
        chain.append(readers[0])
        tensor = operators[readers[0]][2][0]


def _litert_values(file: LitertFile, start: int, chain: list[int]) -> dict[int, NDArray[Any]]:
    """What each tensor of a chain is for each of the 256 bytes, by LiteRT; without those that only move bytes about."""
    shape = tuple(int(size) for size in file.details[start]["shape"])
    count = -(-len(_BYTES) // int(np.prod(shape[1:]))) * shape[0]
    fed = np.resize(_BYTES, (count, *shape[1:]))
    others = {
        index: np.zeros((count, *file.details[index]["shape"][1:]), file.details[index]["dtype"])
        for index in file.inputs
        if index != start
    }
    wanted = [file.operators[at][2][0] for at in chain]
    parts = list(stream(bytes(file.content), {start: fed, **others}, wanted, batch=shape[0]))
    found = {}
    for at, index in zip(chain, wanted, strict=True):
        _, inputs, _ = file.operators[at]
        if _moves(file, at):
            fed = fed.transpose(file.constant(inputs[1]))
            continue
        given = np.concatenate([part[index] for part in parts])
        table = np.zeros(len(_BYTES), given.dtype)
        table[fed.reshape(-1)] = given.reshape(-1)
        found[index] = table
    return found


def _moves(file: LitertFile, at: int) -> bool:
    return bool(file.operators[at][0] == load("ai_edge_litert.schema_py_generated").BuiltinOperator.TRANSPOSE)


def _byte_inputs(file: LitertFile) -> list[int]:
    return [index for index in file.inputs if np.dtype(file.details[index]["dtype"]) == np.uint8]


def _litert_ranges(path: Path) -> dict[str, Range]:
    file = LitertFile(path.read_bytes())
    return {
        file.details[index]["name"]: Range(float(values.min()), float(values.max()))
        for start in _byte_inputs(file)
        for index, values in _litert_values(file, start, _litert_chain(file, start)).items()
        if np.issubdtype(values.dtype, np.floating)
    }


def _fuse_litert(path: Path) -> bool:
    file = LitertFile(path.read_bytes())
    ends = {start: _litert_end(file, start) for start in _byte_inputs(file)}
    found = {start: end for start, end in ends.items() if end is not None}
    if not found:
        return False
    schema = load("ai_edge_litert.schema_py_generated")
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    if any(buffer.offset > 1 for buffer in model.buffers):
        return False  # the data of very large files lie behind the flatbuffer, which packing would lose
    for start, (end, steps) in found.items():
        moved = [file.operators[at][2][0] for at in _litert_chain(file, start) if _moves(file, at) and at < steps[0]]
        _read_bytes(schema, model, [start, *moved], end, steps)
    path.write_bytes(packed(model))
    return True


def _litert_end(file: LitertFile, start: int) -> tuple[int, list[int]] | None:
    """The last tensor of a chain that holds each byte less 128, and the operators that lead to it; more than one."""
    chain = _litert_chain(file, start)
    values = _litert_values(file, start, chain)
    for length in range(len(chain), 0, -1):
        index = file.operators[chain[length - 1]][2][0]
        if index not in values or values[index].dtype != np.int8:
            continue
        steps = [at for at in chain[:length] if not _moves(file, at)]
        is_straight = (
            steps == chain[length - len(steps) : length]
        )  # bytes are moved about before the first step, if at all
        if is_straight and len(steps) > 1 and np.array_equal(values[index], _BYTES.astype(np.int16) - 128):
            return index, steps
    return None


def _read_bytes(schema: Any, model: Any, tensors: list[int], end: int, steps: list[int]) -> None:  # noqa: ANN401 - the schema has no types
    """Put one QUANTIZE in the place of operators; ``tensors`` hold the bytes, the last of them as the operators read them."""
    graph = model.subgraphs[0]
    first, gone = graph.operators[steps[0]], {id(graph.operators[at]) for at in steps}
    grid = graph.tensors[end].quantization
    for index in tensors:
        read = graph.tensors[index].quantization = schema.QuantizationParametersT()
        read.scale, read.zeroPoint = list(grid.scale), [int(zero) + 128 for zero in grid.zeroPoint]
    made = schema.OperatorT()
    made.opcodeIndex = _quantize_code(schema, model)
    made.inputs, made.outputs = [tensors[-1]], [end]
    made.builtinOptionsType, made.builtinOptions = schema.BuiltinOptions.QuantizeOptions, schema.QuantizeOptionsT()
    graph.operators = [made if one is first else one for one in graph.operators if one is first or id(one) not in gone]


def _quantize_code(schema: Any, model: Any) -> int:  # noqa: ANN401 - the schema has no types
    """Index of QUANTIZE among the file's operators; added when it is not there."""
    wanted = schema.BuiltinOperator.QUANTIZE
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == wanted:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = wanted
    code.version = 2  # the first that takes 8 bit in
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


_RANGES: Mapping[str, Callable[[Path], dict[str, Range]]] = {"onnx": _onnx_ranges, "tflite": _litert_ranges}
_FUSERS: Mapping[str, Callable[[Path], bool]] = {"onnx": _fuse_onnx, "tflite": _fuse_litert}
