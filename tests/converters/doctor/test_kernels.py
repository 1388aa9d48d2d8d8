"""The tables of operators say what the engines do: each operator stands between two convolutions, and the engine's graph is read.

The engines' own quantisers are used, because what has an integer kernel does not depend on who sets the ranges.
"""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from edgeops_converters.doctor.operators import FLOAT_IN_LITERT, FLOAT_IN_ONNXRUNTIME, OUTSIDE_XNNPACK, REWRITTEN
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.extras import quiet
from edgeops_converters.quantizers.litert_graph import LitertFile
from edgeops_converters.sources import open_model

pytestmark = pytest.mark.slow  # one network with forty operators takes a minute to export

F = nn.functional
SIZE, CHANNELS = 6, 8
ROWS = {"x": np.random.default_rng(0).random((8, 3, SIZE, SIZE), np.float32)}


class Cell(nn.Module):
    """A recurrent cell over the places of an image."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell(CHANNELS, CHANNELS, batch_first=True)

    def forward(self, x):
        return self.cell(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).unsqueeze(3)


OPERATORS = {
    "tanh": torch.tanh, "gelu": F.gelu, "elu": F.elu, "celu": F.celu, "selu": F.selu, "mish": F.mish, "softplus": F.softplus,
    "prelu": nn.PReLU(), "layer_norm": nn.LayerNorm(SIZE), "rms_norm": nn.RMSNorm(SIZE),
    "group_norm": nn.GroupNorm(2, CHANNELS), "instance_norm": nn.InstanceNorm2d(CHANNELS),
    "div": lambda x: x / (x.relu() + 1.5), "sub": lambda x: x.relu() - x.sigmoid(), "neg": torch.neg,
    "pow": lambda x: x**3, "log_softmax": lambda x: x.log_softmax(1), "exp": torch.exp,
    "log": lambda x: (x.relu() + 1).log(), "sqrt": lambda x: (x.relu() + 1).sqrt(), "rsqrt": lambda x: (x.relu() + 1).rsqrt(),
    "reciprocal": lambda x: (x.relu() + 1).reciprocal(), "abs": torch.abs, "erf": torch.erf, "cumsum": lambda x: x.cumsum(2),
    "amax": lambda x: x.amax((2, 3), keepdim=True), "sum": lambda x: x.sum((2, 3), keepdim=True),
    "gt": lambda x: torch.where(x > 0, x, x * 0.3), "ge": lambda x: torch.where(x >= 0, x, x * 0.3),
    "lt": lambda x: torch.where(x < 0, x, x * 0.3), "le": lambda x: torch.where(x <= 0, x, x * 0.3),
    "conv_transpose2d": nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, stride=2),
    "upsample_bilinear2d": nn.Upsample(scale_factor=2, mode="bilinear"), "lstm": Cell(nn.LSTM), "gru": Cell(nn.GRU),
    "leaky_relu": F.leaky_relu, "flip": lambda x: x.flip(2), "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid,
    "softmax": lambda x: x.softmax(1), "avg_pool2d": nn.AvgPool2d(2), "upsample_nearest2d": nn.Upsample(scale_factor=2),
    "matmul": lambda x: x @ x.relu().transpose(2, 3),
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(x, x.relu(), x),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "mean_of_channels": lambda x: x.mean(1, keepdim=True).repeat(1, CHANNELS, 1, 1),
    "reflection": nn.ReflectionPad2d(1),
    "strided": nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1), "unpadded": nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2),
    # what has kernels, so that the test can tell
    "relu": torch.relu, "relu6": F.relu6, "sigmoid": torch.sigmoid, "silu": F.silu, "max_pool2d": nn.MaxPool2d(2),
    "batch_norm": nn.BatchNorm2d(CHANNELS), "pad": nn.ZeroPad2d(1),
    "add": lambda x: x.sigmoid() + 0.5, "mul": lambda x: x.sigmoid() * 0.3,
}  # fmt: skip
INTEGER = ("relu", "relu6", "sigmoid", "silu", "max_pool2d", "batch_norm", "pad", "add", "mul")


class Branches(nn.Module):
    """One operator a branch, each between a convolution of its own and another."""

    def __init__(self, kinds):
        super().__init__()
        self.kinds = kinds
        self.before, self.after = (
            nn.ModuleList(nn.Conv2d(channels, CHANNELS, 1) for _ in kinds) for channels in (3, CHANNELS)
        )
        self.layers = nn.ModuleDict({kind: op for kind, op in OPERATORS.items() if isinstance(op, nn.Module)})

    def forward(self, x):
        return {
            f"output_of_{kind}": after(OPERATORS[kind](before(x)))
            for kind, before, after in zip(self.kinds, self.before, self.after, strict=True)
        }


def exported(kinds, form, folder):
    torch.manual_seed(0)
    module = Branches(list(kinds)).eval()
    return EXPORTERS[form].export(open_model(module, ROWS), ROWS, folder / f"float.{form}")


class Reader(CalibrationDataReader):
    def __init__(self):
        self.rows = iter([ROWS])

    def get_next(self):
        return next(self.rows, None)


def in_float_in_onnxruntime(kinds, folder):
    """Kinds that onnxruntime runs in float, from the graph that it really runs."""
    source = exported(kinds, "onnx", folder)
    with quiet():
        quantize_static(
            source.path, folder / "int8.onnx", Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(str(folder / "int8.onnx"), options)
    graph = onnx.load(folder / "optimised.onnx").graph
    givers = {name: node for node in graph.node for name in node.output}
    found = set()
    for kind in kinds:
        between = ancestors(
            givers[f"output_of_{kind}"].input[0], lambda name: givers[name].input if name in givers else ()
        )
        if any(givers[name].op_type == "DequantizeLinear" for name in between if name in givers):
            found.add(kind)
    return found


def ancestors(name, inputs):
    """A tensor and everything that it is made from."""
    seen, waiting = set(), [name]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += inputs(name)
    return seen


def quantized_for_litert(kinds, folder):
    source = exported(kinds, "tflite", folder)
    with quiet():
        stock = quantizer.Quantizer(str(source.path))
        stock.load_quantization_recipe(recipe.static_wi8_ai8())
        ranges = stock.calibrate({"serving_default": [{"args_0": ROWS["x"][:1]}]})
        content = bytes(stock.quantize(calibration_result=ranges, enable_progress_report=False).quantized_model)
    (folder / "int8.tflite").write_bytes(content)
    return folder / "int8.tflite"


def in_float_in_litert(kinds, folder):
    file = LitertFile(quantized_for_litert(kinds, folder).read_bytes())
    givers = {tensor: inputs for _, inputs, outputs in file.operators for tensor in outputs}
    found = set()
    for kind, output in zip(kinds, file.outputs, strict=True):
        between = ancestors(output, lambda tensor: [one for one in givers.get(tensor, ()) if one >= 0]) - {*file.inputs}
        computed = [tensor for tensor in between if tensor in givers]
        if any(file.details[tensor]["dtype"] == np.float32 for tensor in computed):
            found.add(kind)
    return found


def test_the_table_of_onnxruntime_is_what_it_does(tmp_path):
    in_float = {*FLOAT_IN_ONNXRUNTIME, *REWRITTEN, "mean", "mean_of_channels", "reflection"}
    in_integers = {*INTEGER, "leaky_relu", "softmax", "upsample_nearest2d", "avg_pool2d", "strided"}
    assert in_float_in_onnxruntime(sorted(in_float | in_integers), tmp_path) == in_float


def test_the_table_of_litert_is_what_it_does(tmp_path):
    kinds = [kind for kind in FLOAT_IN_LITERT if kind != "conv3d"]
    assert in_float_in_litert([*kinds, *INTEGER, "hardswish", "gelu", "layer_norm"], tmp_path) == set(kinds)


@pytest.mark.parametrize(("kind", "count"), [("strided", 1), ("unpadded", 0)])
def test_a_stride_with_padding_on_both_sides_is_padded_apart_in_tflite(kind, count, tmp_path):
    assert operators(quantized_for_litert([kind], tmp_path)).count("PAD") == count


@pytest.mark.parametrize("kind", sorted(OUTSIDE_XNNPACK))
def test_what_xnnpack_has_no_kernel_for_splits_its_part(kind, tmp_path):
    assert parts(kind, tmp_path) > 1


def test_what_xnnpack_has_kernels_for_is_one_part(tmp_path):
    assert parts("sigmoid", tmp_path) == parts("tanh", tmp_path) == 1


def parts(kind, folder):
    """How many parts of the file XNNPACK took."""
    return operators(quantized_for_litert([kind], folder)).count("DELEGATE")


def operators(path):
    """What LiteRT runs; a part that XNNPACK took is a ``DELEGATE``, besides the operators that are in it."""
    with quiet():
        interpreter = Interpreter(model_path=str(path))
        interpreter.allocate_tensors()
    return [one["op_name"] for one in interpreter._get_ops_details()]
