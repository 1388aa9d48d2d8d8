"""The MQTT link: paho behind :class:`edgeops.link.Link`; the only module that knows paho.

MQTT 3.1.1, which every broker speaks; nothing here depends on a property of MQTT 5. Reconnection is ours, with full jitter, so
that a fleet does not come back in one instant, and so that each session has its own will. Each connection has a paho client of
its own, which is thrown away when it breaks, when its thread ends for whatever reason, or when the broker no longer acknowledges.
What was handed to it and was not acknowledged is forgotten: records that matter stay in their owner's outbox.
"""

import contextlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from edgeops.errors import LinkError
from edgeops.link import Handler, Received, Will

logger = logging.getLogger(__name__)

_WINDOW = 64
"""Messages handed to paho and not yet acknowledged by the broker; more are refused."""
_LOOK_S = 0.5
_CONNECT_S = 10.0
_SILENT_KEEPALIVES = 2


class MqttLink:
    """A link over MQTT.

    Args:
        host: Broker host name or address.
        port: Broker port.
        client_id: Unique for each client of the broker.
        username: For brokers that ask; likewise ``password``.
        keepalive_s: Silence after which the broker may publish the will, in seconds. A message that it has not acknowledged
            after twice this time ends the connection, though it may still answer pings.
        min_backoff_s: The pause between two attempts to connect is drawn between 0 and this, in seconds; doubled each time.
        max_backoff_s: Up to this, in seconds.
        window: Messages that may be under way; more are refused.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        client_id: str,
        username: str | None = None,
        password: str | None = None,
        keepalive_s: int = 30,
        min_backoff_s: float = 1.0,
        max_backoff_s: float = 300.0,
        window: int = _WINDOW,
    ) -> None:
        self._host, self._port = host, port
        self._client_id = client_id
        self._credentials = (username, password)
        self._keepalive_s = keepalive_s
        self._min_backoff_s, self._max_backoff_s = min(min_backoff_s, max_backoff_s), max_backoff_s
        self._window = window
        self._handlers: dict[str, Handler] = {}
        self._client: paho.Client | None = None
        self._connected = threading.Event()
        self._lost = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._in_flight: deque[tuple[float, paho.MQTTMessageInfo]] = deque()
        self._being_handed = 0
        self._lock = threading.Lock()
        self._will: Callable[[], Will] | None = None
        self._on_connect: Callable[[], None] | None = None

    @property
    def connected(self) -> bool:
        """Whether the broker is reachable right now."""
        return self._connected.is_set()

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Receive what matches; holds over reconnections."""
        with self._lock:
            self._handlers[topic_filter] = handler
            client = self._client if self.connected else None
        if client is not None:
            client.subscribe(topic_filter, qos=1)

    def open(self, *, will: Callable[[], Will] | None = None, on_connect: Callable[[], None] | None = None) -> None:
        """Start connecting in the background."""
        if self._thread is not None:
            raise LinkError("this link was opened already")
        self._will, self._on_connect = will, on_connect
        self._thread = threading.Thread(target=self._keep_connected, name=f"mqtt {self._client_id}", daemon=True)
        self._thread.start()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Hand a message to the broker with QoS 1.

        Raises:
            LinkError: There is no connection, or the window is full.
        """
        with self._lock:
            client = self._client
            if client is None or not self.connected:
                raise LinkError(f"{self._host}:{self._port}: not connected")
            if self._prune() + self._being_handed >= self._window:
                raise LinkError(f"{self._host}:{self._port}: {self._window} messages are under way already")
            self._being_handed += 1
        try:
            # Not under our lock: paho calls back while it holds its own, and waits for ours.
            info = client.publish(topic, payload, qos=1, retain=retain)
        except ValueError as error:
            raise LinkError(f"{self._host}:{self._port}: {topic}: {error}") from error
        finally:
            with self._lock:
                self._being_handed -= 1
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise LinkError(f"{self._host}:{self._port}: {paho.error_string(info.rc)}")
        with self._lock:
            if client is self._client:
                self._in_flight.append((time.monotonic(), info))

    def close(self) -> None:
        """Say goodbye and stop; what was published before is flushed for at most two seconds."""
        if self._thread is None or self._closing.is_set():
            return
        self._drain(timeout_s=2.0)
        self._closing.set()
        self._lost.set()
        self._thread.join(timeout=10)

    def _drain(self, timeout_s: float) -> None:
        waiter = threading.Event()
        for _ in range(int(timeout_s / 0.02)):
            if not self._count_in_flight() or not self.connected:
                return
            waiter.wait(0.02)

    def _count_in_flight(self) -> int:
        with self._lock:
            return self._prune()

    def _prune(self) -> int:
        self._in_flight = deque(entry for entry in self._in_flight if not entry[1].is_published())
        return len(self._in_flight)

    def _keep_connected(self) -> None:
        backoff_s = self._min_backoff_s
        while not self._closing.is_set():
            began = time.monotonic()
            self._live_once()
            # A connection that did not last as long as the pause before it is no reason to hurry.
            lasted = time.monotonic() - began > backoff_s + _CONNECT_S
            backoff_s = self._min_backoff_s if lasted else backoff_s
            # Full jitter, after "Exponential backoff and jitter" (Brooker, 2015).
            self._closing.wait(random.uniform(0, backoff_s))  # noqa: S311 - not a secret
            backoff_s = min(backoff_s * 2, self._max_backoff_s)

    def _live_once(self) -> None:
        """One client, from its connection to its end."""
        self._lost.clear()
        client = self._new_client()
        try:
            client.connect(self._host, self._port, keepalive=self._keepalive_s)
            client.loop_start()
            if not self._connected_within(_CONNECT_S):
                return
            while not self._lost.wait(_LOOK_S):
                if self._is_stuck():
                    logger.warning("%s:%s acknowledges nothing any more; connecting anew", self._host, self._port)
                    return
        except (OSError, ValueError) as error:
            logger.debug("%s:%s: %s", self._host, self._port, error)
        finally:
            self._end(client)

    def _is_stuck(self) -> bool:
        """Whether the broker owes an answer for too long."""
        with self._lock:
            self._prune()
            oldest = self._in_flight[0][0] if self._in_flight else None
        return oldest is not None and time.monotonic() - oldest > _SILENT_KEEPALIVES * self._keepalive_s

    def _connected_within(self, timeout_s: float) -> bool:
        waiter = threading.Event()
        for _ in range(int(timeout_s / 0.02)):
            if self.connected:
                return True
            if self._lost.is_set():
                return False
            waiter.wait(0.02)
        return False

    def _new_client(self) -> paho.Client:
        client = _Client(self._client_id, on_end=self._lost.set)
        client.max_inflight_messages_set(self._window)
        username, password = self._credentials
        if username is not None:
            client.username_pw_set(username, password)
        if self._will is not None:
            will = self._will()
            client.will_set(will.topic, will.payload, qos=1)
        client.on_connect = self._connection_made
        client.on_disconnect = self._connection_lost
        client.on_message = self._received
        return client

    def _end(self, client: paho.Client) -> None:
        with contextlib.suppress(OSError, ValueError):
            client.disconnect()
        client.loop_stop()
        with self._lock:
            self._connected.clear()
            self._client = None
            self._in_flight.clear()

    def _connection_made(
        self, client: paho.Client, _userdata: object, _flags: object, code: ReasonCode, _properties: object
    ) -> None:
        if code.is_failure:
            logger.warning("%s:%s refused the connection: %s", self._host, self._port, code)
            self._lost.set()
            return
        with self._lock:
            self._client = client
            filters = [(topic_filter, 1) for topic_filter in self._handlers]
            self._connected.set()
        if filters:
            client.subscribe(filters)
        if self._on_connect is not None:
            self._on_connect()

    def _connection_lost(self, *_details: object) -> None:
        self._connected.clear()
        self._lost.set()

    def _received(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        with self._lock:
            handlers = [
                handler
                for topic_filter, handler in self._handlers.items()
                if paho.topic_matches_sub(topic_filter, message.topic)
            ]
        for handler in handlers:
            handler(Received(message.topic, bytes(message.payload), bool(message.retain)))


class _Client(paho.Client):
    """A paho client that tells when its thread ends; by itself it says nothing of an exception there.

    Args:
        client_id: Of the client.
        on_end: Called by the thread, last of all.
    """

    def __init__(self, client_id: str, *, on_end: Callable[[], None]) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv311, reconnect_on_failure=False
        )
        self._on_end = on_end

    def loop_forever(self, timeout: float = 1.0, retry_first_connection: bool = False) -> MQTTErrorCode:  # noqa: FBT002 - paho's
        """As paho's, and no exception leaves it: there would be nobody to see it."""
        try:
            return super().loop_forever(timeout, retry_first_connection)
        except Exception:
            logger.exception("mqtt: the network thread ended; connecting anew")
            return paho.MQTT_ERR_UNKNOWN
        finally:
            self._on_end()
