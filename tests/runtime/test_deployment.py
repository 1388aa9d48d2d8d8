"""The state machine of one deployment, without anything around it."""

import pytest

from edgeops.messages import DeploymentState, ReasonClass, Trial
from edgeops_runtime.deployment import (
    HELD_UP_S,
    HOLD_S,
    LATENCY_SLACK_MS,
    QUIET_FACTOR,
    RECENT_WAIT_S,
    STEP_TIMEOUT_S,
    Action,
    Died,
    Fetched,
    FetchEnded,
    Figures,
    GoldenDone,
    Impossible,
    Ready,
    RecentDone,
    Relieved,
    ShadowDone,
    Step,
    StoodDown,
    Strained,
    Switched,
    Tick,
    Weighed,
    Withdrawn,
    offer,
    step,
)
from edgeops_runtime.slots import Candidate

TRIAL = Trial(
    shadow_requests=10, min_agreement=0.9, probation_requests=20, probation_s=5, max_error_rate=0.1, attempts=2
)


def begin(*, previous: str | None = "1.0.0", is_known: bool = False, trial: Trial = TRIAL, **fields):
    candidate = Candidate(version="1.1.0", digest="sha256:b", trial=trial, **fields)
    return offer(candidate, now=0.0, previous=previous, is_known=is_known)


def shadow(**fields) -> ShadowDone:
    usual = {"answered": 10, "failed": 0, "not_finite": 0, "agreement": 1.0, "latency_ms": 1.0, "incumbent_ms": 1.0}
    return ShadowDone(**(usual | fields))


PLENTY = Weighed()
SCARCE = Weighed(needed=70, available=100, reserve=40)


def drive(*events, now: float = 1.0, weighed: Weighed = PLENTY, **begun):
    """Apply events one second apart, and answer what memory there is when it is asked; returns the deployment and all actions."""
    deployment, actions = begin(**begun)
    done = list(actions)
    for event in events:
        deployment, actions = step(deployment, event, now=now)
        done += actions
        if Action.WEIGH in actions:
            deployment, actions = step(deployment, weighed, now=now)
            done += actions
        now += 1
    return deployment, done


TO_GOLDEN = (Fetched("onnx", "onnxruntime"), Ready())
TO_SHADOW = (*TO_GOLDEN, GoldenDone(passed=True), RecentDone(10))
TO_PROBATION = (*TO_SHADOW, shadow(), Switched())


def test_good_candidate_goes_all_the_way():
    deployment, actions = drive(*TO_PROBATION, Figures(requests=5), Figures(requests=50), now=0)
    assert deployment.state is DeploymentState.PROBATION
    deployment, last = step(deployment, Figures(requests=50, latency_ms=1.0, incumbent_ms=1.0), now=20)
    assert deployment.state is DeploymentState.COMMITTED
    assert [*actions, *last] == [
        Action.FETCH,
        Action.WEIGH,
        Action.START,
        Action.ASK_GOLDEN,
        Action.ASK_RECENT,
        Action.ASK_SHADOW,
        Action.SWITCH,
        Action.WATCH,
        Action.COMMIT,
    ]
    assert deployment.figures["agreement"] == 1.0


