"""The golden test passes other kernels and fails a broken model."""

import numpy as np
import pytest

from edgeops import processing
from edgeops.manifest import Softmax
from edgeops_converters import golden
from edgeops_converters.artifact import Artifact
from edgeops_converters.golden import choose_rows, has_power, largest_difference, tolerance
from edgeops_converters.sessions import run_rows


def test_rows_are_spread_over_the_classes():
    classes = np.repeat(np.arange(4), 25)
    assert sorted(classes[choose_rows(classes, 100)]) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_few_rows_are_all_taken():
    assert choose_rows(None, 3).tolist() == [0, 1, 2]


def test_the_tolerance_covers_other_kernels_and_int8_steps():
    raw = {"y": np.linspace(0, 255, 512, dtype=np.float32).reshape(-1, 2)}
    assert tolerance(raw, raw, precision="int8", postprocess=()) == pytest.approx(golden.INT8_STEPS)
    moved = {"y": raw["y"] + np.float32(10)}
    assert tolerance(raw, moved, precision="int8", postprocess=()) == pytest.approx(10 * golden.KERNEL_MARGIN)
    assert tolerance(raw, raw, precision="float32", postprocess=()) < 0.1


def test_the_tolerance_is_carried_through_postprocessing():
    raw = {"y": np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)}
    plain = tolerance(raw, raw, precision="int8", postprocess=())
    through = tolerance(raw, raw, precision="int8", postprocess=(Softmax(tensor="y"),))
    assert 0 < through < plain


def test_a_difference_with_nan_is_infinite():
    assert largest_difference({"y": np.zeros(3)}, {"y": np.array([0, np.nan, 0])}) == float("inf")


def test_answers_that_are_all_alike_prove_little():
    assert not has_power({"y": np.ones((4, 2))}, 0.1)
    assert has_power({"y": np.eye(4)}, 0.1)


def sessions(conversion, *, is_plain):
    for variant in conversion.bundle.manifest.variants:
        artifact = Artifact(
            path=conversion.bundle.file(variant.file),
            format=variant.format,
            precision=variant.precision,
            batch=variant.batch,
            inputs=variant.inputs,
            outputs=variant.outputs,
        )
        yield variant, artifact.open(is_plain=is_plain)


@pytest.mark.parametrize("is_plain", [False, True])
def test_every_variant_gives_its_golden_answers_on_both_sets_of_kernels(conversion, is_plain):
    manifest = conversion.bundle.manifest
    vectors = np.load(conversion.bundle.file(manifest.golden))
    inputs = processing.apply(manifest.preprocess, {"image": vectors["input/image"]})
    for variant, session in sessions(conversion, is_plain=is_plain):
        given = processing.apply(manifest.postprocess, run_rows(session.run, inputs, batch=variant.batch))
        difference = np.abs(given["output"] - vectors[f"output/{variant.name}/output"]).max()
        assert difference <= variant.tolerance, variant.name


def test_a_broken_model_does_not_pass(conversion):
    """Wrong input scaling, a channel that is off, and swapped classes must all be noticed by every variant."""
    manifest = conversion.bundle.manifest
    vectors = np.load(conversion.bundle.file(manifest.golden))
    inputs = processing.apply(manifest.preprocess, {"image": vectors["input/image"]})
    breakages = {
        "wrong scale": lambda image: image // 4,
        "upside down": lambda image: np.ascontiguousarray(image[:, :, ::-1]),
        "black": np.zeros_like,
    }
    for variant, session in sessions(conversion, is_plain=False):
        expected = vectors[f"output/{variant.name}/output"]
        for what, breakage in breakages.items():
            raw = run_rows(session.run, {"image": breakage(inputs["image"])}, batch=variant.batch)
            given = processing.apply(manifest.postprocess, raw)["output"]
            assert np.abs(given - expected).max() > variant.tolerance, (variant.name, what)
        assert np.abs(expected[:, ::-1] - expected).max() > variant.tolerance


@pytest.mark.parametrize("precision", ["dynamic", "int4-weights"])
def test_what_rounds_to_eight_bits_at_each_call_is_allowed_their_steps(precision):
    raw = {"y": np.linspace(0, 255, 512, dtype=np.float32).reshape(-1, 2)}
    assert tolerance(raw, raw, precision=precision, postprocess=()) == pytest.approx(golden.INT8_STEPS)


@pytest.mark.parametrize("precision", ["float16", "int8-weights", "int16"])
def test_what_is_only_stored_small_is_held_as_close_as_float(precision):
    raw = {"y": np.linspace(0, 255, 512, dtype=np.float32).reshape(-1, 2)}
    assert tolerance(raw, raw, precision=precision, postprocess=()) < 0.1
