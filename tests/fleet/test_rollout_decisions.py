from dataclasses import replace

import pytest

from edgeops.messages import DeploymentState, ReasonClass
from edgeops_fleet.rollouts.gates import GatePolicy, WhenUnproven
from edgeops_fleet.rollouts.rollout import (
    Ask,
    Complete,
    DeviceReport,
    EnterSoak,
    FinishRollback,
    Observation,
    Phase,
    Progress,
    RollBack,
    RolloutSpec,
    RolloutState,
    Standing,
    StartWave,
    WaveSpec,
    approve,
    count_standings,
    decide,
)

NOW = 10_000.0
SPEC = RolloutSpec(
    group="g",
    model="m",
    version="1.1.0",
    waves=(WaveSpec(devices=1), WaveSpec(percent=100)),
    soak_s=60,
    silence_s=100,
    gate=GatePolicy(compare_metrics=False),
)
UNANIMOUS = GatePolicy(compare_metrics=False, when_unproven=WhenUnproven.UNANIMOUS)
START = Progress(
    state=RolloutState.RUNNING,
    spec=SPEC,
    wave=0,
    phase=Phase.DISPATCH,
    wave_started=NOW,
    phase_since=NOW,
    extended=0,
)
SOAKED = replace(START, phase=Phase.SOAK, phase_since=NOW - 61)


def device(state=None, number=0, **more):
    return DeviceReport(device=f"d{number}", state=state, updated=NOW, online=True, **more)


COMMITTED = device(DeploymentState.COMMITTED)


def after(progress, *devices, now=NOW, **seen):
    return decide(progress, Observation(devices=devices, **seen), now=now)


def test_a_planned_rollout_starts_its_first_wave():
    assert after(replace(START, state=RolloutState.PLANNED)) == StartWave(wave=0, reason="started")


def test_dispatch_waits_for_devices_that_are_there_or_have_begun():
    assert after(START, device(), COMMITTED) is None
    assert after(START, device(DeploymentState.DOWNLOADING), COMMITTED, now=NOW + 50) is None
    assert isinstance(after(START, COMMITTED), EnterSoak)


def test_a_wave_of_absent_devices_is_no_wave_until_the_offer_times_out():
    absent = replace(device(), online=False)
    assert after(START, absent) is None
    late = after(START, absent, now=NOW + SPEC.offer_timeout_s)
    assert isinstance(late, EnterSoak)
    assert "1 offline" in late.reason


def test_absent_devices_do_not_hold_up_the_others_and_are_told():
    decision = after(START, COMMITTED, replace(device(number=1), online=False))
    assert decision == EnterSoak(reason="1 of 2 devices of wave 1 finished; not counted: 1 offline")


def test_soak_takes_its_time():
    assert after(replace(SOAKED, phase_since=NOW - 59), COMMITTED) is None


def test_a_wave_too_small_for_proof_asks_a_person():
    decision = after(SOAKED, COMMITTED)
    assert isinstance(decision, Ask)
    assert "inconclusive after wave 1: 1 committed, 0 failed: only known" in decision.reason


def test_or_goes_on_when_all_committed_and_the_policy_says_so():
    progress = replace(SOAKED, spec=replace_gate(UNANIMOUS))
    decision = after(progress, COMMITTED)
    assert isinstance(decision, StartWave)
    assert decision.wave == 1
    assert isinstance(after(replace(progress, wave=1), COMMITTED), Complete)


def test_while_devices_are_missing_the_soak_is_extended_before_anybody_is_asked():
    progress = replace(SOAKED, spec=replace_gate(UNANIMOUS))
    absent = replace(device(number=1), online=False)
    first = after(progress, COMMITTED, absent)
    assert isinstance(first, EnterSoak)
    assert first.extended == 1
    assert isinstance(after(replace(progress, extended=2), COMMITTED, absent), Ask)


def test_fifty_nine_committed_devices_prove_the_limit():
    devices = [device(DeploymentState.COMMITTED, number) for number in range(59)]
    assert isinstance(after(SOAKED, *devices), StartWave)
    assert isinstance(after(SOAKED, *devices[1:]), Ask)


