"""Reading a ``.tflite`` file that nobody has vouched for: its structure first, since LiteRT trusts what it is given.

LiteRT follows indices and sizes in a file without asking, so :func:`check_structure` asks. What is meant by the integers of a
quantised file is left to :mod:`edgeops_converters.dequantizers`.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from edgeops.errors import ExportError
from edgeops.tensors import PROTOCOL_NAMES, TensorSpec
from edgeops_converters.extras import load
from edgeops_converters.model_file import LARGEST_BYTES, ModelFile

SIGNATURE = "serving_default"
_IDENTIFIER = b"TFL3"
_VERSION = 3
_MOST_ELEMENTS = 1 << 31
BATCH = "batch"


def schema() -> Any:  # noqa: ANN401 - LiteRT has no types
    """The generated classes of the format."""
    return load("ai_edge_litert.schema_py_generated")


def names_of(kind: str) -> dict[int, str]:
    """Number → name of an enumeration of the schema, for example ``TensorType``."""
    return {number: name for name, number in vars(getattr(schema(), kind)).items() if not name.startswith("_")}


def read_litert(path: Path) -> ModelFile:
    """Read and check a TFLite file with one subgraph.

    Raises:
        ExportError: It is damaged, or has what a bundle cannot carry: control flow, state between calls, sizes that are
            known at run time only.
    """
    content, model = parse_litert(path)
    graph = _only_graph(model, path)
    notes, is_changed = _complete(model, path)
    inputs, outputs = _signature(model)
    sizes = {int(graph.tensors[index].shape[0]) if _rank(graph.tensors[index]) else 0 for index in inputs.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ExportError(f"{path}: its inputs take {sorted(sizes)} rows at once; expected one number of rows for all")
    batch = sizes.pop()
    named = {index: graph.tensors[index].name.decode() for index in (*inputs.values(), *outputs.values())}
    return ModelFile(
        format="tflite",
        precision=_precision(model),
        content=packed(model) if is_changed else content,
        batch=batch,
        inputs=tuple(_spec(name, graph.tensors[index], path) for name, index in inputs.items()),
        outputs=tuple(_spec(name, graph.tensors[index], path) for name, index in outputs.items()),
        input_tensors={name: named[index] for name, index in inputs.items()},
        output_tensors={name: named[index] for name, index in outputs.items()},
        notes=tuple(notes),
    )


def parse_litert(path: Path) -> tuple[bytes, Any]:
    """The bytes, and the object form of the schema (``ModelT``), of a file whose structure is sound.

    Raises:
        ExportError: It cannot be read, or its structure is damaged.
    """
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise ExportError(f"{path}: {path.stat().st_size / 1e9:.1f} GB, where a .tflite holds at most 2.1 GB")
        content = path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: not a readable .tflite file: {error}") from error
    if content[4:8] != _IDENTIFIER:
        raise ExportError(
            f"{path}: not a readable .tflite file: bytes 4 to 8 are {content[4:8]!r}, not {_IDENTIFIER!r}"
        )
    try:
        model = unpacked(content)
        check_structure(model)
    except ExportError as error:
        raise ExportError(f"{path}: not a readable .tflite file: {error}") from error
    except Exception as error:  # an offset that leads nowhere ends in whatever Python meets there
        raise ExportError(f"{path}: not a readable .tflite file: an offset in it leads nowhere ({error})") from error
    return content, model


def check_structure(model: Any) -> None:  # noqa: ANN401 - LiteRT has no types
    """Hold every index and every size of a file against what it points to.

    Raises:
        ExportError: One is wrong.
    """
    if model.version != _VERSION or not model.subgraphs or not model.buffers:
        raise ExportError(f"expected schema {_VERSION} with a subgraph and buffers, got schema {model.version}")
    for graph in model.subgraphs:
        tensors = graph.tensors or []
        for tensor in tensors:
            _check_tensor(tensor, model)
        if not len(_list(graph.outputs)):
            raise ExportError("a subgraph has no outputs")
        ends = [*_list(graph.inputs), *_list(graph.outputs)]
        _check_indices("a subgraph", ends, len(tensors), lowest=0)
        for operator in graph.operators:
            _check_indices("an operator code", [operator.opcodeIndex], len(model.operatorCodes or []), lowest=0)
            # -1 stands for an input that is left out.
            for indices in (operator.inputs, operator.intermediates):
                _check_indices("an operator", _list(indices), len(tensors), lowest=-1)
            _check_indices("an operator", _list(operator.outputs), len(tensors), lowest=0)
    buffers = [*(entry.buffer for entry in model.metadata or []), *_list(model.metadataBuffer)]
    _check_indices("metadata", buffers, len(model.buffers), lowest=0)
    for one in model.signatureDefs or []:
        _check_indices("a signature", [one.subgraphIndex], len(model.subgraphs), lowest=0)
        count = len(model.subgraphs[one.subgraphIndex].tensors or [])
        ends = [end.tensorIndex for end in (*one.inputs, *one.outputs)]
        _check_indices("a signature", ends, count, lowest=0)


def element_bits(kind: int) -> int | None:
    """Bits that one element of a tensor type takes in a buffer; ``None`` for what has no fixed size."""
    types = schema().TensorType
    known = {
        types.FLOAT32: 32, types.FLOAT16: 16, types.BFLOAT16: 16, types.FLOAT64: 64, types.INT64: 64, types.UINT64: 64,
        types.INT32: 32, types.UINT32: 32, types.INT16: 16, types.UINT16: 16, types.INT8: 8, types.UINT8: 8, types.BOOL: 8,
        types.INT4: 4, types.COMPLEX64: 64, types.COMPLEX128: 128,
    }  # fmt: skip
    return known.get(kind)


def is_quantized(graph: Any) -> bool:  # noqa: ANN401 - LiteRT has no types
    """Whether a tensor has integers that stand for other numbers."""
    return any(has_scale(tensor) for tensor in graph.tensors)


def has_scale(tensor: Any) -> bool:  # noqa: ANN401 - LiteRT has no types
    """Whether the integers of a tensor stand for other numbers."""
    types = schema().TensorType
    integers = {types.INT8, types.UINT8, types.INT16, types.INT32, types.INT64, types.INT4, types.UINT16}
    parameters = tensor.quantization
    return tensor.type in integers and parameters is not None and len(_list(parameters.scale)) > 0


def holds_data(model: Any, tensor: Any) -> bool:  # noqa: ANN401 - LiteRT has no types
    """Whether a tensor is a constant."""
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def kind_of(model: Any, operator: Any) -> int:  # noqa: ANN401 - LiteRT has no types
    """The operator as a ``BuiltinOperator``; files before 2021 have it in a field of one byte."""
    code = model.operatorCodes[operator.opcodeIndex]
    return int(max(code.builtinCode, code.deprecatedBuiltinCode))


def operator_name(model: Any, operator: Any) -> str:  # noqa: ANN401 - LiteRT has no types
    """What an operator is called; a custom one by its own name."""
    kind = kind_of(model, operator)
    custom = model.operatorCodes[operator.opcodeIndex].customCode
    if kind == schema().BuiltinOperator.CUSTOM and custom:
        return f"CUSTOM {custom.decode(errors='replace')}"
    return names_of("BuiltinOperator").get(kind, f"operator {kind}")


def unpacked(content: bytes) -> Any:  # noqa: ANN401 - LiteRT has no types
    """The object form of a file, with ends that can be changed."""
    model = schema().ModelT.InitFromPackedBuf(content, 0)
    for graph in model.subgraphs or []:
        graph.inputs, graph.outputs = ([int(index) for index in _list(ends)] for ends in (graph.inputs, graph.outputs))
        graph.operators = graph.operators
        for tensor in graph.tensors or []:
            tensor.name = tensor.name or b""
            tensor.name.decode()  # the format says UTF-8; what is not is damaged
    for one in model.signatureDefs or []:
        one.signatureKey, one.inputs, one.outputs = one.signatureKey or b"", one.inputs or [], one.outputs or []
        one.signatureKey.decode()
        for end in (*one.inputs, *one.outputs):
            end.name = end.name or b""
            end.name.decode()
    return model


def compact(model: Any) -> None:  # noqa: ANN401 - LiteRT has no types
    """Drop the tensors of the first subgraph that nothing reads or gives, and the buffers of none; in place."""
    graph = model.subgraphs[0]
    used = {*graph.inputs, *graph.outputs}
    for operator in graph.operators:
        for ends in (operator.inputs, operator.outputs, operator.intermediates):
            used.update(int(index) for index in _list(ends) if index >= 0)
    places = {index: place for place, index in enumerate(sorted(used))} | {-1: -1}
    graph.tensors = [graph.tensors[index] for index in sorted(used)]
    graph.inputs, graph.outputs = ([places[index] for index in ends] for ends in (graph.inputs, graph.outputs))
    for operator in graph.operators:
        for end in ("inputs", "outputs", "intermediates"):
            if getattr(operator, end) is not None:
                setattr(operator, end, [places[int(index)] for index in getattr(operator, end)])
    for one in (*model.signatureDefs[0].inputs, *model.signatureDefs[0].outputs):
        one.tensorIndex = places[one.tensorIndex]
    # The first buffer is empty by the format's rule: what has no data points to it.
    readers = [*graph.tensors, *(model.metadata or [])]
    kept = sorted({0, *(reader.buffer for reader in readers), *(int(index) for index in _list(model.metadataBuffer))})
    places = {index: place for place, index in enumerate(kept)}
    model.buffers = [model.buffers[index] for index in kept]
    for reader in readers:
        reader.buffer = places[reader.buffer]
    if model.metadataBuffer is not None:
        model.metadataBuffer = [places[int(index)] for index in model.metadataBuffer]


def packed(model: Any) -> bytes:  # noqa: ANN401 - LiteRT has no types
    """The file of an object form."""
    builder = load("flatbuffers").Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _check_tensor(tensor: Any, model: Any) -> None:  # noqa: ANN401 - LiteRT has no types
    name = tensor.name.decode()
    shape = [int(size) for size in _list(tensor.shape)]
    elements = int(np.prod(shape, dtype=object)) if shape else 1
    if any(size < 0 for size in shape) or elements > _MOST_ELEMENTS:
        raise ExportError(f"tensor {name!r} has the shape {shape}")
    if tensor.type not in names_of("TensorType"):
        raise ExportError(f"tensor {name!r} has the unknown type {tensor.type}")
    _check_indices(f"tensor {name!r}", [tensor.buffer], len(model.buffers), lowest=0)
    data, bits = model.buffers[tensor.buffer].data, element_bits(tensor.type)
    if data is not None and len(data) and bits is not None and tensor.sparsity is None:
        expected = -(-elements * bits // 8)
        if len(data) != expected:
            raise ExportError(f"tensor {name!r} has {len(data)} bytes where its shape {shape} takes {expected}")
    parameters = tensor.quantization
    scales = _list(parameters.scale) if parameters is not None else []
    if len(scales):
        axis = int(parameters.quantizedDimension)
        is_each = len(scales) > 1
        if is_each and (not 0 <= axis < len(shape) or len(scales) != shape[axis]):
            raise ExportError(f"tensor {name!r} has {len(scales)} scales along dimension {axis} of its shape {shape}")
        if len(_list(parameters.zeroPoint)) not in {0, 1, len(scales)}:
            raise ExportError(f"tensor {name!r} has {len(parameters.zeroPoint)} zero points and {len(scales)} scales")
        if not np.isfinite(np.asarray(scales, np.float64)).all() or np.min(scales) < 0:
            raise ExportError(f"tensor {name!r} has a scale that is negative or not finite")


def _check_indices(where: str, indices: Any, count: int, *, lowest: int) -> None:  # noqa: ANN401 - a list or an array
    wrong = [int(index) for index in indices if not lowest <= int(index) < count]
    if wrong:
        raise ExportError(f"{where} points to number {wrong[0]} of {count}")


def _only_graph(model: Any, path: Path) -> Any:  # noqa: ANN401 - LiteRT has no types
    graph = model.subgraphs[0]
    kinds = sorted({operator_name(model, one) for one in graph.operators})
    if len(model.subgraphs) > 1:
        flow = [
            name for name in kinds if name in {"IF", "WHILE", "CALL_ONCE", "STABLEHLO_WHILE", "STABLEHLO_COMPOSITE"}
        ]
        raise ExportError(
            f"{path}: has {len(model.subgraphs)} subgraphs ({', '.join(flow) or 'several signatures'}); a bundle holds models "
            "with one"
        )
    state = [tensor.name.decode() for tensor in graph.tensors if tensor.isVariable]
    state += [name for name in kinds if name in {"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"}]
    if state:
        raise ExportError(f"{path}: keeps state between calls ({state[0]}), so that rows would depend on each other")
    if not len(_list(graph.inputs)):
        raise ExportError(f"{path}: takes no input")
    return graph


def _complete(model: Any, path: Path) -> tuple[list[str], bool]:  # noqa: ANN401 - LiteRT has no types
    """Give the file a signature, names that are told apart, and a float interface; says what a person should know."""
    graph = model.subgraphs[0]
    is_changed = _name_ends(graph)
    if len(model.signatureDefs or []) > 1:  # several ways into one graph
        known = [one.signatureKey.decode() for one in model.signatureDefs]
        raise ExportError(f"{path}: has the signatures {', '.join(known)}; a bundle holds models with one")
    # No engine needs the signature, the quantiser does; so a file that ships as it is keeps the one it has.
    is_changed = (sign(model) and not is_quantized(graph)) or is_changed
    opened = _open_interface(model)
    if not opened:
        return [], is_changed
    return [f"the integers of {', '.join(opened)} are behind a float32 interface now, with the file's own scale"], True


def _name_ends(graph: Any) -> bool:  # noqa: ANN401 - LiteRT has no types
    """Engines and quantisers find inputs and outputs by the name of the tensor; so there must be one, and no other like it."""
    count = Counter(tensor.name for tensor in graph.tensors)
    is_changed = False
    for title, indices in (("input", graph.inputs), ("output", graph.outputs)):
        for position, index in enumerate(indices):
            tensor = graph.tensors[int(index)]
            if tensor.name and count[tensor.name] == 1:
                continue
            name = f"{title}_{position}".encode()
            while count[name]:
                name += b"_"
            tensor.name, is_changed = name, True
            count[name] += 1
    return is_changed


def sign(model: Any) -> bool:  # noqa: ANN401 - LiteRT has no types
    """Give a file the signature that the quantiser looks for, with every input and output; whether something changed.

    A quantiser may leave a signature behind that names a tensor that is gone; its name goes to the one without.
    """
    graph = model.subgraphs[0]
    before = model.signatureDefs[0] if model.signatureDefs else _signature_without_ends()
    is_right = before.signatureKey == SIGNATURE.encode()
    for title, indices in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        ends = getattr(before, title)
        names = {end.tensorIndex: end.name for end in ends if end.tensorIndex in indices}
        gone = [end.name for end in ends if end.tensorIndex not in indices]
        nameless = [index for index in indices if index not in names]
        is_right = is_right and not gone and not nameless
        for index in nameless:
            is_only = len(nameless) == len(gone) == 1
            names[index] = gone[0] if is_only else graph.tensors[index].name
        setattr(before, title, [_end(names[index], index) for index in indices] if gone or nameless else ends)
    before.signatureKey, model.signatureDefs = SIGNATURE.encode(), [before]
    return not is_right


def _signature_without_ends() -> Any:  # noqa: ANN401 - LiteRT has no types
    signed = schema().SignatureDefT()
    signed.inputs, signed.outputs = [], []
    return signed


def _end(name: bytes, index: int) -> Any:  # noqa: ANN401 - LiteRT has no types
    end = schema().TensorMapT()
    end.name, end.tensorIndex = name, index
    return end


def _open_interface(model: Any) -> list[str]:  # noqa: ANN401 - LiteRT has no types
    """Put an operator that quantises behind each integer input, and one that takes the scale away before each output."""
    graph, builtin = model.subgraphs[0], schema().BuiltinOperator
    opened = []
    for indices, kind in ((graph.inputs, builtin.QUANTIZE), (graph.outputs, builtin.DEQUANTIZE)):
        for position, index in enumerate(indices):
            inner = graph.tensors[index]
            if not has_scale(inner):
                continue
            name = inner.name.decode()
            outer, place = schema().TensorT(), len(graph.tensors)
            outer.name, outer.type = inner.name, schema().TensorType.FLOAT32
            outer.shape, outer.shapeSignature, outer.hasRank = inner.shape, inner.shapeSignature, inner.hasRank
            outer.buffer = _empty_buffer(model)
            inner.name = f"{name}_quantized".encode()
            graph.tensors.append(outer)
            operator = schema().OperatorT()
            operator.opcodeIndex = _code(model, kind)
            is_input = kind == builtin.QUANTIZE
            operator.inputs, operator.outputs = ([place], [index]) if is_input else ([index], [place])
            graph.operators.insert(0 if is_input else len(graph.operators), operator)
            indices[position] = place
            for end in (*model.signatureDefs[0].inputs, *model.signatureDefs[0].outputs):
                if end.tensorIndex == index:
                    end.tensorIndex = place
            opened.append(name)
    return opened


def _empty_buffer(model: Any) -> int:  # noqa: ANN401 - LiteRT has no types
    model.buffers.append(schema().BufferT())
    return len(model.buffers) - 1


def _code(model: Any, kind: int) -> int:  # noqa: ANN401 - LiteRT has no types
    code = schema().OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = kind
    code.version = 2  # the first that knows int8
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _signature(model: Any) -> tuple[dict[str, int], dict[str, int]]:  # noqa: ANN401 - LiteRT has no types
    """Public name → tensor, of inputs and outputs, in the order of the graph."""
    graph, signed = model.subgraphs[0], model.signatureDefs[0]
    found = []
    for indices, ends in ((graph.inputs, signed.inputs), (graph.outputs, signed.outputs)):
        names = {end.tensorIndex: end.name.decode() for end in ends}
        found.append({names[int(index)]: int(index) for index in indices})
    return found[0], found[1]


def _spec(name: str, tensor: Any, path: Path) -> TensorSpec:  # noqa: ANN401 - LiteRT has no types
    kind = names_of("TensorType")[tensor.type]
    numpy_name = {"FLOAT32": "float32", "FLOAT16": "float16", "BOOL": "bool", "FLOAT64": "float64"}.get(
        kind, kind.lower()
    )
    shape = [int(size) for size in _list(tensor.shape)]
    signed = [int(size) for size in _list(tensor.shapeSignature)] or shape
    if numpy_name not in PROTOCOL_NAMES or not shape:
        raise ExportError(f"{path}: {name!r}: {numpy_name} of rank {len(shape)} cannot be served by rows")
    unknown = [index for index, size in enumerate(signed) if size < 0 and index]
    if unknown:
        raise ExportError(
            f"{path}: {name!r}: the size of dimension {unknown[0]} is known at run time only; write the file with a fixed one"
        )
    return TensorSpec(name=name, dtype=PROTOCOL_NAMES[numpy_name], shape=(BATCH, *shape[1:]))


def _precision(model: Any) -> str:  # noqa: ANN401 - LiteRT has no types
    graph = model.subgraphs[0]
    halves = [one for one in graph.tensors if one.type == schema().TensorType.FLOAT16 and holds_data(model, one)]
    return "int8" if is_quantized(graph) else "float16" if halves else "float32"


def _rank(tensor: Any) -> int:  # noqa: ANN401 - LiteRT has no types
    return len(_list(tensor.shape))


def _list(values: Any) -> Any:  # noqa: ANN401 - an array of the schema, or nothing
    return [] if values is None else values
