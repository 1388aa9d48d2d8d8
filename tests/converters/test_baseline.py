"""The drift reference: which signals, where the bins, and that what is counted is all there is."""

import numpy as np
import pytest

from edgeops.binning import bin_indices, count_rows
from edgeops.signals import EVERYTHING, Statistic, decode_reference, encode_reference
from edgeops_converters.baseline import bin_edges, make_reference
from edgeops_converters.exam import Answers, Exam
from edgeops_converters.samples import read_evaluation

RANDOM = np.random.default_rng(0)


def reference_of(inputs, scores=None, *, stratum_attribute="", **rest):
    samples = read_evaluation({**inputs, **rest})
    exam = Exam(samples, inputs, (), None if scores is None else "output")
    raw = {"output": scores if scores is not None else np.zeros((samples.rows, 3), np.float32)}
    classes = None if scores is None else scores.argmax(axis=1)
    return make_reference(exam, Answers(raw, raw, classes), stratum_attribute=stratum_attribute)


def names(reference):
    return {signal.name for signal in reference.signals}


def test_images_get_light_contrast_sharpness_and_two_projections():
    reference = reference_of({"image": RANDOM.random((50, 1, 8, 8), np.float32)})
    assert names(reference) == {
        "image.mean", "image.std", "image.gradient", "image.projection0", "image.projection1"
    }  # fmt: skip


def test_a_short_vector_gets_a_signal_for_each_element():
    assert names(reference_of({"x": RANDOM.random((50, 3), np.float32)})) == {"x.0", "x.1", "x.2"}


def test_a_long_vector_gets_mean_spread_and_projections():
    assert names(reference_of({"x": RANDOM.random((50, 40), np.float32)})) == {
        "x.mean", "x.std", "x.projection0", "x.projection1"
    }  # fmt: skip


def test_classes_get_confidence_entropy_and_class():
    reference = reference_of({"x": RANDOM.random((50, 1), np.float32)}, RANDOM.normal(size=(50, 5)).astype(np.float32))
    found = {signal.statistic: signal for signal in reference.signals if signal.tensor == "output"}
    assert set(found) == {Statistic.CONFIDENCE, Statistic.ENTROPY, Statistic.CLASS}
    assert found[Statistic.CLASS].edges == (0.5, 1.5, 2.5, 3.5)
    assert all(signal.softmax for signal in found.values())


def test_probabilities_do_not_pass_softmax_again():
    scores = RANDOM.dirichlet(np.ones(4), 50).astype(np.float32)
    reference = reference_of({"x": RANDOM.random((50, 1), np.float32)}, scores)
    assert not any(signal.softmax for signal in reference.signals)


def test_every_row_is_counted_once_in_every_signal_and_stratum():
    images, scores = RANDOM.random((90, 1, 6, 6), np.float32), RANDOM.normal(size=(90, 3)).astype(np.float32)
    sites = np.array(["a", "b", "b"] * 30)
    labels = scores.argmax(axis=1)
    labels[:10] = (labels[:10] + 1) % 3

    reference = reference_of({"image": images}, scores, stratum_attribute="site", stratum=sites, labels=labels)

    for signal in reference.signals:
        assert {stratum: sum(counts) for stratum, counts in signal.counts.items()} == {EVERYTHING: 90, "a": 30, "b": 60}
        assert signal.counts[EVERYTHING] == tuple(np.add(signal.counts["a"], signal.counts["b"]))
    assert reference.stratum_attribute == "site"
    assert reference.accuracy[EVERYTHING] == (80, 90)
    assert reference.accuracy["a"][1] + reference.accuracy["b"][1] == 90
    assert decode_reference(encode_reference(reference)) == reference


def test_continuous_values_fall_into_ten_about_equal_bins():
    values = RANDOM.normal(size=1000).astype(np.float32)
    edges = bin_edges(values)
    counts = np.histogram(values, [-np.inf, *edges, np.inf])[0]
    assert len(edges) == 9
    assert counts.min() >= 98
    assert counts.max() <= 102


def test_a_pile_of_equal_values_gets_a_bin_of_its_own():
    values = np.concatenate([np.zeros(400), RANDOM.uniform(1, 2, 600)]).astype(np.float32)
    edges = bin_edges(values)
    assert 0 < edges[0] < 1
    assert np.histogram(values, [-np.inf, *edges, np.inf])[0][0] == 400


def test_no_edge_lies_on_a_value_so_that_rounding_moves_no_row():
    values = (RANDOM.integers(0, 20, 500) / 20).astype(np.float32)
    reference = reference_of({"x": np.stack([values, values[::-1]], axis=1)})
    for signal in reference.signals:
        before = count_rows([signal], {"x": np.stack([values, values[::-1]], axis=1)})[signal.name]
        moved = np.stack([values, values[::-1]], axis=1) * np.float32(1 + 1e-6) - np.float32(1e-7)
        assert (count_rows([signal], {"x": moved})[signal.name] == before).all()


def test_a_constant_signal_notices_when_it_moves():
    reference = reference_of({"x": np.full((20, 1), 3.0, np.float32)})
    signal = reference.signals[0]
    assert bin_indices(signal, np.float32([2.0, 3.0, 4.0])).tolist() == [0, 1, 2]


@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0, 5.0 + 1e-7], [1e-20, 2e-20]])
def test_edges_increase_for_values_that_hardly_differ(values):
    edges = bin_edges(np.float32(values))
    assert list(edges) == sorted(set(edges))
    assert edges
