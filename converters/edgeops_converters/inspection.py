"""What a model file is: its ends, its operators, where its bytes go, and what its engine makes of it.

Both formats are read into one :class:`Inspection`; showing it is left to :mod:`edgeops_converters.cli.inspect`. A file that an
engine does not load is still described.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeops.errors import EngineError, ExportError
from edgeops.files import digest_file
from edgeops_converters.artifact import Artifact
from edgeops_converters.audit import Audit, audit
from edgeops_converters.extras import load
from edgeops_converters.litert_file import (
    holds_data,
    kind_of,
    names_of,
    operator_name,
    parse_litert,
    schema,
)
from edgeops_converters.onnx_file import external_files, parse_onnx
from edgeops_converters.sessions import SESSIONS


class End(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output as the file declares it.

    Attributes:
        shape: A string names a size that is known at run time only.
        scale: Of its integers; ``None`` for numbers. With ``zero_point``: ``(integer − zero_point) × scale``.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    scale: float | None = None
    zero_point: int | None = None


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bytes of a file go.

    Attributes:
        weights: Second inputs of convolutions and matrix products.
        biases: Their third inputs.
        constants: All other constants.
        rest: The graph itself, names, and padding.
    """

    weights: int
    biases: int
    constants: int
    rest: int


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """A model file as it is.

    Attributes:
        versions: Of the format and its operators.
        operators: Name → how many, most first.
        sizes_bytes: Where the bytes go, external data included.
        external_data: Other file that it needs → bytes that it takes from there.
        engine: What its engine says to it: ``loads``, or why not.
        audit: What of its convolutions and matrix products the engine runs in integers; ``None`` when it does not load.
        remarks: What stands in the way of a bundle.
    """

    path: str
    format: str
    digest: str
    size_bytes: int
    versions: dict[str, str]
    inputs: tuple[End, ...]
    outputs: tuple[End, ...]
    operators: dict[str, int]
    sizes_bytes: Sizes
    external_data: dict[str, int] = {}
    engine: str
    audit: Audit | None = None
    remarks: tuple[str, ...] = ()


def encode_inspection(inspection: Inspection) -> bytes:
    """As JSON."""
    return msgspec.json.encode(inspection)


def decode_inspection(content: bytes) -> Inspection:
    """The way back from :func:`encode_inspection`."""
    return msgspec.json.decode(content, type=Inspection)


def inspect_file(path: Path) -> Inspection:
    """Read a model file; a damaged one may crash the engine, see :func:`edgeops_converters.rehearsal.inspect_apart`.

    Raises:
        ExportError: It is damaged, or of no known format.
    """
    if path.suffix not in INSPECTORS:
        raise ExportError(f"{path}: expected one of {', '.join(INSPECTORS)}")
    return INSPECTORS[path.suffix](path)


def _inspect_onnx(path: Path) -> Inspection:
    model = parse_onnx(path)
    external, remarks = dict[str, int](), tuple[str, ...]()
    try:
        external = external_files(model, path)
    except ExportError as error:
        remarks = (str(error),)
    graph = model.graph
    constants = {tensor.name: _onnx_bytes(tensor) for tensor in graph.initializer}
    total = path.stat().st_size + sum(external.values())
    decoded = {
        node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.output
    }
    products = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
    ends = [[decoded.get(name, name) for name in node.input] for node in graph.node if node.op_type in products]
    used = {node.domain for node in graph.node} | {"" for node in graph.node if node.domain == "ai.onnx"}
    engine, audited = _tried(path, "onnx") if not remarks else ("not asked", None)
    return Inspection(
        path=str(path),
        format="onnx",
        digest=digest_file(path),
        size_bytes=path.stat().st_size,
        versions={
            "IR": str(model.ir_version),
            **{
                f"opset {entry.domain or 'ai.onnx'}": str(entry.version)
                for entry in model.opset_import
                if entry.domain in used
            },
            "producer": f"{model.producer_name} {model.producer_version}".strip(),
        },
        inputs=tuple(_onnx_end(value) for value in graph.input if value.name not in constants),
        outputs=tuple(_onnx_end(value) for value in graph.output),
        operators=_counted(
            f"{node.domain}.{node.op_type}".removeprefix(".").removeprefix("ai.onnx.") for node in graph.node
        ),
        sizes_bytes=_sizes(constants, [one[1:2] for one in ends], [one[2:3] for one in ends], total),
        external_data=external,
        engine=engine,
        audit=audited,
        remarks=remarks,
    )