def test_a_defect_rolls_back_at_once_even_while_paused():
    bad = device(DeploymentState.ROLLED_BACK, 7, reason_class=ReasonClass.DEFECT, reason="golden: differs by 3.1")
    for progress in (START, SOAKED, replace(START, state=RolloutState.PAUSED)):
        decision = after(progress, bad, device())
        assert isinstance(decision, RollBack)
        assert decision.reason == "d7 rolled back 1.1.0: defect: golden: differs by 3.1"


def test_silence_after_beginning_is_a_failure_and_silence_before_is_not():
    begun = device(DeploymentState.TRIAL)
    assert count_standings(SPEC, [begun], now=NOW + 101)[Standing.SILENT] == 1
    assert count_standings(SPEC, [begun], now=NOW + 99)[Standing.UNDERWAY] == 1
    assert count_standings(SPEC, [device(DeploymentState.OFFERED)], now=NOW + 10_000)[Standing.WAITING] == 1
    silent = [device(DeploymentState.TRIAL, number) for number in range(3)]
    decision = after(START, *silent, now=NOW + 101)
    assert isinstance(decision, RollBack)
    assert "has been silent for 101 s in trial" in decision.reason


def test_what_is_not_the_models_fault_is_coverage():
    reports = [
        device(DeploymentState.REJECTED, 1, reason_class=ReasonClass.INCOMPATIBLE),
        device(DeploymentState.FAILED, 2, reason_class=ReasonClass.ENVIRONMENT),
        device(DeploymentState.SUPERSEDED, 3),
        device(DeploymentState.EXPIRED, 4),
        device(None, 5, holds=True),
        device(None, 6, pinned=True),
    ]
    assert count_standings(SPEC, reports, now=NOW)[Standing.EXCLUDED] == len(reports)


def test_lost_downloads_and_security_refusals_are_failures():
    reports = [
        device(DeploymentState.FAILED, 1, reason_class=ReasonClass.TRANSIENT),
        device(DeploymentState.REJECTED, 2, reason_class=ReasonClass.SECURITY),
        device(DeploymentState.ROLLED_BACK, 3, reason_class=ReasonClass.ENVIRONMENT),
    ]
    assert count_standings(SPEC, reports, now=NOW)[Standing.FAILED] == len(reports)


def test_completing_over_devices_that_were_left_out_asks_first():
    progress = replace(SOAKED, wave=1, spec=replace_gate(UNANIMOUS, where="site == 'north'"))
    decision = after(progress, COMMITTED, left_out=3)
    assert isinstance(decision, Ask)
    assert "moves 3 further devices" in decision.reason
    assert isinstance(approve(progress), Complete)


def test_approval_starts_the_next_wave():
    assert approve(SOAKED) == StartWave(wave=1, reason="wave 1 approved by a person")


def test_rolling_back_ends_when_all_are_back_or_time_is_over():
    progress = replace(START, state=RolloutState.ROLLING_BACK, phase_since=NOW)
    holding = device(DeploymentState.COMMITTED, holds=True)
    assert after(progress, holding) is None
    assert isinstance(after(progress, device(DeploymentState.COMMITTED)), FinishRollback)
    late = after(progress, holding, now=NOW + SPEC.rollback_timeout_s)
    assert late == FinishRollback(reason="not confirmed in time by d0 (1 in all)")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"waves": ()}, "the last one"),
        ({"waves": (WaveSpec(percent=50),)}, "the last one"),
        ({"soak_s": -1.0}, "not negative"),
        ({"where": "__import__('os')"}, "not part of the language"),
        ({"version": "one"}, "major.minor.patch"),
        ({"group": "a/b"}, "group"),
    ],
)
def test_orders_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(Exception, match=message):
        RolloutSpec(**{"group": "g", "model": "m", "version": "1.0.0", **wrong})


def test_a_wave_is_either_a_share_or_a_number():
    for wrong in ({}, {"percent": 5, "devices": 1}, {"percent": 0}, {"percent": 101}, {"devices": 0}):
        with pytest.raises(ValueError, match="wave"):
            WaveSpec(**wrong)


def replace_gate(gate, **more):
    import msgspec

    return msgspec.structs.replace(SPEC, gate=gate, **more)
