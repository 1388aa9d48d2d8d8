"""Conformance of every exporter and every quantizer: the file answers what the torch module answers."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeops.errors import ExportError
from edgeops_converters.correction import BiasCorrection
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.fidelity import sqnr_db
from edgeops_converters.quantization import carry_out, plan_for, quantize
from edgeops_converters.sessions import run_rows
from edgeops_converters.sources import open_model
from edgeops_converters.targets import Target

_SPEC = importlib.util.spec_from_file_location("converter_test_models", Path(__file__).with_name("models.py"))
models = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(models)

RANDOM = np.random.default_rng(0)
CASES = {
    "convolution": (None, {"image": RANDOM.normal(size=(13, 1, 16, 16)).astype(np.float32)}),
    "two inputs, two outputs": (
        models.TwoInputs,
        {"image": RANDOM.random((13, 1, 8, 8), np.float32), "features": RANDOM.random((13, 3), np.float32)},
    ),
    "series": (models.Series, {"x": RANDOM.normal(size=(13, 3, 32)).astype(np.float32)}),
    "integer input": (models.Tokens, {"tokens": RANDOM.integers(0, 20, (13, 7))}),
    "fixed batch": (models.FixedBatch, {"x": RANDOM.random((13, 6), np.float32)}),
}


@pytest.fixture(params=EXPORTERS)
def form(request):
    return request.param


@pytest.fixture(params=CASES)
def case(request, network):
    make, rows = CASES[request.param]
    return (network if make is None else models.seeded(make)), rows


def test_every_exporter_and_quantizer_keeps_the_answers_of_the_module(form, case, tmp_path):
    module, rows = case
    model = open_model(module, {name: array[:4] for name, array in rows.items()})
    expected = run_rows(model.answer, rows, batch=model.batch)

    exported = EXPORTERS[form].export(model, rows, tmp_path / f"model.float.{form}")

    assert exported.path.stat().st_size == exported.size_bytes > 0
    assert (exported.format, exported.precision, exported.file) == (form, "float32", f"model.float.{form}")
    assert set(exported.inputs) == set(rows)
    assert set(exported.outputs) == set(expected)
    answered = run_rows(exported.open().run, rows, batch=exported.batch)
    for name, array in expected.items():
        np.testing.assert_allclose(answered[name], array, atol=1e-5, rtol=1e-4)
        assert answered[name].dtype == array.dtype

    quantized = quantize(exported, rows, tmp_path / f"model.int8.{form}", cpu=Target.X86)

    assert (quantized.precision, quantized.batch) == ("int8", exported.batch)
    again = run_rows(quantized.open().run, rows, batch=quantized.batch)
    assert {name: array.dtype for name, array in again.items()} == {name: a.dtype for name, a in expected.items()}
    noise = sqnr_db(expected, again)
    assert noise is None or noise > 15


@pytest.fixture(scope="module")
def exports(network, tmp_path_factory):
    """The trained network in every format."""
    rows, folder = CASES["convolution"][1], tmp_path_factory.mktemp("exports")
    model = open_model(network, rows)
    return {form: exporter.export(model, rows, folder / f"float.{form}") for form, exporter in EXPORTERS.items()}


def test_the_batch_that_a_file_takes_is_declared(form, exports):
    rows, exported = CASES["convolution"][1], exports[form]
    assert exported.batch == (None if form == "onnx" else 1)
    for count in (1, 2, 5) if exported.batch is None else (exported.batch,):
        assert len(exported.open().run({"image": rows["image"][:count]})["output"]) == count


def test_a_model_that_fixes_the_batch_is_exported_row_by_row_and_says_so(tmp_path):
    rows = CASES["fixed batch"][1]
    exported = EXPORTERS["onnx"].export(open_model(models.seeded(models.FixedBatch), rows), rows, tmp_path / "model")
    assert exported.batch == 1
    assert "one row at a time" in exported.notes[0]


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        (models.Bessel, r"layer 'inner' \(Bessel\).*bessel_j0.*write the layer with others"),
        (models.Branch, r"layer 'inner' \(Branch\).*depends on the values of the input; use torch\.where"),
    ],
)
def test_what_does_not_export_is_named_with_its_layer_and_what_to_change(form, inner, said, tmp_path):
    rows = {"x": RANDOM.random((4, 6), np.float32)}
    model = open_model(models.Wrapped(inner()).eval(), rows)
    with pytest.raises(ExportError, match=said):
        EXPORTERS[form].export(model, rows, tmp_path / "model")


def test_an_onnx_file_has_neither_paths_nor_stack_traces_of_the_workstation(exports):
    content = exports["onnx"].path.read_bytes()
    assert b"site-packages" not in content
    assert b"tiny.py" not in content


def test_all_convolutions_of_the_int8_onnx_are_integer_on_this_kind_of_cpu(exports, tmp_path):
    """The graph that onnxruntime really runs has no float convolution left."""
    import onnx
    import onnxruntime as ort

    rows = CASES["convolution"][1]
    quantized = quantize(exports["onnx"], rows, tmp_path / "int8.onnx", cpu=Target.X86)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(quantized.path), options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 2
    assert not {"Conv", "FusedConv", "NhwcFusedConv"} & set(kinds)


@pytest.mark.parametrize("cpu", Target)
def test_activations_have_the_sign_that_the_cpu_has_kernels_for(cpu, exports, tmp_path):
    import onnx

    rows = CASES["convolution"][1]
    quantized = quantize(exports["onnx"], rows, tmp_path / "int8.onnx", cpu=cpu)
    graph = onnx.load(quantized.path).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    quantizing = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    wanted = onnx.TensorProto.UINT8 if not cpu.is_signed else onnx.TensorProto.INT8
    assert quantizing
    assert {types[node.input[2]] for node in quantizing} == {wanted}
    weights = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8 and tensor.dims]
    scales = {tensor.name: list(tensor.dims) for tensor in graph.initializer if tensor.name.endswith("_scale")}
    assert any(dims == [32] for dims in scales.values()), "one scale a channel"
    assert weights


@pytest.mark.parametrize("rows", [1, 40])
def test_exporting_and_quantizing_twice_gives_the_same_bytes(form, rows, exports, network, tmp_path):
    data = {"image": np.resize(CASES["convolution"][1]["image"], (rows, 1, 16, 16))}
    quantized = [quantize(exports[form], data, tmp_path / str(attempt), cpu=Target.X86) for attempt in range(2)]
    assert quantized[0].path.read_bytes() == quantized[1].path.read_bytes()
    if rows > 1:
        again = EXPORTERS[form].export(open_model(network, CASES["convolution"][1]), data, tmp_path / "again")
        assert again.path.read_bytes() == exports[form].path.read_bytes()


class Lopsided(torch.nn.Module):
    """Weights that lie just beside the grid, all on one side, so that rounding moves every mean."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.Conv2d(16, 16, 3, stride=2, groups=16)
        self.head = torch.nn.Conv2d(16, 8, 1)
        for layer in (self.first, self.second, self.head):
            codes = torch.randint(-60, 60, layer.weight.shape)
            codes.view(len(codes), -1)[:, 0] = 127
            with torch.no_grad():
                layer.weight.copy_((codes + torch.where(codes < 127, 0.45, 0.0)) / 127)

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu()).mean((2, 3))


