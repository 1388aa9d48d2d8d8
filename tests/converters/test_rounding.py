"""Integer weights: nearer to the answers than to the weights, and never too large in pairs where sums have 16 bits."""

import numpy as np
import pytest

from edgeops_converters.rounding import LIMIT, PAIR_LIMIT, Grid, round_weights, saturates

RANDOM = np.random.default_rng(0)


def correlated(taps, rows=400):
    """Inputs that go together, as those of a real layer do."""
    mix = RANDOM.normal(size=(3, taps))
    return RANDOM.normal(size=(rows, 3)) @ mix + 0.1 * RANDOM.normal(size=(rows, taps)) + 0.5


def moments(inputs, groups=1):
    parts = inputs.reshape(len(inputs), groups, -1)
    return np.einsum("ngi,ngj->gij", parts, parts) / len(inputs)


def rounded(weights, inputs, groups=1, **options):
    return round_weights(weights, moments(inputs, groups), floor=np.zeros(len(weights)), **options)


def test_the_answers_are_nearer_than_with_every_weight_rounded_to_the_nearest():
    weights, inputs = RANDOM.normal(size=(16, 40)), correlated(40)
    grid = rounded(weights, inputs)
    nearest = np.clip(np.rint(weights / grid.scales[:, None]), -LIMIT, LIMIT) * grid.scales[:, None]
    noise, other = (np.square(inputs @ (array - weights).T).mean() for array in (grid.weights, nearest))
    assert noise < 0.3 * other
    # The moments are damped a little, so that the figure is near to and not the same as what the rows show.
    assert grid.gain_db == pytest.approx(10 * np.log10(other / noise), abs=1.5)


@pytest.mark.parametrize(("shape", "groups"), [((8, 6, 3, 3), 1), ((8, 3, 3, 3), 2), ((8, 1, 3, 3), 8), ((5, 12), 1)])
def test_every_layout_of_weights_keeps_its_shape_and_a_scale_a_channel(shape, groups):
    weights = RANDOM.normal(size=shape) * 10.0 ** RANDOM.integers(-3, 3, size=(shape[0], *[1] * (len(shape) - 1)))
    grid = rounded(weights, correlated(groups * int(np.prod(shape[1:]))), groups)
    assert grid.codes.shape == shape
    assert grid.codes.dtype == np.int8
    assert grid.scales.shape == (shape[0],)
    assert np.abs(grid.codes.astype(int)).max() <= LIMIT
    error = np.abs(grid.weights - weights).reshape(shape[0], -1).max(axis=1)
    assert (error < 0.6 * np.abs(weights).reshape(shape[0], -1).max(axis=1)).all()


def test_no_two_neighbours_overflow_sixteen_bits_in_either_order_of_the_axes():
    weights, inputs = RANDOM.normal(size=(12, 6, 3, 3)), correlated(54)
    free, paired = rounded(weights, inputs), rounded(weights, inputs, is_paired=True)
    assert saturates(free.codes)
    assert not saturates(paired.codes)
    for codes in (paired.codes, np.moveaxis(paired.codes, 1, -1)):
        rows = codes.reshape(12, -1).astype(int)
        for sign in (1, -1):
            assert (np.maximum(sign * rows, 0)[:, 1:] + np.maximum(sign * rows, 0)[:, :-1]).max() <= PAIR_LIMIT
    assert np.square(inputs @ (paired.weights - weights).reshape(12, -1).T).mean() < 0.01


def test_a_channel_of_zeros_or_a_large_bias_gets_a_scale_that_the_bias_fits():
    weights = np.stack([np.zeros(8), np.full(8, 1e-6), np.ones(8)])
    floor = np.array([1e-4, 1e-4, 0.0])
    grid = round_weights(weights, moments(correlated(8)), floor=floor)
    assert (grid.scales[:2] >= 1e-4).all()
    assert np.isfinite(grid.scales).all()
    assert (grid.scales > 0).all()
    np.testing.assert_array_equal(grid.codes[0], 0)


def test_inputs_that_never_vary_are_no_trouble():
    grid = rounded(RANDOM.normal(size=(4, 9)), np.zeros((50, 9)))
    assert np.isfinite(grid.weights).all()


def test_the_same_input_gives_the_same_integers():
    weights, inputs = RANDOM.normal(size=(8, 30)), correlated(30)
    one, other = (rounded(weights, inputs, is_paired=True) for _ in range(2))
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_array_equal(one.scales, other.scales)


def test_what_codes_stand_for_is_codes_times_scale():
    grid = Grid(np.array([[1, -2], [3, 4]], np.int8), np.array([0.5, 2.0]))
    np.testing.assert_array_equal(grid.weights, [[0.5, -1.0], [6.0, 8.0]])
