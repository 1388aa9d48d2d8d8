import pytest

from edgeops.messages import DeploymentState


@pytest.fixture
def fleet(rig):
    for number in range(8):
        rig.add_device(f"device-{number}", site="north" if number % 2 else "south")
    return rig


def versions(rig):
    return {device["id"]: device["version"] for device in rig.api.get("/api/v1/devices")["devices"]}


def test_a_good_version_goes_out_in_waves_and_becomes_the_groups(fleet, make_bundle):
    rollout = fleet.roll_out(make_bundle("1.0.0"))
    view = fleet.wait_for_state(rollout, "completed")
    assert [wave["devices"] for wave in view["waves"]] == [1, 4, 8]
    assert [wave["state"] for wave in view["waves"]] == ["pass", "pass", "pass"]
    assert set(versions(fleet).values()) == {"1.0.0"}
    assert view["counts"] == {"committed": 8}
    assert "without proof" in view["waves"][0]["reason"]


def test_one_defect_in_the_canary_stops_and_nobody_else_is_offered_it(fleet, make_bundle):
    import device_simulator

    fleet.wait_for_state(fleet.roll_out(make_bundle("1.0.0")), "completed")
    for device in fleet.devices.values():
        device.outcomes["1.1.0"] = device_simulator.CRASHES
    rollout = fleet.roll_out(make_bundle("1.1.0"))
    view = fleet.wait_for_state(rollout, "rolled_back")
    offered = [name for name, device in fleet.devices.items() if any("1.1.0" in each for each in device.offered)]
    assert len(offered) == 1
    assert view["reason"] == f"{offered[0]} rolled back 1.1.0: defect: shadow: 3 of 32 answers failed"
    assert set(versions(fleet).values()) == {"1.0.0"}
    status, answer = fleet.api.call("POST", "/api/v1/rollouts", view["spec"])
    assert status == 409
    assert "taken back" in answer["error"]
    assert DeploymentState.ROLLED_BACK in view["counts"]