def test_bias_correction_takes_the_shift_out_of_the_answers(form, tmp_path, monkeypatch):
    rows = {"x": RANDOM.random((48, 3, 20, 20), np.float32)}
    model = open_model(models.seeded(Lopsided), {"x": rows["x"][:4]})
    exported = EXPORTERS[form].export(model, rows, tmp_path / "float")
    expected = run_rows(exported.open().run, rows, batch=exported.batch)["output"]

    planned, subjects = plan_for([exported], rows, target=Target.X86)
    nearest = replace(subjects[form], grids={})  # the weights of the library, each rounded by itself

    def shift(correction):
        target = tmp_path / str(correction)
        quantized = carry_out(planned.plan, nearest, target, cpu=Target.X86, correction=correction)
        return np.abs((run_rows(quantized.open().run, rows, batch=quantized.batch)["output"] - expected).mean(0)).max()

    plain = shift(BiasCorrection.NONE)
    assert shift(BiasCorrection.FULL) < 0.35 * plain
    assert shift(BiasCorrection.FAST) < 0.6 * plain


class Rescaled(torch.nn.Module):
    """Channels rescaled by ten to a power in ±2 between its layers, which changes nothing in float."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.third = torch.nn.Conv2d(16, 8, 1)
        with torch.no_grad():
            for one, factors in (
                (self.first, 10 ** (4 * torch.rand(16) - 2)),
                (self.second, 10 ** (4 * torch.rand(16) - 2)),
            ):
                one.weight *= factors[:, None, None, None]
                one.bias *= factors
                after = self.second if one is self.first else self.third
                after.weight /= factors[:, None, None, None] if one is self.first else factors[None, :, None, None]

    def forward(self, x):
        return self.third(self.second(self.first(x).relu()).relu()).mean((2, 3))


def test_channels_of_very_different_size_are_brought_to_one_range(form, tmp_path):
    rows = {"x": RANDOM.random((16, 3, 12, 12), np.float32)}
    exported = EXPORTERS[form].export(open_model(models.seeded(Rescaled), rows), rows, tmp_path / "float")
    quantized = quantize(exported, rows, tmp_path / "int8", cpu=Target.X86)
    expected, answered = (run_rows(one.open().run, rows, batch=one.batch) for one in (exported, quantized))
    assert sqnr_db(expected, answered) > 30
