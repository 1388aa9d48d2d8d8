"""Rollouts over real processes and both brokers: nobody's request fails, whatever goes out, and every request is counted once."""

import sqlite3
from collections.abc import Callable

import pytest

from edgeops_demo.people import wait_until

DEVICES = ("camera-1", "camera-2", "camera-3")


def counted_requests(fleet) -> int:
    with sqlite3.connect(fleet.server_data / "fleet.db") as database:
        return database.execute("SELECT coalesce(sum(requests), 0) FROM windows").fetchone()[0]


# One broker each in the short run: this one beside the server, the next one in it, where it dies with the server.
@pytest.mark.parametrize("broker", ["mosquitto", pytest.param("iotcore", marks=pytest.mark.slow)], indirect=True)
def test_good_release_goes_out_bad_one_comes_back_and_every_request_is_answered_and_counted(
    broker: str, new_fleet: Callable, new_caller: Callable, make_bundle: Callable
) -> None:
    fleet = new_fleet(broker)
    for device in DEVICES:
        fleet.start_device(device)
    fleet.wait_online()
    first = fleet.wait_rollout(fleet.roll_out(make_bundle("1.0.0")), "completed", "paused", "rolled_back")
    assert first["state"] == "completed", first["reason"]

    callers = [new_caller(fleet.address(device), seed=number) for number, device in enumerate(DEVICES)]
    for caller in callers:
        caller.serves_within(10)
        caller.start()
    good = fleet.wait_rollout(fleet.roll_out(make_bundle("1.1.0")), "completed", "paused", "rolled_back")
    assert good["state"] == "completed", good["reason"]

    bad = fleet.wait_rollout(
        fleet.roll_out(make_bundle("1.2.0", "nan", hidden=True)), "rolled_back", "paused", "completed"
    )
    assert bad["state"] == "rolled_back", bad["reason"]
    assert "defect" in bad["reason"]
    assert [deployment["state"] for deployment in bad["deployments"]] == ["rolled_back"]
    assert {device["version"] for device in fleet.devices().values()} == {"1.1.0"}

    for caller in callers:
        caller.stop()
    assert [failure for caller in callers for failure in caller.failures] == []
    # serves_within() asked once more than the thread counted.
    asked = sum(caller.answered + 1 for caller in callers)
    wait_until(lambda: counted_requests(fleet) >= asked, timeout_s=20, what=f"{asked} requests counted")
    assert counted_requests(fleet) == asked


@pytest.mark.parametrize("broker", ["iotcore", pytest.param("mosquitto", marks=pytest.mark.slow)], indirect=True)
def test_server_that_was_killed_goes_on_with_its_rollout(
    broker: str, new_fleet: Callable, new_caller: Callable, make_bundle: Callable
) -> None:
    fleet = new_fleet(broker)
    for device in DEVICES:
        fleet.start_device(device)
    fleet.wait_online()
    fleet.wait_rollout(fleet.roll_out(make_bundle("1.0.0")), "completed")
    callers = [new_caller(fleet.address(device)) for device in DEVICES]
    for caller in callers:
        caller.serves_within(10)
        caller.start()
    rollout = fleet.roll_out(make_bundle("1.1.0"))
    wait_until(lambda: fleet.rollout(rollout)["deployments"], timeout_s=30, what="the canary has begun")
    fleet.server.kill()
    fleet.start_server()
    found = fleet.wait_rollout(rollout, "completed", "paused", "rolled_back")
    assert found["state"] == "completed", found["reason"]
    for caller in callers:
        caller.stop()
    assert [failure for caller in callers for failure in caller.failures] == []
