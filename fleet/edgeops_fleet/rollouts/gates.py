"""Whether a wave is good, bad, or not known yet: sequential stop tests, a pass test, and a comparison of live figures.

Pure: counts in, a result with its reason out. Which devices are counted, and when it is asked, is
:mod:`edgeops_fleet.rollouts.rollout`'s.

The *stop* test may be looked at after every report without inflating false alarms, because it is a test martingale. The *pass*
test is an exact upper bound on the failure rate. Between them lies the third answer, *inconclusive*: more data, or a person.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from edgeops.latency import Buckets, quantile_ms

_BISECTIONS = 80


class GateResult(StrEnum):
    """The three answers of a gate."""

    PASS = "pass"  # noqa: S105 - an answer, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class WhenUnproven(StrEnum):
    """What happens where the devices are too few to prove the limit."""

    ASK = "ask"
    """Pause, and ask a person."""
    UNANIMOUS = "unanimous"
    """Go on when every device of the wave committed and none failed, and say so."""


class GatePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The limits of a rollout's gates.

    Attributes:
        max_failure_rate: The pass test wants the failure rate proven to be below this.
        confidence: Of the pass test's bound.
        stop_p0: Failure rate that is fine; the stop test's null hypothesis. ``stop_p1``: one that is bad.
        stop_alpha: Chance of a false stop, over all looks together.
        defect_p0: The same for defects (crashes, failed self-tests), which a good model has hardly ever. With these figures,
            one defect among the first sixteen devices stops; so do two among sixty. Likewise ``defect_p1``, ``defect_alpha``.
        when_unproven: What a wave too small to prove the limit does.
        compare_metrics: Whether error rate and latency of updated devices are held against the others.
        min_requests: Fewer requests than this say nothing.
        max_error_increase: How much higher the error rate of updated devices may be, as a share of requests.
        max_latency_ratio: How much higher their p95 latency may be, as a ratio; ``latency_slack_ms`` more do not count.
    """

    max_failure_rate: float = 0.05
    confidence: float = 0.95
    stop_p0: float = 0.02
    stop_p1: float = 0.10
    stop_alpha: float = 0.01
    defect_p0: float = 0.001
    defect_p1: float = 0.10
    defect_alpha: float = 0.05
    when_unproven: WhenUnproven = WhenUnproven.ASK
    compare_metrics: bool = True
    min_requests: int = 20
    max_error_increase: float = 0.01
    max_latency_ratio: float = 3.0
    latency_slack_ms: float = 5.0

    def __post_init__(self) -> None:
        shares = (self.max_failure_rate, self.confidence, self.stop_alpha, self.defect_alpha)
        if not all(0 < share < 1 for share in shares):
            raise ValueError("gate: max_failure_rate, confidence, stop_alpha and defect_alpha lie between 0 and 1")
        if not (0 < self.stop_p0 < self.stop_p1 < 1 and 0 < self.defect_p0 < self.defect_p1 < 1):
            raise ValueError("gate: expected 0 < p0 < p1 < 1 for the stop test and the defect test")
        if self.max_latency_ratio < 1 or self.max_error_increase < 0 or self.latency_slack_ms < 0:
            raise ValueError(
                "gate: max_latency_ratio is at least 1, max_error_increase and latency_slack_ms at least 0"
            )


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One test and what it said, in words for a person."""

    name: str
    result: GateResult
    text: str


@dataclass(frozen=True)
class Outcomes:
    """How the devices of a wave came out.

    Attributes:
        committed: They run the new version and passed its trial.
        failed: They did not, or fell silent after they had begun; defects included.
        defects: Those of the failed whose reason is that the model is bad.
        open: Selected, and not finished: more may come from them.
    """

    committed: int
    failed: int
    defects: int = 0
    open: int = 0

    @property
    def finished(self) -> int:
        """The base of every rate."""
        return self.committed + self.failed


@dataclass(frozen=True)
class Figures:
    """Live figures of some devices, summed over telemetry windows."""

    devices: int = 0
    requests: int = 0
    errors: int = 0
    latency: Buckets | None = None


def e_value(failures: int, successes: int, *, p0: float, p1: float) -> float:
    """The evidence against a failure rate of at most ``p0``: the test martingale that bets on ``p1``.

    Under the null hypothesis its expectation never exceeds 1 whenever one looks, so it reaches 1/α with probability at most α
    (Ville, 1939; Ramdas et al., "Game-theoretic statistics and safe anytime-valid inference", 2023).

    >>> round(e_value(3, 2, p0=0.02, p1=0.10), 1)
    105.4
    >>> e_value(0, 0, p0=0.02, p1=0.10)
    1.0
    """
    log_e = failures * math.log(p1 / p0) + successes * (math.log1p(-p1) - math.log1p(-p0))
    return math.exp(min(log_e, 700.0))


def upper_bound(failures: int, trials: int, *, confidence: float) -> float:
    """The one-sided upper confidence bound on a rate, after Clopper and Pearson (1934).

    >>> round(upper_bound(0, 59, confidence=0.95), 4), round(upper_bound(0, 299, confidence=0.95), 4)
    (0.0495, 0.01)
    """
    if failures >= trials:
        return 1.0
    return _bisect(lambda rate: binomial_cdf(failures, trials, rate) > 1 - confidence)


def lower_bound(failures: int, trials: int, *, confidence: float) -> float:
    """The one-sided lower confidence bound on a rate, after Clopper and Pearson (1934).

    >>> round(lower_bound(1, 1, confidence=0.95), 4), lower_bound(0, 10, confidence=0.95)
    (0.05, 0.0)
    """
    if failures <= 0:
        return 0.0
    return _bisect(lambda rate: 1 - binomial_cdf(failures - 1, trials, rate) < 1 - confidence)


def devices_to_prove(limit: float, *, confidence: float) -> int:
    """How many devices without a failure prove that the rate is below a limit.

    >>> devices_to_prove(0.05, confidence=0.95), devices_to_prove(0.01, confidence=0.95)
    (59, 299)
    """
    return math.ceil(math.log(1 - confidence) / math.log1p(-limit))


def binomial_cdf(successes: int, trials: int, rate: float) -> float:
    """The probability of at most so many successes.

    >>> round(binomial_cdf(1, 3, 0.5), 6)
    0.5
    """
    if rate <= 0 or successes >= trials:
        return 1.0
    if rate >= 1:
        return 0.0
    constant = math.lgamma(trials + 1)
    log_rate, log_rest = math.log(rate), math.log1p(-rate)
    terms = (
        math.exp(constant - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * log_rate + (trials - k) * log_rest)
        for k in range(successes + 1)
    )
    return min(math.fsum(terms), 1.0)


def stop_checks(outcomes: Outcomes, policy: GatePolicy) -> tuple[Check, ...]:
    """The tests that may stop a wave at any look; those that do not stop it are inconclusive."""
    good = outcomes.finished - outcomes.defects
    return (
        _stop_check(
            "defects", outcomes.defects, good, p0=policy.defect_p0, p1=policy.defect_p1, alpha=policy.defect_alpha
        ),
        _stop_check(
            "failures",
            outcomes.failed,
            outcomes.committed,
            p0=policy.stop_p0,
            p1=policy.stop_p1,
            alpha=policy.stop_alpha,
        ),
    )


def pass_check(outcomes: Outcomes, policy: GatePolicy) -> Check:
    """Whether the failure rate is proven to be below the limit, or the policy goes on without the proof."""
    bound = upper_bound(outcomes.failed, outcomes.finished, confidence=policy.confidence)
    count = f"{outcomes.committed} committed, {outcomes.failed} failed"
    figures = (
        f"failure rate below {bound:.1%} at {policy.confidence:.0%} confidence; limit {policy.max_failure_rate:.1%}"
    )
    if outcomes.finished and bound <= policy.max_failure_rate:
        return Check(name="failure rate", result=GateResult.PASS, text=f"{count}: {figures}")
    is_unanimous = outcomes.committed > 0 and not outcomes.failed and not outcomes.open
    if policy.when_unproven is WhenUnproven.UNANIMOUS and is_unanimous:
        needed = devices_to_prove(policy.max_failure_rate, confidence=policy.confidence)
        text = f"{count}: all of the wave, which is accepted without proof ({needed} devices would prove the limit)"
        return Check(name="failure rate", result=GateResult.PASS, text=text)
    return Check(name="failure rate", result=GateResult.INCONCLUSIVE, text=f"{count}: only known: {figures}")


def metric_checks(updated: Figures, control: Figures, policy: GatePolicy) -> tuple[Check, ...]:
    """Live figures of updated devices against those not yet updated, over the same time."""
    if not policy.compare_metrics:
        return ()
    if updated.requests < policy.min_requests:
        text = f"updated devices answered {updated.requests} requests; at least {policy.min_requests} are needed"
        return (Check(name="live figures", result=GateResult.INCONCLUSIVE, text=text),)
    if control.requests < policy.min_requests:
        return (_errors_alone(updated, control, policy),)
    return (_errors_compared(updated, control, policy), _latency_compared(updated, control, policy))


def overall(checks: Sequence[Check]) -> GateResult:
    """One failure fails; otherwise one open question leaves the gate open."""
    results = {check.result for check in checks}
    for result in (GateResult.FAIL, GateResult.INCONCLUSIVE):
        if result in results:
            return result
    return GateResult.PASS if checks else GateResult.INCONCLUSIVE


def _stop_check(name: str, failures: int, successes: int, *, p0: float, p1: float, alpha: float) -> Check:
    evidence = e_value(failures, successes, p0=p0, p1=p1)
    text = (
        f"{failures} of {failures + successes} finished devices; "
        f"evidence {evidence:.3g} against a rate of {p0:.1%}, stop at {1 / alpha:.0f}"
    )
    # The tolerance covers the rounding of exp(log(…)) where the evidence is exactly at the limit.
    stopped = evidence >= (1 / alpha) * (1 - 1e-9)
    return Check(name=name, result=GateResult.FAIL if stopped else GateResult.INCONCLUSIVE, text=text)


def _errors_alone(updated: Figures, control: Figures, policy: GatePolicy) -> Check:
    rate = updated.errors / updated.requests
    is_good = rate <= policy.max_error_increase
    why = "no control devices" if not control.devices else f"control devices answered {control.requests} requests only"
    text = f"{why}; {updated.errors} of {updated.requests} requests failed, limit {policy.max_error_increase:.1%}"
    proven = lower_bound(updated.errors, updated.requests, confidence=policy.confidence) > policy.max_error_increase
    bad = GateResult.FAIL if proven else GateResult.INCONCLUSIVE
    return Check(name="error rate", result=GateResult.PASS if is_good else bad, text=text)


def _errors_compared(updated: Figures, control: Figures, policy: GatePolicy) -> Check:
    rates = [updated.errors / updated.requests, control.errors / control.requests]
    text = (
        f"updated {rates[0]:.2%} of {updated.requests} requests, "
        f"others {rates[1]:.2%} of {control.requests}; allowed increase {policy.max_error_increase:.1%}"
    )
    low = lower_bound(updated.errors, updated.requests, confidence=policy.confidence)
    high = upper_bound(control.errors, control.requests, confidence=policy.confidence)
    if low > high + policy.max_error_increase:
        result = GateResult.FAIL
    else:
        is_good = rates[0] <= rates[1] + policy.max_error_increase
        result = GateResult.PASS if is_good else GateResult.INCONCLUSIVE
    return Check(name="error rate", result=result, text=text)


def _latency_compared(updated: Figures, control: Figures, policy: GatePolicy) -> Check:
    ours, theirs = quantile_ms(updated.latency or {}, 0.95), quantile_ms(control.latency or {}, 0.95)
    if ours is None or theirs is None:
        return Check(name="p95 latency", result=GateResult.INCONCLUSIVE, text="no latency was reported")
    limit = theirs * policy.max_latency_ratio + policy.latency_slack_ms
    text = f"updated {ours:.2f} ms, others {theirs:.2f} ms; limit {limit:.2f} ms"
    return Check(name="p95 latency", result=GateResult.PASS if ours <= limit else GateResult.FAIL, text=text)


def _bisect(is_below: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return low if low == 0.0 else high
