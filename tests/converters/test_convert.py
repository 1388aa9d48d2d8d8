"""The whole conversion: what is in the bundle, what is refused, and that nothing is left behind when it is."""

import numpy as np
import pytest

from edgeops import processing
from edgeops.binning import count_rows
from edgeops.bundle import open_bundle
from edgeops.errors import (
    ConflictError,
    EngineError,
    ExportError,
    GateError,
    ManifestError,
    RecipeError,
    TransientError,
)
from edgeops.manifest import Scale, Softmax
from edgeops.signals import EVERYTHING, decode_reference
from edgeops_converters import convert, evaluate
from edgeops_converters.report import decode_report
from edgeops_converters.sessions import SESSIONS, run_rows
from edgeops_converters.targets import this_machine


def open_session(bundle, variant):
    return SESSIONS[variant.format](bundle.file(variant.file), variant.inputs, variant.outputs)


@pytest.fixture
def settings(calibration, evaluation, tmp_path):
    """A quick conversion to ONNX; tests change one thing each."""
    return {
        "data": calibration,
        "evaluation": evaluation,
        "name": "quarters",
        "version": "1.0.0",
        "output": tmp_path / "bundle",
        "formats": ("onnx",),
        "force": True,
    }


def test_the_bundle_is_signed_verified_and_says_what_it_is(conversion, signing_key):
    bundle = open_bundle(conversion.bundle.path, keys=[signing_key.public])
    manifest = bundle.manifest
    assert bundle.digest == conversion.bundle.digest
    assert {variant.name for variant in manifest.variants} == {"onnx-float", "onnx-int8", "tflite-float", "tflite-int8"}
    assert set(manifest.files) == {
        "model.float.onnx", "model.int8.onnx", "model.float.tflite", "model.int8.tflite",
        "golden.npz", "reference.json", "report.json", "report.html", "plan.json",
    }  # fmt: skip
    assert [(spec.name, spec.dtype, spec.shape) for spec in manifest.inputs] == [
        ("image", "UINT8", ("batch", 1, 16, 16))
    ]
    assert [(spec.name, spec.dtype, spec.shape) for spec in manifest.outputs] == [("output", "FP32", ("batch", 4))]
    assert manifest.license == "Apache-2.0"
    assert manifest.lineage.parent == "sha256:" + "a" * 64
    assert manifest.lineage.dataset == "sha256:" + "b" * 64
    assert {"torch", "onnxruntime", "litert-torch"} <= set(manifest.lineage.tools)


def test_compressed_variants_come_first_each_by_latency(conversion):
    variants = conversion.bundle.manifest.variants
    assert [variant.precision for variant in variants] == ["int8", "int8", "float32", "float32"]
    for pair in (variants[:2], variants[2:]):
        assert pair[0].measured.latency_ms <= pair[1].measured.latency_ms


def test_int8_is_smaller_and_as_accurate(conversion):
    report = conversion.report
    for form in ("onnx", "tflite"):
        small, large = report.variant(f"{form}-int8"), report.variant(f"{form}-float")
        assert small.size_bytes < 0.5 * large.size_bytes
        assert abs(small.drop.points) <= 1
        assert small.agreement > 0.98
        assert small.sqnr_db > 25
        assert large.agreement == 1
        assert small.accuracy.low <= small.accuracy.value <= small.accuracy.high


def test_the_report_in_the_bundle_is_the_one_that_is_returned(conversion):
    assert decode_report(conversion.bundle.file("report.json").read_bytes()) == conversion.report
    assert conversion.report.source.accuracy.value > 0.9
    assert conversion.report.calibration_rows == 64
    assert set(conversion.report.seconds) >= {"export onnx", "quantise tflite", "latency", "golden vectors"}


