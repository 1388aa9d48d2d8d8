import asyncio
import gc
import threading
import warnings
import weakref

import msgspec
import numpy as np
import pytest

import edgeops_runtime
from edgeops.bundle import write_bundle
from edgeops.errors import (
    ConfigError,
    EngineError,
    ManifestError,
    MissingExtraError,
    NotFiniteError,
    TensorError,
    UntrustedError,
)
from edgeops.manifest import Normalize, Softmax
from edgeops.signals import Reference, Signal, Statistic, encode_reference
from edgeops.signing import SigningKey
from edgeops.tensors import TensorSpec
from edgeops_runtime.engines import ENGINES, available_engines
from edgeops_runtime.serving.pipeline import Pipeline, is_finite

BRIGHT = np.full((1, 1, 28, 28), 0.9, np.float32)
DARK = np.full((1, 1, 28, 28), 0.1, np.float32)


@pytest.fixture(scope="module")
def model(make_bundle):
    with edgeops_runtime.load(make_bundle("1.0.0").path) as loaded:
        yield loaded


class Echo:
    """A session that answers its only input."""

    def run(self, feeds):
        return {"y": feeds["x"]}


def echo_pipeline(manifest, *, preprocess=(), postprocess=(), shape=("batch", 2)):
    changed = msgspec.structs.replace(
        manifest,
        inputs=(TensorSpec("x", "FP32", shape),),
        outputs=(TensorSpec("y", "FP32", shape),),
        preprocess=preprocess,
        postprocess=postprocess,
        variants=tuple(
            msgspec.structs.replace(variant, inputs={"x": "x"}, outputs={"y": "y"}) for variant in manifest.variants
        ),
    )
    return Pipeline(changed, Echo())


def test_a_loaded_model_answers_as_the_golden_vectors_say(model):
    golden = np.load(model.bundle.file("golden.npz"))
    answers = model.infer({"image": golden["input/image"]})
    np.testing.assert_allclose(answers["logits"], golden["output/onnx/logits"], atol=1e-3)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"expected the inputs image FP32 \['batch', 1, 28, 28\]; got none"),
        ({"picture": DARK}, r"expected the inputs image .*; got 'picture'"),
        ({"image": DARK, "more": DARK}, "got 'image', 'more'"),
        ({"image": DARK.astype(np.float64)}, "expected dtype FP32, got FP64"),
        ({"image": DARK[0]}, r"expected shape \['batch', 1, 28, 28\], got \[1, 28, 28\]"),
        ({"image": np.zeros((2, 1, 28, 27), np.float32)}, r"got \[2, 1, 28, 27\]"),
        ({"image": np.zeros((0, 1, 28, 28), np.float32)}, r"got \[0, 1, 28, 28\]"),
        ({"image": [[1.0]]}, "expected a numpy array, got list"),
        ({"image": np.full((1, 1, 28, 28), np.nan, np.float32)}, "'image': expected finite values"),
    ],
)
def test_a_wrong_request_is_refused_with_what_was_expected_and_is_not_counted(model, feeds, message):
    before = model.counters()
    with pytest.raises(TensorError, match=message):
        model.infer(feeds)
    assert model.counters() == before


def test_an_answer_that_is_not_finite_is_an_error_of_the_model(make_bundle):
    with edgeops_runtime.load(make_bundle("1.1.0", "nan", hidden=True).path) as model:
        model.infer({"image": DARK})
        with pytest.raises(NotFiniteError, match=r"'logits'.*NaN or infinity"):
            model.infer({"image": BRIGHT})
        window = model.window()
    assert (window.requests, window.rows, window.errors, window.not_finite) == (2, 1, 1, 1)
    assert window.profile is not None
    assert window.profile.rows == 1


def test_a_model_that_raises_is_an_engine_error_and_counted(make_bundle):
    with edgeops_runtime.load(make_bundle("1.1.0", "raises", hidden=True).path) as model:
        with pytest.raises(EngineError, match="cannot run it"):
            model.infer({"image": BRIGHT})
        window = model.window()
    assert (window.requests, window.errors, window.not_finite) == (1, 1, 0)
    assert sum(window.latency.values()) == 1


def test_windows_add_up_over_threads(make_bundle):
    with edgeops_runtime.load(make_bundle("1.0.0").path) as model:
        windows = []

        def ask():
            for rows in range(1, 101):
                model.infer({"image": np.repeat(DARK, rows % 5 + 1, axis=0)})

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            windows.append(model.window())
        for thread in threads:
            thread.join()
        windows.append(model.window())
    assert sum(window.requests for window in windows) == 400
    assert sum(window.rows for window in windows) == 4 * 20 * (1 + 2 + 3 + 4 + 5)
    assert sum(window.profile.rows for window in windows) == sum(window.rows for window in windows)
    assert sum(sum(window.latency.values()) for window in windows) == 400
    counted = np.sum([window.profile.counts["image.mean"] for window in windows], axis=0)
    assert counted.sum() == sum(window.rows for window in windows)


