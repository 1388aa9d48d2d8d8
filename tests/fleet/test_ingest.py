import json
import random

import msgspec
import pytest
import sqlalchemy as sa
from fleet_rig import wait_for

from edgeops.messages import Ack, Death, DeploymentState, Notice, decode_json, encode_json, encode_record
from edgeops.topics import Topics, Upstream
from edgeops_fleet import schema

TOPICS = Topics("test")


@pytest.fixture
def device(rig):
    made = rig.add_device("camera-1", site="north")
    made.current["digits"] = ("1.0.0", "sha256:" + "a" * 64)
    made.birth()
    wait_for(lambda: rig.api.get("/api/v1/devices/camera-1")["version"] == "1.0.0", "it reported")
    return made


def total_requests(rig):
    return rig.api.get("/api/v1/devices/camera-1")["requests"]


def acknowledged(device, stream="telemetry"):
    return device.acked.get(stream, 0)


def test_records_are_stored_and_then_acknowledged(rig, device):
    for _ in range(5):
        device.window(requests=7)
    wait_for(lambda: acknowledged(device) == 5, "acknowledged")
    assert total_requests(rig) == 35
    assert device._outbox == []


def test_duplicates_and_reordered_records_count_once(rig, device):
    device.link.close()
    records = [device.window(requests=1 << number) for number in range(10)]
    device.link.reconnect()
    generator = random.Random(5)
    sent = records * 3
    generator.shuffle(sent)
    for record in sent:
        device._publish(Upstream.TELEMETRY, record)
    wait_for(lambda: acknowledged(device) == 10, "all acknowledged")
    device.resend()
    assert total_requests(rig) == (1 << 10) - 1
    assert rig.server.ingest.counters.records == 10


def test_what_overtakes_is_kept_and_acknowledged_when_the_missing_one_comes(rig, device):
    device.link.close()
    first, second, third = (device.window() for _ in range(3))
    device.link.reconnect()
    wait_for(lambda: acknowledged(device) == 3, "all three came with the connection")
    device.epoch, device._sequences, device.acked = "e2", {}, {}
    device.link.close()
    first, second, third = (device.window() for _ in range(3))
    device._outbox.clear()
    device.link.reconnect()
    device._publish(Upstream.TELEMETRY, third)
    device._publish(Upstream.TELEMETRY, second)
    wait_for(lambda: device.acked == {"telemetry": 0}, "nothing is contiguous")
    device._publish(Upstream.TELEMETRY, first)
    wait_for(lambda: acknowledged(device) == 3, "all three")


def test_a_gap_stands_for_what_was_dropped(rig, device):
    gap = device.gap("telemetry", 1, 40)
    device._publish(Upstream.TELEMETRY, gap)
    wait_for(lambda: acknowledged(device) == 40, "acknowledged")
    texts = [entry["text"] for entry in rig.api.get("/api/v1/log")["log"]]
    assert "camera-1 dropped 40 records of telemetry: full" in texts


def test_nothing_is_acknowledged_before_it_is_committed(rig, device, monkeypatch):
    acks = []
    rig.broker.link()
    listener = rig.broker.link()
    listener.open()

    def look(message):
        ack = decode_json(message.payload, Ack, where="here")
        with rig.server.store.read() as connection:
            stored = connection.execute(sa.select(sa.func.count()).select_from(schema.windows)).scalar()
        acks.append((ack.sequences["telemetry"], stored))

    listener.subscribe(TOPICS.ack("camera-1"), look)
    for _ in range(30):
        device.window()
    wait_for(lambda: acks and acks[-1][0] == 30, "all acknowledged")
    assert all(sequence <= stored for sequence, stored in acks)
    listener.close()


def test_records_survive_a_database_that_cannot_be_written_for_a_while(rig, device, monkeypatch):
    from edgeops_fleet.store import StoreError

    insert = rig.server.ingest._insert
    failures = iter(range(3))

    def fail(*arguments, **more):
        if next(failures, None) is not None:
            raise StoreError("disk full") from sa.exc.OperationalError("insert", {}, Exception("disk full"))
        return insert(*arguments, **more)

    monkeypatch.setattr(rig.server.ingest, "_insert", fail)
    device.window(requests=11)
    wait_for(lambda: acknowledged(device) == 1, "acknowledged in the end")
    assert total_requests(rig) == 11


def test_a_restart_remembers_what_is_stored(rig, device):
    for _ in range(4):
        device.window(requests=1)
    wait_for(lambda: acknowledged(device) == 4, "acknowledged")
    rig.restart()
    device.acked.clear()
    device._sequences["telemetry"] = 0
    for _ in range(4):
        device.window(requests=1)
    wait_for(lambda: acknowledged(device) == 4, "acknowledged again")
    assert total_requests(rig) == 4


def test_a_lost_acknowledgement_is_repeated_at_the_next_birth(rig, device):
    device.window()
    wait_for(lambda: acknowledged(device) == 1, "acknowledged")
    device.acked.clear()
    device.birth()
    wait_for(lambda: acknowledged(device) == 1, "told again")


@pytest.mark.parametrize("payload", [b"", b"{}", b"\x00\xff", b'{"type":"telemetry"}', b"[" * 10_000, "ü".encode()])
def test_messages_that_make_no_sense_are_counted_and_nothing_breaks(rig, device, payload):
    before = rig.server.ingest.counters.bad
    for kind in Upstream:
        device.link.publish(TOPICS.upstream("camera-1", kind), payload)
    device.window(requests=3)
    wait_for(lambda: acknowledged(device) == 1, "the good one is stored")
    assert rig.server.ingest.counters.bad == before + len(Upstream)


