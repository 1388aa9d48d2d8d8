"""Every compressor, on the real engines: float's interface and nearly its answers, a smaller file, the same bytes twice."""

import numpy as np
import pytest

from edgeops.errors import RecipeError
from edgeops_converters.artifact import ENGINES, Artifact
from edgeops_converters.audit import audit
from edgeops_converters.compressors import COMPRESSIONS, PRECISIONS, engines_of, is_made, litert, purpose_of
from edgeops_converters.compressors.onnx import rounded
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.fidelity import sqnr_db
from edgeops_converters.gate import Purpose
from edgeops_converters.quantizers.litert_graph import LitertFile
from edgeops_converters.ranges import Range
from edgeops_converters.sessions import run_rows
from edgeops_converters.sources import open_model

RANDOM = np.random.default_rng(0)
ROWS = {
    "convolutional": {"image": RANDOM.normal(size=(9, 1, 16, 16)).astype(np.float32)},
    "linear": {"x": RANDOM.normal(size=(9, 128)).astype(np.float32)},
    "recurrent": {"x": RANDOM.normal(size=(9, 2, 16)).astype(np.float32)},
}
LEAST_DB = {"float16": 55, "int8-weights": 35, "int16": 35, "dynamic": 32, "int4-weights": 14}
LARGEST_LINEAR = {"float16": 0.51, "int8-weights": 0.28, "int16": 0.3, "dynamic": 0.28, "int4-weights": 0.2}

SLOW = {("float16", "recurrent"), ("int16", "recurrent")}
"""Precision and kind of network that is left to the whole run; the other kinds show the same code at work."""


@pytest.fixture(scope="module")
def exported(network, models, tmp_path_factory):
    """The float file of a kind of network in a format, exported once."""
    folder, made = tmp_path_factory.mktemp("exports"), {}
    modules = {"linear": models.Linear, "recurrent": models.Recurrent, "no product": models.Convolutions}

    def export(form, kind):
        if (form, kind) not in made:
            module = models.seeded(modules[kind]) if kind in modules else network
            rows = ROWS.get(kind, ROWS["convolutional"])
            made[form, kind] = EXPORTERS[form].export(open_model(module, rows), rows, folder / f"{kind}.{form}")
        return made[form, kind]

    return export


def noise_db(expected, given):
    noise = sqnr_db(expected, given)
    return float("inf") if noise is None else noise


@pytest.mark.parametrize(
    ("form", "precision", "kind"),
    [
        pytest.param(*one, kind, marks=pytest.mark.slow if (one[1], kind) in SLOW else ())
        for one in COMPRESSIONS
        for kind in ROWS
    ],
)
def test_every_compressor_keeps_interface_and_answers_and_makes_the_file_smaller(
    form, precision, kind, exported, tmp_path
):
    source, rows = exported(form, kind), ROWS[kind]
    expected = run_rows(source.open().run, rows, batch=source.batch)

    made = COMPRESSIONS[form, precision].compress(source, rows, tmp_path / "made")

    assert (made.format, made.precision, made.batch) == (form, precision, source.batch)
    assert made.file == f"model.{precision}.{form}"
    assert made.size_bytes < source.size_bytes
    for is_plain in (False, True):
        given = run_rows(made.open(is_plain=is_plain).run, rows, batch=made.batch)
        assert {name: array.dtype for name, array in given.items()} == {n: a.dtype for n, a in expected.items()}
        assert noise_db(expected, given) > LEAST_DB[precision], is_plain
    again = COMPRESSIONS[form, precision].compress(source, rows, tmp_path / "again")
    assert made.path.read_bytes() == again.path.read_bytes()


@pytest.mark.parametrize(("form", "precision"), COMPRESSIONS)
def test_a_linear_model_of_a_megabyte_becomes_as_small_as_its_precision_says(form, precision, exported, tmp_path):
    source = exported(form, "linear")
    made = COMPRESSIONS[form, precision].compress(source, ROWS["linear"], tmp_path / "made")
    assert source.size_bytes > 1e6
    assert made.size_bytes / source.size_bytes < LARGEST_LINEAR[precision]


