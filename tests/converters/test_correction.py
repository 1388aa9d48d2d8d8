"""Bias correction: the mean of a layer, the order of layers, and the safe way back."""

import numpy as np
import pytest
import torch

from edgeops_converters.correction import Correctable, correct, corrected_bias, levels_of
from edgeops_converters.layers import Geometry, mean_output

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "weights", "options"),
    [
        ((6, 9, 8), (4, 6, 3, 3), {"stride": 2, "padding": 1}),
        ((6, 9, 8), (6, 1, 5, 5), {"stride": 1, "padding": 2, "groups": 6}),
        ((6, 11, 11), (4, 3, 3, 2), {"stride": (1, 3), "dilation": (2, 1), "groups": 2}),
        ((6, 5, 5), (8, 6, 1, 1), {}),
    ],
)
def test_the_mean_output_of_a_convolution_follows_from_its_mean_input(shape, weights, options):
    rows, kernel = torch.tensor(RANDOM.normal(size=(7, *shape))), torch.tensor(RANDOM.normal(size=weights))
    expected = torch.nn.functional.conv2d(rows, kernel, **options).mean(dim=(0, 2, 3))

    def pair(value):
        return value if isinstance(value, tuple) else (value, value)

    geometry = Geometry(
        strides=pair(options.get("stride", 1)),
        dilations=pair(options.get("dilation", 1)),
        pads=tuple((pad, pad) for pad in pair(options.get("padding", 0))),
        groups=options.get("groups", 1),
    )
    np.testing.assert_allclose(mean_output(kernel.numpy(), rows.mean(0).numpy(), geometry), expected, atol=1e-12)


class Chain:
    """Two matrix products with a rectifier between them, rounded so coarsely that the means are off."""

    def __init__(self):
        self.rows = RANDOM.normal(size=(200, 8)) + 1
        self.weights = {name: RANDOM.normal(size=(8, 8)) for name in ("first", "second")}
        self.rounded = {name: np.round(array * 2) / 2 for name, array in self.weights.items()}
        self.bias = {name: RANDOM.normal(size=8) for name in self.weights}
        self.set = dict(self.bias)

    def run(self, weights, bias):
        hidden = np.maximum(self.rows @ weights["first"].T + bias["first"], 0)
        return {"first": self.rows, "second": hidden}, hidden @ weights["second"].T + bias["second"]

    def layers(self):
        inputs, _ = self.run(self.weights, self.bias)
        return {
            name: Correctable(
                geometry=Geometry(),
                weights=self.weights[name],
                rounded=self.rounded[name],
                bias=self.bias[name],
                mean_input=inputs[name].mean(0),
                span=40.0,
            )
            for name in self.weights
        }

    def set_biases(self, biases):
        self.set |= biases

    def mean_inputs(self, layers):
        inputs, _ = self.run(self.rounded, self.set)
        return {name: inputs[name].mean(0) for name in layers}

    def noise(self):
        return np.square(self.run(self.rounded, self.set)[1] - self.run(self.weights, self.bias)[1]).mean()


def test_every_output_has_the_mean_of_float_after_correction():
    chain = Chain()
    before = chain.noise()
    after = correct(chain.layers(), [["first"], ["second"]], chain)
    assert after == chain.noise() < before
    _, answered = chain.run(chain.rounded, chain.set)
    _, expected = chain.run(chain.weights, chain.bias)
    np.testing.assert_allclose(answered.mean(0), expected.mean(0), atol=1e-9)


def test_a_correction_that_makes_the_answers_worse_is_taken_back():
    chain = Chain()
    layers = chain.layers()
    chain.rounded = chain.weights  # nothing was rounded after all, so that every correction is wrong
    assert correct(layers, [["first"], ["second"]], chain) == chain.noise() == 0


def test_an_absurd_correction_is_left_out():
    layer = Correctable(
        geometry=Geometry(),
        weights=np.array([[1.0], [1.0]]),
        rounded=np.array([[0.9], [-50.0]]),
        bias=np.zeros(2),
        mean_input=np.ones(1),
        span=2.0,
    )
    np.testing.assert_allclose(corrected_bias(layer, np.ones(1)), [0.1, 0])


def test_branches_share_a_level_and_what_joins_them_comes_after_the_longer_one():
    reads = {"stem": ["x"], "left": ["a"], "right": ["a"], "more": ["b"], "join": ["c", "d"], "head": ["e"]}
    gives = {"stem": ["a"], "left": ["b"], "right": ["c"], "more": ["d"], "join": ["e"], "head": ["f"]}
    layers = set(reads) - {"join"}
    assert levels_of(reads, gives, layers) == [["stem"], ["left", "right"], ["more"], ["head"]]
