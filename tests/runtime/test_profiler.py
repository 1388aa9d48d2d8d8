import msgspec
import numpy as np
import pytest

from edgeops.binning import count_rows
from edgeops.latency import latency_bucket
from edgeops.signals import Reference, decode_reference
from edgeops.tensors import TensorSpec
from edgeops_runtime.serving.pipeline import Answer
from edgeops_runtime.serving.profiler import BUFFERED_ROWS
from edgeops_runtime.serving.recorder import Recorders


@pytest.fixture
def reference(make_bundle):
    return decode_reference(make_bundle("1.0.0").file("reference.json").read_bytes())


def rows_of(rng, count):
    images = rng.random((count, 1, 28, 28)).astype(np.float32)
    return {"image": images}, {"logits": rng.normal(0, 3, (count, 10)).astype(np.float32)}


def profile_of(manifest, reference, requests):
    """Count requests as a model does, one after the other, and close the window."""
    recorders = Recorders(manifest, reference)
    for entered, left in requests:
        recorders.answered(
            Answer(left, entered, left, len(entered["image"]) if len(manifest.inputs[0].shape) == 4 else 1), 1
        )
        recorders.settle()
    return recorders.close()[1]


@pytest.mark.parametrize("sizes", [[1] * 200, [BUFFERED_ROWS] * 3, [1000], [7, 300, 1, 63, 64, 65, 2], []])
def test_every_row_is_counted_once_whatever_the_size_of_requests(make_bundle, reference, sizes):
    rng = np.random.default_rng(0)
    requests = [rows_of(rng, size) for size in sizes]
    profile = profile_of(make_bundle("1.0.0").manifest, reference, requests)

    images = np.concatenate([np.empty((0, 1, 28, 28), np.float32), *(entered["image"] for entered, _ in requests)])
    logits = np.concatenate([np.empty((0, 10), np.float32), *(left["logits"] for _, left in requests)])
    expected = count_rows(reference.signals, {"image": images, "logits": logits}) if sizes else {}
    assert profile.rows == sum(sizes)
    assert profile.reference == reference.id
    for signal in reference.signals:
        wanted = expected.get(signal.name, np.zeros(signal.bins, int))
        assert profile.counts[signal.name] == tuple(wanted.tolist())


def test_rows_are_copied_so_that_callers_may_reuse_their_arrays(make_bundle, reference):
    recorders = Recorders(make_bundle("1.0.0").manifest, reference)
    entered, left = rows_of(np.random.default_rng(0), 3)
    expected = count_rows(reference.signals, entered | left)
    recorders.answered(Answer(left, entered, left, 3), 1, is_lent=True)
    entered["image"].fill(np.nan)
    left["logits"].fill(np.nan)
    _, profile, *_ = recorders.close()
    assert profile.counts["image.mean"] == tuple(expected["image.mean"].tolist())


def test_a_window_begins_at_zero(make_bundle, reference):
    recorders = Recorders(make_bundle("1.0.0").manifest, reference)
    for _ in range(2):
        entered, left = rows_of(np.random.default_rng(0), 1)
        recorders.answered(Answer(left, entered, left, 1), 5_000)
        recorders.failed(1_000_000, is_not_finite=True)
        counters, profile, start, end = recorders.close()
        assert (counters.requests, counters.rows, counters.errors, counters.not_finite) == (2, 1, 1, 1)
        assert counters.latency == {latency_bucket(5_000): 1, latency_bucket(1_000_000): 1}
        assert profile.rows == 1
        assert start <= end
    counters, profile, *_ = recorders.close()
    assert (counters.requests, counters.latency, profile.rows) == (0, {}, 0)


@pytest.mark.parametrize("nanoseconds", [0, 1, 7, 8, 15, 16, 999, 1_000_000, 2**40 + 12345, 2**63])
def test_a_duration_lands_in_the_bucket_of_the_histogram(make_bundle, nanoseconds):
    recorders = Recorders(make_bundle("1.0.0").manifest, None)
    recorders.answered(Answer({}, {}, {}, 1), nanoseconds)
    assert recorders.counters().latency == {latency_bucket(nanoseconds): 1}


def test_rows_of_varying_shape_are_counted(make_bundle, reference):
    manifest = msgspec.structs.replace(
        make_bundle("1.0.0").manifest, inputs=(TensorSpec("image", "FP32", ("batch", 1, "height", "width")),)
    )
    logits = {"logits": np.zeros((1, 10), np.float32)}
    images = [{"image": np.full((1, 1, size, size), 0.5, np.float32)} for size in (8, 16)]
    profile = profile_of(manifest, reference, [(image, logits) for image in images])
    assert profile.rows == 2
    assert sum(profile.counts["image.mean"]) == 2


def test_a_model_without_a_batch_dimension_counts_one_row_a_request(make_bundle, reference):
    manifest = msgspec.structs.replace(
        make_bundle("1.0.0").manifest,
        inputs=(TensorSpec("image", "FP32", (1, 28, 28)),),
        outputs=(TensorSpec("logits", "FP32", (10,)),),
    )
    request = ({"image": np.zeros((1, 28, 28), np.float32)}, {"logits": np.arange(10, dtype=np.float32)})
    profile = profile_of(manifest, reference, [request] * 70)
    assert profile.rows == 70
    assert profile.counts["class"][9] == 70


def test_a_signal_on_a_tensor_that_does_not_count_rows_is_left_out(make_bundle, reference):
    manifest = msgspec.structs.replace(
        make_bundle("1.0.0").manifest, outputs=(TensorSpec("logits", "FP32", ("boxes", 10)),)
    )
    request = ({"image": np.zeros((2, 1, 28, 28), np.float32)}, {"logits": np.zeros((5, 10), np.float32)})
    profile = profile_of(manifest, reference, [request])
    assert set(profile.counts) == {"image.mean", "image.gradient"}
    assert sum(profile.counts["image.mean"]) == 2


def test_a_reference_without_signals_still_counts_rows(make_bundle):
    request = rows_of(np.random.default_rng(0), 1)
    profile = profile_of(make_bundle("1.0.0").manifest, Reference(rows=0, signals=()), [request] * 100)
    assert profile.rows == 100
