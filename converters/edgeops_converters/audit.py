"""What really runs in integers: the convolutions and matrix products of a file, as its engine has them after loading.

A quantised file says what ought to run in integers; only the engine knows what does. For ONNX the graph that onnxruntime has
after all its optimisations is read, for TFLite the types in the operators of the file, which LiteRT's kernels follow.
"""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from edgeops.errors import EngineError
from edgeops_converters.artifact import Artifact
from edgeops_converters.extras import load, quiet
from edgeops_converters.quantizers.litert_graph import LitertFile

_RECURRENT = {
    "LSTM": "onnxruntime runs an LSTM in integers only with precision dynamic",
    "GRU": "onnxruntime has no integer form of a GRU",
}
_INTEGER = {
    "QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm",
    "QAttention", "DynamicQuantizeLSTM",
}  # fmt: skip
_FLOAT = {
    "Conv",
    "FusedConv",
    "NhwcFusedConv",
    "ConvTranspose",
    "MatMul",
    "FusedMatMul",
    "Gemm",
    "FusedGemm",
    "Attention",
    *_RECURRENT,
}


class FloatLayer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A convolution or matrix product that is left in float.

    Attributes:
        layer: As the file calls it.
        reason: Why, as far as the engine's graph shows it.
    """

    layer: str
    reason: str


class Audit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many of the convolutions and matrix products run in integers.

    Attributes:
        integer: So many do.
        total: Of so many.
        in_float: The others.
    """

    integer: int
    total: int
    in_float: tuple[FloatLayer, ...] = ()

    @property
    def percent(self) -> float:
        """Share in integers; 100 when there is nothing to run."""
        return 100 * self.integer / self.total if self.total else 100.0

    @property
    def text(self) -> str:
        """One line for people.

        >>> Audit(integer=1, total=2, in_float=(FloatLayer(layer="head", reason="its input is float32"),)).text
        '1 of 2 convolutions and matrix products in int8; in float: head (its input is float32)'
        """
        said = f"{self.integer} of {self.total} convolutions and matrix products in int8"
        left = ", ".join(f"{one.layer} ({one.reason})" for one in self.in_float)
        return f"{said}; in float: {left}" if left else said


def audit(artifact: Artifact) -> Audit:
    """Look at what the engine makes of a file.

    Raises:
        EngineError: The engine does not load it.
    """
    return _AUDITS[artifact.format](artifact.path)


def _audit_onnx(path: Path) -> Audit:
    onnx, ort = load("onnx"), load("onnxruntime")
    with tempfile.TemporaryDirectory() as scratch:
        optimised = Path(scratch) / "optimised.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(optimised)
        try:
            with quiet():
                ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
                nodes = list(onnx.load(str(optimised)).graph.node)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise EngineError(f"{path}: onnxruntime does not load it: {error}") from error
    return _counted(
        sum(node.op_type in _INTEGER for node in nodes),
        (FloatLayer(layer=node.name, reason=_reason(node, nodes)) for node in nodes if node.op_type in _FLOAT),
    )


def _reason(node: Any, nodes: Iterable[Any]) -> str:  # noqa: ANN401 - onnx has no types
    """What keeps a node of the optimised graph in float."""
    if node.op_type in _RECURRENT:
        return _RECURRENT[node.op_type]
    given_by = {name: one.op_type for one in nodes for name in one.output}
    readers = sorted({one.op_type for one in nodes if set(node.output) & set(one.input)})
    if given_by.get(node.input[0]) != "DequantizeLinear":
        return f"{node.op_type} reads float from {given_by.get(node.input[0], 'an input of the model')}"
    if readers != ["QuantizeLinear"]:
        return f"{node.op_type} is read in float by {', '.join(readers) or 'an output of the model'}"
    return f"onnxruntime has no integer kernel for this {node.op_type} on this CPU"


def _audit_litert(path: Path) -> Audit:
    file = LitertFile(path.read_bytes())
    integer, left = 0, []
    for kind, inputs, outputs in file.products:
        types = [str(file.details[index]["dtype"].__name__) for index in (inputs[0], inputs[1], outputs[0])]
        # Rows in float with weights in integers: the kernel finds the range of the rows, and multiplies in integers.
        is_dynamic = types[0] == types[2] == "float32" and types[1] == "int8"
        if is_dynamic or all(found.startswith(("int8", "int16")) for found in types):
            integer += 1
            continue
        ends = ("its input", "its weights", "its output")
        said = next(f"{end} is {found}" for end, found in zip(ends, types, strict=True) if not found.startswith("int"))
        left.append(FloatLayer(layer=file.details[outputs[0]]["name"], reason=f"{kind}: {said}"))
    return _counted(integer, left)


def _counted(integer: int, left: Iterable[FloatLayer]) -> Audit:
    in_float = tuple(left)
    return Audit(integer=integer, total=integer + len(in_float), in_float=in_float)


_AUDITS: dict[str, Callable[[Path], Audit]] = {"onnx": _audit_onnx, "tflite": _audit_litert}
