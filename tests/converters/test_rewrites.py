"""Every rewrite on networks that need it: the layers it names, the answers it keeps, and what the engines make of the files."""

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn
from torch.nn import functional

from edgeops import processing
from edgeops.errors import ExportError, RecipeError
from edgeops.manifest import Normalize, Scale, Softmax
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.rewrites import INTEGER_PASSES, PASSES, PassResult, rewrite
from edgeops_converters.rewrites.graph import capture
from edgeops_converters.rewrites.layout import Layout, as_model_takes, parse_layout
from edgeops_converters.rewrites.onnx import INTEGER_PASSES as ONNX_INTEGER_PASSES
from edgeops_converters.rewrites.onnx import PASSES as ONNX_PASSES
from edgeops_converters.rewrites.onnx import apply
from edgeops_converters.sessions import run_rows
from edgeops_converters.sources import open_model

SAME = 1e-5  # of the largest answer
RANDOM = np.random.default_rng(5)


def _load_models():
    path = Path(__file__).with_name("models.py")
    spec = importlib.util.spec_from_file_location("converters_rewrite_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


models = _load_models()


class Lambda(nn.Module):
    """Layers by name, and a function of them and the input."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.run(self, x)


class HardNet(nn.Module):
    """What MobileNetV3 is made of: batch norms, HardSwish before a depthwise layer and before squeeze-and-excitation, a mean."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish()
        )
        self.expand = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.depth = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.Hardswish()
        )
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Dropout(0.2))
        self.head = nn.Linear(8, 5)

    def forward(self, image):
        first = self.stem(image)
        x = self.depth(self.expand(first))
        gate = functional.hardsigmoid(self.excite(self.squeeze(functional.adaptive_avg_pool2d(x, 1)).relu()))
        return self.head((first + self.project(x * gate)).mean((2, 3)))


