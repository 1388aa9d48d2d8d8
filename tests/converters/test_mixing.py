"""The search for a mixed precision on real files: what int8 cannot carry is found and left in float, in both formats."""

import numpy as np
import pytest
import torch
from torch import nn

from edgeops.errors import GateError, RecipeError
from edgeops.manifest import Interval, Scale
from edgeops_converters import convert, evaluate, measurement, mixing, planned_files
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.plan import LayerPrecision, decode_plan
from edgeops_converters.sources import open_model
from edgeops_converters.targets import this_machine
from edgeops_converters.trials import Outcome

ROWS = 1400

quiet_machine = pytest.mark.usefixtures("_quiet_machine")


class Wild(nn.Module):
    """In the middle of it one channel is a thousand times larger than the others, and its weights as much smaller.

    Between the two layers is no rectifier, so that the channels cannot be brought to one range.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 8, 1)
        self.narrow = nn.Conv2d(8, 8, 1)
        self.after = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            self.narrow.weight *= 6
            self.wide.weight[0] *= 3000
            self.narrow.weight[:, 0] /= 3000
            self.head.weight *= 20

    def forward(self, image):
        stem = self.stem(image).relu()
        middle = self.narrow(nn.functional.leaky_relu(self.wide(stem), 0.3)) + stem
        return self.head((self.after(middle).relu() + middle).mean((2, 3)))


@pytest.fixture(scope="module")
def wild():
    torch.manual_seed(3)
    torch.set_num_threads(1)
    return Wild().eval()


@pytest.fixture(scope="module")
def settings(wild):
    """Rows on which the source is sure of its answer, which is the label."""
    random = np.random.default_rng(0)
    images = random.normal(size=(4 * ROWS, 1, 8, 8)).astype(np.float32)
    images *= random.uniform(0.2, 2, (4 * ROWS, 1, 1, 1)).astype(np.float32)
    with torch.no_grad():
        answers = wild(torch.from_numpy(images)).numpy()
        wild.head.bias -= torch.from_numpy(np.median(answers, axis=0))  # so that all classes are met
        answers = wild(torch.from_numpy(images)).numpy()
    ordered = np.sort(answers, axis=1)
    sure = random.permutation(np.argsort(ordered[:, -2] - ordered[:, -1])[:ROWS])
    return {
        "data": {"image": images[:64]},
        "evaluation": {"image": images[sure], "labels": answers[sure].argmax(1)},
        "name": "wild",
        "version": "1.0.0",
        "precisions": ("float", "int8", "mixed"),
        "max_drop": 2.0,
    }


def by_size(files, inputs, *, budget_s):
    """Latencies as a busy machine does not change: what runs in integers is faster."""
    assert budget_s > 0
    known = {"float32": 2.0, "mixed": 1.2, "int8": 1.0}
    found = {name: known[file.precision] for name, file in files.items()}
    return {name: Interval(value=one, low=one, high=one) for name, one in found.items()}


@pytest.fixture
def _quiet_machine(monkeypatch):
    """The gate and the search meet latencies that are always the same; all answers are the engines' own."""
    monkeypatch.setattr(measurement, "latencies", by_size)
    monkeypatch.setattr(mixing, "latencies", by_size)


@pytest.fixture(scope="module")
def wild_onnx(wild, settings, tmp_path_factory):
    """The network as a file, which converts in a fraction of the time."""
    rows = {"image": settings["data"]["image"][:4]}
    target = tmp_path_factory.mktemp("wild") / "wild.onnx"
    return EXPORTERS["onnx"].export(open_model(wild, rows), rows, target).path


def figures(report):
    return {one.name: one for one in report.trials}