@pytest.mark.parametrize("form", EXPORTERS)
def test_dynamic_runs_matrix_products_and_lstms_in_integers_and_convolutions_in_float(form, exported, tmp_path):
    audits = {}
    for kind, rows in ROWS.items():
        source = exported(form, kind)
        audits[kind] = audit(COMPRESSIONS[form, "dynamic"].compress(source, rows, tmp_path / kind))
        assert audits[kind].total == audit(source).total
    assert audits["linear"].percent == audits["recurrent"].percent == 100
    assert 0 < audits["convolutional"].integer < audits["convolutional"].total


def test_a_gru_in_onnx_is_stored_small_and_named_as_left_in_float(tmp_path):
    import onnx

    weights = {"W": (1, 96, 16), "R": (1, 96, 32), "head": (32, 5)}
    nodes = [
        onnx.helper.make_node("GRU", ["x", "W", "R"], ["", "last"], name="cell", hidden_size=32),
        onnx.helper.make_node("MatMul", ["last", "head"], ["y"], name="product"),
    ]
    ends = [onnx.helper.make_tensor_value_info(*end) for end in (("x", 1, [3, "n", 16]), ("y", 1, [1, "n", 5]))]
    held = [onnx.numpy_helper.from_array(RANDOM.normal(size=s).astype(np.float32), n) for n, s in weights.items()]
    graph = onnx.helper.make_graph(nodes, "recurrent", ends[:1], ends[1:], held)
    opset = onnx.helper.make_opsetid("", 20)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "float")
    source = Artifact(tmp_path / "float", "onnx", "float32", 9, {"x": "x"}, {"output": "y"})
    made = COMPRESSIONS["onnx", "dynamic"].compress(source, {}, tmp_path / "dynamic")
    found = audit(made)
    assert (found.integer, found.total) == (1, 2)
    assert "no integer form of a GRU" in found.in_float[0].reason
    assert made.size_bytes < 0.4 * source.size_bytes


