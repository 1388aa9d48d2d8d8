import pytest
from device_simulator import CRASHES, DOES_NOT_FIT, FALLS_SILENT, LOSES_DOWNLOAD
from fleet_rig import GROUP, quick_order, wait_for

from edgeops.messages import Desired, decode_json
from edgeops.signing import DESIRED, unseal
from edgeops.topics import Topics

ASK = {"when_unproven": "ask", "compare_metrics": False}


@pytest.fixture
def fleet(rig):
    for number in range(8):
        rig.add_device(f"device-{number}", wait=False, site="north" if number % 2 else "south")
    wait_for(lambda: len(versions(rig)) == 8 and all(device["online"] for device in devices(rig)), "all online")
    return rig


def devices(rig):
    return rig.api.get("/api/v1/devices")["devices"]


def versions(rig):
    return {device["id"]: device["version"] for device in devices(rig)}


def offered(rig, version):
    return {name for name, device in rig.devices.items() if any(version in each for each in device.offered)}


def script(rig, version, outcome):
    for device in rig.devices.values():
        device.outcomes[version] = outcome


def document(rig):
    return decode_json(
        unseal(rig.broker.retained[Topics("test").group_desired(GROUP)], kind=DESIRED, keys=None), Desired, where="here"
    )


def final_target(rig):
    """What the document wants when the rollout is over; the state changes a moment before the document is published."""
    wait_for(lambda: document(rig).targets[0].rollout is None, "the rollout left the document")
    return document(rig).targets[0]


def test_a_good_version_goes_out_in_waves_and_becomes_the_groups(fleet, make_bundle):
    rollout = fleet.roll_out(make_bundle("1.0.0"))
    view = fleet.wait_for_state(rollout, "completed")
    assert [wave["devices"] for wave in view["waves"]] == [1, 4, 8]
    assert [wave["state"] for wave in view["waves"]] == ["pass", "pass", "pass"]
    assert set(versions(fleet).values()) == {"1.0.0"}
    assert view["counts"] == {"committed": 8}
    assert "without proof" in view["waves"][0]["reason"]
    assert view["deployments"][0]["states"][-2:] == ["probation", "committed"]
    assert final_target(fleet).version == "1.0.0"


def test_one_defect_in_the_canary_stops_and_nobody_else_is_offered_it(fleet, make_bundle):
    fleet.wait_for_state(fleet.roll_out(make_bundle("1.0.0")), "completed")
    script(fleet, "1.1.0", CRASHES)
    rollout = fleet.roll_out(make_bundle("1.1.0"))
    view = fleet.wait_for_state(rollout, "rolled_back")
    (canary,) = offered(fleet, "1.1.0")
    assert view["reason"] == f"{canary} rolled back 1.1.0: defect: shadow: 3 of 32 answers failed"
    assert view["counts"] == {"rolled_back": 1}
    assert set(versions(fleet).values()) == {"1.0.0"}
    target = final_target(fleet)
    assert (target.version, target.rollout, target.quarantine) == ("1.0.0", None, (view["digest"],))
    status, answer = fleet.api.call("POST", "/api/v1/rollouts", view["spec"])
    assert (status, "taken back" in answer["error"]) == (409, True)


def test_devices_that_had_committed_go_back_when_a_later_wave_fails(fleet, make_bundle):
    fleet.wait_for_state(fleet.roll_out(make_bundle("1.0.0")), "completed")
    rollout = fleet.roll_out(make_bundle("1.1.0"), gate=ASK)
    fleet.wait_for_state(rollout, "paused")
    script(fleet, "1.1.0", CRASHES)
    fleet.api.post(f"/api/v1/rollouts/{rollout}/resume")
    view = fleet.wait_for_state(rollout, "rolled_back")
    assert view["wave"] == 1
    assert set(versions(fleet).values()) == {"1.0.0"}