def test_a_sample_that_cannot_be_opened_is_noted_and_left_out(rig, device):
    good = device.sample(1, command="c", data=bytes(8), predicted=3)
    wait_for(lambda: device.acked.get("sample") == 1, "stored")
    for number, change in enumerate(({"command": "another"}, {"sealed": good.sealed[:-1]}, {"sealed": b"x"}), 2):
        spoilt = msgspec.structs.replace(good, sequence=number, id=f"s{number}", **change)
        device.link.publish(TOPICS.upstream("camera-1", Upstream.SAMPLE), encode_record(spoilt))
    wait_for(lambda: device.acked.get("sample") == 4, "the others are acknowledged too")
    (stored,) = rig.api.get("/api/v1/samples")["samples"]
    assert (stored["id"], stored["predicted"], stored["confidence"]) == (good.id, 3, 0.5)
    texts = [entry["text"] for entry in rig.api.get("/api/v1/log")["log"]]
    assert sum("cannot be opened" in text for text in texts) == 3


def test_a_device_cannot_speak_for_another(rig, device):
    death = encode_json(Death(device="camera-1", boot=99, session=99))
    device.link.publish(TOPICS.upstream("camera-2", Upstream.DEATH), death)
    device.window()
    wait_for(lambda: acknowledged(device) == 1, "the next one is stored")
    assert rig.api.get("/api/v1/devices/camera-1")["online"]


def test_strangers_are_ignored(rig, device):
    link = rig.broker.link()
    link.open()
    record = Notice(**device.stamp("event"), kind="hello", text="I am new")
    link.publish(TOPICS.upstream("stranger", Upstream.EVENT), encode_record(record))
    wait_for(lambda: rig.server.ingest.counters.strangers == 1, "counted")
    assert not any("stranger" in json.dumps(entry) for entry in rig.api.get("/api/v1/log")["log"])
    link.close()


def test_a_late_will_does_not_bury_a_newer_birth(rig, device):
    old = encode_json(Death(device="camera-1", boot=device.boot, session=device.session))
    device.session += 1
    device.birth()
    device.link.publish(TOPICS.upstream("camera-1", Upstream.DEATH), old)
    device.window()
    wait_for(lambda: acknowledged(device) == 1, "the next one is stored")
    assert rig.api.get("/api/v1/devices/camera-1")["online"]
    new = encode_json(Death(device="camera-1", boot=device.boot, session=device.session))
    device.link.publish(TOPICS.upstream("camera-1", Upstream.DEATH), new)
    wait_for(lambda: not rig.api.get("/api/v1/devices/camera-1")["online"], "offline")


def test_a_transition_that_was_overtaken_does_not_turn_back_the_deployment(rig, device, make_bundle):
    rollout = rig.roll_out(make_bundle("1.2.0"), draft=True)
    about = {"version": "1.2.0", "digest": make_bundle("1.2.0").digest, "rollout": rollout}
    device.link.close()
    for state in (DeploymentState.DOWNLOADING, DeploymentState.TRIAL, DeploymentState.COMMITTED):
        device.report("digits", state, **about)
    records = [record for _, record in device._outbox]
    device._outbox.clear()
    device.link.reconnect()
    for record in reversed(records):
        device._publish(Upstream.EVENT, record)
    wait_for(lambda: acknowledged(device, "event") == 3, "all stored")
    (deployment,) = rig.rollout(rollout)["deployments"]
    assert deployment["state"] == "committed"
    assert sorted(deployment["states"]) == ["committed", "downloading", "trial"]


def test_notices_reach_the_log(rig, device):
    device.send(Upstream.EVENT, Notice(**device.stamp("event"), kind="worker_died", text="signal 11"))
    wait_for(lambda: acknowledged(device, "event") == 1, "stored")
    entry = rig.api.get("/api/v1/devices/camera-1")["log"][-1]
    assert (entry["kind"], entry["text"]) == ("device.worker_died", "camera-1: signal 11")


def test_windows_that_a_device_added_up_count_once_and_stand_for_their_range(rig, device):
    device.link.close()
    summed = msgspec.structs.replace(device.window(requests=7000), first=1, sequence=70, windows=70)
    single = msgspec.structs.replace(summed, first=0, sequence=71, requests=5, windows=1)
    device._outbox.clear()
    device.link.reconnect()
    for record in (summed, single, summed):
        device._publish(Upstream.TELEMETRY, record)
    wait_for(lambda: acknowledged(device) == 71, "acknowledged")
    assert total_requests(rig) == 7005


def test_sum_of_windows_that_had_come_before_never_counts_twice(rig, device):
    window = device.window(requests=7)
    wait_for(lambda: acknowledged(device) == 1, "acknowledged")
    device._publish(Upstream.TELEMETRY, msgspec.structs.replace(window, first=1, sequence=3, requests=21))
    wait_for(lambda: acknowledged(device) == 3, "acknowledged")
    assert total_requests(rig) == 7
    texts = [entry["text"] for entry in rig.api.get("/api/v1/log")["log"]]
    assert "camera-1: telemetry 1 to 3 was added up after 1 of it had come; it is left out" in texts


def test_a_gap_counts_only_what_had_not_come(rig, device):
    for _ in range(2):
        device.window()
    wait_for(lambda: acknowledged(device) == 2, "acknowledged")
    device._publish(Upstream.TELEMETRY, device.gap("telemetry", 1, 5))
    wait_for(lambda: acknowledged(device) == 5, "acknowledged")
    texts = [entry["text"] for entry in rig.api.get("/api/v1/log")["log"]]
    assert "camera-1 dropped 3 records of telemetry: full" in texts