@pytest.mark.parametrize(("form", "precision"), [key for key in COMPRESSIONS if key[1] in {"dynamic", "int4-weights"}])
def test_what_would_change_nothing_is_refused_with_what_to_take_instead(form, precision, exported, tmp_path):
    source = exported(form, "no product")
    with pytest.raises(RecipeError, match=rf"{precision}: there is no matrix product .* take int8"):
        COMPRESSIONS[form, precision].compress(source, ROWS["convolutional"], tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("form", EXPORTERS)
def test_a_file_that_is_no_model_is_refused_by_name(form, tmp_path):
    (tmp_path / "broken").write_bytes(b"not a model")
    source = Artifact(tmp_path / "broken", form, "float32", 1, {"x": "x"}, {"output": "y"})
    for (made_of, precision), line in COMPRESSIONS.items():
        if made_of == form:
            with pytest.raises(RecipeError, match=rf"model\.float\.{form}.*{precision}"):
                line.compress(source, ROWS["linear"], tmp_path / "made")


def test_ranges_that_are_handed_in_become_symmetric_sixteen_bits(exported, tmp_path):
    source, rows = exported("tflite", "linear"), ROWS["linear"]
    float_file = LitertFile(source.path.read_bytes())
    ranges = {one["name"]: Range(-1.0, 32.0) for one in float_file.details.values()}
    made = litert.int16_within(source, ranges, tmp_path / "made")
    file = LitertFile(made.path.read_bytes())
    hidden = file.details[file.products[0][2][0]]
    assert hidden["dtype"] is np.int16
    assert hidden["quantization"] == pytest.approx((32 / 32767, 0), rel=1e-5)
    assert run_rows(made.open().run, rows, batch=1)["output"].dtype == np.float32


def test_sixteen_bits_leave_a_layer_in_float_that_reads_an_output_of_the_model(models, tmp_path):
    rows = {"image": RANDOM.random((5, 1, 8, 8), np.float32), "features": RANDOM.random((5, 3), np.float32)}
    model = open_model(models.seeded(models.TwoInputs), rows)
    source = EXPORTERS["tflite"].export(model, rows, tmp_path / "float")
    made = litert.int16(source, rows, tmp_path / "made")
    expected, given = (run_rows(one.open().run, rows, batch=1) for one in (source, made))
    assert noise_db(expected, given) > LEAST_DB["int16"]
    assert 0 < audit(made).integer < audit(made).total


def test_weights_that_a_caller_can_set_are_left_alone(exported, tmp_path):
    import onnx

    source = exported("onnx", "linear")
    graph = onnx.load(source.path)
    settable = next(tensor for tensor in graph.graph.initializer if len(tensor.dims) == 2)
    graph.graph.input.append(onnx.helper.make_tensor_value_info(settable.name, 1, list(settable.dims)))
    path = tmp_path / "settable.onnx"
    onnx.save(graph, path)
    made = COMPRESSIONS["onnx", "float16"].compress(
        Artifact(path, "onnx", "float32", None, source.inputs, source.outputs), ROWS["linear"], tmp_path / "made"
    )
    held = {tensor.name: tensor.data_type for tensor in onnx.load(made.path).graph.initializer}
    assert held[settable.name] == onnx.TensorProto.FLOAT
    assert onnx.TensorProto.FLOAT16 in held.values()


def test_weights_beyond_half_precision_stay_float32(exported, tmp_path):
    import onnx

    source = exported("onnx", "linear")
    graph = onnx.load(source.path)
    large = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    large.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(large) * np.float32(1e7), large.name))
    path = tmp_path / "large.onnx"
    onnx.save(graph, path)
    artifact = Artifact(path, "onnx", "float32", None, source.inputs, source.outputs)
    made = COMPRESSIONS["onnx", "float16"].compress(artifact, ROWS["linear"], tmp_path / "made")
    expected, given = (run_rows(one.open().run, ROWS["linear"], batch=None) for one in (artifact, made))
    assert noise_db(expected, given) > LEAST_DB["float16"]


def test_rounding_is_off_by_half_a_step_at_most_even_where_a_channel_is_all_zero():
    weights = RANDOM.normal(size=(16, 4, 3, 3)).astype(np.float32)
    weights[3] = 0
    codes, scales = rounded(weights)
    assert codes.dtype == np.int8
    assert np.abs(weights - codes * scales).max() <= scales.max() * 0.501
    assert np.isfinite(scales).all()
    assert not codes[3].any()


@pytest.mark.parametrize("shape", [(1024,), (1, 1024), (4, 4), ()])
def test_vectors_and_small_tensors_stay_float(shape):
    assert rounded(np.ones(shape, np.float32)) is None


def test_the_table_says_what_every_file_needs_and_is_for():
    assert PRECISIONS[:2] == ("float", "int8")
    for (form, precision), line in COMPRESSIONS.items():
        artifact = Artifact(None, form, precision, 1, {}, {})
        assert line.good_for
        assert set(line.engines) <= set(ENGINES[form])
        assert engines_of(artifact) == line.engines
        assert purpose_of(artifact) is line.purpose
    # What tflite-runtime 2.14 was seen to answer wrongly.
    for precision in ("dynamic", "int16"):
        assert "tflite" not in engines_of(Artifact(None, "tflite", precision, 1, {}, {}))
    assert engines_of(Artifact(None, "onnx", "int8", None, {}, {})) == ENGINES["onnx"]
    assert not is_made("onnx", "int16")
    assert purpose_of(Artifact(None, "onnx", "int8", None, {}, {})) is Purpose.SPEED
