"""The MQTT link when the broker goes away and comes back."""

import queue
import socket
import threading
import time

import pytest
from iotcore import Broker

from edgeops.errors import LinkError
from edgeops.link import Received, Will
from edgeops.mqtt import MqttLink


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_link_waits_for_a_broker_that_starts_later_and_finds_it_again_after_a_restart(port: int) -> None:
    link = MqttLink("127.0.0.1", port, client_id="device", max_backoff_s=0.3)
    inbox: queue.Queue[Received] = queue.Queue()
    connections: queue.Queue[float] = queue.Queue()
    link.subscribe("t", inbox.put)
    link.open(on_connect=lambda: connections.put(time.monotonic()))
    try:
        with pytest.raises(LinkError):
            link.publish("t", b"lost")
        for payload in (b"first", b"second"):
            with Broker(port=port, listen="127.0.0.1"):
                connections.get(timeout=15)
                link.publish("t", payload)
                assert inbox.get(timeout=10).payload == payload
    finally:
        link.close()


def test_will_is_asked_for_anew_at_each_session_and_published_when_the_connection_breaks(port: int) -> None:
    sessions: list[int] = []

    def will() -> Will:
        sessions.append(len(sessions) + 1)
        return Will("death", b"%d" % len(sessions))

    with Broker(port=port, listen="127.0.0.1"):
        watcher = MqttLink("127.0.0.1", port, client_id="watcher")
        inbox: queue.Queue[Received] = queue.Queue()
        ready = threading.Event()
        watcher.subscribe("death", inbox.put)
        watcher.open(on_connect=ready.set)
        assert ready.wait(10)
        connected = threading.Event()
        device = MqttLink("127.0.0.1", port, client_id="device", max_backoff_s=0.2)
        device.open(will=will, on_connect=connected.set)
        assert connected.wait(10)
        connected.clear()
        # A second client with the same id makes the broker drop the first, as a half-open connection would.
        device._client.socket().shutdown(socket.SHUT_RDWR)
        assert inbox.get(timeout=15).payload == b"1"
        assert connected.wait(15)
        assert sessions == [1, 2]
        device.close()
        watcher.close()
