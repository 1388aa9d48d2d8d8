"""The MQTT link when the broker goes away and comes back."""

import contextlib
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from iotcore import Broker

from edgeops.errors import LinkError
from edgeops.link import Received, Will
from edgeops.mqtt import MqttLink

sys.path.insert(0, str(Path(__file__).parent))  # The folder is no package.

from tcp_proxy import TcpProxy


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


@pytest.fixture
def proxy(port: int) -> Iterator[TcpProxy]:
    """A proxy in front of a real broker."""
    with Broker(port=port, listen="127.0.0.1"), TcpProxy(port) as made:
        yield made


class Device:
    """A link through the proxy, and what it sees."""

    def __init__(self, proxy: TcpProxy, **settings: object) -> None:
        self.link = MqttLink("127.0.0.1", proxy.port, client_id="device", max_backoff_s=0.2, **settings)
        self.connections: queue.Queue[float] = queue.Queue()
        self.inbox: queue.Queue[bytes] = queue.Queue()
        self.link.subscribe("t", self._receive)
        self.fails_once = False

    def __enter__(self) -> Self:
        self.link.open(on_connect=lambda: self.connections.put(time.monotonic()))
        self.connections.get(timeout=30)
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()

    def expect_connection_and_message(self, payload: bytes) -> None:
        """It comes back, and carries again; a message may be lost while it does, as its owner knows."""
        self.connections.get(timeout=60)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(LinkError):
                self.link.publish("t", payload)
            with contextlib.suppress(queue.Empty):
                if self.inbox.get(timeout=1) == payload:
                    return
        raise AssertionError(f"{payload!r} did not come")

    def _receive(self, message: Received) -> None:
        if self.fails_once:
            self.fails_once = False
            raise RuntimeError("a defect of a handler, in the network thread")
        self.inbox.put(message.payload)


def test_network_thread_that_dies_of_an_exception_is_replaced(
    proxy: TcpProxy, caplog: pytest.LogCaptureFixture
) -> None:
    with Device(proxy) as device:
        device.fails_once = True
        device.link.publish("t", b"kills the thread")
        device.expect_connection_and_message(b"alive")
    assert "the network thread ended" in caplog.text


def test_connection_that_breaks_is_made_anew(proxy: TcpProxy) -> None:
    with Device(proxy) as device:
        for payload in (b"first", b"second"):
            proxy.drop()
            device.expect_connection_and_message(payload)


def test_half_open_connection_is_noticed_and_made_anew(proxy: TcpProxy) -> None:
    with Device(proxy, keepalive_s=1) as device:
        proxy.stall()
        device.expect_connection_and_message(b"alive")


def test_broker_that_answers_pings_and_acknowledges_nothing_is_left(proxy: TcpProxy) -> None:
    proxy.swallows_pubacks = True
    with Device(proxy, keepalive_s=1, window=3) as device:
        for number in range(3):
            device.link.publish("t", b"%d" % number)
        with pytest.raises(LinkError, match="3 messages are under way"):
            device.link.publish("t", b"one too many")
        proxy.swallows_pubacks = False
        device.expect_connection_and_message(b"alive")


def test_window_holds_for_publishers_that_come_at_once(proxy: TcpProxy) -> None:
    proxy.swallows_pubacks = True
    with Device(proxy, keepalive_s=60, window=10) as device:
        taken: queue.Queue[int] = queue.Queue()

        def publish() -> None:
            for number in range(20):
                try:
                    device.link.publish("t", b"x")
                except LinkError:
                    return
                taken.put(number)

        threads = [threading.Thread(target=publish) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert taken.qsize() <= 10
        proxy.drop()


def test_pauses_are_drawn_up_to_a_limit_that_doubles(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    limits: queue.Queue[float] = queue.Queue()

    def draw(_low: float, high: float) -> float:
        limits.put(high)
        return 0.0

    monkeypatch.setattr("edgeops.mqtt.random.uniform", draw)
    link = MqttLink("127.0.0.1", port, client_id="device")  # Nobody listens there.
    link.open()
    assert [limits.get(timeout=30) for _ in range(11)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    link.close()
