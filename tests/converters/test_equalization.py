"""Channels brought to one range: only where it pays, never through what forbids it, and the function unchanged."""

import math

import numpy as np
import pytest

from edgeops_converters.channels import channels_of
from edgeops_converters.equalization import Extent, Reader, divided, divisors, expected_noise, multiplied
from edgeops_converters.graph import Layer, Node, NodeKind, Parameters
from edgeops_converters.layers import Geometry

RANDOM = np.random.default_rng(0)


class Sketch:
    """A graph with nothing but its wiring; all layers have four channels."""

    def __init__(self, *nodes, ends=("in", "out")):
        self.nodes = nodes
        self.ends = frozenset(ends)
        self.layers = [
            Layer(node.name, node.name, Geometry(), node.reads[0], node.gives[0])
            for node in nodes
            if node.kind is NodeKind.LAYER
        ]

    def parameters(self, layer):
        return Parameters(np.ones((4, 4)), np.ones(4))


def layer(name, reads, gives, cap=math.inf):
    return Node(name, (reads,), (gives,), NodeKind.LAYER, cap)


def names(layers):
    return [one.name for one in layers]


def test_a_residual_connection_joins_all_that_write_and_read_it():
    graph = Sketch(
        layer("stem", "in", "a"),
        layer("branch", "a", "b"),
        Node("add", ("a", "b"), ("c",), NodeKind.SUM),
        Node("relu", ("c",), ("d",), NodeKind.CHANNELWISE),
        layer("head", "d", "out"),
    )
    (group,) = channels_of(graph)
    assert group.tensors == {"a", "b", "c", "d"}
    assert names(group.writers) == ["stem", "branch"]
    assert names(group.readers) == ["branch", "head"]
    assert group.cap == math.inf


def test_the_lowest_cap_on_the_way_counts():
    graph = Sketch(layer("first", "in", "a", cap=6.0), layer("second", "a", "out"))
    (group,) = channels_of(graph)
    assert group.cap == 6.0


@pytest.mark.parametrize(
    "between",
    [
        Node("sigmoid", ("a",), ("b",), NodeKind.OTHER),
        Node("add", ("a", "in"), ("b",), NodeKind.SUM),
    ],
)
def test_what_no_factor_passes_and_what_the_model_takes_itself_end_it(between):
    assert channels_of(Sketch(layer("first", "in", "a"), between, layer("second", "b", "out"))) == []


def test_a_tensor_that_something_else_reads_too_is_left_alone():
    graph = Sketch(
        layer("first", "in", "a"), layer("second", "a", "out"), Node("softmax", ("a",), ("s",), NodeKind.OTHER)
    )
    assert channels_of(graph) == []


def extent(peaks):
    peaks = np.asarray(peaks, float)
    return Extent(np.zeros_like(peaks), peaks, peaks**2 / 3)


def depthwise(of):
    return Reader(np.ones((len(of.high), 1, 3, 3)), len(of.high), of.power)


def test_a_depthwise_reader_takes_every_channel_to_one_range():
    held = extent([64.0, 2.0, 0.25, 0.0])
    factors = divisors([held], [depthwise(held)])
    scaled = held.high[:3] / factors[:3]
    np.testing.assert_allclose(scaled, scaled[0])
    assert factors[3] == 1, "nothing is known of a channel that was always zero"


def test_channels_that_are_alike_are_left_as_they_are():
    held = extent([1.0, 1.1, 0.9, 1.0])
    np.testing.assert_array_equal(divisors([held], [Reader(RANDOM.normal(size=(8, 4)), 1, held.power)]), 1)


def test_what_is_done_lowers_the_noise_that_is_expected():
    held = extent([100.0, 1.0, 1.0, 0.5])
    reader = Reader(RANDOM.normal(size=(16, 4, 1, 1)), 1, held.power)
    factors = divisors([held], [reader])
    assert (factors != 1).any()
    assert expected_noise(factors, [held], [reader]) < expected_noise(np.ones(4), [held], [reader])


def test_a_cap_is_never_brought_below_what_a_channel_holds_and_a_channel_at_the_cap_stays():
    held = extent([6.0, 3.0, 0.7, 5.9])
    factors = divisors([held], [depthwise(held)], cap=6.0)
    assert factors[0] == 1
    assert (held.high / factors <= 6.0 + 1e-9).all()
    assert factors[2] == 0.125
    np.testing.assert_array_equal(np.log2(factors), np.rint(np.log2(factors)))


def test_the_expected_noise_is_the_real_one():
    inputs = RANDOM.random((4000, 6)) * np.array([8, 1, 1, 4, 1, 2])
    weights = RANDOM.normal(size=(5, 6))
    held = Extent(np.zeros(6), inputs.max(axis=0), np.square(inputs).mean(axis=0))
    step = held.high.max() / 255
    codes = np.rint(weights / (np.abs(weights).max(axis=1, keepdims=True) / 127))
    coarse = codes * np.abs(weights).max(axis=1, keepdims=True) / 127
    activations = np.square((np.rint(inputs / step) * step - inputs) @ weights.T).mean(axis=0).sum()
    rounding = np.square(inputs @ (coarse - weights).T).mean(axis=0).sum()
    expected = expected_noise(np.ones(6), [held], [Reader(weights, 1, held.power)])
    # Weights are expected to be rounded for the answers, which leaves about a third of the noise.
    assert activations + 0.1 * rounding < expected < activations + rounding


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_factor_given_and_taken_changes_nothing(groups):
    factors = 2.0 ** RANDOM.integers(-3, 4, 4)
    first, second = RANDOM.normal(size=(4, 3)), RANDOM.normal(size=(8, 4 // groups))
    rows = RANDOM.normal(size=(7, 3))

    def run(ahead, behind):
        hidden = np.maximum(rows @ ahead.T, 0).reshape(7, groups, -1)
        return np.einsum("ngi,goi->ngo", hidden, behind.reshape(groups, 8 // groups, -1)).reshape(7, -1)

    expected = run(first, second)
    given = run(divided(first, factors), multiplied(second, factors, groups))
    np.testing.assert_allclose(given, expected, rtol=1e-12)
