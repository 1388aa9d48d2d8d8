"""The test for harm: false alarms within alpha, labels to an alarm as published, and an interval that covers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeops.errors import InputError
from edgeops_fleet.retraining.harm import HarmState, assess, confidence_interval, log_evidence_above, upper_rate

BASELINE = (8570, 10_000)


def stream(rng, error_rate, labels):
    return list(rng.random(labels) >= error_rate)


@pytest.mark.parametrize(("error_rate", "low", "high"), [(0.84, 2, 5), (0.48, 10, 25), (0.30, 70, 180)])
def test_harm_is_found_after_about_as_many_labels_as_the_size_of_the_harm_takes(error_rate, low, high):
    rng = np.random.default_rng(1)
    needed = [assess(stream(rng, error_rate, 600), baseline=BASELINE).labels_to_alarm for _ in range(100)]
    assert low <= np.median([labels or math.inf for labels in needed]) <= high


def test_an_error_rate_at_the_edge_of_what_is_tolerated_is_called_harmful_in_at_most_alpha_of_streams():
    rng = np.random.default_rng(2)
    edge = upper_rate(1430, 10_000, confidence=0.95) + 0.05
    alarms = sum(
        assess(stream(rng, edge, 500), baseline=BASELINE, alpha=0.1).state is HarmState.HARMFUL for _ in range(400)
    )
    assert alarms <= 400 * 0.1 + 3.1 * math.sqrt(400 * 0.1 * 0.9)


def test_an_unchanged_error_rate_is_benign_after_enough_labels_and_hardly_ever_harmful():
    rng = np.random.default_rng(3)
    states = [assess(stream(rng, 0.143, 1500), baseline=BASELINE).state for _ in range(100)]
    assert states.count(HarmState.HARMFUL) <= 3
    assert states.count(HarmState.BENIGN) >= 70


def test_the_baseline_of_a_small_reference_leaves_room_for_its_error():
    rng = np.random.default_rng(4)
    alarms = 0
    for _ in range(300):
        correct = int(rng.binomial(200, 0.857))
        labelled = stream(rng, 0.143, 400)
        alarms += assess(labelled, baseline=(correct, 200), tolerance=0.0).state is HarmState.HARMFUL
    # 5 % for the baseline's bound and 5 % for the bets.
    assert alarms <= 300 * 0.1 + 3.1 * math.sqrt(300 * 0.1 * 0.9)


def test_harm_that_was_found_stays_found_when_good_labels_follow():
    bad, good = [False] * 20, [True] * 2000
    harm = assess(bad + good, baseline=BASELINE)
    assert harm.state is HarmState.HARMFUL
    assert harm.labels_to_alarm == assess(bad, baseline=BASELINE).labels_to_alarm
    assert harm.e_value >= 20


def test_a_few_labels_say_unknown():
    for labelled in ([], [True], [True, False, True]):
        harm = assess(labelled, baseline=BASELINE)
        assert harm.state is HarmState.UNKNOWN
        assert harm.labels == len(labelled)
    assert assess([], baseline=BASELINE).error_rate is None
    assert assess([], baseline=BASELINE).interval == (0.0, 1.0)


def test_the_interval_covers_the_truth_at_every_look():
    rng = np.random.default_rng(5)
    missed = 0
    for _ in range(150):
        wrong = rng.random(200) < 0.2
        intervals = (confidence_interval(wrong[:count], alpha=0.1) for count in range(1, 201, 3))
        missed += any(not low <= 0.2 <= high for low, high in intervals)
    assert missed <= 150 * 0.1 + 3.1 * math.sqrt(150 * 0.1 * 0.9)


@given(st.floats(0.01, 0.99), st.floats(0, 1))
def test_no_label_adds_evidence_on_average_below_the_limit(limit, share):
    rate = limit * share
    after_wrong = float(np.exp(log_evidence_above(np.array([True]), limit))[0])
    after_right = float(np.exp(log_evidence_above(np.array([False]), limit))[0])
    assert rate * after_wrong + (1 - rate) * after_right <= 1 + 1e-9


@given(st.lists(st.booleans(), max_size=60))
def test_an_assessment_is_consistent(labelled):
    harm = assess(labelled, baseline=(90, 100))
    assert 0 <= harm.interval[0] <= harm.interval[1] <= 1
    assert (harm.state is HarmState.HARMFUL) == (harm.e_value >= 20 * (1 - 1e-12)) == (harm.labels_to_alarm is not None)
    if harm.error_rate is not None:
        assert harm.interval[0] <= harm.error_rate <= harm.interval[1]


@pytest.mark.parametrize("baseline", [(0, 0), (5, 4), (-1, 3)])
def test_an_impossible_baseline_is_refused(baseline):
    with pytest.raises(InputError, match="baseline"):
        assess([True], baseline=baseline)


@pytest.mark.parametrize("settings", [{"alpha": 0.0}, {"alpha": 1.0}, {"tolerance": -0.1}, {"tolerance": 1.0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError, match="tolerance"):
        assess([True], baseline=BASELINE, **settings)
