"""Two bundles side by side."""

import json
import shutil

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from edgeops.bundle import open_bundle, pack, write_bundle
from edgeops.errors import EdgeOpsError, RecipeError
from edgeops.manifest import Interval
from edgeops_converters.cli.compare import compare_command
from edgeops_converters.comparison import Better, better_of, compare, opened
from edgeops_converters.report import encode_report


def rewritten(bundle, target, *, without=(), files=None, **changes):
    """A copy of a bundle with another manifest."""
    kept = {name: bundle.file(name) for name in bundle.manifest.files if name not in without} | (files or {})
    return write_bundle(target, msgspec.structs.replace(bundle.manifest, **changes), kept)


@pytest.fixture
def second(conversion, tmp_path):
    """Retrained from the first, with another order of labels and without its report."""
    manifest = conversion.bundle.manifest
    return rewritten(
        conversion.bundle,
        tmp_path / "second",
        without=("report.json",),
        version="1.1.0",
        labels=tuple(reversed(manifest.labels)),
        variants=manifest.variants[:3],
        lineage=msgspec.structs.replace(
            manifest.lineage, parent=conversion.bundle.digest, recipe={**manifest.lineage.recipe, "max_drop": 2}
        ),
    )


def test_a_bundle_is_the_same_as_itself(conversion):
    found = compare(conversion.bundle, conversion.bundle)
    assert found.relation == "A and B are the same bundle"
    assert found.differences == ()
    assert found.notes == ()
    assert {figure.better for variant in found.variants for figure in variant.figures} == {Better.SAME}
    names = {figure.what for figure in found.variants[0].figures}
    assert names == {"size", "latency", "accuracy", "drop", "agreement", "sqnr", "integer"}


def test_what_differs_is_named(conversion, second):
    found = compare(conversion.bundle, second)
    assert found.relation == "B was retrained from A"
    assert "labels: 4 and 4; in another order" in found.differences
    assert "recipe max_drop: 0.5 → 2" in found.differences
    assert found.only_first == (conversion.bundle.manifest.variants[3].name,)
    assert all(variant.is_same_file for variant in found.variants)


def test_a_bundle_without_a_report_has_the_figures_of_its_manifest(conversion, second):
    found = compare(conversion.bundle, second)
    assert found.notes == ("B: has no report.json; its figures are those of the manifest",)
    figures = {figure.what: figure for figure in found.variants[0].figures}
    assert figures["accuracy"].second == conversion.report.variants[0].accuracy
    assert figures["sqnr"].second is None
    assert figures["sqnr"].better is None


def test_a_report_of_another_release_is_no_obstacle(conversion, tmp_path):
    newer = tmp_path / "report.json"
    newer.write_text('{"schema": 99, "surprise": 1}')
    bundle = rewritten(conversion.bundle, tmp_path / "newer", files={"report.json": newer})
    found = compare(bundle, conversion.bundle)
    assert found.notes[0].startswith("A: its report.json is of another release")
    assert len(found.variants) == 4


def test_latencies_of_different_cpus_are_not_compared(conversion, tmp_path):
    elsewhere = tmp_path / "report.json"
    elsewhere.write_bytes(encode_report(msgspec.structs.replace(conversion.report, cpu="Cortex-A53")))
    bundle = rewritten(conversion.bundle, tmp_path / "elsewhere", files={"report.json": elsewhere})
    found = compare(conversion.bundle, bundle)
    (note,) = found.notes
    assert "Cortex-A53" in note
    latency = next(figure for figure in found.variants[0].figures if figure.what == "latency")
    assert (latency.first == latency.second, latency.better) == (True, None)


def test_both_answer_the_same_rows(conversion, byte_evaluation, tmp_path):
    """The int8 file in the place of the float one: the pairs show what that costs."""
    manifest = conversion.bundle.manifest
    int8 = manifest.variant("onnx-int8")
    variants = tuple(
        one if one.name != "onnx-float" else msgspec.structs.replace(int8, name=one.name) for one in manifest.variants
    )
    other = rewritten(conversion.bundle, tmp_path / "other", variants=variants)
    found = compare(conversion.bundle, other, evaluation=byte_evaluation)
    pairs = {pair.name: pair for pair in found.paired}
    pair = pairs["onnx-float"]
    assert found.rows == 500
    assert pairs["onnx-int8"].sqnr_db is None
    assert pairs["onnx-int8"].better is Better.SAME
    assert 5 < pair.sqnr_db < 60
    assert pair.drop.points == pytest.approx(100 * (pair.first.value - pair.second.value))


def test_rows_that_are_wrong_for_one_of_them_are_refused(conversion, second, byte_evaluation):
    with pytest.raises(RecipeError, match="they differ in labels"):
        compare(conversion.bundle, second, evaluation=byte_evaluation)
    with pytest.raises(RecipeError, match="expected the keys"):
        compare(conversion.bundle, conversion.bundle, evaluation={"x": np.zeros((4, 3), np.float32)})


def test_overlapping_intervals_are_unclear_and_separate_ones_are_not():
    low, high = Interval(value=1, low=0.8, high=1.2), Interval(value=2, low=1.9, high=2.1)
    assert better_of(low, high, is_lower_better=True) is Better.FIRST
    assert better_of(high, low, is_lower_better=True) is Better.SECOND
    assert better_of(low, Interval(value=1.3, low=1.1, high=1.5), is_lower_better=True) is Better.UNCLEAR


def test_a_tar_is_as_good_as_a_directory_and_leaves_nothing_behind(conversion, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    pack(conversion.bundle, tmp_path / "bundle.tar")
    with opened(tmp_path / "bundle.tar") as bundle:
        assert compare(conversion.bundle, bundle).relation == "A and B are the same bundle"
    assert list((tmp_path / "scratch").iterdir()) == []


def test_the_command_shows_a_table_or_json(conversion, second, byte_evaluation, tmp_path):
    np.savez(tmp_path / "eval.npz", **byte_evaluation)
    first = str(conversion.bundle.path)
    shown = CliRunner().invoke(compare_command, [first, first, "--data", str(tmp_path / "eval.npz")]).output
    assert "A and B are the same bundle" in shown
    assert "the same file in both" in shown
    assert "on the 500 rows of" in shown
    assert "the same rows are right" in shown
    told = json.loads(CliRunner().invoke(compare_command, [first, str(second.path), "--json"]).output)
    assert told["relation"] == "B was retrained from A"
    assert [one["name"] for one in told["variants"]] == [one.name for one in conversion.bundle.manifest.variants[:3]]


def test_a_signature_is_asked_of_both(conversion, second, signing_key):
    arguments = [str(conversion.bundle.path), str(second.path), "--key", signing_key.public.text]
    done = CliRunner().invoke(compare_command, arguments)
    assert isinstance(done.exception, EdgeOpsError)
    assert CliRunner().invoke(compare_command, [arguments[0], arguments[0], *arguments[2:]]).exit_code == 0


def test_what_is_no_bundle_is_refused(conversion, tmp_path):
    copy = tmp_path / "damaged"
    shutil.copytree(conversion.bundle.path, copy)
    (copy / "model.int8.onnx").write_bytes(b"")
    for path in (copy, tmp_path / "nowhere"):
        with pytest.raises(EdgeOpsError), opened(path) as bundle:
            compare(bundle, open_bundle(conversion.bundle.path))