@pytest.mark.parametrize(
    ("events", "state", "reason_class"),
    [
        ((FetchEnded(ReasonClass.TRANSIENT, "404"),), DeploymentState.FAILED, ReasonClass.TRANSIENT),
        ((FetchEnded(ReasonClass.ENVIRONMENT, "full"),), DeploymentState.FAILED, ReasonClass.ENVIRONMENT),
        ((FetchEnded(ReasonClass.SECURITY, "digest"),), DeploymentState.REJECTED, ReasonClass.SECURITY),
        ((FetchEnded(ReasonClass.INCOMPATIBLE, "engine"),), DeploymentState.REJECTED, ReasonClass.INCOMPATIBLE),
        ((Withdrawn("removed"),), DeploymentState.SUPERSEDED, None),
        ((*TO_SHADOW, Withdrawn("removed")), DeploymentState.SUPERSEDED, None),
        ((*TO_PROBATION, Withdrawn("removed")), DeploymentState.ROLLED_BACK, ReasonClass.TRANSIENT),
        ((TO_GOLDEN[0], Impossible("disk")), DeploymentState.FAILED, ReasonClass.ENVIRONMENT),
        ((*TO_GOLDEN, GoldenDone(passed=False)), DeploymentState.ROLLED_BACK, ReasonClass.DEFECT),
        ((*TO_SHADOW, shadow(failed=1)), DeploymentState.ROLLED_BACK, ReasonClass.DEFECT),
        ((*TO_SHADOW, shadow(not_finite=1)), DeploymentState.ROLLED_BACK, ReasonClass.DEFECT),
        ((*TO_SHADOW, shadow(agreement=0.89)), DeploymentState.ROLLED_BACK, ReasonClass.DEFECT),
        ((*TO_SHADOW, shadow(latency_ms=20.0)), DeploymentState.ROLLED_BACK, ReasonClass.DEFECT),
        ((TO_GOLDEN[0], Died("x"), Died("x")), DeploymentState.ROLLED_BACK, ReasonClass.DEFECT),
        ((*TO_PROBATION, Died("x")), DeploymentState.ROLLED_BACK, ReasonClass.DEFECT),
        ((*TO_PROBATION, Figures(requests=3, errors=3)), DeploymentState.ROLLED_BACK, ReasonClass.DEFECT),
    ],
)
def test_bad_ends(events, state, reason_class):
    deployment, actions = drive(*events)
    assert (deployment.state, deployment.reason_class) == (state, reason_class)
    assert actions[-1] is Action.DROP
    assert deployment.step is Step.DONE
    assert deployment.is_defect == (reason_class is ReasonClass.DEFECT)
    # Nothing that comes afterwards changes it.
    for event in (Ready(), Died("late"), Tick(), Withdrawn("late"), Figures(requests=100)):
        assert step(deployment, event, now=1e6) == (deployment, ())


def test_worker_that_dies_is_started_again_until_its_attempts_are_used_up():
    deployment, actions = drive(TO_GOLDEN[0], Ready(), Died("SIGSEGV"))
    assert (deployment.attempt, deployment.step) == (2, Step.START)
    assert actions.count(Action.START) == 2


def test_attempts_of_earlier_boots_count():
    deployment, actions = begin(attempts=2)
    assert deployment.is_defect
    assert actions == (Action.DROP,)
    deployment, actions = begin(attempts=1)
    assert actions == (Action.FETCH,)


def test_first_version_has_no_shadow():
    _, actions = drive(*TO_GOLDEN, GoldenDone(passed=True), previous=None)
    assert actions[-1] is Action.SWITCH


def test_version_that_ran_here_before_is_not_held_to_what_the_newer_one_could_do():
    deployment, actions = drive(*TO_GOLDEN, GoldenDone(passed=True), Switched(), is_known=True)
    assert Action.ASK_RECENT not in actions
    deployment, _ = step(deployment, Figures(requests=50, latency_ms=99.0, incumbent_ms=1.0), now=60)
    assert deployment.state is DeploymentState.COMMITTED


def test_incumbent_with_few_requests_is_waited_for_within_bounds():
    deployment, actions = drive(*TO_GOLDEN, GoldenDone(passed=True), RecentDone(3))
    assert actions[-1] is Action.ASK_RECENT_AGAIN
    late = deployment.step_began + RECENT_WAIT_S
    assert step(deployment, RecentDone(3), now=late)[1] == (Action.ASK_SHADOW,)
    assert step(deployment, RecentDone(0), now=late)[1] == (Action.SWITCH,)


def test_small_difference_of_latency_is_noise_whatever_the_ratio():
    deployment, _ = drive(*TO_SHADOW, shadow(latency_ms=LATENCY_SLACK_MS, incumbent_ms=0.1))
    assert deployment.step is Step.SWITCH