def test_a_first_version_that_fails_leaves_nothing_running(fleet, make_bundle):
    rollout = fleet.roll_out(make_bundle("1.0.0"), gate=ASK)
    fleet.wait_for_state(rollout, "paused")
    fleet.api.post(f"/api/v1/rollouts/{rollout}/rollback")
    fleet.wait_for_state(rollout, "rolled_back")
    assert set(versions(fleet).values()) == {None}


def test_a_wave_too_small_for_proof_asks_and_a_person_answers(fleet, make_bundle):
    rollout = fleet.roll_out(make_bundle("1.0.0"), gate=ASK)
    view = fleet.wait_for_state(rollout, "paused")
    assert (view["paused_by"], view["phase"], view["wave"]) == ("auto", "gate", 0)
    assert view["reason"].startswith("inconclusive after wave 1: 1 committed, 0 failed: only known")
    assert view["waves"][0]["checks"][0]["result"] == "inconclusive"
    for wave in (1, 2):
        fleet.api.post(f"/api/v1/rollouts/{rollout}/resume")
        wait_for(lambda wave=wave: fleet.rollout(rollout)["wave"] == wave, "the next wave")
        fleet.wait_for_state(rollout, "paused")
    fleet.api.post(f"/api/v1/rollouts/{rollout}/resume")
    fleet.wait_for_state(rollout, "completed")
    assert len(offered(fleet, "1.0.0")) == 8


def test_while_a_person_pauses_nobody_begins(fleet, make_bundle):
    rollout = fleet.roll_out(make_bundle("1.0.0"), soak_s=3600.0)
    wait_for(lambda: fleet.rollout(rollout)["phase"] == "soak", "the canary committed")
    (canary,) = offered(fleet, "1.0.0")
    fleet.api.post(f"/api/v1/rollouts/{rollout}/pause")
    wait_for(lambda: document(fleet).targets[0].rollout.not_before > 4e9, "the document says never")
    fleet.clock.advance(10_000)
    late = fleet.add_device("late")
    assert fleet.rollout(rollout)["state"] == "paused"
    assert offered(fleet, "1.0.0") == {canary}
    assert late.current == {}
    assert fleet.devices[canary].current["digits"][0] == "1.0.0"
    status, answer = fleet.api.call("POST", f"/api/v1/rollouts/{rollout}/pause")
    assert (status, "is paused" in answer["error"]) == (409, True)
    fleet.api.post(f"/api/v1/rollouts/{rollout}/resume")
    let_soak(fleet, rollout, seconds=3601)
    fleet.wait_for_state(rollout, "completed")


def let_soak(rig, rollout, *, seconds):
    """Let the time of each soak pass, wave by wave."""
    for wave in range(3):
        wait_for(lambda wave=wave: (each := rig.rollout(rollout))["wave"] == wave and each["phase"] == "soak", "a soak")
        rig.clock.advance(seconds)


def test_a_person_takes_back_a_version_that_was_completed(fleet, make_bundle):
    fleet.wait_for_state(fleet.roll_out(make_bundle("1.0.0")), "completed")
    rollout = fleet.roll_out(make_bundle("1.1.0"))
    fleet.wait_for_state(rollout, "completed")
    fleet.api.post(f"/api/v1/rollouts/{rollout}/rollback")
    view = fleet.wait_for_state(rollout, "rolled_back")
    assert set(versions(fleet).values()) == {"1.0.0"}
    assert view["reason"] == "rolled back by a person"
    assert final_target(fleet).quarantine == ()


def test_an_aborted_rollout_is_over_at_once_and_devices_return(fleet, make_bundle):
    fleet.wait_for_state(fleet.roll_out(make_bundle("1.0.0")), "completed")
    rollout = fleet.roll_out(make_bundle("1.1.0"), gate=ASK)
    fleet.wait_for_state(rollout, "paused")
    assert fleet.api.post(f"/api/v1/rollouts/{rollout}/abort")["state"] == "aborted"
    wait_for(lambda: set(versions(fleet).values()) == {"1.0.0"}, "all are back")


