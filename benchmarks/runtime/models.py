"""The models that the device runtime is measured with: small ones made here in milliseconds, and the demo's network.

All of them are bundles as releases are: signed, with golden vectors, and with a drift reference where that is asked for.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import flatbuffers
import msgspec
import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgeops.binning import count_rows, statistic_values
from edgeops.bundle import Bundle, open_bundle, write_bundle
from edgeops.errors import EdgeOpsError
from edgeops.manifest import FileEntry, Lineage, Manifest, Variant
from edgeops.signals import EVERYTHING, Reference, Signal, Statistic, encode_reference
from edgeops.signing import SigningKey
from edgeops.tensors import TensorSpec
from edgeops_converters.baseline import bin_edges

BUILD = Path("build/benchmarks").absolute()
"""Where the demo's network is kept from run to run."""

IMAGE = (1, 28, 28)
"""784 floats."""
CLASSES = 10
LARGE_IMAGE = (3, 224, 224)
"""150,528 floats, 602 kB."""

_GOLDEN_ROWS = 4
_HELD_OUT_ROWS = 512
_PLACEHOLDER = FileEntry(digest="sha256:" + "0" * 64, size_bytes=0)
_SIGNALS = (
    ("input", Statistic.MEAN, 0),
    ("input", Statistic.STD, 0),
    ("input", Statistic.GRADIENT, 0),
    ("input", Statistic.PROJECTION, 1),
    ("input", Statistic.PROJECTION, 2),
    ("output", Statistic.CONFIDENCE, 0),
    ("output", Statistic.ENTROPY, 0),
    ("output", Statistic.CLASS, 0),
)
"""What the converter chooses for images."""

Floats = NDArray[np.float32]


def linear(directory: Path, version: str = "1.0.0", *, key: SigningKey | None = None, drift: bool = True) -> Bundle:
    """784 floats in, ten scores out, one matrix product: the smallest model that is one.

    Args:
        directory: The bundle goes into a new directory in it.
        version: Versions differ by a thousandth in their weights, so that they agree and have digests of their own.
        key: The release key; by default a new one.
        drift: Whether there is a drift reference.
    """
    rng = np.random.default_rng(3)
    weights = (rng.normal(0, 0.05, (784, CLASSES)) + 1e-3 * sum(map(int, version.split(".")))).astype(np.float32)
    bias = rng.normal(0, 0.05, CLASSES).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["y"]),
    ]

    def answer(rows: Floats) -> Floats:
        return rows.reshape(len(rows), -1) @ weights + bias

    return _write(
        directory / f"linear-{version}{'' if drift else '-plain'}",
        nodes,
        {"weights": weights, "bias": bias},
        IMAGE,
        answer,
        identity=("linear", version),
        key=key,
        drift=drift,
    )


def perceptron(directory: Path, *, layers: int = 10, width: int = 1024) -> Bundle:
    """Matrix products one after the other, some 4 ms of one core at the default sizes."""
    rng = np.random.default_rng(5)
    weights = [rng.normal(0, width**-0.5, (width, width)).astype(np.float32) for _ in range(layers)]
    names = ["x", *(f"h{index}" for index in range(1, layers)), "y"]
    nodes: list[NodeProto] = []
    for index in range(layers):
        nodes += [
            helper.make_node("MatMul", [names[index], f"w{index}"], [f"sum{index}"]),
            helper.make_node("Tanh", [f"sum{index}"], [names[index + 1]]),
        ]

    def answer(rows: Floats) -> Floats:
        for each in weights:
            rows = np.tanh(rows @ each)
        return rows

    constants = {f"w{index}": each for index, each in enumerate(weights)}
    return _write(
        directory / "perceptron",
        nodes,
        constants,
        (width,),
        answer,
        identity=("perceptron", "1.0.0"),
        key=None,
        drift=False,
    )


def pooling(directory: Path) -> Bundle:
    """602 kB in, the mean of each channel out: a model that does little but read a large input."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)]

    def answer(rows: Floats) -> Floats:
        return rows.mean(axis=(2, 3), dtype=np.float64).astype(np.float32)

    return _write(
        directory / "pooling", nodes, {}, LARGE_IMAGE, answer, identity=("pooling", "1.0.0"), key=None, drift=False
    )


def pooling_tflite(path: Path, shape: tuple[int, int, int]) -> Path:
    """The mean of each channel of an image, as a ``.tflite`` file for one image ``(1, height, width, channels)``."""
    channels, height, width = shape
    model, graph, code, operator = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT(), schema.OperatorT()
    axes = schema.BufferT()
    axes.data = np.frombuffer(np.array([1, 2], np.int32).tobytes(), np.uint8)
    model.version, model.buffers = 3, [schema.BufferT(), axes]
    graph.tensors = [
        _tflite_tensor("x", [1, height, width, channels], schema.TensorType.FLOAT32, 0),
        _tflite_tensor("axes", [2], schema.TensorType.INT32, 1),
        _tflite_tensor("y", [1, channels], schema.TensorType.FLOAT32, 0),
    ]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.MEAN
    operator.inputs, operator.outputs = [0, 1], [2]
    operator.builtinOptions, operator.builtinOptionsType = (
        schema.ReducerOptionsT(),
        schema.BuiltinOptions.ReducerOptions,
    )
    graph.inputs, graph.outputs, graph.operators = [0], [2], [operator]
    model.operatorCodes, model.subgraphs = [code], [graph]
    builder = flatbuffers.Builder(1 << 10)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def fashion() -> tuple[Bundle, SigningKey]:
    """The demo's network from the last ``make bench``, or from a conversion now, with the key that signed it."""
    key_file = BUILD / "release.key"
    if (found := _last_fashion()) is None:
        subprocess.run([sys.executable, "-m", "benchmarks.subject", str(BUILD)], check=True)
        found = _last_fashion()
    if found is None:
        raise RuntimeError(f"{BUILD}: expected a bundle from python -m benchmarks.subject")
    return found, SigningKey.load(key_file)