def test_probation_without_traffic_ends_with_a_commit():
    deployment, _ = drive(*TO_PROBATION)
    began = deployment.step_began
    assert step(deployment, Figures(), now=began + QUIET_FACTOR * TRIAL.probation_s - 1)[1] == ()
    deployment, actions = step(deployment, Figures(requests=2), now=began + QUIET_FACTOR * TRIAL.probation_s)
    assert actions == (Action.COMMIT,)
    assert "2 requests" in deployment.reason


def test_few_requests_with_a_bad_rate_are_not_committed_at_the_end_of_a_quiet_probation():
    deployment, _ = drive(*TO_PROBATION)
    late = deployment.step_began + QUIET_FACTOR * TRIAL.probation_s
    assert step(deployment, Figures(requests=4, errors=2), now=late)[0].is_defect


def test_nothing_is_committed_while_a_request_hangs_and_that_does_not_last_for_ever():
    deployment, _ = drive(*TO_PROBATION)
    late = deployment.step_began + QUIET_FACTOR * TRIAL.probation_s
    for figures in (Figures(busy_s=HELD_UP_S), Figures(requests=1000, busy_s=HELD_UP_S)):
        assert step(deployment, figures, now=late)[1] == ()
    ended, actions = step(deployment, Figures(requests=1000, busy_s=STEP_TIMEOUT_S), now=late)
    assert (ended.state, ended.is_defect, actions) == (DeploymentState.ROLLED_BACK, True, (Action.DROP,))
    assert "under way for 60 s" in ended.reason


def test_slow_candidate_in_probation_is_rolled_back():
    deployment, _ = drive(*TO_PROBATION)
    late = deployment.step_began + TRIAL.probation_s
    deployment, _ = step(deployment, Figures(requests=50, latency_ms=40.0, incumbent_ms=10.0), now=late)
    assert deployment.is_defect
    assert deployment.figures["p95_ms"] == 40.0


@pytest.mark.parametrize(
    ("events", "state"),
    [((), DeploymentState.EXPIRED), (TO_SHADOW, DeploymentState.EXPIRED), (TO_PROBATION, DeploymentState.ROLLED_BACK)],
)
def test_deadline_ends_it_at_every_step(events, state):
    deployment, _ = drive(*events)
    assert step(deployment, Tick(), now=TRIAL.deadline_s - 0.1)[0].step in {deployment.step, Step.WEIGH}
    deployment, actions = step(deployment, Tick(), now=TRIAL.deadline_s)
    assert (deployment.state, actions) == (state, (Action.DROP,))
    assert not deployment.is_defect


def test_deadline_counts_the_time_before_a_restart():
    deployment, _ = begin(elapsed_s=TRIAL.deadline_s)
    assert step(deployment, Tick(), now=0.0)[0].state is DeploymentState.EXPIRED


def test_worker_that_hangs_counts_as_dead():
    deployment, _ = drive(*TO_GOLDEN)
    deployment, actions = step(deployment, Tick(), now=deployment.step_began + STEP_TIMEOUT_S)
    assert (actions, deployment.attempt) == ((Action.WEIGH,), 1)
    assert step(deployment, PLENTY, now=100.0)[0].attempt == 2


def test_answer_to_a_question_of_an_earlier_step_is_ignored():
    deployment, _ = drive(*TO_PROBATION)
    for event in (Ready(), GoldenDone(passed=False), RecentDone(1), shadow(failed=3), Fetched("x", "y")):
        assert step(deployment, event, now=9.0) == (deployment, ())


@pytest.mark.parametrize("events", [TO_GOLDEN[:1], TO_GOLDEN, TO_SHADOW[:-1], TO_SHADOW])
def test_strain_puts_a_trial_back_and_its_start_does_not_count(events):
    held, actions = drive(*events, Strained(), Strained())
    assert (held.step, held.state, held.attempt) == (Step.HELD, DeploymentState.VERIFIED, 0)
    assert "hot" in held.reason
    assert actions.count(Action.PUT_BACK) == 1
    # Neither time, nor the end of the worker that was put back, nor a late answer moves it.
    for event in (Tick(), Died("killed"), Ready(), shadow(failed=3)):
        assert step(held, event, now=100.0) == (held, ())
    again, actions = step(held, Relieved(), now=200.0)
    assert (again.step, again.attempt, again.reason, actions) == (Step.WEIGH, 0, "", (Action.WEIGH,))