@quiet_machine
def test_the_region_that_int8_cannot_carry_is_left_in_float_in_both_formats(wild, settings, tmp_path):
    steps = []
    done = convert(wild, **settings, output=tmp_path / "bundle", on_step=steps.append)

    plan = decode_plan(done.bundle.file("plan.json").read_bytes())
    in_float = {name: layer.why for name, layer in plan.layers.items() if layer.precision is LayerPrecision.FLOAT}
    assert set(in_float) == {"wide", "narrow"}
    assert all(why.startswith("float by search: +") for why in in_float.values())

    assert {one.name for one in done.bundle.manifest.variants} == {
        "onnx-mixed", "onnx-float", "tflite-mixed", "tflite-float",
    }  # fmt: skip
    for form in ("onnx", "tflite"):
        variant = done.report.variant(f"{form}-mixed")
        assert variant.gate.passed
        assert variant.drop.points <= 2
        assert (variant.audit.integer, variant.audit.total) == (3, 5)
        said = next(note for note in done.report.notes if note.startswith(f"{form}-int8 is not in the bundle"))
        assert "points of accuracy where at most 2 are accepted" in said
    assert done.report.reference_variant.endswith("mixed")

    trials = figures(done.report)
    assert trials["onnx-int8"].outcome is Outcome.REFUSED
    assert trials["onnx-mixed-1"].outcome is Outcome.CHOSEN
    assert trials["onnx-mixed-1"].settings == "int8, with wide, narrow in float"
    assert trials["onnx-int8"].is_pareto  # nothing is faster
    assert "at most 0.43 (95 %)" in trials["onnx-mixed-1"].reason
    assert "sensitivity, place 1" in trials["onnx-probe-1"].reason
    assert len([one for one in trials.values() if one.is_probe]) == len(plan.regions) == 4
    assert "sensitivity, 1 of 4: stem in float" in steps

    assert (done.report.search_rows, done.report.evaluation_rows) == (ROWS // 2, ROWS // 2)
    page = done.bundle.file("report.html").read_text()
    assert "onnx-mixed-1" in page
    assert "<title>onnx-probe-1" not in page  # in the table, and not in the picture
    ranges = {one.tensor for one in done.report.variant("onnx-mixed").tensors}
    assert ranges
    assert not {one.tensor for one in done.report.variant("tflite-mixed").tensors}


@quiet_machine
def test_int8_that_holds_all_limits_is_not_written_twice(onnx_source, calibration, evaluation, tmp_path):
    plain = {
        "data": calibration,
        "evaluation": evaluation,
        "name": "quarters",
        "version": "1.0.0",
        "formats": ("onnx",),
        "max_drop": 2.0,
    }
    done = convert(onnx_source, **plain, precisions=("float", "int8", "mixed"), output=tmp_path / "both")
    assert {one.precision for one in done.bundle.manifest.variants} == {"float32", "int8"}
    assert figures(done.report)["onnx-int8"].outcome is Outcome.CHOSEN
    assert any("int8 holds all limits as it is" in note and "not written twice" in note for note in done.report.notes)
    assert not decode_plan(done.bundle.file("plan.json").read_bytes()).float_regions

    alone = convert(onnx_source, **plain, precisions=("mixed",), output=tmp_path / "alone")
    assert [one.name for one in alone.bundle.manifest.variants] == ["onnx-mixed"]
    assert alone.bundle.file("model.mixed.onnx").read_bytes() == done.bundle.file("model.int8.onnx").read_bytes()

    # There is nothing to leave in float in a file that is in integers.
    given = alone.bundle.file("model.mixed.onnx")
    with pytest.raises(RecipeError, match="quantised; give --requantize"):
        convert(given, **plain, precisions=("mixed",), output=tmp_path / "again")
    anew = convert(given, **plain, precisions=("mixed",), output=tmp_path / "again", requantize=True)
    assert anew.report.variant("onnx-mixed").agreement > 0.98


@quiet_machine
def test_too_few_rows_for_a_proof_are_named_and_the_estimate_decides(wild_onnx, settings, tmp_path):
    few = {name: array[:200] for name, array in settings["evaluation"].items()}
    done = convert(wild_onnx, **{**settings, "evaluation": few}, formats=("onnx",), output=tmp_path / "bundle")
    assert done.report.variant("onnx-mixed").gate.passed
    (said,) = [note for note in done.report.notes if "NOT ENOUGH DATA" in note]
    assert "the search has 100 rows, and it takes about 600 where half as much is lost" in said
    assert "at most 2.95 (95 %)" in figures(done.report)["onnx-mixed-1"].reason


@quiet_machine
@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_latency_ms": 1.1}, r"1\.200 ms where at most 1\.1 ms are accepted"),
        ({"max_bytes": 7000}, r"bytes where at most 7,000 are accepted"),
        ({"min_int8": 90.0}, r"3 of 5 convolutions and matrix products"),
    ],
)
def test_where_no_mix_holds_all_limits_the_gate_says_which_and_by_how_much(wild_onnx, settings, tmp_path, limits, said):
    given = {**settings, "formats": ("onnx",), "output": tmp_path / "bundle"}
    with pytest.raises(GateError, match=rf"onnx-mixed: .*no mixed precision that was tried holds all limits.*{said}"):
        convert(wild_onnx, **given, **limits)
    assert not given["output"].exists()


