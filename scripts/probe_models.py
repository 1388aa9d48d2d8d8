"""Write the tiny models that ``edgeops-agent doctor`` runs: ``python scripts/probe_models.py``.

One network in two formats: a 3×3 convolution with ReLU in float, then a matrix product in int8, since it is the kernels of these
two that meet a CPU's instructions. ``golden.json`` has inputs and answers, reckoned here in numpy and by no engine. Needs
``onnx``, ``ai-edge-litert`` (for its schema) and ``flatbuffers``; what it writes is committed.
"""

import json
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

DIRECTORY = Path(__file__).parent.parent / "runtime" / "edgeops_runtime" / "doctor" / "models"
SIDE, CLASSES, GOLDEN_ROWS = 6, 3, 4
INNER = (SIDE - 2) ** 2
SCALE_HIDDEN, SCALE_WEIGHTS, SCALE_SCORES = 1 / 32, 1 / 64, 1 / 32
"""Of the int8 tensors; all zero points are 0."""

Floats = NDArray[np.float32]

_RNG = np.random.default_rng(7)
KERNEL = np.round(_RNG.uniform(-1, 1, (3, 3)), 2).astype(np.float32)
WEIGHTS = _RNG.integers(-60, 61, (INNER, CLASSES)).astype(np.int8)
INPUTS = np.round(_RNG.uniform(-1, 1, (GOLDEN_ROWS, SIDE * SIDE)), 2).astype(np.float32)


def answer(rows: Floats) -> Floats:
    """What the network answers, shape ``(rows, CLASSES)``."""
    images = rows.reshape(-1, SIDE, SIDE)
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2))
    hidden = np.maximum((windows * KERNEL).sum(axis=(3, 4)), 0).reshape(len(rows), INNER)
    quantised = np.clip(np.round(hidden / SCALE_HIDDEN), -128, 127).astype(np.int32)
    sums = quantised @ WEIGHTS.astype(np.int32)
    scores = np.clip(np.round(sums * (SCALE_HIDDEN * SCALE_WEIGHTS / SCALE_SCORES)), -128, 127)
    return (scores * SCALE_SCORES).astype(np.float32)


def onnx_bytes() -> bytes:
    """The network as an ``.onnx`` file; it takes any number of rows."""
    constants = {
        "image": np.array([-1, 1, SIDE, SIDE], np.int64),
        "flat": np.array([-1, INNER], np.int64),
        "kernel": KERNEL.reshape(1, 1, 3, 3),
        "weights": WEIGHTS,
        "zero": np.array(0, np.int8),
        "sh": np.array(SCALE_HIDDEN, np.float32),
        "sw": np.array(SCALE_WEIGHTS, np.float32),
        "ss": np.array(SCALE_SCORES, np.float32),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "image"], ["a"]),
        helper.make_node("Conv", ["a", "kernel"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Reshape", ["c", "flat"], ["d"]),
        helper.make_node("QuantizeLinear", ["d", "sh", "zero"], ["e"]),
        helper.make_node("QLinearMatMul", ["e", "sh", "zero", "weights", "sw", "zero", "ss", "zero"], ["f"]),
        helper.make_node("DequantizeLinear", ["f", "ss", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIDE * SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="edgeops")
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


class _TFLite:
    """Collects the parts of a ``.tflite`` file."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes = []
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs = [self.graph]

    def tensor(
        self, name: str, shape: list[int], kind: int, *, data: NDArray[Any] | None = None, scale: float | None = None
    ) -> int:
        """One more tensor; returns its index."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, shape, kind, 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            tensor.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        if scale is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [0]
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(self, kind: str, inputs: list[int], output: int, options: Any = None, *, version: int = 1) -> None:  # noqa: ANN401
        """One more operator."""
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode, code.version = code.builtinCode, version
        self.model.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs, operator.outputs = inputs, [output]
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.graph.operators.append(operator)

    def pack(self) -> bytes:
        """The file."""
        builder = flatbuffers.Builder(1 << 12)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def tflite_bytes() -> bytes:
    """The network as a ``.tflite`` file; it takes one row."""
    kinds, file, inner = schema.TensorType, _TFLite(), SIDE - 2
    x = file.tensor("x", [1, SIDE * SIDE], kinds.FLOAT32)
    shapes = [
        file.tensor(name, [len(shape)], kinds.INT32, data=np.array(shape, np.int32))
        for name, shape in (("image", [1, SIDE, SIDE, 1]), ("flat", [1, INNER]))
    ]
    kernel = file.tensor("kernel", [1, 3, 3, 1], kinds.FLOAT32, data=KERNEL)
    bias = file.tensor("bias", [1], kinds.FLOAT32, data=np.zeros(1, np.float32))
    weights = file.tensor("weights", [CLASSES, INNER], kinds.INT8, data=WEIGHTS.T.copy(), scale=SCALE_WEIGHTS)
    a = file.tensor("a", [1, SIDE, SIDE, 1], kinds.FLOAT32)
    b = file.tensor("b", [1, inner, inner, 1], kinds.FLOAT32)
    d = file.tensor("d", [1, INNER], kinds.FLOAT32)
    e = file.tensor("e", [1, INNER], kinds.INT8, scale=SCALE_HIDDEN)
    f = file.tensor("f", [1, CLASSES], kinds.INT8, scale=SCALE_SCORES)
    y = file.tensor("y", [1, CLASSES], kinds.FLOAT32)
    convolution = schema.Conv2DOptionsT()
    convolution.padding, convolution.strideW, convolution.strideH = schema.Padding.VALID, 1, 1
    convolution.fusedActivationFunction = schema.ActivationFunctionType.RELU
    file.operator("RESHAPE", [x, shapes[0]], a, schema.ReshapeOptionsT())
    file.operator("CONV_2D", [a, kernel, bias], b, convolution)
    file.operator("RESHAPE", [b, shapes[1]], d, schema.ReshapeOptionsT())
    file.operator("QUANTIZE", [d], e, schema.QuantizeOptionsT())
    file.operator("FULLY_CONNECTED", [e, weights, -1], f, schema.FullyConnectedOptionsT(), version=4)
    file.operator("DEQUANTIZE", [f], y, schema.DequantizeOptionsT(), version=2)
    file.graph.inputs, file.graph.outputs = [x], [y]
    return file.pack()


def main() -> None:
    """Write all three files."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    (DIRECTORY / "tiny.onnx").write_bytes(onnx_bytes())
    (DIRECTORY / "tiny.tflite").write_bytes(tflite_bytes())
    golden = {
        "tolerance": 2.5 * SCALE_SCORES,  # A rounding apart at each of the two int8 tensors.
        "inputs": [[round(float(value), 2) for value in row] for row in INPUTS],
        "outputs": answer(INPUTS).tolist(),
    }
    (DIRECTORY / "golden.json").write_text(json.dumps(golden) + "\n")
    for path in sorted(DIRECTORY.iterdir()):
        print(f"{path.name} {path.stat().st_size} B")


if __name__ == "__main__":
    main()