def test_strain_holds_what_is_downloaded_until_its_deadline():
    held, actions = drive(Strained(), Fetched("onnx", "onnxruntime"))
    assert (held.step, actions) == (Step.HELD, [Action.FETCH])
    ended, actions = step(held, Tick(), now=TRIAL.deadline_s + 1)
    assert (ended.state, ended.reason_class) == (DeploymentState.EXPIRED, ReasonClass.TRANSIENT)
    assert "hot or short of memory" in ended.reason


def test_strain_from_before_the_offer_holds_too():
    candidate = Candidate(version="1.1.0", digest="sha256:b", trial=TRIAL)
    offered, _ = offer(candidate, now=0.0, previous="1.0.0", is_known=False, is_strained=True)
    assert step(offered, Fetched("onnx", "onnxruntime"), now=1.0)[0].step is Step.HELD


@pytest.mark.parametrize("begun", [{"previous": None}, {"is_known": True}])
def test_strain_holds_neither_a_first_version_nor_the_way_back(begun):
    deployment, actions = drive(Strained(), *TO_GOLDEN, **begun)
    assert deployment.step is Step.GOLDEN
    assert Action.PUT_BACK not in actions


def test_probation_under_strain_is_judged_by_errors_alone_and_begins_anew_afterwards():
    slow = Figures(requests=50, latency_ms=90.0, incumbent_ms=1.0)
    strained, actions = drive(*TO_PROBATION, Strained(), now=0)
    assert Action.PUT_BACK not in actions
    waiting, actions = step(strained, slow, now=60.0)
    assert (waiting.state, actions) == (DeploymentState.PROBATION, ())
    assert step(waiting, Figures(requests=3, errors=3), now=61.0)[0].is_defect
    relieved, actions = step(waiting, Relieved(), now=70.0)
    assert (relieved.step_began, actions) == (70.0, (Action.WATCH_ANEW,))
    good = Figures(requests=50, latency_ms=1.0, incumbent_ms=1.0)
    assert step(relieved, good, now=71.0)[0].state is DeploymentState.PROBATION
    assert step(relieved, good, now=76.0)[0].state is DeploymentState.COMMITTED
    assert step(relieved, slow, now=76.0)[0].is_defect


# ---- two copies do not fit ------------------------------------------------------------------------------------------

TO_HOLD = (TO_GOLDEN[0], RecentDone(10))
TO_GOLDEN_ALONE = (*TO_HOLD, StoodDown(), Ready())
TO_PROBATION_ALONE = (*TO_GOLDEN_ALONE, GoldenDone(passed=True), shadow(), Switched())


def test_where_two_copies_do_not_fit_the_incumbent_goes_first_and_the_shadow_compares_with_what_it_left():
    deployment, actions = drive(*TO_PROBATION_ALONE, weighed=SCARCE)
    assert actions == [
        Action.FETCH,
        Action.WEIGH,
        Action.ASK_RECENT,
        Action.STAND_DOWN,
        Action.START,
        Action.ASK_GOLDEN,
        Action.ASK_SHADOW,
        Action.SWITCH,
        Action.WATCH,
    ]
    assert (deployment.state, deployment.attempt, deployment.held_since) == (DeploymentState.PROBATION, 1, None)
    done, actions = step(deployment, Figures(requests=50, latency_ms=1.0, incumbent_ms=1.0), now=60)
    assert (done.state, actions) == (DeploymentState.COMMITTED, (Action.COMMIT,))


