"""Histograms in constant memory, and the ranges that follow from them."""

import numpy as np
import pytest

from edgeops_converters.histograms import BINS, Histogram
from edgeops_converters.ranges import (
    ESTIMATORS,
    LEVELS,
    Range,
    entropy,
    least_squares,
    minmax,
    percentile,
    squared_error,
)


def counted(*parts):
    histogram = Histogram()
    for part in parts:
        histogram.add(np.asarray(part))
    return histogram


def error(values, span):
    """What rounding really does to the values."""
    zero = np.round(-span.low / span.step)
    integers = np.clip(np.round(values / span.step) + zero, 0, LEVELS)
    return np.square((integers - zero) * span.step - values).sum()


def test_memory_does_not_grow_with_values_or_range():
    histogram, random = Histogram(), np.random.default_rng(0)
    for scale in (1e-6, 1, 1e9, 1e-3):
        for _ in range(20):
            histogram.add(random.normal(size=1000) * scale)
    assert len(histogram.counts) <= BINS
    assert histogram.counts.sum() == 80_000


def test_neither_order_nor_grouping_changes_the_counts():
    random = np.random.default_rng(1)
    parts = [random.normal(size=500) * scale for scale in (0.01, 30, 2)] + [np.zeros(10), np.array([-700.0])]
    first, second, merged = counted(*parts), counted(*parts[::-1]), Histogram()
    for part in parts:
        merged.merge(counted(part))
    for other in (second, merged):
        np.testing.assert_array_equal(first.counts, other.counts)
        np.testing.assert_array_equal(first.centres, other.centres)
        assert (first.low, first.high, first.zeros) == (other.low, other.high, other.zeros)


def test_every_value_is_counted_in_the_bin_that_holds_it():
    values = np.random.default_rng(2).normal(size=4000)
    histogram = counted(values)
    edges = np.append(histogram.centres - histogram.width / 2, histogram.centres[-1] + histogram.width / 2)
    np.testing.assert_array_equal(histogram.counts, np.histogram(values, edges)[0])


def test_a_large_tensor_is_sampled_evenly_and_its_ends_are_exact():
    values = np.tile(np.arange(64, dtype=np.float32), 40_000)
    values[12345] = 1000
    histogram = counted(values.reshape(200, 200, 64))
    assert histogram.high == 1000
    assert histogram.counts.sum() < 2**17
    found = histogram.counts[histogram.centres < 64]
    assert found[found > 0].min() > 0.95 * found.max(), "each channel has its turn"


def test_what_is_not_finite_is_left_out():
    histogram = counted([np.nan, 1.0, -np.inf], [np.nan])
    assert (histogram.low, histogram.high, histogram.counts.sum()) == (1.0, 1.0, 1)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("values", [[], [0.0, 0.0], [5.0], [-5.0, -4.0], [1e-30], np.linspace(-1, 9, 5000)])
def test_every_range_holds_zero_and_is_not_empty(name, values):
    span = ESTIMATORS[name](counted(values))
    assert span.low <= 0 <= span.high
    assert span.step > 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_range_is_wider_than_what_was_seen(name):
    span = ESTIMATORS[name](counted(np.random.default_rng(3).normal(size=5000)))
    assert minmax(counted([-6, 6])).low <= span.low
    assert span.high <= 6


def test_a_percentile_cuts_what_is_rare():
    values = np.append(np.linspace(-1, 1, 100_00), [50.0])
    assert percentile(counted(values), 0.999).high == pytest.approx(1, abs=0.05)
    assert minmax(counted(values)).high == 50


@pytest.mark.parametrize(
    "make",
    [
        lambda random: random.laplace(size=20_000),
        lambda random: np.maximum(random.normal(size=20_000), 0),
        lambda random: np.append(random.normal(size=20_000), [40.0]),
    ],
)
def test_the_least_squares_range_has_less_real_error_than_the_others(make):
    values = make(np.random.default_rng(4))
    histogram = counted(values)
    best = error(values, least_squares(histogram))
    for other in (minmax(histogram), percentile(histogram), entropy(histogram)):
        assert best <= 1.02 * error(values, other)


def test_the_expected_error_is_the_real_one():
    values = np.random.default_rng(5).normal(size=50_000)
    for span in (Range(-4.0, 4.0), Range(-1.5, 2.5)):
        assert squared_error(counted(values), span) == pytest.approx(error(values, span), rel=0.05)


def test_entropy_gives_up_a_lonely_outlier():
    values = np.append(np.random.default_rng(6).normal(size=50_000), [100.0])
    assert entropy(counted(values)).high < 50
