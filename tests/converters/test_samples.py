"""Data that cannot work is refused, by name, before anything else happens."""

import numpy as np
import pytest

from edgeops.errors import RecipeError
from edgeops_converters.samples import check_alike, read_calibration, read_evaluation


def rows(count=4, size=3):
    return np.arange(count * size, dtype=np.float32).reshape(count, size)


def test_an_npz_gives_inputs_labels_and_strata(tmp_path):
    path = tmp_path / "eval.npz"
    np.savez(path, x=rows(), labels=np.array([0, 1, 0, 1], np.int32), stratum=np.array(["a", "b", "a", "b"]))

    samples = read_evaluation(path)

    assert (list(samples.inputs), samples.rows) == (["x"], 4)
    assert samples.labels.dtype == np.int64
    assert list(samples.strata) == ["a", "b", "a", "b"]


def test_calibration_leaves_labels_aside():
    assert read_calibration({"x": rows(), "labels": np.array(["not", "class", "in", "dices"])}).labels is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "one key for each input"),
        ({"labels": np.zeros(4, np.int64)}, "one key for each input"),
        ({"x": np.zeros((0, 3), np.float32)}, r"'x'.*rows with values, got the shape \(0, 3\)"),
        ({"x": rows(1)}, "'x'.*at least 2 rows, got 1"),
        ({"x": rows(), "y": rows(5)}, "'y' has 5 rows where others have 4"),
        ({"x": rows().astype(np.float64)}, r"'x'.*float64.*astype\(numpy.float32\)"),
        ({"x": np.array(["a", "b"])}, "'x'.*dtype"),
    ],
)
def test_rows_that_cannot_be_used_are_named(arrays, message):
    with pytest.raises(RecipeError, match=message):
        read_calibration(arrays)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named_with_their_row(value):
    bad = rows()
    bad[2, 1] = value
    with pytest.raises(RecipeError, match="'x': 1 of 4 rows have NaN or Inf, the first is row 2"):
        read_calibration({"x": bad})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(3, np.int64), "expected 4 class indices"),
        (np.zeros(4, np.float32), "integers.*float32"),
        (np.zeros((4, 2), np.int64), r"shape \[4, 2\]"),
    ],
)
def test_labels_that_do_not_fit_the_rows_are_refused(labels, message):
    with pytest.raises(RecipeError, match=message):
        read_evaluation({"x": rows(), "labels": labels})


@pytest.mark.parametrize("strata", [np.arange(4), np.array(["a"] * 3), np.array(["a", "", "a", "a"])])
def test_strata_that_do_not_fit_the_rows_are_refused(strata):
    with pytest.raises(RecipeError, match="'stratum'"):
        read_evaluation({"x": rows(), "stratum": strata})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"no archive at all"])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "calib.npz"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"calib\.npz"):
        read_calibration(path)


def test_a_single_array_is_no_archive(tmp_path):
    np.save(tmp_path / "data.npy", rows())
    with pytest.raises(RecipeError, match=r"data\.npy: expected an \.npz file \(numpy\.savez\)"):
        read_calibration(tmp_path / "data.npy")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"nowhere\.npz"):
        read_calibration(tmp_path / "nowhere.npz")


def test_a_pickle_in_the_archive_is_not_loaded(tmp_path):
    path = tmp_path / "calib.npz"
    np.savez(path, x=np.array([{"run": "me"}], dtype=object))
    with pytest.raises(RecipeError, match=r"calib\.npz"):
        read_calibration(path)


def test_both_sets_must_have_the_same_rows():
    calibration = read_calibration({"x": rows()})
    for other, message in (
        ({"y": rows()}, r"\['x'\]"),
        ({"x": rows(size=2)}, "'x'"),
        ({"x": rows().astype("i4")}, r"'x': expected the same rows in both files, got float32 \[3\].* and int32 \[3\]"),
    ):
        with pytest.raises(RecipeError, match=message):
            check_alike(calibration, read_evaluation(other))


def test_the_digest_changes_with_every_part():
    base = read_evaluation({"x": rows(), "labels": np.zeros(4, np.int64)})
    moved = rows()
    moved[3, 2] += 1
    digests = {
        base.digest(),
        read_evaluation({"x": moved, "labels": np.zeros(4, np.int64)}).digest(),
        read_evaluation({"x": rows(), "labels": np.ones(4, np.int64)}).digest(),
        read_evaluation({"x": rows()}).digest(),
    }
    assert len(digests) == 4
    assert base.digest() == read_evaluation({"x": rows(), "labels": np.zeros(4, np.int64)}).digest()


@pytest.mark.parametrize("factor", [255, 1 / 255])
def test_rows_of_another_scale_are_refused(factor):
    calibration = read_calibration({"x": rows() * np.float32(factor)})
    with pytest.raises(RecipeError, match=r"'x': expected values on the scale of .*divided by 255"):
        check_alike(calibration, read_evaluation({"x": rows()}))
    check_alike(read_calibration({"x": rows() * 4}), read_evaluation({"x": rows()}))


def test_an_input_that_never_changes_is_refused_unless_it_never_does():
    constant = {"x": np.full((4, 3), 0.5, np.float32)}
    with pytest.raises(RecipeError, match=r"'x': expected rows that look like those of .*one value 0\.5"):
        check_alike(read_calibration(constant), read_evaluation({"x": rows()}))
    check_alike(read_calibration(constant), read_evaluation(constant))
