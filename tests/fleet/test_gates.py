import math
import random

import pytest

from edgeops.latency import latency_bucket
from edgeops_fleet.rollouts.gates import (
    Figures,
    GatePolicy,
    GateResult,
    Outcomes,
    WhenUnproven,
    binomial_cdf,
    devices_to_prove,
    e_value,
    lower_bound,
    metric_checks,
    overall,
    pass_check,
    stop_checks,
    upper_bound,
)

POLICY = GatePolicy()


@pytest.mark.parametrize(
    ("failures", "trials", "confidence", "expected"),
    # Closed forms where there are some; the others are quantiles of the beta distribution, from tables.
    [
        (0, 10, 0.95, 1 - 0.05 ** (1 / 10)),
        (0, 59, 0.95, 1 - 0.05 ** (1 / 59)),
        (1, 10, 0.95, 0.394163),
        (2, 20, 0.95, 0.282619),
        (5, 100, 0.975, 0.112835),
        (10, 10, 0.95, 1.0),
    ],
)
def test_the_upper_bound_is_that_of_clopper_and_pearson(failures, trials, confidence, expected):
    assert upper_bound(failures, trials, confidence=confidence) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("failures", "trials", "confidence", "expected"),
    [(10, 10, 0.95, 0.05 ** (1 / 10)), (5, 100, 0.975, 0.016432), (1, 20, 0.95, 1 - 0.95 ** (1 / 20)), (0, 5, 0.95, 0)],
)
def test_the_lower_bound_is_that_of_clopper_and_pearson(failures, trials, confidence, expected):
    assert lower_bound(failures, trials, confidence=confidence) == pytest.approx(expected, abs=2e-6)


def test_at_the_bound_the_observation_has_exactly_the_probability_that_is_left():
    for failures, trials in ((1, 10), (3, 40), (7, 23)):
        rate = upper_bound(failures, trials, confidence=0.95)
        left = sum(math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(failures + 1))
        assert left == pytest.approx(0.05, rel=1e-9)


def test_the_binomial_sum_agrees_with_exact_arithmetic():
    for trials in (1, 7, 30):
        for successes in range(trials + 1):
            exact = sum(math.comb(trials, k) * 3**k * 7 ** (trials - k) for k in range(successes + 1)) / 10**trials
            assert binomial_cdf(successes, trials, 0.3) == pytest.approx(exact, rel=1e-9)


def test_bounds_of_a_million_requests_are_finite():
    assert 0.0098 < lower_bound(10_000, 1_000_000, confidence=0.95) < 0.01
    assert 0.01 < upper_bound(10_000, 1_000_000, confidence=0.95) < 0.0102


def test_the_stop_test_needs_as_many_failures_as_the_arithmetic_says():
    def stops(failed, finished):
        return overall(stop_checks(Outcomes(committed=finished - failed, failed=failed), POLICY)) is GateResult.FAIL

    assert [stops(3, 5), stops(3, 6), stops(4, 25), stops(4, 26), stops(5, 45), stops(2, 2)] == [
        True,
        False,
        True,
        False,
        True,
        False,
    ]


def test_one_defect_in_a_canary_stops_even_after_others_committed():
    assert overall(stop_checks(Outcomes(committed=0, failed=1, defects=1), POLICY)) is GateResult.FAIL
    assert overall(stop_checks(Outcomes(committed=15, failed=1, defects=1), POLICY)) is GateResult.FAIL
    assert overall(stop_checks(Outcomes(committed=200, failed=1, defects=1), POLICY)) is not GateResult.FAIL


def test_false_stops_are_no_more_frequent_than_promised_when_one_looks_after_every_device():
    generator = random.Random(7)
    runs, stopped = 2000, 0
    for _ in range(runs):
        failed = 0
        for finished in range(1, 301):
            failed += generator.random() < POLICY.stop_p0
            if e_value(failed, finished - failed, p0=POLICY.stop_p0, p1=POLICY.stop_p1) >= 1 / POLICY.stop_alpha:
                stopped += 1
                break
    # Were the true rate of false stops at the promise, so many or more would come up once in a thousand times.
    assert 1 - binomial_cdf(stopped - 1, runs, POLICY.stop_alpha) > 0.001


def test_a_bad_version_is_stopped_within_few_devices():
    generator = random.Random(3)
    needed = []
    for _ in range(200):
        failed = finished = 0
        while e_value(failed, finished - failed, p0=0.02, p1=0.1) < 100:
            finished += 1
            failed += generator.random() < 0.3
        needed.append(finished)
    assert sorted(needed)[100] <= 20


def test_the_pass_test_is_about_devices_that_finished():
    needed = devices_to_prove(POLICY.max_failure_rate, confidence=POLICY.confidence)
    assert pass_check(Outcomes(committed=needed, failed=0, open=10_000), POLICY).result is GateResult.PASS
    assert pass_check(Outcomes(committed=needed - 1, failed=0), POLICY).result is GateResult.INCONCLUSIVE
    assert pass_check(Outcomes(committed=0, failed=0), POLICY).result is GateResult.INCONCLUSIVE


def test_a_small_wave_is_accepted_only_when_all_of_it_committed_and_the_policy_says_so():
    unanimous = GatePolicy(when_unproven=WhenUnproven.UNANIMOUS)
    accepted = pass_check(Outcomes(committed=4, failed=0), unanimous)
    assert accepted.result is GateResult.PASS
    assert "without proof" in accepted.text
    for outcomes in (
        Outcomes(committed=4, failed=0, open=1),
        Outcomes(committed=4, failed=1),
        Outcomes(committed=0, failed=0),
    ):
        assert pass_check(outcomes, unanimous).result is GateResult.INCONCLUSIVE
    assert pass_check(Outcomes(committed=4, failed=0), POLICY).result is GateResult.INCONCLUSIVE


def figures(requests, errors=0, latency_ms=1.0, devices=1):
    return Figures(
        devices=devices, requests=requests, errors=errors, latency={latency_bucket(int(latency_ms * 1e6)): requests}
    )


def test_missing_figures_never_pass():
    checks = metric_checks(figures(3), figures(1000), POLICY)
    assert overall(checks) is GateResult.INCONCLUSIVE
    assert "at least 20" in checks[0].text


def test_without_control_devices_the_limit_stands_alone_and_it_is_said():
    (check,) = metric_checks(figures(1000), Figures(), POLICY)
    assert check.result is GateResult.PASS
    assert "no control devices" in check.text
    (check,) = metric_checks(figures(1000, errors=100), Figures(), POLICY)
    assert check.result is GateResult.FAIL


def test_more_errors_than_the_others_fail_and_a_shared_trouble_does_not():
    assert overall(metric_checks(figures(1000, errors=100), figures(1000), POLICY)) is GateResult.FAIL
    assert overall(metric_checks(figures(1000, errors=100), figures(1000, errors=100), POLICY)) is GateResult.PASS


def test_latency_is_compared_with_the_others():
    assert (
        overall(metric_checks(figures(1000, latency_ms=100), figures(1000, latency_ms=10), POLICY)) is GateResult.FAIL
    )
    assert overall(metric_checks(figures(1000, latency_ms=4), figures(1000, latency_ms=0.1), POLICY)) is GateResult.PASS


@pytest.mark.parametrize("wrong", [{"confidence": 1.0}, {"stop_p0": 0.2}, {"max_latency_ratio": 0.5}, {"defect_p0": 0}])
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="gate"):
        GatePolicy(**wrong)