def _inspect_litert(path: Path) -> Inspection:
    content, model = parse_litert(path)
    graph, builtin = model.subgraphs[0], schema().BuiltinOperator
    constants = {
        index: len(model.buffers[one.buffer].data) for index, one in enumerate(graph.tensors) if holds_data(model, one)
    }
    products = {
        builtin.CONV_2D,
        builtin.DEPTHWISE_CONV_2D,
        builtin.FULLY_CONNECTED,
        builtin.BATCH_MATMUL,
        builtin.CONV_3D,
    }
    ends = [
        [int(index) for index in (one.inputs if one.inputs is not None else [])]
        for one in graph.operators
        if kind_of(model, one) in products
    ]
    everything = [operator for one in model.subgraphs for operator in one.operators]
    signatures = [one.signatureKey.decode() for one in model.signatureDefs or []]
    engine, audited = _tried(path, "tflite") if len(model.subgraphs) == 1 else (_loads(path, "tflite"), None)
    return Inspection(
        path=str(path),
        format="tflite",
        digest=digest_file(path),
        size_bytes=len(content),
        versions={
            "schema": str(model.version),
            "description": (model.description or b"").decode(errors="replace"),
            "runtime": _least_runtime(model),
            "signatures": ", ".join(signatures),
            "subgraphs": str(len(model.subgraphs)),
        },
        inputs=tuple(_litert_end(graph.tensors[index]) for index in graph.inputs),
        outputs=tuple(_litert_end(graph.tensors[index]) for index in graph.outputs),
        operators=_counted(operator_name(model, one) for one in everything),
        sizes_bytes=_sizes(constants, [one[1:2] for one in ends], [one[2:3] for one in ends], len(content)),
        engine=engine,
        audit=audited,
        remarks=()
        if len(model.subgraphs) == 1
        else ("has several subgraphs; only the first is described by its ends",),
    )


INSPECTORS: dict[str, Callable[[Path], Inspection]] = {".onnx": _inspect_onnx, ".tflite": _inspect_litert}
"""Suffix → what reads the file."""


def _tried(path: Path, form: str) -> tuple[str, Audit | None]:
    try:
        return "loads", audit(Artifact(path, form, "", None, {}, {}))
    except (EngineError, ValueError, RuntimeError) as error:
        return _first_line(error), None


def _loads(path: Path, form: str) -> str:
    try:
        SESSIONS[form](path, {}, {})
    except EngineError as error:
        return _first_line(error)
    return "loads"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _sizes(constants: dict[Any, int], weights: Iterable[list[Any]], biases: Iterable[list[Any]], total: int) -> Sizes:
    """Sort constants by who reads them; one that is read twice counts once."""
    weighing = {name for names in weights for name in names if name in constants}
    adding = {name for names in biases for name in names if name in constants} - weighing
    other = set(constants) - weighing - adding
    counts = [sum(constants[name] for name in names) for names in (weighing, adding, other)]
    # Tensors of a file may share a buffer; then the parts are more than the whole.
    return Sizes(weights=counts[0], biases=counts[1], constants=counts[2], rest=max(0, total - sum(counts)))


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda one: (-one[1], one[0])))


def _onnx_bytes(tensor: Any) -> int:  # noqa: ANN401 - onnx has no types
    external = {entry.key: entry.value for entry in tensor.external_data}
    if tensor.raw_data or "length" not in external:
        return len(tensor.raw_data) or tensor.ByteSize()
    return int(external["length"]) if external["length"].isdigit() else 0


def _onnx_end(value: Any) -> End:  # noqa: ANN401 - onnx has no types
    tensor, names = value.type.tensor_type, load("onnx").TensorProto.DataType
    dtype = names.Name(tensor.elem_type).lower() if tensor.elem_type in names.values() else str(tensor.elem_type)
    shape = tuple(one.dim_value if one.dim_value > 0 else one.dim_param or "?" for one in tensor.shape.dim)
    return End(name=value.name, dtype=dtype, shape=shape)


def _litert_end(tensor: Any) -> End:  # noqa: ANN401 - LiteRT has no types
    signed = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    shape = tuple(int(size) if size >= 0 else "?" for size in (signed if signed is not None else []))
    parameters = tensor.quantization
    scales = parameters.scale if parameters is not None and parameters.scale is not None else []
    zeros = parameters.zeroPoint if parameters is not None and parameters.zeroPoint is not None else []
    return End(
        name=tensor.name.decode(),
        dtype=names_of("TensorType")[tensor.type].lower(),
        shape=shape,
        scale=float(scales[0]) if len(scales) else None,
        zero_point=int(zeros[0]) if len(zeros) else None,
    )


def _least_runtime(model: Any) -> str:  # noqa: ANN401 - LiteRT has no types
    """The oldest version that runs it, as its writer noted it."""
    for entry in model.metadata or []:
        data = model.buffers[entry.buffer].data if 0 <= entry.buffer < len(model.buffers) else None
        if entry.name == b"min_runtime_version" and data is not None:
            return bytes(np.asarray(data)).split(b"\0")[0].decode(errors="replace")
    return ""
