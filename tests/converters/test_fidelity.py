"""The statistics, held against known values and against simulation."""

import numpy as np
import pytest

from edgeops_converters.fidelity import agreement, paired_drop, sqnr_db, wilson


def test_wilson_gives_the_published_interval():
    # Newcombe 1998, table I: 81 of 263, method 3.
    interval = wilson(81, 263)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize("successes", [0, 50])
def test_wilson_stays_inside_zero_and_one(successes):
    interval = wilson(successes, 50)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.high - interval.low > 0.01


def test_wilson_covers_the_truth_about_as_often_as_it_says():
    draws = np.random.default_rng(0).binomial(200, 0.9, 2000)
    covered = np.mean([(i := wilson(int(k), 200)).low <= 0.9 <= i.high for k in draws])
    assert 0.93 < covered < 0.97


def test_paired_drop_counts_only_rows_on_which_one_of_the_two_is_right():
    labels = np.zeros(1000, np.int64)
    source, variant = labels.copy(), labels.copy()
    source[:100] = variant[:100] = 1  # both wrong: says nothing
    variant[100:110] = 1
    source[100:103] = 1

    drop = paired_drop(source, variant, labels)

    assert drop.points == pytest.approx(0.7)
    assert drop.low < 0.7 < drop.high
    assert drop.high - drop.low < 2  # two separate intervals of 900 of 1000 would be 3.7 wide


def test_paired_drop_of_a_better_model_is_negative():
    labels = np.zeros(10, np.int64)
    assert paired_drop(np.eye(10, dtype=np.int64)[0], labels, labels).points == pytest.approx(-10)


def test_agreement_is_a_share():
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 0])) == 0.75


def test_sqnr_is_in_decibel_and_none_when_exact():
    exact = {"y": np.ones((2, 3), np.float32)}
    assert sqnr_db(exact, exact) is None
    assert sqnr_db(exact, {"y": exact["y"] * np.float32(1.1)}) == pytest.approx(20, abs=0.01)
