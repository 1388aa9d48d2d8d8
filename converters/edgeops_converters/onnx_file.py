"""Reading an ``.onnx`` file that nobody has vouched for, and making it self-contained.

Weights that lie in other files are taken in when those are in the folder of the model, and refused by name when they are not:
a path in a model file may name anything on the disk.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgeops.errors import ExportError
from edgeops.tensors import PROTOCOL_NAMES, TensorSpec
from edgeops_converters.extras import load, quiet
from edgeops_converters.model_file import LARGEST_BYTES, ModelFile

HIGHEST_OPSET = 21  # of onnxruntime 1.18, the oldest that is promised
HIGHEST_IR = 10
_LOWEST_OPSET = 13  # the first in which DequantizeLinear has an axis
_LOWEST_IR = 4  # the first in which a constant need not be an input too
_INTEGER_OPERATORS = {
    "ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm", "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat", "MatMulNBits",
}  # fmt: skip


def read_onnx(path: Path) -> ModelFile:
    """Read, check and complete an ONNX file.

    Raises:
        ExportError: It is damaged, newer than devices are, larger than one file can be, or its external data are missing or
            outside of its folder.
    """
    onnx = load("onnx")
    model = parse_onnx(path)
    check_age(model, str(path))
    external = external_files(model, path)
    _check_size(path, external)
    notes = [f"external data of {path.name} is in the file now: {', '.join(external)}"] if external else []
    try:
        with quiet():
            onnx.external_data_helper.load_external_data_for_model(model, str(path.absolute().parent))
            onnx.checker.check_model(model)
    except Exception as error:  # protobuf's, onnx's and the operating system's errors share no base class
        raise ExportError(f"{path}: not a readable .onnx file: {_said(error)}") from error
    _hide_constants(model)
    notes += _raise_opset(model, path)
    strip(model)
    specs = [_spec(value, path) for value in model.graph.input]
    sizes = {spec.shape[0] for spec in specs if isinstance(spec.shape[0], int)}
    if len(sizes) > 1:
        raise ExportError(f"{path}: its inputs take {sorted(sizes)} rows at once; expected one number of rows for all")
    return ModelFile(
        format="onnx",
        precision="int8" if _is_quantized(model, path) else "float32",
        content=model.SerializeToString(deterministic=True),
        batch=int(sizes.pop()) if sizes else None,
        inputs=tuple(specs),
        outputs=tuple(_spec(value, path, is_output=True) for value in model.graph.output),
        input_tensors={spec.name: spec.name for spec in specs},
        output_tensors={value.name: value.name for value in model.graph.output},
        notes=tuple(notes),
    )


def parse_onnx(path: Path) -> Any:  # noqa: ANN401 - onnx has no types
    """The file as it is, without its external data.

    Raises:
        ExportError: It cannot be read.
    """
    try:
        model = load("onnx").load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's and the operating system's errors share no base class
        raise ExportError(f"{path}: not a readable .onnx file: {_said(error)}") from error
    if not model.graph.node:
        raise ExportError(f"{path}: not a readable .onnx file: it has no operators")
    return model


def external_files(model: Any, path: Path) -> dict[str, int]:  # noqa: ANN401 - onnx has no types
    """Location of external data, as the model names it → bytes that it takes from there.

    Raises:
        ExportError: One is missing, too short, or not inside the folder of the model.
    """
    folder = path.absolute().parent.resolve()
    found: dict[str, int] = {}
    for tensor in _tensors(model):
        if tensor.data_location != tensor.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        file = (folder / location).resolve() if location and "\0" not in location else folder
        where = f"{path}: tensor {tensor.name!r}: external data {location!r}"
        if Path(location).is_absolute() or not file.is_relative_to(folder):
            raise ExportError(f"{where} lies outside the folder of the model; copy it beside the .onnx file")
        if not file.is_file():
            raise ExportError(f"{where} is not there; it belongs beside the .onnx file")
        size = file.stat().st_size
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries.get("length", size - offset))
        except ValueError as error:
            raise ExportError(f"{where}: {error}") from error
        if offset < 0 or length < 0 or offset + length > size:
            raise ExportError(f"{where}: expected {length} bytes at {offset}, the file has {size}")
        found[location] = found.get(location, 0) + length
    return found


def check_age(model: Any, label: str) -> None:  # noqa: ANN401 - onnx has no types
    """Refuse what is newer than devices are; a newer container around older operators is written as an older one.

    Raises:
        ExportError: The operators, or the container, are newer than anything here knows.
    """
    opset = _opset(model)
    if opset > HIGHEST_OPSET:
        raise ExportError(f"{label}: opset {opset} is newer than devices have; export it with opset {HIGHEST_OPSET}")
    if model.ir_version > load("onnx").IR_VERSION:
        raise ExportError(
            f"{label}: ONNX version {model.ir_version} is newer than {load('onnx').IR_VERSION}, the newest that is known here"
        )
    model.ir_version = min(model.ir_version, HIGHEST_IR)


def strip(model: Any) -> None:  # noqa: ANN401 - onnx has no types
    """Take out what only a debugger reads: stack traces, source paths, and the exporter's own names."""
    model.doc_string = ""
    del model.metadata_props[:]
    for proto in (model.graph, *model.functions):
        proto.doc_string = ""
        del proto.metadata_props[:]
        values = [] if proto is not model.graph else [*proto.input, *proto.output, *proto.initializer]
        for part in (*proto.node, *proto.value_info, *values):
            part.doc_string = ""
            del part.metadata_props[:]


