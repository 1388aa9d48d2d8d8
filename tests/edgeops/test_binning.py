"""Arrays to bins: every row lands in exactly one bin, whatever its values, and splitting a batch changes nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeops.binning import bin_indices, count_rows, projection, softmax, statistic_values
from edgeops.signals import Signal, Statistic

IMAGE_SIGNALS = tuple(
    Signal(name=kind.value, tensor="x", statistic=kind, edges=(-1.0, 0.0, 1.0), counts={"": (0,) * 5})
    for kind in (Statistic.VALUE, Statistic.MEAN, Statistic.STD, Statistic.GRADIENT, Statistic.PROJECTION)
)
OUTPUT_SIGNALS = tuple(
    Signal(
        name=kind.value,
        tensor="y",
        statistic=kind,
        edges=(0.5, 1.5) if kind is Statistic.CLASS else (0.3, 0.6),
        softmax=True,
        counts={"": (0,) * 4},
    )
    for kind in (Statistic.CONFIDENCE, Statistic.ENTROPY, Statistic.CLASS)
)
SIGNALS = IMAGE_SIGNALS + OUTPUT_SIGNALS


def rows_of(seed, count, *, wild=0.0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, 1, 4, 4)).astype(np.float32)
    logits = rng.normal(scale=2, size=(count, 3)).astype(np.float32)
    bad = rng.random(count) < wild
    images[bad, 0, 1, 2] = rng.choice([np.nan, np.inf, -np.inf], size=int(bad.sum()))
    logits[bad, 0] = np.nan
    return {"x": images, "y": logits}, int(bad.sum())


@given(st.integers(0, 2**32), st.integers(1, 40), st.floats(0, 1))
def test_every_row_is_counted_once_in_every_signal(seed, count, wild):
    tensors, bad = rows_of(seed, count, wild=wild)
    for signal in SIGNALS:
        counts = count_rows([signal], tensors)[signal.name]
        assert len(counts) == signal.bins
        assert counts.sum() == count
        assert counts[-1] == bad


@given(st.integers(0, 2**32), st.integers(2, 40), st.data())
def test_counts_of_the_parts_of_a_batch_add_up_to_the_counts_of_the_batch(seed, count, data):
    tensors, _ = rows_of(seed, count, wild=0.1)
    cut = data.draw(st.integers(1, count - 1))
    whole = count_rows(SIGNALS, tensors)
    first = count_rows(SIGNALS, {name: rows[:cut] for name, rows in tensors.items()})
    second = count_rows(SIGNALS, {name: rows[cut:] for name, rows in tensors.items()})
    for signal in SIGNALS:
        assert (whole[signal.name] == first[signal.name] + second[signal.name]).all()


def test_a_value_on_an_edge_belongs_to_the_bin_above_it():
    signal = Signal(name="v", tensor="x", statistic=Statistic.VALUE, edges=(0.0, 1.0), counts={"": (0,) * 4})
    values = np.array([-0.5, 0.0, 0.5, 1.0, 2.0, np.nan, np.inf], dtype=np.float32)
    assert bin_indices(signal, values).tolist() == [0, 1, 1, 2, 2, 3, 3]


def test_statistics_of_a_known_image():
    image = np.array([[[0, 1, 2], [3, 5, 7]]], dtype=np.float32)
    expected = {
        Statistic.VALUE: 0.0,
        Statistic.MEAN: 3.0,
        Statistic.STD: float(np.std([0, 1, 2, 3, 5, 7])),
        Statistic.GRADIENT: 1.5,
        Statistic.PROJECTION: float(image.reshape(-1) @ projection(0, 6)),
    }
    for signal in IMAGE_SIGNALS:
        assert statistic_values(signal, image)[0] == pytest.approx(expected[signal.statistic], rel=1e-6)


def test_statistics_of_known_probabilities():
    logits = np.log(np.array([[0.2, 0.7, 0.1]], dtype=np.float32))
    expected = {
        Statistic.CONFIDENCE: 0.7,
        Statistic.ENTROPY: -(0.2 * np.log(0.2) + 0.7 * np.log(0.7) + 0.1 * np.log(0.1)),
        Statistic.CLASS: 1.0,
    }
    for signal in OUTPUT_SIGNALS:
        assert statistic_values(signal, logits)[0] == pytest.approx(expected[signal.statistic], rel=1e-5)


def test_softmax_of_large_logits_is_finite_and_adds_up_to_one():
    shares = softmax(np.array([[1000.0, 999.0, -1000.0]], dtype=np.float32))
    assert np.isfinite(shares).all()
    assert shares.sum() == pytest.approx(1.0)


def test_a_projection_has_unit_length_and_depends_on_its_seed_alone():
    assert np.linalg.norm(projection(3, 784)) == pytest.approx(1.0, rel=1e-5)
    assert (projection(3, 784) == projection(3, 784)).all()
    assert (projection(3, 784) != projection(4, 784)).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, np.float16, np.float64])
def test_any_numeric_dtype_is_counted(dtype):
    signal = Signal(name="m", tensor="x", statistic=Statistic.MEAN, edges=(2.0,), counts={"": (0,) * 3})
    rows = np.array([[1, 1], [3, 3]], dtype=dtype)
    assert count_rows([signal], {"x": rows})["m"].tolist() == [1, 1, 0]