def _last_fashion() -> Bundle | None:
    for directory in sorted(BUILD.glob("fashion-*"), reverse=True):
        try:
            return open_bundle(directory, keys=[SigningKey.load(BUILD / "release.key").public])
        except EdgeOpsError:
            continue  # A conversion that was broken off, or one by another key.
    return None


def _write(
    target: Path,
    nodes: Sequence[NodeProto],
    constants: Mapping[str, Floats],
    row: tuple[int, ...],
    answer: Callable[[Floats], Floats],
    *,
    identity: tuple[str, str],
    key: SigningKey | None,
    drift: bool,
) -> Bundle:
    work = target.with_name(f"{target.name}-work")
    work.mkdir(parents=True)
    rng = np.random.default_rng(7)
    golden = rng.random((_GOLDEN_ROWS, *row)).astype(np.float32)
    expected = answer(golden)
    _save_onnx(work / "model.onnx", nodes, constants, row, expected.shape[1:])
    np.savez(work / "golden.npz", **{"input/input": golden, "output/onnx/output": expected})
    files = {name: work / name for name in ("model.onnx", "golden.npz")}
    if drift:
        held_out = rng.random((_HELD_OUT_ROWS, *row)).astype(np.float32)
        (work / "reference.json").write_bytes(encode_reference(_reference(held_out, answer(held_out))))
        files["reference.json"] = work / "reference.json"
    layout = "NCHW" if len(row) == len(IMAGE) else ""
    manifest = Manifest(
        name=identity[0],
        version=identity[1],
        created="2026-01-01T00:00:00Z",
        inputs=(TensorSpec("input", "FP32", ("batch", *row), layout),),
        outputs=(TensorSpec("output", "FP32", ("batch", *expected.shape[1:])),),
        labels=tuple(f"class-{index}" for index in range(CLASSES)) if drift else (),
        variants=(
            Variant(
                name="onnx",
                file="model.onnx",
                format="onnx",
                engines={"onnxruntime": "1.18"},
                precision="float32",
                inputs={"input": "x"},
                outputs={"output": "y"},
                tolerance=1e-3,
            ),
        ),
        files=dict.fromkeys(files, _PLACEHOLDER),
        golden="golden.npz",
        reference="reference.json" if drift else None,
        lineage=Lineage(source="benchmarks", source_digest="", data_digest=""),
    )
    return write_bundle(target, manifest, files, keys=[key or SigningKey.generate()])


def _save_onnx(
    path: Path,
    nodes: Sequence[NodeProto],
    constants: Mapping[str, Floats],
    row: tuple[int, ...],
    answer: tuple[int, ...],
) -> None:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *row])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *answer])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _tflite_tensor(name: str, shape: list[int], kind: int, buffer: int) -> "schema.TensorT":
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = name, shape, kind, buffer
    return tensor


def _reference(inputs: Floats, outputs: Floats) -> Reference:
    tensors = {"input": inputs, "output": outputs}
    signals = [_placed(*each, tensors) for each in _SIGNALS]
    counts = count_rows(signals, tensors)
    return Reference(
        rows=len(inputs),
        signals=tuple(_signal(each, each.edges, tuple(counts[each.name].tolist())) for each in signals),
    )


def _placed(tensor: str, statistic: Statistic, index: int, tensors: Mapping[str, Floats]) -> Signal:
    bare = Signal(
        name=f"{tensor}.{statistic}.{index}",
        tensor=tensor,
        statistic=statistic,
        index=index,
        softmax=tensor == "output",
        edges=(),
        counts={EVERYTHING: (0, 0)},
    )
    if statistic is Statistic.CLASS:
        edges = tuple(position + 0.5 for position in range(CLASSES - 1))
    else:
        edges = bin_edges(statistic_values(bare, tensors[tensor]))
    return _signal(bare, edges, (0,) * (len(edges) + 2))


def _signal(bare: Signal, edges: tuple[float, ...], counts: tuple[int, ...]) -> Signal:
    return msgspec.structs.replace(bare, edges=edges, counts={EVERYTHING: counts})