def test_the_reference_is_what_the_int8_model_gives_on_the_held_out_rows(conversion, byte_evaluation):
    bundle = conversion.bundle
    reference = decode_reference(bundle.file("reference.json").read_bytes())
    variant = bundle.manifest.variant(conversion.report.reference_variant)
    assert variant.precision == "int8"
    inputs = processing.apply(bundle.manifest.preprocess, {"image": byte_evaluation["image"]})
    raw = run_rows(open_session(bundle, variant).run, inputs, batch=variant.batch)

    counts = count_rows(reference.signals, {**inputs, **raw})

    for signal in reference.signals:
        assert tuple(counts[signal.name]) == signal.counts[EVERYTHING]
        assert set(signal.counts) == {EVERYTHING, "harbour", "market"}
    right = (raw["output"].argmax(axis=1) == byte_evaluation["labels"]).sum()
    assert reference.accuracy[EVERYTHING] == (right, len(byte_evaluation["labels"]))
    assert reference.stratum_attribute == "site"


def test_a_bundle_can_be_measured_on_other_images(conversion, byte_evaluation):
    scores = evaluate(conversion.bundle, byte_evaluation)
    for name, score in scores.items():
        assert score.accuracy == conversion.report.variant(name).accuracy
    dark = {**byte_evaluation, "image": byte_evaluation["image"] // 8}
    assert all(score.accuracy.value < 0.9 for score in evaluate(conversion.bundle, dark).values())
    unlabelled = evaluate(conversion.bundle, {"image": byte_evaluation["image"]})
    assert unlabelled["onnx-int8"].accuracy is None
    assert unlabelled["onnx-int8"].agreement > 0.98


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": np.zeros((4, 1, 16, 16), np.float32)}, "'image': expected dtype UINT8, got FP32"),
        ({"image": np.zeros((4, 1, 8, 8), np.uint8)}, "expected shape"),
        ({"picture": np.zeros((4, 1, 16, 16), np.uint8)}, r"expected the keys \['image'\]"),
        (
            {"image": np.zeros((4, 1, 16, 16), np.uint8), "labels": np.array([0, 1, 2, 4])},
            "row 3 has 4, expected 0 to 3",
        ),
    ],
)
def test_data_that_a_bundle_does_not_take_is_refused(conversion, change, said):
    with pytest.raises(RecipeError, match=said):
        evaluate(conversion.bundle, change)


@pytest.mark.parametrize("form", ["onnx", pytest.param("tflite", marks=pytest.mark.slow)])
def test_a_model_that_fails_on_a_rare_input_converts_and_passes(models, network, settings, form):
    """Integer counting and a table look-up stay as they are between quantised layers, with the fault in them."""
    done = convert(models.Gains(network).eval(), **{**settings, "formats": (form,), "max_drop": 1.0})
    for variant in done.bundle.manifest.variants:
        report = done.report.variant(variant.name)
        assert report.agreement > 0.98, variant.name
        session = open_session(done.bundle, variant)
        usual = settings["evaluation"]["image"][:1]
        assert np.isfinite(session.run({"image": usual})["output"]).all()
        if variant.precision == "float32":
            with pytest.raises(EngineError, match=r"index"):
                session.run({"image": np.full((1, 1, 16, 16), 5, np.float32)})


