"""The server was away, or somebody set its clock: what it could not hear, it holds against nobody, and asks again."""

import threading

from device_simulator import FALLS_SILENT
from fleet_rig import wait_for

from edgeops.testing import MemoryBroker
from edgeops.topics import Topics
from edgeops_fleet.roll_call import EACH_LOOK, RollCall
from edgeops_fleet.schema import devices
from edgeops_fleet.store import Store

DAY_S = 86400.0


def begin_and_fall_silent(rig, make_bundle):
    for number in range(6):
        rig.add_device(f"device-{number}").outcomes["1.0.0"] = FALLS_SILENT
    rollout = rig.roll_out(make_bundle("1.0.0"), waves=[{"percent": 100}], silence_s=60.0)
    wait_for(lambda: rig.rollout(rollout)["counts"] == {"trial": 6}, "all began")
    return rollout


def look(rig):
    """The controller has looked once more, whatever its own loop does."""
    rig.server.controller.step()


def test_the_time_while_the_server_was_down_is_nobodys_silence(rig, make_bundle):
    rollout = begin_and_fall_silent(rig, make_bundle)
    rig.server.stop()
    rig.clock.advance(DAY_S)
    rig.server = rig._start()
    look(rig)
    assert rig.rollout(rollout)["state"] == "running"
    rig.clock.advance(61)
    assert rig.wait_for_state(rollout, "rolled_back", "rolling_back")["reason"].count("silent for 61 s") == 3


def test_a_clock_that_is_set_makes_nobody_silent(rig, make_bundle):
    rollout = begin_and_fall_silent(rig, make_bundle)
    for step in (DAY_S, -3 * DAY_S):
        rig.clock.set_forward(step)
        look(rig)
        look(rig)
        assert rig.rollout(rollout)["state"] == "running"
    rig.clock.advance(61)
    rig.wait_for_state(rollout, "rolled_back", "rolling_back")


def test_the_time_while_the_broker_was_away_is_nobodys_silence(rig, make_bundle):
    rollout = begin_and_fall_silent(rig, make_bundle)
    rig.server.link.close()
    rig.clock.advance(DAY_S)
    look(rig)
    assert rig.rollout(rollout)["state"] == "running"


def test_a_birth_that_was_lost_while_the_server_was_down_is_asked_for(rig):
    device = rig.add_device("device-0")
    rig.server.stop()
    device.stop()
    device.start()
    rig.server = rig._start()
    wait_for(lambda: rig.api.get("/api/v1/devices/device-0")["session"] == device.session == 2, "the session of now")


def test_many_devices_are_asked_a_few_at_a_time_and_those_that_were_there_first(tmp_path):
    store = Store(tmp_path / "fleet.db")
    row = {
        "group": "g",
        "public_key": "",
        "token": "",
        "attributes": {},
        "bucket": 0,
        "enrolled": 0.0,
        "boot": 0,
        "session": 0,
        "generation": 0,
        "address": "",
        "agent_version": "",
        "engines": {},
        "clock_trusted": True,
    }
    with store.write() as connection:
        rows = [{**row, "id": f"d-{number:03}", "online": number >= 200} for number in range(250)]
        connection.execute(devices.insert(), rows)
    broker, topics = MemoryBroker(), Topics("test")
    link = broker.link()
    came = []
    there = threading.Event()
    link.subscribe("edgeops/v1/test/device/+/command", lambda message: came.append(message.topic.split("/")[4]))
    roll_call = RollCall(store, link, topics)
    roll_call.begin()
    assert roll_call.go_on(now=0.0) == 0, "there is no connection"
    link.open(on_connect=there.set)
    assert there.wait(5)
    assert roll_call.go_on(now=1.0) == EACH_LOOK
    assert roll_call.go_on(now=1.1) == 0, "too soon"
    assert roll_call.go_on(now=2.0) == EACH_LOOK
    assert roll_call.go_on(now=3.0) == 50
    assert roll_call.go_on(now=4.0) == 0
    wait_for(lambda: len(came) == 250, "all were asked")
    assert sorted(came) == [f"d-{number:03}" for number in range(250)]
    assert sorted(came[:50]) == [f"d-{number:03}" for number in range(200, 250)]
    link.close()
    store.close()
