"""Held-out rows in two halves."""

import numpy as np
import pytest

from edgeops.errors import RecipeError
from edgeops_converters.samples import Samples
from edgeops_converters.splits import split

RANDOM = np.random.default_rng(0)


def samples(rows, labels=None, strata=None):
    return Samples("held-out", {"x": np.arange(rows, dtype=np.float32)[:, None]}, labels, strata)


@pytest.mark.parametrize("rows", [4, 5, 101])
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("stratified", [False, True])
def test_every_row_is_in_exactly_one_half_and_always_in_the_same(rows, labelled, stratified):
    given = samples(
        rows,
        RANDOM.integers(0, 3, rows) if labelled else None,
        RANDOM.choice(["harbour", "market"], rows) if stratified else None,
    )
    search, test = split(given)
    assert sorted([*search, *test]) == list(range(rows))
    assert len(test) - len(search) in (0, 1, 2)
    again = split(given)
    assert (search == again[0]).all()
    assert (test == again[1]).all()
    assert (np.diff(search) > 0).all()


def test_each_label_goes_half_to_each():
    labels = RANDOM.choice(5, 403, p=[0.5, 0.3, 0.1, 0.07, 0.03])
    search, test = split(samples(403, labels))
    halves = np.bincount(labels[search], minlength=5), np.bincount(labels[test], minlength=5)
    assert np.abs(halves[0] - halves[1]).max() <= 1


def test_rows_that_were_sorted_by_something_else_are_mixed():
    search, test = split(samples(400))
    assert abs(search.mean() - test.mean()) < 30
    assert len(set(np.diff(search))) > 2


def test_a_stratum_with_one_row_is_tested():
    strata = np.array(["market"] * 9 + ["harbour"])
    _, test = split(samples(10, np.zeros(10, np.int64), strata))
    assert 9 in test


def test_too_few_rows_are_refused_with_their_number():
    with pytest.raises(RecipeError, match=r"held-out: expected at least 4 rows.*got 3"):
        split(samples(3))


def test_a_part_of_samples_keeps_rows_labels_and_strata_together():
    given = samples(6, np.arange(6), np.array(list("abcdef")))
    part = given.part(np.array([1, 4]))
    assert part.inputs["x"][:, 0].tolist() == part.labels.tolist() == [1, 4]
    assert part.strata.tolist() == ["b", "e"]
    assert samples(3).part(np.array([0])).labels is None