def test_operators_run_before_and_after_the_engine(make_bundle):
    pipeline = echo_pipeline(
        make_bundle("1.0.0").manifest,
        preprocess=(Normalize(tensor="x", mean=(1.0, 2.0), std=(2.0, 2.0)),),
        postprocess=(Softmax(tensor="y"),),
    )
    answer = pipeline.answer({"x": np.array([[3.0, 4.0]], np.float32)})
    np.testing.assert_array_equal(answer.entered["x"], [[1.0, 1.0]])
    np.testing.assert_array_equal(answer.left["y"], [[1.0, 1.0]])
    np.testing.assert_array_equal(answer.outputs["y"], [[0.5, 0.5]])


def test_a_model_without_a_batch_dimension_answers_one_row(make_bundle):
    pipeline = echo_pipeline(make_bundle("1.0.0").manifest, shape=(3,))
    assert pipeline.answer({"x": np.zeros(3, np.float32)}).rows == 1


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([1.0, np.nan], np.float32), False),
        (np.array([-np.inf, np.inf], np.float32), False),
        (np.full(8, 3e38, np.float32), True),  # the sum overflows, no element does
        (np.array([], np.float32), True),
        (np.array([1, 2]), True),
    ],
)
def test_what_is_finite_is_told_without_warnings(array, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_finite(array) is expected


def test_inputs_must_agree_on_a_dimension_of_the_same_name(make_bundle):
    manifest = make_bundle("1.0.0").manifest
    specs = (TensorSpec("a", "FP32", ("batch", 2)), TensorSpec("b", "FP32", ("batch", 3)))
    variant = msgspec.structs.replace(manifest.variants[0], inputs={"a": "a", "b": "b"})
    pipeline = Pipeline(msgspec.structs.replace(manifest, inputs=specs, variants=(variant,)), Echo())
    with pytest.raises(TensorError, match=r"'b': expected batch = 4 .*, got 5"):
        pipeline.answer({"a": np.zeros((4, 2), np.float32), "b": np.zeros((5, 3), np.float32)})


def test_a_bundle_signed_by_a_stranger_is_refused(make_bundle, release_key):
    bundle = make_bundle("1.0.0")
    edgeops_runtime.load(bundle.path, keys=[release_key.public]).close()
    with pytest.raises(UntrustedError, match="signature"):
        edgeops_runtime.load(bundle.path, keys=[SigningKey.generate().public])


def test_a_damaged_bundle_is_refused_by_file(make_bundle, tmp_path):
    bundle = make_bundle("1.0.0")
    files = {name: bundle.file(name) for name in bundle.manifest.files}
    copy = write_bundle(tmp_path / "copy", bundle.manifest, files)
    data = bytearray(copy.file("model.onnx").read_bytes())
    data[100] ^= 1
    copy.file("model.onnx").write_bytes(data)
    with pytest.raises(ManifestError, match=r"model\.onnx: expected sha256"):
        edgeops_runtime.load(copy.path)
    with pytest.raises(ManifestError, match="expected a bundle directory"):
        edgeops_runtime.load(tmp_path / "nowhere")


def test_a_reference_that_does_not_fit_the_model_is_found_at_load(make_bundle, tmp_path):
    bundle = make_bundle("1.0.0")
    far = Signal(name="far", tensor="logits", statistic=Statistic.VALUE, index=99, edges=(0.0,), counts={"": (1, 1, 0)})
    (tmp_path / "reference.json").write_bytes(encode_reference(Reference(rows=2, signals=(far,))))
    files = {name: bundle.file(name) for name in bundle.manifest.files}
    copy = write_bundle(tmp_path / "copy", bundle.manifest, files | {"reference.json": tmp_path / "reference.json"})
    with pytest.raises(ManifestError, match="the drift reference does not fit the model: index 99"):
        edgeops_runtime.load(copy.path)


def test_a_bundle_without_the_files_of_other_variants_loads(small_bundle, tmp_path):
    copy = tmp_path / "partial"
    copy.mkdir()
    for name in ("manifest.json", "golden.npz", "reference.json", "model.tflite"):
        (copy / name).write_bytes(small_bundle.file(name).read_bytes())
    with edgeops_runtime.load(copy) as model:
        assert (model.variant.name, model.engine) == ("tflite-float", "litert")
    with pytest.raises(EngineError, match=r"onnx-float needs onnxruntime >= 1\.18 and model\.onnx, which is not in"):
        edgeops_runtime.load(copy, variant="onnx-float")


def test_what_cannot_run_here_is_said_with_what_would(make_bundle):
    path = make_bundle("1.0.0").path
    with pytest.raises(EngineError, match=r"on litert: onnx needs onnxruntime >= 1\.18; this machine has onnxruntime"):
        edgeops_runtime.load(path, engine="litert")
    with pytest.raises(ManifestError, match="no variant 'huge'"):
        edgeops_runtime.load(path, variant="huge")
    with pytest.raises(ConfigError, match="expected 1 or more"):
        edgeops_runtime.load(path, threads=0)
    for missing in set(ENGINES) - set(available_engines()):
        with pytest.raises(MissingExtraError):
            edgeops_runtime.load(path, engine=missing)


def test_a_closed_model_says_so(make_bundle):
    model = edgeops_runtime.load(make_bundle("1.0.0").path)
    model.close()
    with pytest.raises(EngineError, match="was closed"):
        model.infer({"image": DARK})


def test_a_swap_under_the_feet_of_callers_fails_no_call_and_loses_no_count(make_bundle):
    """Threads and tasks ask all the while; every answer is that of one of the versions, and all are counted once."""
    first, second = make_bundle("1.0.0"), make_bundle("1.1.0")
    with edgeops_runtime.load(first.path) as model:
        expected = [model.infer({"image": DARK})["logits"]]
        windows, over, answers = [model.window()], threading.Event(), []

        def ask():
            while not over.is_set():
                answers.append(model.infer({"image": DARK})["logits"])

        async def ask_from_a_loop():
            many = await asyncio.gather(*(model.infer_async({"image": DARK}) for _ in range(50)))
            answers.extend(answer["logits"] for answer in many)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        windows += [model.swap(bundle.path) for bundle in (second, first) * 5]
        assert model.manifest.version == "1.0.0"
        asyncio.run(ask_from_a_loop())
        over.set()
        for thread in threads:
            thread.join()
        windows.append(model.window())
    with edgeops_runtime.load(second.path) as other:
        expected.append(other.infer({"image": DARK})["logits"])
    assert all(any(np.array_equal(answer, one) for one in expected) for answer in answers)
    assert sum(window.requests for window in windows) == 1 + len(answers)
    assert sum(window.errors for window in windows) == 0


@pytest.fixture
def no_collector():
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("variant", ["onnx-int8", "tflite-float"])
def test_what_was_swapped_out_is_let_go_without_the_collector(small_bundle, variant):
    """The collector stops every thread, so nothing of a loaded model may hold itself."""
    with edgeops_runtime.load(small_bundle.path, variant=variant) as model:
        model.infer({"image": DARK})
        kept = [weakref.ref(part) for part in (model.loaded, model.loaded.pipeline, model.loaded.recorders)]
        session = weakref.ref(model.loaded.pipeline._run.__self__) if variant.startswith("tflite") else None
        model.swap(small_bundle.path, variant=variant)
        assert [part() for part in kept] == [None] * 3
        assert session is None or session() is None


@pytest.mark.parametrize("broken", ["nan", "wrong", "raises"])
def test_a_version_that_fails_its_golden_test_is_not_put_in_place(make_bundle, broken):
    with edgeops_runtime.load(make_bundle("1.0.0").path) as model:
        with pytest.raises(EngineError):
            model.swap(make_bundle("1.1.0", broken).path)
        model.infer({"image": DARK})
        assert model.manifest.version == "1.0.0"


def test_a_closed_model_is_neither_asked_nor_swapped(make_bundle):
    model = edgeops_runtime.load(make_bundle("1.0.0").path)
    model.close()
    model.close()
    with pytest.raises(EngineError, match="closed"):
        model.infer({"image": DARK})
    with pytest.raises(EngineError, match="closed"):
        model.swap(make_bundle("1.1.0").path)


@pytest.mark.parametrize("rows", [1, 100])
def test_an_output_of_another_dtype_than_the_manifest_says_is_the_models_fault(make_bundle, rows):
    class Doubles:
        def run(self, feeds):
            return {"logits": np.zeros((len(feeds["image"]), 10), np.float64)}

    ask = Pipeline(make_bundle("1.0.0").manifest, Doubles()).fastest()
    for _ in range(2):
        with pytest.raises(EngineError, match="'logits': expected float32 by the manifest, the model gave float64"):
            ask({"image": np.repeat(DARK, rows, axis=0)})