@pytest.mark.parametrize("begun", [{"is_known": True}, {"trial": Trial(shadow_requests=0, attempts=2)}])
def test_without_a_shadow_the_incumbent_goes_at_once_and_golden_is_followed_by_the_switch(begun):
    deployment, actions = drive(
        TO_GOLDEN[0], StoodDown(), Ready(), GoldenDone(passed=True), Switched(), weighed=SCARCE, **begun
    )
    assert deployment.step is Step.PROBATION
    assert not {Action.ASK_RECENT, Action.ASK_SHADOW} & set(actions)


def test_first_version_is_not_weighed():
    assert Action.WEIGH not in drive(*TO_GOLDEN, previous=None, weighed=SCARCE)[1]


@pytest.mark.parametrize(
    "events",
    [
        TO_HOLD,
        TO_GOLDEN_ALONE[:-1],
        TO_GOLDEN_ALONE,
        (*TO_GOLDEN_ALONE, GoldenDone(passed=True)),
        (*TO_GOLDEN_ALONE, GoldenDone(passed=True), shadow()),
    ],
)
def test_requests_wait_no_longer_than_the_bound_and_that_is_no_defect(events):
    deployment, _ = drive(*events, weighed=SCARCE)
    bound = deployment.held_since + HOLD_S
    assert step(deployment, Tick(), now=bound - 0.1) == (deployment, ())
    ended, actions = step(deployment, Tick(), now=bound)
    assert (ended.state, ended.reason_class, actions) == (
        DeploymentState.FAILED,
        ReasonClass.ENVIRONMENT,
        (Action.DROP,),
    )
    assert "within 10 s" in ended.reason


def test_probation_alone_has_no_bound():
    deployment, _ = drive(*TO_PROBATION_ALONE, weighed=SCARCE)
    assert step(deployment, Tick(), now=deployment.step_began + HOLD_S + 1)[0] == deployment


def test_candidate_that_dies_while_requests_wait_is_started_again_at_once_until_its_attempts_are_used_up():
    deployment, actions = drive(*TO_GOLDEN_ALONE, Died("SIGSEGV"), weighed=SCARCE)
    assert (deployment.step, deployment.attempt, actions[-1]) == (Step.START, 2, Action.START)
    assert actions.count(Action.WEIGH) == actions.count(Action.STAND_DOWN) == 1
    ended, actions = step(deployment, Died("SIGSEGV"), now=9.0)
    assert (ended.is_defect, actions) == (True, (Action.DROP,))


def test_incumbent_that_hangs_is_sent_away_without_its_requests():
    waiting, _ = drive(TO_GOLDEN[0], weighed=SCARCE)
    late = waiting.step_began + STEP_TIMEOUT_S
    deployment, actions = step(waiting, Tick(), now=late)
    assert (deployment.step, deployment.attempt, actions) == (Step.STAND_DOWN, 0, (Action.STAND_DOWN,))
    deployment = step(step(deployment, StoodDown(), now=late + 1)[0], Ready(), now=late + 2)[0]
    assert step(deployment, GoldenDone(passed=True), now=late + 3)[1] == (Action.SWITCH,)


def test_strain_holds_before_requests_wait_and_no_more_afterwards():
    held, actions = drive(TO_GOLDEN[0], Strained(), weighed=SCARCE)
    assert (held.step, held.attempt, actions[-1]) == (Step.HELD, 0, Action.PUT_BACK)
    assert step(held, Relieved(), now=9.0)[1] == (Action.WEIGH,)
    deployment, actions = drive(*TO_HOLD, Strained(), StoodDown(), Died("SIGSEGV"), weighed=SCARCE)
    assert (deployment.step, deployment.attempt) == (Step.START, 2)
    assert Action.PUT_BACK not in actions


def test_memory_is_weighed_anew_for_every_start():
    deployment, _ = drive(*TO_GOLDEN, Died("SIGKILL"))
    assert deployment.step is Step.START
    deployment, _ = drive(*TO_GOLDEN)
    again, _ = step(deployment, Died("SIGKILL"), now=9.0)
    assert step(again, SCARCE, now=9.0)[0].is_sequential
