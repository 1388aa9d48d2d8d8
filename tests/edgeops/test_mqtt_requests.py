"""Requests over MQTT 5, over mosquitto and the embedded broker with a listener for MQTT 5."""

import queue
import socket
import threading
import time

import paho.mqtt.client as paho
import pytest
from iotcore import Broker
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgeops.errors import ConfigError
from edgeops.mqtt_requests import Answered, BrokerUrl, MqttRequests, parse_broker_url

WAIT_S = 30
OVERLOAD = Answered(b"busy", "text/plain", [("status", "503")])
_RUMQTTD = """
id = 0
[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 1048576
max_segment_count = 10
[v5.1]
name = "v5"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 65536
max_inflight_count = 100
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(params=["mosquitto", "iotcore"])
def port(request, tmp_path):
    if request.param == "mosquitto":
        yield request.getfixturevalue("start_mosquitto")()
        return
    port = free_port()
    config = tmp_path / "broker.toml"
    config.write_text(_RUMQTTD.format(port=port))
    with Broker(config_path=str(config)):
        yield port


class Caller:
    """Asks, and collects what comes back."""

    def __init__(self, port):
        self.answers = queue.Queue()
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_message = lambda _client, _data, message: self.answers.put(message)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_connect = lambda client, *_: client.subscribe("back/+", qos=1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(WAIT_S)

    def ask(self, payload, *, topic="plant/v2/models/x/infer", back="back/1", retain=False, **properties):
        sent = Properties(PacketTypes.PUBLISH)
        if back:
            sent.ResponseTopic = back
        for name, value in properties.items():
            setattr(sent, name, value)
        self._client.publish(topic, payload, qos=1, retain=retain, properties=sent).wait_for_publish(WAIT_S)

    def answer(self):
        return self.answers.get(timeout=WAIT_S)

    def close(self):
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def caller(port):
    made = Caller(port)
    yield made
    made.close()


@pytest.fixture
def answering(port):
    """A factory of answerers, closed with the test."""
    made = []

    def make(answer, **more):
        requests = MqttRequests(
            BrokerUrl("127.0.0.1", port, "plant"), ["v2/models/+/infer"], answer, overload=OVERLOAD, **more
        )
        made.append(requests)
        requests.open()
        assert requests.wait_ready(WAIT_S)
        return requests

    yield make
    for requests in made:
        requests.close()


def counted(holds):
    """An answer reaches its caller a moment before it is counted."""
    until = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < until
        threading.Event().wait(0.01)


def test_a_request_is_answered_where_it_asked_with_what_it_sent(caller, answering):
    asked = []

    def answer(request):
        asked.append(request)
        return Answered(b"<" + request.payload + b">", "text/x", [("status", "200")])

    requests = answering(answer)
    caller.ask(
        b"one",
        CorrelationData=b"\x00\xff",
        ContentType="text/y",
        UserProperty=[("Length", "3")],
        MessageExpiryInterval=60,
    )
    message = caller.answer()
    assert (message.topic, message.payload, message.retain) == ("back/1", b"<one>", False)
    assert message.properties.CorrelationData == b"\x00\xff"
    assert (message.properties.ContentType, message.properties.UserProperty) == ("text/x", [("status", "200")])
    assert 0 < message.properties.MessageExpiryInterval <= 60
    (one,) = asked
    assert (one.topic, one.payload, one.content_type, one.properties) == (
        "v2/models/x/infer",
        b"one",
        "text/y",
        {"length": "3"},
    )
    assert one.deadline is not None
    caller.ask(b"two")
    message = caller.answer()
    assert (message.payload, hasattr(message.properties, "CorrelationData")) == (b"<two>", False)
    assert asked[1].deadline is None
    counted(lambda: requests.tally.answered == 2)


def test_requests_without_a_way_back_and_retained_ones_are_dropped(caller, answering):
    asked = []
    caller.ask(b"retained", retain=True)
    requests = answering(lambda request: asked.append(request.payload) or Answered(b"yes"))
    caller.ask(b"nowhere", back="")
    caller.ask(b"control", back="edgeops/v1/f/group/g/desired")
    caller.ask(b"broker", back="$SYS/broker")
    caller.ask(b"good")
    assert caller.answer().payload == b"yes"
    assert asked == [b"good"]
    counted(lambda: (requests.tally.unanswerable, requests.tally.answered) == (3, 1))
    caller.ask(b"", retain=True)


def test_more_requests_than_may_wait_are_told_so_at_once_and_late_ones_are_dropped(caller, answering):
    is_asked, go_on = threading.Event(), threading.Event()

    def answer(request):
        is_asked.set()
        assert go_on.wait(WAIT_S)
        return Answered(request.payload)

    requests = answering(answer, workers=1, max_waiting=2)
    caller.ask(b"running")
    assert is_asked.wait(WAIT_S)
    caller.ask(b"late", MessageExpiryInterval=3)
    caller.ask(b"waiting")
    caller.ask(b"too many", CorrelationData=b"4")
    refused = caller.answer()
    assert (refused.payload, refused.properties.CorrelationData) == (b"busy", b"4")
    assert requests.waiting == 2
    threading.Event().wait(3.1)  # Whole seconds are all that MQTT has.
    go_on.set()
    assert [caller.answer().payload, caller.answer().payload] == [b"running", b"waiting"]
    tally = requests.tally
    counted(lambda: (tally.answered, tally.late, tally.refused) == (2, 1, 1))


def test_several_are_answered_at_a_time(caller, answering):
    together = threading.Barrier(3)
    answering(lambda request: Answered(request.payload + str(together.wait(WAIT_S) >= 0).encode()), workers=3)
    for number in range(3):
        caller.ask(b"%d" % number)
    assert {caller.answer().payload for _ in range(3)} == {b"0True", b"1True", b"2True"}


def test_processes_of_a_share_divide_the_requests(caller, answering):
    asked = []
    for name in ("a", "b"):
        answering(lambda request, name=name: asked.append(name) or Answered(request.payload), share="edgeops")
    for number in range(10):
        caller.ask(b"%d" % number)
    assert {caller.answer().payload for _ in range(10)} == {b"%d" % number for number in range(10)}
    assert len(asked) == 10


def test_what_waits_is_answered_before_the_goodbye(caller, answering):
    go_on, is_asked = threading.Event(), threading.Event()

    def answer(request):
        is_asked.set()
        assert go_on.wait(WAIT_S)
        return Answered(request.payload)

    requests = answering(answer, workers=1)
    caller.ask(b"1")
    assert is_asked.wait(WAIT_S)
    closing = threading.Thread(target=requests.close)
    closing.start()
    go_on.set()
    assert caller.answer().payload == b"1"
    closing.join(WAIT_S)
    assert not closing.is_alive()
    requests.close()


def test_it_tries_again_when_the_connection_is_lost():
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    listening.listen()
    requests = MqttRequests(
        BrokerUrl("127.0.0.1", port, "plant"), ["x"], lambda _: Answered(b""), overload=OVERLOAD, max_backoff_s=0.05
    )
    requests.open()
    try:
        for _ in range(2):
            connection, _ = listening.accept()
            connection.recv(1)
            connection.close()
        assert not requests.wait_ready(0)
    finally:
        listening.close()
        requests.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:1883/x",
        "http://host/x",
        "mqtt:///x",
        "mqtt://host",
        "mqtt://host/",
        "mqtt://host:x/y",
        "mqtt://host:99999/y",
        "mqtt://host/a/+",
        "mqtt://host/a%23",
    ],
)
def test_broker_urls_are_checked(url):
    with pytest.raises(ConfigError, match="expected mqtt://host:port/prefix"):
        parse_broker_url(url)


def test_a_broker_url_may_have_everything_and_keeps_its_password_to_itself():
    broker = parse_broker_url("mqtt://me:p%40ss@broker.local:1884/plant7/line%202/")
    assert broker == BrokerUrl("broker.local", 1884, "plant7/line 2", "me", "p@ss")
    assert "p@ss" not in repr(broker)
    assert parse_broker_url("mqtt://[::1]/x") == BrokerUrl("::1", 1883, "x")
    with pytest.raises(ConfigError) as caught:
        parse_broker_url("mqtt://me:secret@host/")
    assert "secret" not in str(caught.value)