def test_a_draft_waits_for_its_start(fleet, make_bundle):
    rollout = fleet.roll_out(make_bundle("1.0.0"), draft=True)
    assert fleet.rollout(rollout)["state"] == "draft"
    assert offered(fleet, "1.0.0") == set()
    fleet.api.post(f"/api/v1/rollouts/{rollout}/start")
    fleet.wait_for_state(rollout, "completed")


def test_a_device_that_falls_silent_after_it_began_counts_as_failed(fleet, make_bundle):
    fleet.wait_for_state(fleet.roll_out(make_bundle("1.0.0")), "completed")
    script(fleet, "1.1.0", FALLS_SILENT)
    rollout = fleet.roll_out(make_bundle("1.1.0"), waves=[{"devices": 3}, {"percent": 100}], silence_s=300.0)
    wait_for(lambda: fleet.rollout(rollout)["counts"] == {"trial": 3}, "three are at it")
    fleet.clock.advance(299)
    assert fleet.rollout(rollout)["state"] == "running"
    fleet.clock.advance(2)
    view = fleet.wait_for_state(rollout, "rolling_back")
    assert "has been silent for 301 s in trial" in view["reason"]
    assert len(offered(fleet, "1.1.0")) == 3
    fleet.clock.advance(901)
    view = fleet.wait_for_state(rollout, "rolled_back")
    assert "not confirmed in time" in view["transitions"][-1]["text"]


def test_devices_that_cannot_run_it_are_coverage_and_the_others_go_on(fleet, make_bundle):
    for name in ("device-0", "device-3"):
        fleet.devices[name].outcomes["1.0.0"] = DOES_NOT_FIT
    view = fleet.wait_for_state(fleet.roll_out(make_bundle("1.0.0"), waves=[{"percent": 100}]), "completed")
    assert view["counts"] == {"committed": 6, "rejected": 2}


def test_one_lost_download_among_eight_does_not_stop_and_is_not_accepted_silently(fleet, make_bundle):
    fleet.devices["device-0"].outcomes["1.0.0"] = LOSES_DOWNLOAD
    view = fleet.wait_for_state(fleet.roll_out(make_bundle("1.0.0"), waves=[{"percent": 100}]), "paused")
    assert view["counts"] == {"committed": 7, "failed": 1}
    assert "7 committed, 1 failed" in view["reason"]


def test_an_offline_device_gets_the_version_when_it_returns(fleet, make_bundle):
    away = fleet.devices["device-5"]
    away.stop()
    fleet.broker.deliver(away._will().topic, away._will().payload, retain=False)
    wait_for(lambda: not fleet.api.get("/api/v1/devices/device-5")["online"], "it is offline")
    rollout = fleet.roll_out(make_bundle("1.0.0"), waves=[{"percent": 100}], extensions=0)
    view = fleet.wait_for_state(rollout, "paused")
    assert "1 offline" in next(entry["text"] for entry in view["transitions"] if entry["kind"] == "rollout.soak")
    fleet.api.post(f"/api/v1/rollouts/{rollout}/resume")
    fleet.wait_for_state(rollout, "completed")
    away.link.reconnect()
    wait_for(lambda: versions(fleet)["device-5"] == "1.0.0", "it caught up")


def test_a_new_device_gets_the_groups_version(fleet, make_bundle):
    fleet.wait_for_state(fleet.roll_out(make_bundle("1.0.0")), "completed")
    fleet.add_device("newcomer")
    wait_for(lambda: versions(fleet)["newcomer"] == "1.0.0", "it caught up")


def test_a_group_and_model_has_one_active_rollout(fleet, make_bundle):
    rollout = fleet.roll_out(make_bundle("1.0.0"), gate=ASK)
    fleet.publish(make_bundle("1.1.0"))
    order = quick_order("digits", "1.1.0")
    status, answer = fleet.api.call("POST", "/api/v1/rollouts", order)
    assert (status, rollout in answer["error"]) == (409, True)
    plan = fleet.api.post("/api/v1/rollouts/plan", order)
    assert rollout in plan["conflict"]
    assert fleet.api.call("POST", "/api/v1/rollouts", {**order, "group": "others"})[0] == 201