def _check_size(path: Path, external: dict[str, int]) -> None:
    total = path.stat().st_size + sum(external.values())
    if total > LARGEST_BYTES:
        raise ExportError(
            f"{path}: {total / 1e9:.1f} GB with its external data, where one file holds at most {LARGEST_BYTES / 1e9:.1f} GB; "
            "a bundle has one self-contained file for each variant"
        )


def _hide_constants(model: Any) -> None:  # noqa: ANN401 - onnx has no types
    """A constant that is listed as an input too could be replaced by the caller; engines fold it only when it cannot."""
    constants = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in constants]
    if len(kept) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, _LOWEST_IR)


def _raise_opset(model: Any, path: Path) -> list[str]:  # noqa: ANN401 - onnx has no types
    """Write old operators in their newer form, in place; says so."""
    before = _opset(model)
    if before >= _LOWEST_OPSET:
        return []
    try:
        with quiet():
            newer = load("onnx.version_converter").convert_version(model, _LOWEST_OPSET)
    except Exception as error:  # onnx's converter raises plain exceptions of many kinds
        raise ExportError(
            f"{path}: opset {before} does not convert to {_LOWEST_OPSET}, the oldest that is quantised: {_said(error)}"
        ) from error
    model.CopyFrom(newer)
    return [f"operators of opset {before} are written as those of opset {_LOWEST_OPSET}"]


def _is_quantized(model: Any, path: Path) -> bool:  # noqa: ANN401 - onnx has no types
    kinds = {node.op_type for node in model.graph.node}
    integer = sorted(kinds & _INTEGER_OPERATORS | {kind for kind in kinds if kind.startswith("QLinear")})
    if integer:
        raise ExportError(
            f"{path}: is quantised with the operators {', '.join(integer)}, which have no float form to measure against; "
            "give the float model, or the same in QuantizeLinear and DequantizeLinear"
        )
    return bool(kinds & {"QuantizeLinear", "DequantizeLinear"})


def _spec(value: Any, path: Path, *, is_output: bool = False) -> TensorSpec:  # noqa: ANN401 - onnx has no types
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise ExportError(
            f"{path}: {value.name!r} is a {value.type.WhichOneof('value') or 'thing without a type'}, no tensor"
        )
    try:
        dtype = np.dtype(load("onnx").helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    except (KeyError, TypeError) as error:
        raise ExportError(f"{path}: {value.name!r} has the unknown type {tensor.elem_type}") from error
    dimensions = [
        dimension.dim_value if dimension.dim_value > 0 else dimension.dim_param or f"dim{index}"
        for index, dimension in enumerate(tensor.shape.dim)
    ]
    is_open = is_output and not tensor.HasField("shape")
    if dtype not in PROTOCOL_NAMES or not (dimensions or is_open):
        raise ExportError(f"{path}: {value.name!r}: {dtype} of rank {len(dimensions)} cannot be served by rows")
    return TensorSpec(name=value.name, dtype=PROTOCOL_NAMES[dtype], shape=tuple(dimensions))


def _tensors(model: Any) -> Iterator[Any]:  # noqa: ANN401 - onnx has no types
    """Every tensor of the file, also those in attributes and in the bodies of loops and functions."""
    graphs, nodes = [model.graph], [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
            continue
        for attribute in nodes.pop().attribute:
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
            graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _opset(model: Any) -> int:  # noqa: ANN401 - onnx has no types
    return max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
