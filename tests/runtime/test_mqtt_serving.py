"""Inference over MQTT 5: by hand against the handler, and a worker that answers over a real broker only while it serves."""

import contextlib
import itertools
import queue
import threading
import time

import msgspec
import numpy as np
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import edgeops_runtime
from edgeops_runtime.control import MQTT_VARIABLE, Pause, Paused, Serve, Serving
from edgeops_runtime.serving.http import Request
from edgeops_runtime.serving.mqtt import open_mqtt
from edgeops_runtime.serving.protocols import Protocols
from edgeops_runtime.serving.repository import Repository, Served

WAIT_S, TRIES = 60, 20
IMAGE = np.full((1, 1, 28, 28), 0.25, np.float32)


@pytest.fixture
def broker(start_mosquitto):
    return start_mosquitto("max_packet_size 1000000")


@contextlib.contextmanager
def connected(port, answers):
    """A client whose answers come into a queue."""
    subscribed = threading.Event()
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_message = lambda _client, _data, message: answers.put(message)
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_connect = lambda client, *_: client.subscribe("back", qos=1)
    client.connect("127.0.0.1", port)
    client.loop_start()
    assert subscribed.wait(WAIT_S)
    yield client
    client.disconnect()
    client.loop_stop()


def publish(client, topic, payload, number, *, length=None, expiry=None):
    properties = Properties(PacketTypes.PUBLISH)
    properties.ResponseTopic = "back"
    properties.CorrelationData = number.to_bytes(4)
    if length is not None:
        properties.UserProperty = ("Inference-Header-Content-Length", str(length))
    if expiry is not None:
        properties.MessageExpiryInterval = expiry
    client.publish(topic, payload, qos=1, properties=properties).wait_for_publish(WAIT_S)


@pytest.fixture
def ask(broker):
    """Asks, and waits for the answer: status, content type, properties, body."""
    answers, numbers = queue.Queue(), itertools.count()
    with connected(broker, answers) as client:

        def send(topic, payload, **more):
            number = next(numbers)
            for _ in range(TRIES):  # A request that came before its answerer had subscribed is nobody's.
                publish(client, topic, payload, number, **more)
                with contextlib.suppress(queue.Empty):
                    message = answers.get(timeout=WAIT_S / TRIES)
                    while int.from_bytes(message.properties.CorrelationData) != number:
                        message = answers.get(timeout=WAIT_S / TRIES)
                    break
            named = dict(message.properties.UserProperty)
            return int(named["status"]), message.properties.ContentType, named, message.payload

        yield send


def binary_request():
    tensor = {
        "name": "image",
        "datatype": "FP32",
        "shape": [1, 1, 28, 28],
        "parameters": {"binary_data_size": IMAGE.nbytes},
    }
    text = msgspec.json.encode({"id": "7", "inputs": [tensor], "parameters": {"binary_data_output": True}})
    return text + IMAGE.tobytes(), len(text)


def json_request():
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": IMAGE.ravel().tolist()}
    return msgspec.json.encode({"inputs": [tensor]})


def test_json_and_binary_requests_get_what_http_would_give(make_bundle, broker, ask):
    with edgeops_runtime.load(make_bundle("1.0.0").path) as model:
        expected = model.loaded.quietly({"image": IMAGE})["logits"]
        protocols = Protocols(Repository(Served(model.loaded)))
        requests = open_mqtt(f"mqtt://127.0.0.1:{broker}/plant", protocols, protocols.metrics)
        assert requests.wait_ready(WAIT_S)
        status, kind, _, body = ask("plant/v2/models/digits/infer", json_request(), expiry=60)
        answer = msgspec.json.decode(body)
        assert (status, kind, answer["model_version"]) == (200, "application/json", "1.0.0")
        np.testing.assert_array_equal(np.float32(answer["outputs"][0]["data"]), expected[0])
        body, length = binary_request()
        status, kind, named, body = ask("plant/v2/models/digits/versions/1.0.0/infer", body, length=length)
        assert (status, kind) == (200, "application/octet-stream")
        start = int(named["inference-header-content-length"])
        assert msgspec.json.decode(body[:start])["id"] == "7"
        np.testing.assert_array_equal(np.frombuffer(body[start:], np.float32), expected[0])
        status, kind, _, body = ask("plant/v2/models/other/infer", json_request())
        assert (status, kind) == (404, "application/json")
        assert "there is digits version 1.0.0" in msgspec.json.decode(body)["error"]
        assert ask("plant/v2/models/digits/infer", b"{")[0] == 400
        requests.close()
        until = time.monotonic() + 60
        while requests.tally.answered < 4:  # An answer reaches its caller a moment before it is counted.
            assert time.monotonic() < until
            time.sleep(0.01)
        assert requests.tally.answered == 4
        assert model.counters().requests == 2
        text = protocols(Request(b"GET", b"/metrics", {}, b"", keep_alive=True)).body[0].decode()
        assert "\nedgeops_mqtt_answered_total 4\n" in text


def test_a_worker_answers_over_mqtt_while_it_serves(make_bundle, start_worker, broker, ask, monkeypatch):
    monkeypatch.setenv(MQTT_VARIABLE, f"mqtt://127.0.0.1:{broker}/plant")
    one, two = start_worker(make_bundle("1.0.0")), start_worker(make_bundle("1.1.0"))
    topic = "plant/v2/models/digits/infer"
    for serving, paused in ((one, None), (two, one), (one, two)):
        assert isinstance(serving.ask(Serve()), Serving)
        if paused is not None:
            assert isinstance(paused.ask(Pause()), Paused)
        wanted = "1.0.0" if serving is one else "1.1.0"
        for _ in range(100):  # Until the broker has heard of both.
            status, _, _, body = ask(topic, json_request())
            assert status == 200
            if msgspec.json.decode(body)["model_version"] == wanted:
                break
        else:
            pytest.fail(f"{wanted} never answered")


@pytest.mark.slow  # A worker waits for its broker for a few seconds only.
def test_a_swap_of_workers_loses_no_request_and_answers_none_twice(make_bundle, start_worker, broker, monkeypatch):
    monkeypatch.setenv(MQTT_VARIABLE, f"mqtt://127.0.0.1:{broker}/plant")
    one, two = start_worker(make_bundle("1.0.0")), start_worker(make_bundle("1.1.0"))
    answers = queue.Queue()
    body, stop, sent = json_request(), threading.Event(), itertools.count()
    with connected(broker, answers) as client:
        assert isinstance(one.ask(Serve()), Serving)

        def ask_for_ever():
            while not stop.wait(0.002):
                publish(client, "plant/v2/models/digits/infer", body, next(sent))

        asking = threading.Thread(target=ask_for_ever)
        asking.start()
        for serving, paused in ((two, one), (one, two)):
            assert isinstance(serving.ask(Serve()), Serving)
            assert isinstance(paused.ask(Pause()), Paused)
        stop.set()
        asking.join()
        count = next(sent)
        got = [answers.get(timeout=WAIT_S) for _ in range(count)]
    assert {dict(message.properties.UserProperty)["status"] for message in got} <= {"200", "503"}
    assert sorted(int.from_bytes(message.properties.CorrelationData) for message in got) == list(range(count))
    assert answers.empty()