def test_where_selects_devices_and_the_rest_is_asked_about(fleet, make_bundle):
    fleet.wait_for_state(fleet.roll_out(make_bundle("1.0.0")), "completed")
    rollout = fleet.roll_out(make_bundle("1.1.0"), waves=[{"percent": 100}], where="site == 'north'")
    view = fleet.wait_for_state(rollout, "paused")
    assert "moves 4 further devices" in view["reason"]
    assert {name for name, version in versions(fleet).items() if version == "1.1.0"} == {
        f"device-{number}" for number in (1, 3, 5, 7)
    }
    fleet.api.post(f"/api/v1/rollouts/{rollout}/resume")
    fleet.wait_for_state(rollout, "completed")
    wait_for(lambda: set(versions(fleet).values()) == {"1.1.0"}, "all have it")


def test_a_pinned_device_keeps_its_version_until_it_is_let_go(fleet, make_bundle):
    fleet.wait_for_state(fleet.roll_out(make_bundle("1.0.0")), "completed")
    fleet.api.post("/api/v1/devices/device-2/pin", {"model": "digits", "version": "1.0.0", "reason": "on the bench"})
    rollout = fleet.roll_out(make_bundle("1.1.0"))
    view = fleet.wait_for_state(rollout, "completed")
    assert versions(fleet)["device-2"] == "1.0.0"
    assert view["waves"][-1]["devices"] == 7
    fleet.api.call("DELETE", "/api/v1/devices/device-2/pin")
    wait_for(lambda: versions(fleet)["device-2"] == "1.1.0", "it follows its group")


def test_live_figures_of_updated_devices_are_held_against_the_others(fleet, make_bundle):
    fleet.wait_for_state(fleet.roll_out(make_bundle("1.0.0")), "completed")
    gate = {"when_unproven": "unanimous", "min_requests": 50}
    rollout = fleet.roll_out(make_bundle("1.1.0"), gate=gate, waves=[{"devices": 2}, {"percent": 100}], soak_s=30.0)
    wait_for(lambda: fleet.rollout(rollout)["phase"] == "soak", "two committed")
    for name, device in fleet.devices.items():
        device.window(requests=200, errors=60 if name in offered(fleet, "1.1.0") else 1)
    wait_for(lambda: all(len(device._outbox) == 0 for device in fleet.devices.values()), "all stored")
    fleet.clock.advance(31)
    view = fleet.wait_for_state(rollout, "rolled_back")
    assert view["reason"].startswith("updated 30.00% of 400 requests, others 0.50% of 1200")
    assert set(versions(fleet).values()) == {"1.0.0"}


def test_a_server_that_restarts_between_waves_goes_on(fleet, make_bundle):
    rollout = fleet.roll_out(make_bundle("1.0.0"), soak_s=60.0)
    wait_for(lambda: fleet.rollout(rollout)["phase"] == "soak", "the canary committed")
    fleet.broker.retained.clear()
    fleet.restart()
    wait_for(lambda: fleet.broker.retained, "the document is published again")
    assert document(fleet).targets[0].rollout.id == rollout
    let_soak(fleet, rollout, seconds=61)
    fleet.wait_for_state(rollout, "completed")


def test_generations_only_grow(fleet, make_bundle):
    fleet.wait_for_state(fleet.roll_out(make_bundle("1.0.0")), "completed")
    fleet.restart()
    fleet.wait_for_state(fleet.roll_out(make_bundle("1.1.0")), "completed")
    for device in fleet.devices.values():
        assert device.generations == sorted(device.generations)


def test_documents_are_issued_anew_before_they_expire(fleet, make_bundle):
    fleet.wait_for_state(fleet.roll_out(make_bundle("1.0.0")), "completed")
    final_target(fleet)
    before = document(fleet)
    fleet.clock.advance(8 * 86400)
    wait_for(lambda: document(fleet).generation > before.generation, "a new generation")
    assert document(fleet).targets == before.targets