class Flattened(nn.Module):
    """A network that ends as LeNet does."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.hidden, self.head = nn.Linear(6 * 4 * 4, 8), nn.Linear(8, 5, bias=False)

    def forward(self, image):
        return self.head(self.hidden(self.features(image).flatten(1)).relu())


def settled(make):
    """A network with random weights, and batch norms that have seen something."""
    module = models.seeded(make)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.5, 2.0)
                nn.init.uniform_(layer.bias, -0.5, 0.5)
    return module


def images(*shape, count=4):
    return RANDOM.normal(size=(count, *shape)).astype(np.float32)


def as_bytes(*shape, count=4):
    rows = RANDOM.integers(0, 256, (count, *shape)).astype(np.uint8)
    rows.reshape(-1)[:256] = np.arange(256)
    return rows


def difference(expected, given):
    """The largest difference, of the largest answer."""
    assert set(expected) == set(given)
    return max(np.abs(given[name] - array).max() / np.abs(array).max() for name, array in expected.items())


def opened(module, rows, **settings):
    """The model as opened, and as rewritten."""
    layout = settings.get("input_layout", Layout.NCHW)
    taken = as_model_takes(processing.apply(settings.get("preprocess", ()), rows), layout)
    return open_model(module, taken)


def kinds(artifact):
    """How many operators of each kind a file has."""
    if artifact.format == "onnx":
        return Counter(node.op_type for node in onnx.load(str(artifact.path)).graph.node)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    model = schema.ModelT.InitFromPackedBuf(artifact.path.read_bytes(), 0)
    codes = [names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
    return Counter(codes[operator.opcodeIndex] for operator in model.subgraphs[0].operators)


PASS_CASES = {
    "dropout and copies": (
        "removed what does nothing",
        lambda: Lambda(
            lambda net, x: net.drop(net.conv(x).contiguous().clone().float() * 1.0 + 0),
            conv=nn.Conv2d(3, 8, 3),
            drop=nn.Dropout(),
        ),
        {"drop", "clone", "to", "mul", "add"},
    ),
    "norm behind a convolution without bias": (
        "folded batch norms",
        lambda: Lambda(
            lambda net, x: net.norm(net.conv(x)), conv=nn.Conv2d(3, 8, 3, padding=1, bias=False), norm=nn.BatchNorm2d(8)
        ),
        {"norm"},
    ),
    "norm without gain behind groups": (
        "folded batch norms",
        lambda: Lambda(
            lambda net, x: net.norm(net.conv(x)),
            conv=nn.Conv2d(3, 6, 3, groups=3),
            norm=nn.BatchNorm2d(6, affine=False),
        ),
        {"norm"},
    ),
    "mean over space": (
        "means over space as global average pooling",
        lambda: Lambda(lambda net, x: net.conv(x).mean((-1, -2)), conv=nn.Conv2d(3, 8, 3)),
        {"mean"},
    ),
    "mean over a flattened space": (
        "means over space as global average pooling",
        lambda: Lambda(lambda net, x: net.conv(x).flatten(2).mean(-1), conv=nn.Conv2d(3, 8, 3)),
        {"mean"},
    ),
    "no bias": (
        "gave a bias of zeros",
        lambda: Lambda(
            lambda net, x: net.head(net.conv(x).amax((2, 3))),
            conv=nn.Conv2d(3, 8, 3, bias=False),
            head=nn.Linear(8, 2, bias=False),
        ),
        {"conv", "head"},
    ),
    "linear layer on a flattened image": (
        "linear layers on flattened images as convolutions",
        lambda: Lambda(
            lambda net, x: net.head(net.conv(x).view(x.shape[0], -1)),
            conv=nn.Conv2d(3, 4, 3),
            head=nn.Linear(4 * 36, 2),
        ),
        {"head"},
    ),
    "hard sigmoid behind a layer": (
        "hard sigmoids in integers",
        lambda: Lambda(lambda net, x: functional.hardsigmoid(net.conv(x)), conv=nn.Conv2d(3, 8, 3)),
        {"hardsigmoid"},
    ),
    "hard swish with a layer behind": (
        "hard swishes in integers",
        lambda: Lambda(
            lambda net, x: net.next(net.act(net.conv(x))),
            conv=nn.Conv2d(3, 8, 3),
            act=nn.Hardswish(),
            next=nn.Conv2d(8, 2, 3),
        ),
        {"act"},
    ),
    "hard swish at the end, written out": (
        "hard swishes in integers",
        lambda: Lambda(lambda net, x: (y := net.conv(x)) * functional.relu6(y + 3) / 6, conv=nn.Conv2d(3, 8, 3)),
        {"div"},
    ),
    "hard swish as a product with its gate": (
        "hard swishes in integers",
        lambda: Lambda(lambda net, x: (y := net.conv(x)) * functional.hardsigmoid(y), conv=nn.Conv2d(3, 8, 3)),
        {"mul"},
    ),
}


@pytest.mark.parametrize("case", PASS_CASES)
def test_a_pass_names_the_layers_that_it_changed_and_keeps_the_answers(case, tmp_path):
    title, make, layers = PASS_CASES[case]
    rows = {"x": images(3, 8, 8) * 3}
    model = open_model(settled(make), rows)

    done = rewrite(model, rows)

    changed = {result.title: set(result.layers) for result in done.results}
    assert changed[title] == layers
    assert all("rewritten: " in text for text in done.texts)
    for one in (done.model, done.integers):
        with torch.inference_mode():
            given = one.module(torch.from_numpy(rows["x"]))
        assert difference(model.answer(rows), {"output": given[0].numpy()}) <= SAME
    assert set(changed) <= {*PASSES, *INTEGER_PASSES}


def test_a_linear_layer_on_more_than_rows_gets_no_bias_which_would_be_an_addition_in_onnx():
    module = settled(lambda: Lambda(lambda net, x: net.each(x), each=nn.Linear(4, 3, bias=False)))
    rows = {"x": images(5, 4)}
    graph, _ = capture(open_model(module, rows), rows)
    assert PASSES["gave a bias of zeros"](graph) == ()


def test_a_layer_that_is_used_twice_keeps_its_batch_norm():
    conv, norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
    module = settled(lambda: Lambda(lambda net, x: net.norm(net.conv(x)) + net.conv(x), conv=conv, norm=norm))
    rows = {"x": images(3, 8, 8)}
    graph, _ = capture(open_model(module, rows), rows)
    assert PASSES["folded batch norms"](graph) == ()
    assert graph.calls_to("batch_norm")


def test_a_hard_swish_that_is_added_to_something_is_divided_where_it_stands():
    module = settled(
        lambda: Lambda(
            lambda net, x: net.next((y := net.act(net.conv(x))) + net.mid(y)),
            conv=nn.Conv2d(3, 8, 3),
            act=nn.Hardswish(),
            mid=nn.Conv2d(8, 8, 1),
            next=nn.Conv2d(8, 2, 1),
        )
    )
    rows = {"x": images(3, 8, 8)}
    graph, _ = capture(open_model(module, rows), rows)
    before = module.mid.weight.clone()
    INTEGER_PASSES["hard swishes in integers"](graph)
    graph.finish()
    assert [graph.value(node.args[1]).equal(before) for node in graph.calls_to("conv2d")][1]
    with torch.inference_mode():
        given = graph.module(torch.from_numpy(rows["x"]))[0]
        assert torch.allclose(given, module(torch.from_numpy(rows["x"])), atol=1e-5)


def test_the_users_module_is_never_written_to(tmp_path):
    module = settled(HardNet)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    rows = {"image": images(3, 16, 16)}
    rewrite(open_model(module, rows), rows)
    after = module.state_dict()
    assert set(after) == set(before)
    assert all(after[name].equal(tensor) for name, tensor in before.items())


@pytest.fixture(scope="module")
def hard_net(tmp_path_factory):
    """The network with everything in it, from bytes with channels last, in four files."""
    directory = tmp_path_factory.mktemp("hard")
    rows = {"image": as_bytes(16, 16, 3, count=6)}
    settings = {"preprocess": (Scale(tensor="image", factor=1 / 128, offset=-127 / 128),), "input_layout": Layout.NHWC}
    model = opened(settled(HardNet), rows, **settings)
    done = rewrite(model, rows, **settings)
    files = {
        (form, kind): EXPORTERS[form].export(one, rows, directory / f"{kind}.{form}")
        for form in EXPORTERS
        for kind, one in (("float", done.model), ("integers", done.integers))
    }
    expected = model.answer(as_model_takes(processing.apply(settings["preprocess"], rows), Layout.NHWC))
    return done, files, rows, expected


def test_the_files_answer_as_the_source_does_on_both_engines_with_any_number_of_rows(hard_net):
    _, files, rows, expected = hard_net
    assert {form: one.batch for (form, _), one in files.items()} == {"onnx": None, "tflite": 1}
    for artifact in files.values():
        given = run_rows(artifact.open().run, rows, batch=artifact.batch)
        assert difference(expected, given) <= SAME


def test_parameters_keep_their_path_in_the_users_model_in_the_files(hard_net):
    _, files, _, _ = hard_net
    for kind in ("float", "integers"):
        graph = onnx.load(str(files["onnx", kind].path)).graph
        names = {tensor.name.removeprefix("module.") for tensor in graph.initializer}
        assert {
            f"{layer}.0.{part}" for layer in ("stem", "expand", "depth", "project") for part in ("weight", "bias")
        } <= names


def test_only_what_int8_is_made_from_has_hard_activations_in_integers(hard_net):
    done, files, _, _ = hard_net
    hard = {"onnx": {"HardSwish", "HardSigmoid"}, "tflite": {"HARD_SWISH"}}
    for form, names in hard.items():
        assert names <= set(kinds(files[form, "float"]))
        assert not names & set(kinds(files[form, "integers"]))
    assert done.integers is not done.model
    swishes = next(result for result in done.results if result.title == "hard swishes in integers")
    assert swishes.layers == ("stem.2", "expand.2", "depth.2")


def test_means_over_space_are_pooled_in_onnx(hard_net):
    _, files, _, _ = hard_net
    assert kinds(files["onnx", "float"])["GlobalAveragePool"] == 2
    assert not kinds(files["onnx", "float"])["ReduceMean"]


def test_channels_last_leave_no_transpose_in_tflite_and_one_in_onnx(hard_net):
    done, files, _, _ = hard_net
    assert (done.model.inputs[0].layout, done.model.inputs[0].shape) == ("NHWC", ("batch", 16, 16, 3))
    assert done.model.inputs[0].dtype == "UINT8"
    assert done.preprocess == ()
    for (form, _), artifact in files.items():
        assert kinds(artifact)["TRANSPOSE" if form == "tflite" else "Transpose"] == (form == "onnx")


def test_flattening_leaves_no_transpose_either(tmp_path):
    rows = {"image": images(16, 16, 3)}
    model = opened(settled(Flattened), rows, input_layout=Layout.NHWC)
    done = rewrite(model, rows, input_layout=Layout.NHWC)
    for form in EXPORTERS:
        artifact = EXPORTERS[form].export(done.model, rows, tmp_path / f"model.{form}")
        given = run_rows(artifact.open().run, rows, batch=artifact.batch)
        assert difference(model.answer(as_model_takes(rows, Layout.NHWC)), given) <= SAME
        assert kinds(artifact)["TRANSPOSE" if form == "tflite" else "Transpose"] == (form == "onnx")


MEANS, STDS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = (Scale(tensor="x", factor=1 / 255), Normalize(tensor="x", mean=MEANS, std=STDS))
COMMON_ZERO = (Normalize(tensor="x", mean=(127.0,) * 3, std=(64.0, 128.0, 32.0)),)


@pytest.mark.parametrize(
    ("preprocess", "padding"),
    [(IMAGENET, 0), (COMMON_ZERO, 1), (COMMON_ZERO, 0), ((Scale(tensor="x", factor=-0.5, offset=10.0),), 1)],
)
def test_preprocessing_goes_into_the_first_layer_where_that_is_exact(preprocess, padding, tmp_path):
    rows = {"x": as_bytes(3, 8, 12)}
    conv = nn.Conv2d(3, 8, 3, padding=padding)
    model = opened(settled(lambda: conv), rows, preprocess=preprocess)
    done = rewrite(model, rows, preprocess=preprocess)
    assert (done.preprocess, done.model.inputs[0].dtype) == ((), "UINT8")
    with torch.inference_mode():
        given = done.model.module(torch.from_numpy(rows["x"]))[0].numpy()
    expected = model.answer(processing.apply(preprocess, rows))
    assert difference(expected, {"output": given}) <= SAME
    assert difference(expected, done.model.answer(rows)) == 0


@pytest.mark.parametrize(
    ("make", "preprocess", "said"),
    [
        (lambda: nn.Conv2d(3, 8, 3, padding=1), IMAGENET, "pads with zeros"),
        (lambda: nn.Conv2d(3, 8, 3, padding="same"), IMAGENET, "pads with zeros"),
        (lambda: nn.Conv2d(3, 8, 3, padding=1), (Scale(tensor="x", factor=1 / 127.5, offset=-1.0),), "pads with zeros"),
        (lambda: nn.Conv2d(3, 8, 3, padding=1), (Scale(tensor="x", factor=1 / 255, offset=0.5),), "pads with zeros"),
        (lambda: nn.MaxPool2d(2), IMAGENET, "no convolution or matrix product of its own"),
        (lambda: nn.Conv2d(3, 8, 3), (Softmax(tensor="x"),), "no scale and mean along the channels"),
        (
            lambda: nn.Conv2d(3, 8, 3),
            (Normalize(tensor="x", mean=(1.0,) * 8, std=(2.0,) * 8, axis=2),),
            "along the channels",
        ),
    ],
)
def test_preprocessing_that_cannot_go_in_exactly_stays_and_says_why(make, preprocess, said, tmp_path):
    rows = {"x": as_bytes(3, 8, 12)}
    model = opened(settled(make), rows, preprocess=preprocess)
    done = rewrite(model, rows, preprocess=preprocess)
    assert (done.preprocess, done.model.inputs[0].dtype) == (preprocess, "FP32")
    assert any(said in note for note in done.notes)


def test_a_model_that_cannot_be_traced_stays_as_it_is_and_says_why(tmp_path):
    rows = {"x": images(6)}
    model = open_model(models.Wrapped(models.Branch()).eval(), rows)
    done = rewrite(model, rows)
    assert done.model.module is model.module
    assert done.integers is done.model
    assert "not rewritten" in done.notes[0]
    assert "depends on the values" in done.notes[0]


def test_a_model_that_cannot_be_traced_takes_channels_last_all_the_same(tmp_path):
    branch = Lambda(lambda net, x: net.conv(x) if x.sum() > 0 else -net.conv(x), conv=nn.Conv2d(3, 2, 3))
    rows = {"x": np.abs(images(8, 12, 3))}
    model = opened(settled(lambda: branch), rows, input_layout=Layout.NHWC)
    done = rewrite(model, rows, input_layout=Layout.NHWC)
    with torch.inference_mode():
        given = done.model.module(torch.from_numpy(rows["x"]))[0].numpy()
    assert difference(done.model.answer(rows), {"output": given}) == 0


def test_a_rewrite_that_changes_the_answers_is_thrown_away(tmp_path, monkeypatch):
    def wrong(graph):
        for node in graph.calls_to("conv2d"):
            graph.set_weights(node, graph.value(node.args[1]) * 1.01)
        return ("conv",)

    monkeypatch.setitem(PASSES, "wrong", wrong)
    rows = {"x": images(3, 8, 8)}
    model = open_model(settled(lambda: nn.Conv2d(3, 2, 3)), rows)
    done = rewrite(model, rows)
    assert done.model.module is model.module
    assert "answers 'output' with a difference of" in done.notes[0]


def test_a_pass_that_fails_leaves_the_model_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setitem(PASSES, "broken", lambda graph: graph.nodes[10**6])
    rows = {"x": images(3, 8, 8)}
    model = open_model(settled(lambda: nn.Conv2d(3, 2, 3)), rows)
    done = rewrite(model, rows)
    assert done.model.module is model.module
    assert done.notes[0].startswith("not rewritten: IndexError")


def test_a_model_that_fixes_its_rows_is_rewritten_for_one_at_a_time(tmp_path):
    rows = {"x": images(6)}
    done = rewrite(open_model(models.seeded(models.FixedBatch), rows), rows)
    assert done.model.batch == 1
    assert "one row at a time" in done.notes[0]
    assert difference(done.model.answer(rows), run_rows(_answering(done.model), rows, batch=1)) <= SAME


def _answering(model):
    def run(tensors):
        with torch.inference_mode():
            given = model.module(*(torch.from_numpy(tensors[spec.name]) for spec in model.inputs))
        return {spec.name: value.numpy() for spec, value in zip(model.outputs, given, strict=True)}

    return run


def test_what_does_not_export_after_a_rewrite_is_still_named_with_its_layer(tmp_path):
    rows = {"x": images(6)}
    done = rewrite(open_model(models.Wrapped(models.Bessel()).eval(), rows), rows)
    with pytest.raises(ExportError, match=r"layer 'inner' \(Bessel\).*bessel_j0.*write the layer with others"):
        EXPORTERS["onnx"].export(done.model, rows, tmp_path / "model")


def test_two_inputs_and_named_outputs_keep_their_order(tmp_path):
    rows = {"image": images(1, 12, 12), "features": images(3)}
    model = open_model(models.seeded(models.TwoInputs), rows)
    done = rewrite(model, rows)
    assert difference(model.answer(rows), _answering(done.model)(rows)) <= SAME


def _onnx_model(*nodes, opset=20, rank=4):
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    axes = onnx.numpy_helper.from_array(np.array([2, 3]), "axes")
    graph = helper.make_graph(
        list(nodes),
        "own",
        [helper.make_tensor_value_info("x", floats, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", floats, [None] * rank)],
        [axes],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


ONNX_CASES = {
    "mean that keeps axes": ([("ReduceMean", ["x", "axes"], {"keepdims": 1})], 20, {"GlobalAveragePool"}),
    "mean that gives them up": ([("ReduceMean", ["x", "axes"], {"keepdims": 0})], 20, {"GlobalAveragePool", "Flatten"}),
    "mean of an old opset": (
        [("ReduceMean", ["x"], {"keepdims": 0, "axes": [-1, -2]})],
        13,
        {"GlobalAveragePool", "Flatten"},
    ),
    "mean over channels": ([("ReduceMean", ["x"], {"axes": [1]})], 13, {"ReduceMean"}),
    "hard swish": ([("HardSwish", ["x"], {})], 20, {"Mul", "Add", "Clip"}),
    "hard sigmoid": ([("HardSigmoid", ["x"], {"alpha": 0.3, "beta": 0.4})], 20, {"Mul", "Add", "Clip"}),
}


@pytest.mark.parametrize("case", ONNX_CASES)
def test_an_onnx_graph_is_rewritten_with_the_same_answers(case):
    import onnxruntime

    steps, opset, expected = ONNX_CASES[case]
    nodes = [onnx.helper.make_node(kind, inputs, ["y"], **attributes) for kind, inputs, attributes in steps]
    model = _onnx_model(*nodes, opset=opset, rank=2 if "Flatten" in expected else 4)
    rows = {"x": images(3, 8, 8) * 3}
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, rows)[0]

    apply({**ONNX_PASSES, **ONNX_INTEGER_PASSES}, model)

    onnx.checker.check_model(model)
    assert {node.op_type for node in model.graph.node} == expected
    after = onnxruntime.InferenceSession(model.SerializeToString()).run(None, rows)[0]
    assert difference({"y": before}, {"y": after}) <= SAME


def test_an_onnx_file_takes_channels_last_and_has_a_form_for_integers(tmp_path):
    path = tmp_path / "own.onnx"
    nodes = [onnx.helper.make_node("HardSwish", ["x"], ["h"]), onnx.helper.make_node("GlobalAveragePool", ["h"], ["y"])]
    model = _onnx_model(*nodes)
    onnx.save(model, str(path))
    rows = {"x": images(8, 8, 3)}
    source = open_model(path, as_model_takes(rows, Layout.NHWC))
    done = rewrite(source, rows, input_layout=Layout.NHWC)
    assert done.model.inputs[0].shape == ("batch", 8, 8, 3)
    for one in (done.model, done.integers):
        artifact = EXPORTERS["onnx"].export(one, rows, tmp_path / "out.onnx")
        assert difference(source.answer(as_model_takes(rows, Layout.NHWC)), artifact.open().run(rows)) <= SAME
        assert kinds(artifact)["Transpose"] == 1
    assert not kinds(artifact)["HardSwish"]


def test_an_unknown_layout_is_refused():
    with pytest.raises(RecipeError, match="expected one of nchw, nhwc"):
        parse_layout("chw")


def test_a_result_names_few_layers_and_counts_the_others():
    assert PassResult("folded", ("a", "b", "c", "d")).text == "folded: a, b, c and 1 more"