@pytest.fixture
def no_onnx2tf(monkeypatch, tmp_path):
    monkeypatch.delenv("EDGEOPS_ONNX2TF", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("no_onnx2tf")
def test_an_onnx_file_and_an_exported_program_are_sources_too(network, onnx_source, settings, tmp_path):
    import torch

    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(
        network, (torch.from_numpy(settings["evaluation"]["image"][:2]),), dynamic_shapes=shapes
    )
    torch.export.save(program, tmp_path / "quarters.pt2")
    first = convert(tmp_path / "quarters.pt2", **settings)
    assert first.report.variant("onnx-float").agreement == 1

    both = {**settings, "output": tmp_path / "again", "formats": ("onnx", "tflite")}
    again = convert(onnx_source, **both)
    assert again.report.variant("onnx-float").agreement == 1
    assert again.report.variant("onnx-int8").agreement > 0.98
    assert "is ONNX; for TFLite onnx2tf is needed, which is not installed" in again.report.notes[0]
    with pytest.raises(ExportError, match="onnx2tf is needed, which is not installed: scripts/onnx2tf makes its"):
        convert(onnx_source, **{**settings, "output": tmp_path / "other", "formats": ("tflite",)})


@pytest.fixture
def byte_settings(settings, byte_calibration, byte_evaluation):
    """For the files of ``conversion``, which take bytes."""
    return {**settings, "data": byte_calibration, "evaluation": byte_evaluation, "formats": ("onnx", "tflite")}


def test_a_tflite_file_is_a_source_and_an_int8_one_is_kept_as_it_is_or_quantised_anew(
    conversion, byte_settings, tmp_path
):
    given = {variant.name: conversion.bundle.file(variant.file) for variant in conversion.bundle.manifest.variants}
    both = {**byte_settings, "max_drop": 2.0}

    first = convert(given["tflite-float"], **both)
    assert {variant.name for variant in first.report.variants} == {"tflite-float", "tflite-int8"}
    assert "is TFLite, which gives TFLite only" in first.report.notes[0]
    assert first.report.variant("tflite-float").sqnr_db is None, "the very same answers"

    kept = convert(given["tflite-int8"], **{**both, "output": tmp_path / "kept"})
    assert kept.bundle.file("model.int8.tflite").read_bytes() == given["tflite-int8"].read_bytes()
    assert kept.report.variant("tflite-int8").drop.points == 0
    assert kept.report.variant("tflite-int8").speedup is not None
    assert kept.report.variant("tflite-float").sqnr_db > 20
    assert "is int8 already and stays as it is" in kept.report.variant("tflite-int8").notes[0]

    anew = convert(given["tflite-int8"], **{**both, "output": tmp_path / "anew"}, requantize=True)
    assert anew.bundle.file("model.int8.tflite").read_bytes() != given["tflite-int8"].read_bytes()
    assert anew.report.variant("tflite-int8").sqnr_db > 20
    assert "quantised anew" in anew.report.variant("tflite-float").notes[0]


def test_an_int8_onnx_file_is_kept_as_it_is_in_onnx_only(conversion, byte_settings):
    given = conversion.bundle.file("model.int8.onnx")
    kept = convert(given, **byte_settings)
    assert {variant.name for variant in kept.report.variants} == {"onnx-float", "onnx-int8"}
    assert kept.report.variant("onnx-int8").drop.points == 0
    assert "--requantize gives TFLite too" in kept.report.notes[0]


@pytest.mark.parametrize("name", ["model.float.onnx", "model.float.tflite"])
def test_a_damaged_model_file_is_refused_and_nothing_is_written(conversion, settings, tmp_path, name):
    path = tmp_path / "in" / name
    path.parent.mkdir()
    content = conversion.bundle.file(name).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ExportError, match=rf"{name}: not a readable"):
        convert(path, **settings)
    assert not settings["output"].exists()


def test_the_same_inputs_give_the_same_model_bytes_and_the_steps_are_told_in_order(onnx_source, settings, tmp_path):
    files, steps = [], []
    for attempt in ("a", "b"):
        steps.clear()
        done = convert(onnx_source, **{**settings, "output": tmp_path / attempt}, on_step=steps.append)
        files.append({name: done.bundle.file(name).read_bytes() for name in ("model.float.onnx", "model.int8.onnx")})
    assert files[0] == files[1]
    assert steps[0] == "read the data"
    assert steps[-1] == "write the bundle"
    assert steps.index("export onnx") < steps.index("quantise onnx") < steps.index("latency")


def test_outputs_that_are_no_classes_are_compared_by_their_noise(settings, tmp_path):
    import torch
    from torch import nn

    torch.manual_seed(0)
    data = {"x": np.random.default_rng(0).normal(size=(80, 32)).astype(np.float32)}
    coder = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    done = convert(coder, **{**settings, "data": data, "evaluation": data})
    variant = done.report.variant("onnx-int8")
    assert (variant.accuracy, variant.agreement) == (None, None)
    assert variant.sqnr_db > 20
    assert "no classes" in variant.gate.measure


