"""One plan, carried out in every format: the same integers, ranges with their reasons, regions in float where asked."""

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from edgeops.errors import ManifestError
from edgeops_converters.artifact import Artifact
from edgeops_converters.audit import audit
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.fidelity import sqnr_db
from edgeops_converters.graph import NodeKind
from edgeops_converters.matching import match_layers, match_tensors
from edgeops_converters.plan import LayerPrecision, decode_plan, encode_plan
from edgeops_converters.quantization import carry_out, plan_for
from edgeops_converters.quantizers import QUANTIZERS
from edgeops_converters.quantizers.litert_graph import LitertFile
from edgeops_converters.quantizers.onnx_graph import initializers, read_integer_layers
from edgeops_converters.regions import regions_of
from edgeops_converters.rounding import saturates
from edgeops_converters.sessions import run_rows
from edgeops_converters.sources import open_model
from edgeops_converters.targets import Target

RANDOM = np.random.default_rng(0)


class Residual(nn.Module):
    """A stem, an inverted residual block with ReLU6, and a head: what most small networks are made of."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.expand = nn.Conv2d(8, 24, 1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.project = nn.Conv2d(24, 8, 1)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.stem.weight[2] *= 30  # a channel that would cost all others their resolution

    def forward(self, image):
        stem = self.stem(image)
        hidden = nn.functional.relu6(self.expand(stem))
        hidden = nn.functional.relu6(self.depthwise(hidden))
        return self.head((stem + self.project(hidden)).mean((2, 3)))


@pytest.fixture(scope="module")
def rows():
    return {"image": RANDOM.random((40, 3, 20, 20), np.float32)}


@pytest.fixture(scope="module")
def sources(rows, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("residual")
    model = open_model(Residual().eval(), {"image": rows["image"][:4]})
    return {form: exporter.export(model, rows, folder / f"float.{form}") for form, exporter in EXPORTERS.items()}


@pytest.fixture(scope="module")
def made(sources, rows, tmp_path_factory):
    """The plan, and a file of each format."""
    folder = tmp_path_factory.mktemp("planned")
    planned, subjects = plan_for(list(sources.values()), rows, target=Target.X86)
    files = {form: carry_out(planned.plan, one, folder / form, cpu=Target.X86) for form, one in subjects.items()}
    return planned, subjects, files


def test_layers_have_the_names_of_the_users_model_and_blocks_are_one_region(made):
    planned, _, _ = made
    assert list(planned.plan.layers) == ["stem", "expand", "depthwise", "project", "head"]
    regions = {name: layer.region for name, layer in planned.plan.layers.items()}
    assert regions["expand"] == regions["depthwise"] == regions["project"]
    assert len(set(regions.values())) == 3


def test_every_range_holds_zero_and_says_why(made):
    planned, _, _ = made
    assert planned.plan.tensors
    for tensor in planned.plan.tensors.values():
        assert tensor.low <= 0 <= tensor.high
        assert tensor.why
    read = [tensor.why for tensor in planned.plan.tensors.values() if "dB behind" in tensor.why]
    assert len(read) >= 3, "ranges are chosen by the answers of their readers"


def test_both_files_hold_the_same_integers(made, rows):
    import onnx

    planned, subjects, files = made
    graph = onnx.load(files["onnx"].path).graph
    constants, integers = initializers(graph), read_integer_layers(graph)
    litert = LitertFile(files["tflite"].path.read_bytes())
    # The quantizer adds operators, and keeps the order of layers.
    stored = dict(zip((layer.node for layer in subjects["tflite"].graph.layers), litert.layers(), strict=True))
    assert set(subjects["tflite"].nodes) == set(planned.plan.layers)
    for name, layer in planned.plan.layers.items():
        held = stored[subjects["tflite"].nodes[name]]
        one = constants[integers[layer.node].codes.tensor]
        other = litert.arranged(held, litert.constant(held.weights))
        np.testing.assert_array_equal(one, other)
    answers = {form: run_rows(file.open().run, rows, batch=file.batch)["output"] for form, file in files.items()}
    assert (answers["onnx"].argmax(1) == answers["tflite"].argmax(1)).mean() >= 0.95


def test_the_files_are_near_to_float_with_everything_in_integers(made, sources, rows):
    _, _, files = made
    for form, file in files.items():
        expected, given = (run_rows(one.open().run, rows, batch=one.batch) for one in (sources[form], file))
        assert sqnr_db(expected, given) > 28
        found = audit(file)
        assert found.integer == found.total == 5


def test_no_pair_of_weights_saturates_on_x86_and_with_vnni_they_may(sources, rows):
    free, _ = plan_for([sources["onnx"]], rows, target=Target.X86_VNNI)
    paired, _ = plan_for([sources["onnx"]], rows, target=Target.X86)
    dense = [layer.node for name, layer in paired.plan.layers.items() if name != "depthwise"]
    assert not any(saturates(paired.grids[node].codes) for node in dense)
    assert any(saturates(free.grids[node].codes) for node in dense)


def test_no_pair_of_weights_of_a_convolution_on_one_channel_saturates(onnx_source, calibration):
    source = Artifact(onnx_source, "onnx", "float32", None, {"image": "image"}, {"output": "output"})
    planned, _ = plan_for([source], calibration, target=Target.X86)
    codes = [grid.codes for grid in planned.grids.values()]
    assert any(one.shape[1:] == (1, 3, 3) for one in codes)
    assert not any(saturates(one) for one in codes)


def test_groups_that_read_one_channel_and_give_two_do_not_saturate(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=8), nn.Flatten()).eval()
    for layer in (module[0], module[2]):
        nn.init.uniform_(layer.weight, 0.5, 1.0)
    images = {"image": np.random.default_rng(0).uniform(0, 1, (32, 3, 8, 8)).astype(np.float32)}
    few = {"image": images["image"][:4]}
    source = EXPORTERS["onnx"].export(open_model(module, few), few, tmp_path / "float.onnx")
    planned, subjects = plan_for([source], images, target=Target.X86)
    assert not any(saturates(grid.codes) for grid in planned.grids.values())
    file = carry_out(planned.plan, subjects["onnx"], tmp_path / "int8.onnx", cpu=Target.X86)
    # On a CPU without VNNI it would be some 25 dB.
    assert sqnr_db(source.open().run(images), file.open().run(images)) > 45


@pytest.mark.parametrize("form", EXPORTERS)
def test_a_region_in_float_is_in_float_and_nearer_to_float(form, made, sources, rows, tmp_path):
    planned, subjects, files = made
    region = planned.plan.layers["expand"].region
    plan = planned.plan.with_float({region: "asked"})
    mixed = carry_out(plan, subjects[form], tmp_path / "mixed", cpu=Target.X86, precision="mixed")
    assert {name for name, one in plan.layers.items() if one.precision is LayerPrecision.FLOAT} == {
        "expand", "depthwise", "project"
    }  # fmt: skip
    found = audit(mixed)
    assert (found.integer, found.total) == (2, 5)
    expected = run_rows(sources[form].open().run, rows, batch=sources[form].batch)
    noise = [sqnr_db(expected, run_rows(one.open().run, rows, batch=one.batch)) for one in (files[form], mixed)]
    assert noise[1] > noise[0]


def test_equalising_leaves_the_float_answers_as_they_were(sources, rows):
    for form, source in sources.items():
        graph = QUANTIZERS[form].read(source)
        wire = source.outputs["output"]
        before = np.concatenate([values[wire] for values in graph.stream(rows, {wire})])
        held = {layer.name: graph.parameters(layer).weights for layer in graph.layers}
        planned, subjects = plan_for([source], rows, target=Target.X86)
        after_graph = subjects[form].graph
        after = np.concatenate([values[wire] for values in after_graph.stream(rows, {wire})])
        np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())
        assert any(layer.equalised for layer in planned.plan.layers.values())
        assert any(
            not np.array_equal(after_graph.parameters(layer).weights, held[layer.name]) for layer in after_graph.layers
        )


def test_layers_and_tensors_of_two_files_are_told_by_what_they_hold(sources, rows):
    onnx, litert = (QUANTIZERS[form].read(sources[form]) for form in ("onnx", "tflite"))
    layers = match_layers(onnx, litert)
    assert len(layers) == 5
    for layer in onnx.layers:
        other = next(one for one in litert.layers if one.node == layers[layer.node])
        held, there = onnx.parameters(layer).weights, litert.parameters(other).weights
        np.testing.assert_allclose(held.reshape(-1), there.reshape(-1), rtol=1e-5)
    tensors = match_tensors(onnx, litert, rows)
    padded = {name for name in (layer.input for layer in litert.layers) if name not in tensors}
    assert len(padded) <= 1, "only what LiteRT pads before a convolution with a stride is no tensor of ONNX"


def test_a_stranger_matches_nothing(sources, rows, tmp_path):
    torch.manual_seed(1)
    other = open_model(Residual().eval(), {"image": rows["image"][:4]})
    stranger = EXPORTERS["onnx"].export(other, rows, tmp_path / "other.onnx")
    assert match_layers(QUANTIZERS["onnx"].read(sources["onnx"]), QUANTIZERS["onnx"].read(stranger)) == {}


@pytest.mark.parametrize("form", EXPORTERS)
def test_every_layer_is_a_node_and_regions_cover_all_layers(form, sources):
    graph = QUANTIZERS[form].read(sources[form])
    kinds = {node.name: node.kind for node in graph.nodes}
    assert all(kinds[layer.node] is NodeKind.LAYER for layer in graph.layers)
    assert set(regions_of(graph)) == {layer.node for layer in graph.layers}


def test_a_plan_comes_back_from_its_file_and_a_damaged_one_is_refused(made):
    planned, _, _ = made
    data = encode_plan(planned.plan)
    assert decode_plan(data) == planned.plan
    for broken in (data[:-20], b"[]", data.replace(b'"region"', b'"area"')):
        with pytest.raises(ManifestError, match=r"plan\.json"):
            decode_plan(broken)
    assert msgspec.json.decode(data)["schema"] == 1


@pytest.mark.parametrize("target", Target)
def test_a_file_for_any_cpu_is_near_to_float_as_that_cpu_computes(target, sources, rows, tmp_path):
    planned, subjects = plan_for([sources["onnx"]], rows, target=target)
    file = carry_out(planned.plan, subjects["onnx"], tmp_path / "int8.onnx", cpu=target)
    expected = run_rows(sources["onnx"].open().run, rows, batch=None)
    given = run_rows(file.open(is_plain=not target.runs_here).run, rows, batch=None)
    assert sqnr_db(expected, given) > 28
