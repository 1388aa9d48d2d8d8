import msgspec
import numpy as np
import pytest

from edgeops.binning import count_rows
from edgeops.signals import Reference, decode_reference
from edgeops.tensors import TensorSpec
from edgeops_runtime.serving.profiler import BUFFERED_ROWS, Profiler


@pytest.fixture
def reference(make_bundle):
    return decode_reference(make_bundle("1.0.0").file("reference.json").read_bytes())


def rows_of(rng, count):
    images = rng.random((count, 1, 28, 28)).astype(np.float32)
    return {"image": images}, {"logits": rng.normal(0, 3, (count, 10)).astype(np.float32)}


@pytest.mark.parametrize("sizes", [[1] * 200, [BUFFERED_ROWS] * 3, [1000], [7, 300, 1, 63, 64, 65, 2], []])
def test_every_row_is_counted_once_whatever_the_size_of_requests(make_bundle, reference, sizes):
    profiler = Profiler(make_bundle("1.0.0").manifest, reference)
    rng = np.random.default_rng(0)
    requests = [rows_of(rng, size) for size in sizes]
    for entered, left in requests:
        profiler.add(entered, left, len(entered["image"]))
        if profiler.is_due:
            profiler.count(profiler.take())
    profiler.count(profiler.take(everything=True))
    profile = profiler.close()

    images = np.concatenate([np.empty((0, 1, 28, 28), np.float32), *(entered["image"] for entered, _ in requests)])
    logits = np.concatenate([np.empty((0, 10), np.float32), *(left["logits"] for _, left in requests)])
    expected = count_rows(reference.signals, {"image": images, "logits": logits}) if sizes else {}
    assert profile.rows == sum(sizes)
    assert profile.reference == reference.id
    for signal in reference.signals:
        wanted = expected.get(signal.name, np.zeros(signal.bins, int))
        assert profile.counts[signal.name] == tuple(wanted.tolist())


def test_rows_are_copied_so_that_callers_may_reuse_their_arrays(make_bundle, reference):
    profiler = Profiler(make_bundle("1.0.0").manifest, reference)
    entered, left = rows_of(np.random.default_rng(0), 3)
    expected = count_rows(reference.signals, entered | left)
    profiler.add(entered, left, 3)
    entered["image"].fill(np.nan)
    left["logits"].fill(np.nan)
    profiler.count(profiler.take(everything=True))
    assert profiler.close().counts["image.mean"] == tuple(expected["image.mean"].tolist())


def test_a_window_begins_at_zero(make_bundle, reference):
    profiler = Profiler(make_bundle("1.0.0").manifest, reference)
    for _ in range(2):
        profiler.add(*rows_of(np.random.default_rng(0), 1), 1)
        profiler.count(profiler.take(everything=True))
        assert profiler.close().rows == 1
    assert profiler.close().rows == 0


def test_rows_of_varying_shape_are_counted(make_bundle, reference):
    manifest = msgspec.structs.replace(
        make_bundle("1.0.0").manifest, inputs=(TensorSpec("image", "FP32", ("batch", 1, "height", "width")),)
    )
    profiler = Profiler(manifest, reference)
    logits = np.zeros((1, 10), np.float32)
    for size in (8, 16):
        profiler.add({"image": np.full((1, 1, size, size), 0.5, np.float32)}, {"logits": logits}, 1)
    profiler.count(profiler.take(everything=True))
    profile = profiler.close()
    assert profile.rows == 2
    assert sum(profile.counts["image.mean"]) == 2


def test_a_model_without_a_batch_dimension_counts_one_row_a_request(make_bundle, reference):
    manifest = msgspec.structs.replace(
        make_bundle("1.0.0").manifest,
        inputs=(TensorSpec("image", "FP32", (1, 28, 28)),),
        outputs=(TensorSpec("logits", "FP32", (10,)),),
    )
    profiler = Profiler(manifest, reference)
    for _ in range(70):
        profiler.add({"image": np.zeros((1, 28, 28), np.float32)}, {"logits": np.arange(10, dtype=np.float32)}, 1)
    profiler.count(profiler.take(everything=True))
    profile = profiler.close()
    assert profile.rows == 70
    assert profile.counts["class"][9] == 70


def test_a_signal_on_a_tensor_that_does_not_count_rows_is_left_out(make_bundle, reference):
    manifest = msgspec.structs.replace(
        make_bundle("1.0.0").manifest, outputs=(TensorSpec("logits", "FP32", ("boxes", 10)),)
    )
    profiler = Profiler(manifest, reference)
    profiler.add({"image": np.zeros((2, 1, 28, 28), np.float32)}, {"logits": np.zeros((5, 10), np.float32)}, 2)
    profiler.count(profiler.take(everything=True))
    profile = profiler.close()
    assert set(profile.counts) == {"image.mean", "image.gradient"}
    assert sum(profile.counts["image.mean"]) == 2


def test_a_reference_without_signals_still_counts_rows(make_bundle):
    profiler = Profiler(make_bundle("1.0.0").manifest, Reference(rows=0, signals=()))
    for _ in range(100):
        profiler.add(*rows_of(np.random.default_rng(0), 1), 1)
    profiler.count(profiler.take(everything=True))
    assert profiler.close().rows == 100