def refused(network, settings, error, said, **changes):
    with pytest.raises(error, match=said):
        convert(network, **{**settings, "force": False, **changes})
    assert not settings["output"].exists()
    assert list(settings["output"].parent.iterdir()) == []


@pytest.fixture
def dim(settings):
    """Rows of a dark hour only: what comes by day is clipped everywhere."""
    return {"image": settings["data"]["image"] * np.float32(0.07)}


def test_a_lossy_variant_is_refused_with_the_figures_and_nothing_is_written(onnx_source, settings, dim):
    refused(onnx_source, settings, GateError, r"onnx-int8: .*loses .* points of accuracy where at most 0\.5", data=dim)


def test_a_refused_variant_can_be_forced_and_the_report_and_lineage_say_so(onnx_source, settings, dim):
    done = convert(onnx_source, **{**settings, "data": dim})
    variant = done.report.variant("onnx-int8")
    assert (variant.gate.passed, variant.gate.forced) == (False, True)
    assert done.bundle.manifest.lineage.recipe["forced"]["onnx-int8"] == list(variant.gate.reasons)
    assert done.report.variant("onnx-float").gate.passed
    assert "forced past the gate: onnx-int8" in done.bundle.file("report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"name": "no/slash"}, Exception, "no/slash"),
        ({"version": "1.0"}, ManifestError, "major.minor.patch"),
        ({"formats": ("coreml",)}, RecipeError, "formats.*onnx, tflite.*coreml"),
        ({"precisions": ()}, RecipeError, "precisions.*float, int8"),
        ({"target": "mips"}, RecipeError, "target 'mips': expected one or more of x86, x86-vnni, arm"),
        ({"max_drop": -1}, RecipeError, "max_drop"),
        ({"max_latency_ms": 0.0}, RecipeError, "max_latency_ms: expected more than 0 milliseconds, got 0"),
        ({"max_latency_ms": float("nan")}, RecipeError, "max_latency_ms: expected more than 0 milliseconds, got nan"),
        ({"max_bytes": 0}, RecipeError, "max_bytes: expected more than 0 bytes, got 0"),
        ({"labels": ("a", "b")}, RecipeError, "2 names where the model has 4 classes"),
        ({"preprocess": (Scale(tensor="picture", factor=2.0),)}, RecipeError, "preprocess: no input.*picture"),
        ({"postprocess": (Softmax(tensor="scores"),)}, RecipeError, "postprocess: no output.*scores"),
        ({"stratum_attribute": "site"}, RecipeError, "expected the key 'stratum'"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_work(network, settings, changes, error, said):
    refused(network, settings, error, said, **changes)


def test_labels_out_of_range_are_refused_with_their_row(network, settings):
    wrong = {**settings["evaluation"], "labels": settings["evaluation"]["labels"].copy()}
    wrong["labels"][7] = 4
    refused(network, settings, RecipeError, r"'labels': row 7 has 4, expected 0 to 3", evaluation=wrong)


def test_a_model_that_answers_nan_is_refused(settings):
    import torch
    from torch import nn

    broken = nn.Sequential(nn.Flatten(), nn.Linear(256, 4)).eval()
    with torch.no_grad():
        broken[1].weight[0, 0] = float("nan")
    refused(broken, settings, ExportError, "NaN or Inf")


def test_a_directory_that_exists_is_left_alone(network, settings):
    settings["output"].mkdir()
    (settings["output"] / "mine.txt").write_text("keep me")
    with pytest.raises(ConflictError, match="exists already"):
        convert(network, **{**settings, "data": "not even looked at"})
    assert (settings["output"] / "mine.txt").read_text() == "keep me"


def test_a_bundle_for_another_cpu_is_not_held_to_this_ones_latency(onnx_source, settings):
    other = "arm" if this_machine() == "x86" else "x86"
    done = convert(onnx_source, **{**settings, "target": other, "max_drop": 2.0, "force": False})
    assert done.report.target == other
    assert f"made for {other}" in done.report.notes[0]
    assert done.bundle.manifest.lineage.recipe["activations"] == ("int8" if other == "arm" else "uint8")


def test_a_directory_that_cannot_be_made_is_an_error_that_names_it(onnx_source, settings, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TransientError, match=r"file/bundle: cannot be made"):
        convert(onnx_source, **{**settings, "output": tmp_path / "file" / "bundle"})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_every_precision_that_onnx_has_is_made_measured_and_declared(onnx_source, settings):
    compressed = {"float16", "dynamic", "int8-weights", "int4-weights"}
    done = convert(onnx_source, **settings, precisions=("float", *compressed))
    manifest = done.bundle.manifest
    assert {variant.precision for variant in manifest.variants} == {"float32", *compressed}
    vectors = np.load(done.bundle.file(manifest.golden))
    for variant in manifest.variants:
        report = done.report.variant(variant.name)
        assert variant.engines == {"onnxruntime": "1.18"}
        assert (report.audit is not None) == (variant.precision == "dynamic")
        answered = open_session(done.bundle, variant).run({"image": vectors["input/image"]})
        assert np.abs(answered["output"] - vectors[f"output/{variant.name}/output"]).max() <= variant.tolerance
    assert "model.int4-weights.onnx" in manifest.files


@pytest.mark.parametrize(
    ("formats", "said"), [(("onnx",), "int16 is not made for onnx"), (("onnx", "tflite"), "int16")]
)
def test_a_precision_that_no_wanted_format_has_is_refused(onnx_source, settings, formats, said):
    # An ONNX source gives ONNX only.
    refused(onnx_source, settings, RecipeError, said, precisions=("float", "int16"), formats=formats)


@pytest.mark.slow  # exports both formats
def test_a_precision_that_one_format_lacks_is_made_for_the_other_and_said(network, settings):
    done = convert(network, **{**settings, "precisions": ("int16", "float16"), "formats": ("onnx", "tflite")})
    engines = {variant.name: variant.engines for variant in done.bundle.manifest.variants}
    assert engines == {
        "onnx-float16": {"onnxruntime": "1.18"},
        "tflite-float16": {"litert": "1.4", "tflite": "2.14"},
        "tflite-int16": {"litert": "1.3"},
    }
    assert "onnx-int16 is not made: no engine for that format has it" in done.report.notes


def test_several_targets_give_a_file_each_that_only_their_cpus_take(onnx_source, calibration, evaluation, tmp_path):
    done = convert(
        onnx_source,
        data=calibration,
        evaluation=evaluation,
        name="quarters",
        version="1.0.0",
        output=tmp_path / "bundle",
        target="x86,x86-vnni,arm",
        formats=("onnx",),
        force=True,  # a busy machine is not what this test is about
    )
    asked = {variant.name: variant.requires.cpu for variant in done.bundle.manifest.variants}
    assert asked == {
        "onnx-int8-x86-vnni": ("avx512_vnni",),
        "onnx-int8": ("sse2",),
        "onnx-int8-arm": ("asimd",),
        "onnx-float": (),
    }
    order = list(asked)
    assert order[0] == "onnx-int8-x86-vnni", "what asks for more comes first, since a device takes the first"
    assert order.index("onnx-int8") < order.index("onnx-int8-arm"), "what was timed here comes before what was not"
    assert done.report.variant("onnx-int8-arm").drop.points <= 0.5
    with pytest.raises(RecipeError, match="onnx and the precision int8"):
        convert(
            onnx_source,
            data=calibration,
            evaluation=evaluation,
            name="quarters",
            version="1.0.1",
            output=tmp_path / "other",
            target="x86,arm",
            precisions=("float",),
        )
