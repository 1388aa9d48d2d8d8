"""The detector keeps its promise, and finds what it should: seeded simulations with binomial bounds, and exact properties."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeops.signals import Reference, Signal, Statistic
from edgeops_fleet.drift.bets import BETS_PER_SCORE, place_bets, rows_to_detect, tilted
from edgeops_fleet.drift.descriptions import (
    jensen_shannon,
    jensen_shannon_critical,
    kolmogorov_smirnov,
    kolmogorov_smirnov_critical,
    psi,
    psi_critical,
)
from edgeops_fleet.drift.detector import Detector, log_threshold, mixture, shiryaev_roberts
from edgeops_fleet.drift.effects import shift_of
from edgeops_fleet.drift.scores import ScoreKind, scores_of

BINS = 10
EDGES = tuple(np.linspace(-1.28, 1.28, BINS - 1).tolist())
TOLERANCE = 0.02
FALSE_ALARM_WINDOWS = 1000


def normal_shares(shift=0.0, scale=1.0):
    """Probability of each finite bin for a normal signal."""
    below = [0.5 * (1 + math.erf((edge - shift) / scale / math.sqrt(2))) for edge in EDGES]
    return np.diff([0.0, *below, 1.0])


def ordered(counts, name="s"):
    return Signal(name=name, tensor="x", statistic=Statistic.MEAN, edges=EDGES, counts={"": (*map(int, counts), 0)})


def classes(counts, name="class"):
    edges = tuple(index + 0.5 for index in range(len(counts) - 1))
    counted = {"": (*map(int, counts), 0)}
    return Signal(name=name, tensor="y", statistic=Statistic.CLASS, edges=edges, counts=counted)


def reference_of(*signals):
    return Reference(rows=sum(signals[0].counts[""]), signals=signals)


def drawn_reference(rng, rows, signals=6):
    drawn = [ordered(rng.multinomial(rows, normal_shares()), name=f"s{index}") for index in range(signals)]
    return reference_of(*drawn, classes(rng.multinomial(rows, np.full(10, 0.1))))


def bets_of(reference, *, tolerance=TOLERANCE, confidence=0.99):
    return place_bets(scores_of(reference, "", confidence=confidence), tolerance=tolerance)


def simulate(rng, bets, shares, *, streams, windows, rows, design_effect=1.0, repeat=1):
    """The highest mixture that each of many streams reaches, and when: two arrays of shape (streams,).

    Args:
        shares: Signal → probability of each bin, the one for what is not finite included.
        repeat: Every row comes this many times over.
    """
    log_r = np.full((streams, len(bets.log_weights)), -np.inf)
    history = np.empty((windows, streams))
    for window in range(windows):
        evidence = [
            rng.multinomial(rows // repeat, shares[signal], size=streams) * repeat @ factors.T / design_effect
            for signal, factors in bets.by_signal.items()
        ]
        log_r = shiryaev_roberts(log_r, np.concatenate(evidence, axis=1))
        history[window] = mixture(log_r, bets.log_weights)
    return history


def clean_shares(reference):
    return {
        signal.name: np.append(np.full(10, 0.1) if signal.statistic is Statistic.CLASS else normal_shares(), 0.0)
        for signal in reference.signals
    }


def binomial_limit(trials, probability):
    """A count that a binomial exceeds about once in a thousand times."""
    return trials * probability + 3.1 * math.sqrt(trials * probability * (1 - probability)) + 1


def windows_to_alarm(history):
    """For each stream the number of windows to the alarm, infinite without one."""
    fired = history >= math.log(FALSE_ALARM_WINDOWS)
    return np.where(fired.any(axis=0), fired.argmax(axis=0) + 1.0, np.inf)


shares_strategy = st.lists(st.integers(0, 50), min_size=BINS, max_size=BINS).filter(lambda counts: sum(counts) > 0)


@given(shares_strategy, shares_strategy, st.floats(0, 0.2))
def test_no_bet_gains_on_average_while_the_change_is_within_what_is_tolerated(reference, window, tolerance):
    bets = bets_of(reference_of(ordered(reference)), tolerance=tolerance)
    shares = np.append(np.asarray(window) / sum(window), 0.0)
    for score, factors in zip(bets.scores, bets.by_score, strict=True):
        shift = float(shares @ score.values) - score.mean
        growth = np.exp(factors) @ shares
        half = BETS_PER_SCORE // 2
        if shift <= tolerance + score.error_high:
            assert (growth[:half] <= 1 + 1e-9).all()
        if -shift <= tolerance + score.error_low:
            assert (growth[half:] <= 1 + 1e-9).all()


@pytest.mark.parametrize("rows", [500, 2000])
def test_false_alarms_on_clean_streams_keep_the_promise(rows):
    """Each stream has a reference of its own, as small as real ones are; by optional stopping P(alarm by T) is at most T / A."""
    rng = np.random.default_rng(rows)
    streams, windows, alarms = 200, 200, 0
    for _ in range(streams):
        reference = drawn_reference(rng, rows)
        history = simulate(rng, bets_of(reference), clean_shares(reference), streams=1, windows=windows, rows=100)
        alarms += int((history >= math.log(FALSE_ALARM_WINDOWS)).any())
    assert alarms <= binomial_limit(streams, windows / FALSE_ALARM_WINDOWS)
    # The tolerance leaves room, so that in fact there is hardly ever one.
    assert alarms <= 2


@pytest.mark.parametrize("rows", [500, 2000])
def test_without_tolerance_the_error_of_a_small_reference_is_still_allowed_for(rows):
    rng = np.random.default_rng(rows + 1)
    references, alarms = 100, 0
    for _ in range(references):
        reference = drawn_reference(rng, rows)
        bets = bets_of(reference, tolerance=0.0)
        # 40 windows of 10,000 rows: the reference's own error is all that is left to see.
        history = simulate(rng, bets, clean_shares(reference), streams=1, windows=40, rows=10_000)
        alarms += int((history >= math.log(FALSE_ALARM_WINDOWS)).any())
    # 1 % of references are worse than is allowed for, and 40 / 1000 is the promise.
    assert alarms <= binomial_limit(references, 0.01 + 40 / FALSE_ALARM_WINDOWS)


def test_at_the_edge_of_what_is_tolerated_the_promise_holds_and_is_not_empty():
    """A reference without sampling error and no tolerance: after T windows the sum is T at most on average, and not far below."""
    rng = np.random.default_rng(5)
    reference = reference_of(ordered(np.round(normal_shares() * 10**9)))
    bets = bets_of(reference, tolerance=0.0, confidence=0.5)
    history = simulate(rng, bets, clean_shares(reference), streams=4000, windows=20, rows=20)
    assert 0.5 * 20 < float(np.exp(history[-1]).mean()) < 1.1 * 20
    alarms = int((history >= math.log(40)).any(axis=0).sum())
    assert 0 < alarms <= binomial_limit(4000, 20 / 40)


@pytest.mark.parametrize(("rows", "doubt"), [(500, 0.05), (2000, 0.05), (50, 0.05), (500, 0.01)])
def test_the_sampling_error_of_a_reference_covers_what_it_says(rows, doubt):
    rng = np.random.default_rng(rows)
    truth, references = np.append(normal_shares(), 0.0), 1500
    misses = {ScoreKind.MEAN_RANK: [0, 0], ScoreKind.SPREAD: [0, 0]}
    for counts in rng.multinomial(rows, truth[:-1], size=references):
        # Three scores with two sides each share the doubt.
        for score in scores_of(reference_of(ordered(counts)), "", confidence=1 - 6 * doubt):
            if score.kind in misses:
                error = float(truth @ score.values) - score.mean
                misses[score.kind][0] += error > score.error_high
                misses[score.kind][1] += -error > score.error_low
    for above, below in misses.values():
        assert max(above, below) <= binomial_limit(references, doubt)


@pytest.mark.parametrize(("rows", "rate"), [(500, 0.1), (2000, 0.01), (500, 0.0005)])
def test_the_sampling_error_of_a_share_covers_what_it_says(rows, rate):
    rng = np.random.default_rng(rows)
    references, doubt, above, below = 1500, 0.05, 0, 0
    for events in rng.binomial(rows, rate, size=references):
        reference = reference_of(classes([rows - events, events]))
        score = scores_of(reference, "", confidence=1 - 6 * doubt)[1]
        above += rate - score.mean > score.error_high
        below += score.mean - rate > score.error_low
    assert max(above, below) <= binomial_limit(references, doubt)


@pytest.mark.parametrize(
    ("shift", "scale", "windows"),
    [(1.0, 1.0, 2), (-1.0, 1.0, 2), (0.5, 1.0, 6), (0.0, 2.0, 5), (0.0, 0.5, 5)],
)
def test_a_plain_shift_in_one_of_several_signals_is_found_within_a_few_windows(shift, scale, windows):
    rng = np.random.default_rng(7)
    reference = drawn_reference(rng, 2000)
    bets = bets_of(reference)
    shares = clean_shares(reference) | {"s2": np.append(normal_shares(shift, scale), 0.0)}
    history = simulate(rng, bets, shares, streams=100, windows=30, rows=100)
    assert np.median(windows_to_alarm(history)) <= windows
    assert np.isfinite(windows_to_alarm(history)).all()


@pytest.mark.parametrize("rows", [100, 10_000])
def test_a_change_within_the_tolerance_never_alarms_however_many_rows_there_are(rows):
    rng = np.random.default_rng(8)
    reference = drawn_reference(rng, 20_000)
    shares = clean_shares(reference) | {"s2": np.append(normal_shares(0.05), 0.0)}
    history = simulate(rng, bets_of(reference), shares, streams=40, windows=200, rows=rows)
    assert not (history >= math.log(FALSE_ALARM_WINDOWS)).any()


def test_a_class_that_disappears_is_found():
    rng = np.random.default_rng(9)
    reference = drawn_reference(rng, 2000)
    shares = clean_shares(reference)
    shares["class"] = np.append(np.append(0.0, np.full(9, 1 / 9)), 0.0)
    history = simulate(rng, bets_of(reference), shares, streams=100, windows=30, rows=100)
    assert np.median(windows_to_alarm(history)) <= 8


def test_answers_that_are_not_finite_are_found():
    rng = np.random.default_rng(10)
    reference = drawn_reference(rng, 2000)
    bets = bets_of(reference)
    shares = clean_shares(reference) | {"s1": np.append(normal_shares() * 0.9, 0.1)}
    history = simulate(rng, bets, shares, streams=50, windows=30, rows=100)
    assert np.median(windows_to_alarm(history)) <= 5
    detector = Detector(bets.log_weights)
    counts = {name: rng.multinomial(500, probabilities) for name, probabilities in shares.items()}
    detector.update(bets.evidence(counts))
    strongest = bets.scores[int(np.argmax(detector.by_score()))]
    assert (strongest.signal, strongest.label) == ("s1", "share of rows that are not finite")


def test_rows_that_come_in_copies_raise_false_alarms_unless_the_design_effect_says_so():
    """Every row ten times over, as in a video: the uncorrected test fires, the corrected one keeps the promise."""
    rng = np.random.default_rng(11)
    reference = drawn_reference(rng, 20_000)
    bets, shares = bets_of(reference), clean_shares(reference)
    plain = simulate(rng, bets, shares, streams=60, windows=100, rows=400, repeat=10)
    corrected = simulate(rng, bets, shares, streams=60, windows=100, rows=400, repeat=10, design_effect=10)
    limit = binomial_limit(60, 100 / FALSE_ALARM_WINDOWS)
    assert (plain >= math.log(FALSE_ALARM_WINDOWS)).any(axis=0).sum() > limit
    assert (corrected >= math.log(FALSE_ALARM_WINDOWS)).any(axis=0).sum() <= limit


def test_the_rows_that_are_said_to_be_needed_are_about_what_it_takes():
    rng = np.random.default_rng(12)
    reference = drawn_reference(rng, 2000, signals=3)
    bets = bets_of(reference)
    needed = rows_to_detect(bets, shift=0.15, log_threshold=math.log(FALSE_ALARM_WINDOWS))
    score = next(score for score in bets.scores if score.signal == "s1" and score.kind is ScoreKind.MEAN_RANK)
    shifted = tilted(score, 0.15)
    assert float(shifted @ score.values) == pytest.approx(score.mean + 0.15, abs=1e-6)
    shares = clean_shares(reference) | {"s1": shifted}
    history = simulate(rng, bets, shares, streams=200, windows=60, rows=20)
    assert 0.5 * needed < 20 * np.median(windows_to_alarm(history)) < 1.5 * needed


def test_a_reference_that_is_too_small_is_said_to_show_nothing():
    rng = np.random.default_rng(13)
    bets = bets_of(drawn_reference(rng, 60))
    assert rows_to_detect(bets, shift=0.1, log_threshold=math.log(FALSE_ALARM_WINDOWS)) == math.inf


def test_a_reference_with_all_rows_in_one_bin_or_none_at_all_does_no_harm():
    for counts in ((0,) * 4 + (800,) + (0,) * 5, (0,) * BINS):
        bets = bets_of(reference_of(ordered(counts)))
        assert all(np.isfinite(factors).all() for factors in bets.by_score)


def test_a_thousand_classes_are_watched_with_a_bounded_number_of_bets():
    rng = np.random.default_rng(14)
    counts = rng.multinomial(2000, np.full(1000, 0.001))
    assert len(bets_of(reference_of(classes(counts))).log_weights) <= 34 * BETS_PER_SCORE


def test_merging_windows_loses_hardly_any_evidence_and_splitting_adds_hardly_any():
    rng = np.random.default_rng(15)
    reference = drawn_reference(rng, 2000)
    bets = bets_of(reference)
    shares = clean_shares(reference) | {"s0": np.append(normal_shares(0.6), 0.0)}
    counts = [{name: rng.multinomial(50, share) for name, share in shares.items()} for _ in range(20)]
    split, merged = Detector(bets.log_weights), Detector(bets.log_weights)
    for window in counts:
        split.update(bets.evidence(window))
    merged.update(bets.evidence({name: sum(window[name] for window in counts) for name in shares}))
    assert merged.log_evidence <= split.log_evidence < merged.log_evidence + math.log(20)


def test_ten_thousand_rows_of_a_window_do_not_overflow():
    reference = reference_of(ordered([100] * BINS))
    bets = bets_of(reference)
    extreme = np.array([0] * (BINS - 1) + [10**7, 0])
    detector = Detector(bets.log_weights)
    assert math.isfinite(detector.update(bets.evidence({"s": extreme})))
    assert math.isfinite(detector.update(bets.evidence({"s": np.array([100] * BINS + [0])})))


def test_the_threshold_of_many_streams_keeps_the_promise_for_all_of_them_together():
    assert math.exp(log_threshold(1000, 50)) == pytest.approx(50_000)


def test_the_interval_of_an_effect_covers_the_truth_at_every_look():
    rng = np.random.default_rng(16)
    truth, streams, missed = normal_shares(0.4), 200, 0
    exact = scores_of(reference_of(ordered(np.round(normal_shares() * 10**9))), "", confidence=0.99)[0]
    shift = float(np.append(truth, 0.0) @ exact.values) - exact.mean
    for _ in range(streams):
        reference = reference_of(ordered(rng.multinomial(2000, normal_shares())))
        bets = {"": bets_of(reference)}
        total, is_missed = np.zeros(BINS + 1, dtype=np.int64), False
        for _ in range(40):
            total = total + np.append(rng.multinomial(50, truth), 0)
            found = shift_of(
                0, bets=bets, counts={"": {"s": total}}, tolerance=TOLERANCE, design_effect=1.0, confidence=0.95
            )
            is_missed |= abs(found.value - shift) > found.half_width
        missed += is_missed
    assert missed <= binomial_limit(streams, 0.05)


@pytest.mark.parametrize("rows", [100, 1000])
def test_the_critical_values_of_the_descriptions_are_exceeded_about_as_often_as_they_say(rows):
    rng = np.random.default_rng(rows)
    trials = 1000
    windows = rng.multinomial(rows, normal_shares(), size=trials).astype(float)
    references = rng.multinomial(2000, normal_shares(), size=trials).astype(float)
    pairs = list(zip(windows, references, strict=True))
    psi_limit, js_limit = psi_critical(rows, 2000, BINS), jensen_shannon_critical(rows, 2000, BINS)
    ks_limit = kolmogorov_smirnov_critical(rows, 2000)
    assert 0.02 < np.mean([psi(*pair) > psi_limit for pair in pairs]) < 0.09
    assert 0.02 < np.mean([jensen_shannon(*pair) > js_limit for pair in pairs]) < 0.09
    assert np.mean([kolmogorov_smirnov(*pair) > ks_limit for pair in pairs]) < 0.07
    moved = rng.multinomial(rows, normal_shares(1.0)).astype(float)
    assert psi(moved, references[0]) > psi_limit
    assert jensen_shannon(moved, references[0]) > js_limit
    assert kolmogorov_smirnov(moved, references[0]) > ks_limit


def test_the_table_of_the_guide_is_what_the_detector_takes():
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "drift.md").read_text()
    lines = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", guide, flags=re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        rows, *expected = (int(number.replace(",", "")) for number in line)
        counts = np.round(normal_shares() * rows)
        bets = bets_of(reference_of(*(ordered(counts, name=f"s{index}") for index in range(10))))
        for shift, needed in zip((0.1, 0.2), expected, strict=True):
            found = rows_to_detect(bets, shift=shift, log_threshold=math.log(FALSE_ALARM_WINDOWS))
            assert needed == pytest.approx(found, rel=0.01)