@quiet_machine
def test_a_mix_that_the_gate_refuses_can_be_forced_and_int8_with_it(wild_onnx, settings, tmp_path):
    given = {**settings, "formats": ("onnx",), "output": tmp_path / "bundle", "force": True}
    forced = convert(wild_onnx, **given, max_bytes=7000)
    assert forced.report.variant("onnx-mixed").gate.forced
    assert {one.precision for one in forced.bundle.manifest.variants} == {"float32", "int8", "mixed"}
    assert not [one for one in forced.report.trials if one.outcome is Outcome.CHOSEN]


@quiet_machine
def test_the_search_never_sees_the_rows_of_the_test(wild_onnx, settings, tmp_path, monkeypatch):
    evaluation = settings["evaluation"]
    asked = []
    search = mixing.search

    def watched(*args, quiz, **rest):
        asked.append(quiz.exam.samples)
        return search(*args, quiz=quiz, **rest)

    monkeypatch.setattr(planned_files, "search", watched)
    done = convert(wild_onnx, **settings, formats=("onnx",), output=tmp_path / "bundle")
    (seen,) = asked
    rows = {row.tobytes() for row in seen.inputs["image"]}
    tested = [index for index, row in enumerate(evaluation["image"]) if row.tobytes() not in rows]
    assert len(tested) == done.report.evaluation_rows == ROWS - seen.rows
    # What the report says is what the file answers to just the others.
    score = evaluate(done.bundle, {name: array[tested] for name, array in evaluation.items()})["onnx-mixed"]
    assert score.accuracy == done.report.variant("onnx-mixed").accuracy


@pytest.mark.slow  # exports once more
@quiet_machine
def test_bytes_come_in_as_they_are_where_layers_are_in_float(wild, settings, tmp_path):
    data, evaluation = (
        {"image": np.clip(np.round((given["image"] + 4) * 32), 0, 255).astype(np.uint8)}
        for given in (settings["data"], settings["evaluation"])
    )
    given = {**settings, "data": data, "evaluation": evaluation, "formats": ("onnx",), "max_drop": 4.0}
    done = convert(
        wild, **given, preprocess=(Scale(tensor="image", factor=1 / 32, offset=-4.0),), output=tmp_path / "bundle"
    )
    assert done.report.variant("onnx-mixed").agreement > 0.96
    assert figures(done.report)["onnx-mixed-1"].settings == "int8, with wide, narrow in float"
    assert [spec.dtype for spec in done.bundle.manifest.inputs] == ["UINT8"]


@quiet_machine
def test_without_classes_the_noise_decides(tmp_path):
    torch.manual_seed(0)
    rows = np.random.default_rng(0).normal(size=(80, 32)).astype(np.float32)
    coder = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 32)).eval()
    given = {"data": {"x": rows}, "evaluation": {"x": rows}, "name": "coder", "version": "1.0.0", "formats": ("onnx",)}
    done = convert(coder, **given, precisions=("float", "mixed"), output=tmp_path / "bundle")
    chosen = figures(done.report)["onnx-int8"]
    assert chosen.outcome is Outcome.CHOSEN
    assert "dB" in chosen.reason
    assert not any("NOT ENOUGH DATA" in note for note in done.report.notes)


def test_every_trial_that_is_made_for_this_cpu_is_timed(wild_onnx, settings, tmp_path):
    done = convert(wild_onnx, **settings, formats=("onnx",), output=tmp_path / "bundle", force=True)
    assert all(one.latency_ms > 0 for one in done.report.trials)
    assert " ms" in figures(done.report)["onnx-probe-1"].reason


def test_for_another_cpu_the_cost_is_the_size(wild_onnx, settings, tmp_path):
    other = "arm" if this_machine() == "x86" else "x86"
    done = convert(wild_onnx, **settings, formats=("onnx",), target=other, output=tmp_path / "bundle", force=True)
    assert all(one.latency_ms is None for one in done.report.trials)
    assert "bytes" in figures(done.report)["onnx-probe-1"].reason


def test_mixed_needs_rows_for_two_halves(wild_onnx, settings, tmp_path):
    few = {name: array[:3] for name, array in settings["evaluation"].items()}
    with pytest.raises(RecipeError, match=r"at least 4 rows.*got 3"):
        convert(wild_onnx, **{**settings, "evaluation": few}, formats=("onnx",), output=tmp_path / "bundle")
