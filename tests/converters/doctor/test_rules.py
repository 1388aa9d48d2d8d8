"""Every rule, on a model with the fault and on one without."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeops_converters.doctor.activations import examine_activations
from edgeops_converters.doctor.diagnosis import Level, Where
from edgeops_converters.doctor.interface import examine_interface
from edgeops_converters.doctor.layers import examine_layers, saturating_share
from edgeops_converters.doctor.onnx_graph import read_onnx
from edgeops_converters.doctor.operators import examine_operators
from edgeops_converters.doctor.torch_graph import read_module
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.sources import open_model
from edgeops_converters.targets import Target

RANDOM = np.random.default_rng(0)
IMAGES = {"x": RANDOM.random((4, 3, 12, 12), np.float32)}


def findings_of(module, rows=IMAGES, target=Target.X86):
    subject = read_module(open_model(module.eval(), rows), rows)
    found = [*examine_interface(subject), *examine_operators(subject), *examine_layers(subject, target)]
    return {(one.rule, one.layer): one for one in found}


def network(middle=None, **settings):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, **settings), nn.ReLU(), middle or nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )  # fmt: skip


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("middle", "rule", "where", "kind"),
    [
        (nn.GELU(), "falls-back-to-float", Where.ONNXRUNTIME, "GELU"),
        (nn.LeakyReLU(), "falls-back-to-float", Where.LITERT, "LeakyReLU"),
        (nn.Softmax(1), "leaves-xnnpack", Where.XNNPACK, "Softmax"),
        (nn.Hardswish(), "rewritten", Where.ONNXRUNTIME, "Hardswish"),
        (nn.ReflectionPad2d(1), "pad", Where.ONNXRUNTIME, "ReflectionPad2d"),
        (nn.Conv2d(8, 8, 3, stride=2, padding=1), "strided-padding", Where.LITERT, "Conv2d"),
        (nn.Conv2d(8, 8, 1, bias=False), "no-bias", Where.EVERYWHERE, "Conv2d"),
        (Call(lambda x: x.mean(1, keepdim=True).repeat(1, 8, 1, 1)), "mean", Where.ONNXRUNTIME, "Call"),
    ],
)  # fmt: skip
def test_an_operator_is_named_with_its_layer_and_the_runtime_that_it_hurts(middle, rule, where, kind):
    finding = findings_of(network(middle))[rule, "2"]
    assert (finding.where, finding.kind) == (where, kind)
    assert (rule, "2") not in findings_of(network(nn.ReLU6()))


def test_a_global_pooling_is_rewritten_however_it_is_written():
    written = network()
    assert findings_of(written)["mean", "3"].level is Level.NOTE
    written[3] = Call(lambda x: x.mean((2, 3), keepdim=True))
    assert findings_of(written)["mean", "3"].level is Level.NOTE


def test_a_line_of_forward_is_named_by_its_code():
    finding = findings_of(network(Call(lambda x: x - x.sigmoid())))["falls-back-to-float", "2"]
    assert "test_rules.py line" in finding.line
    assert finding.place.endswith("in forward: return self.function(x)")


def test_a_bias_behind_a_norm_is_not_missed():
    joined = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
    assert ("no-bias", "2.0") not in findings_of(network(joined))


def test_an_operator_of_another_library_blocks():
    @torch.library.custom_op("doctor_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)
    finding = findings_of(network(Call(twice)))["foreign-operator", "2"]
    assert finding.level is Level.BLOCKS
    assert "doctor_test::twice" in finding.what


def test_a_recurrent_cell_and_a_table_are_named(models):
    torch.manual_seed(0)
    found = findings_of(models.Tokens(), {"tokens": RANDOM.integers(0, 20, (4, 7))})
    assert found["embedding", "table"].kind == "Embedding"
    assert found["input-dtype", "tokens"].level is Level.NOTE

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRU(3, 5, batch_first=True)

        def forward(self, x):
            return self.cell(x)[0][:, -1]

    assert ("recurrent", "cell") in findings_of(Steps(), {"x": RANDOM.random((4, 6, 3), np.float32)})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_blocks(value):
    broken = network()
    with torch.no_grad():
        broken[5].bias[2] = value
    finding = findings_of(broken)["not-finite", "5.bias"]
    assert finding.level is Level.BLOCKS
    assert finding.what.startswith("1 of 4 values")
    assert not any(rule == "not-finite" for rule, _ in findings_of(network()))


def test_channels_without_weights_are_counted():
    pruned = network()
    with torch.no_grad():
        pruned[0].weight[[3, 5]] = 0
    assert findings_of(pruned)["dead-channels", "0"].what.startswith("2 of 8 output channels")
    assert ("dead-channels", "0") not in findings_of(network())


@pytest.mark.parametrize(
    ("middle", "level"), [(nn.Conv2d(8, 8, 1), Level.NOTE), (nn.Sequential(nn.Sigmoid(), nn.Conv2d(8, 8, 1)), Level.COSTS)]
)  # fmt: skip
def test_channels_of_very_different_size_cost_unless_they_are_levelled(middle, level):
    """The norm behind the layer counts: its factors become part of the weights."""
    rescaled = network(middle)
    rescaled[0] = nn.Sequential(rescaled[0], nn.BatchNorm2d(8))
    assert ("channel-spread", "0.0") not in findings_of(rescaled)
    with torch.no_grad():
        rescaled[0][1].weight[6] = 1000
    assert findings_of(rescaled)["channel-spread", "0.0"].level is level


def test_float64_weights_are_named():
    model = open_model(network().eval(), IMAGES)
    model.module.double()
    found = {one.layer for one in examine_layers(read_module(model, {"x": IMAGES["x"].astype(np.float64)}), Target.X86)}
    assert {"0.weight", "5.bias"} <= found


def test_a_model_that_fixes_its_rows_says_so(models):
    rows = {"x": RANDOM.random((4, 6), np.float32)}
    assert ("fixed-batch", "") in findings_of(models.seeded(models.FixedBatch), rows)
    assert ("fixed-batch", "") not in findings_of(nn.Linear(6, 3), rows)


def test_saturation_is_said_for_x86_and_is_what_the_instruction_does():
    assert any(rule == "saturation" for rule, _ in findings_of(network()))
    for target in (Target.ARM, Target.X86_VNNI):
        assert not any(rule == "saturation" for rule, _ in findings_of(network(), target=target))
    codes = RANDOM.integers(-127, 128, (16, 64))
    codes[:, 0] = 127
    layer = nn.Linear(64, 16)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(codes) / 127)
    rows = {"x": RANDOM.random((2, 64), np.float32)}
    (product,) = read_module(open_model(layer.eval(), rows), rows).products
    # Every activation at 255 where it makes the sum of a pair larger or smaller, as bytes of zero or 255 can.
    pairs = codes.reshape(16, 32, 2)
    exact = np.stack([np.maximum(pairs, 0).sum(2) * 255, np.minimum(pairs, 0).sum(2) * 255])
    is_cut = (np.clip(exact, -(2**15), 2**15 - 1) != exact).any(axis=0)
    assert saturating_share(product) == is_cut.mean() > 0.1


@pytest.fixture(params=["torch", "onnx"])
def opened(request, tmp_path):
    """A model with an input that is multiplied by a thousand in one place, as a module and as a file."""

    def make(gain):
        module = network().eval()
        with torch.no_grad():
            module[0].weight.abs_()
            module[0].bias.zero_()
        rows = {"x": np.repeat(IMAGES["x"], 8, axis=0)}
        rows["x"][0, :, 0, 0] *= gain  # a corner, which one place of the first layer sees
        model = open_model(module, rows)
        if request.param == "torch":
            return model, rows
        path = EXPORTERS["onnx"].export(model, rows, tmp_path / f"{gain}.onnx").path
        return open_model(path, rows), rows

    return make


def test_outliers_are_found_in_the_layer_that_has_them(opened):
    found = [one for one in examine_activations(*opened(1000.0)) if one.rule == "outliers"]
    assert found[0].kind in {"Conv2d", "Conv"}
    assert not [one for one in examine_activations(*opened(1.0)) if one.rule == "outliers"]


def test_a_constant_input_is_named():
    model = open_model(network().eval(), IMAGES)
    found = list(examine_activations(model, {"x": np.full_like(IMAGES["x"], 0.5)}))
    assert found[0].rule == "constant-input"


def test_an_onnx_file_is_named_by_its_nodes_and_weights(tmp_path):
    """A norm behind a convolution without bias, a hard swish, a mean, and a product with a weight that is no number."""
    make, array = onnx.helper.make_node, onnx.numpy_helper.from_array
    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.normal(size=(4, 3, 3, 3)), "gamma": np.array([1, 1, 1, 5000.0]), "beta": np.zeros(4),
        "mean": np.zeros(4), "variance": np.ones(4), "head": np.array([[1, 2], [3, np.nan], [5, 6], [7, 8]]),
    }  # fmt: skip
    graph = onnx.helper.make_graph(
        [
            make("Conv", ["x", "kernel"], ["a"], "stem/conv", strides=[2, 2], pads=[1, 1, 1, 1]),
            make("BatchNormalization", ["a", "gamma", "beta", "mean", "variance"], ["b"], "stem/norm"),
            make("HardSwish", ["b"], ["c"], "stem/act"),
            make("Tanh", ["c"], ["d"], "squash"),
            make("ReduceMean", ["d", "axes"], ["e"], "pool", keepdims=0),
            make("MatMul", ["e", "head"], ["y"], "head/product"),
        ],
        "net",
        [onnx.helper.make_tensor_value_info("x", 1, ["batch", 3, "height", 12])],
        [onnx.helper.make_tensor_value_info("y", 1, ["batch", 2])],
        [
            *(array(value.astype(np.float32), name) for name, value in weights.items()),
            array(np.array([2, 3]), "axes"),
        ],
    )
    path = tmp_path / "net.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path)
    subject = read_onnx(open_model(path, IMAGES))
    found = [*examine_interface(subject), *examine_operators(subject), *examine_layers(subject, Target.ARM)]
    assert {(one.rule, one.layer) for one in found} == {
        ("dynamic-dimension", "x"),
        ("strided-padding", "stem/conv"),
        ("rewritten", "stem/act"),
        ("leaves-xnnpack", "stem/act"),
        ("falls-back-to-float", "squash"),
        ("mean", "pool"),
        ("entry-transpose", "stem/conv"),
        ("channel-spread", "stem/conv"),
        ("not-finite", "head"),
        ("no-bias", "head/product"),
    }
