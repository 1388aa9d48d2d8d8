"""Requests and responses over MQTT 5: receive a request, answer where its sender asked to be answered; paho behind it.

A request is a message with a *response topic*, and perhaps *correlation data* (echoed), a *content type* (told to who answers), a
*message expiry* (after which an answer is of no use) and user properties. What a request means is its answerer's matter.
Nothing is queued in a session while we are away, and nothing is retained: who asks has a deadline of its own. Several processes
may subscribe with the same share: the broker gives each request to one of them.
Telemetry and control are :mod:`edgeops.mqtt`'s matter, which gets along with MQTT 3.1.1.
"""

import contextlib
import logging
import queue
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgeops.errors import ConfigError

logger = logging.getLogger(__name__)

_CONNECT_S = 10.0
_FIRST_BACKOFF_S = 0.5
_GOODBYE_S = 5.0
_NEVER_RETAINED = 2
"""Retain handling: send no retained messages at the subscription."""
_RESERVED = ("$", "edgeops/")
"""Topics that no answer goes to: the broker's own, and those by which a fleet is controlled."""


@dataclass(frozen=True)
class BrokerUrl:
    """``mqtt://[user[:password]@]host[:port]/prefix``: a broker, and the topic below which requests come."""

    host: str
    port: int
    prefix: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)


def parse_broker_url(url: str) -> BrokerUrl:
    """Read the address of a broker with a topic prefix.

    Raises:
        ConfigError: It is none.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 1883
    except ValueError as error:
        raise ConfigError(f"broker: expected mqtt://host:port/prefix: {error}") from error
    prefix = unquote(parts.path).strip("/")
    if parts.scheme != "mqtt" or not parts.hostname or not prefix or set(prefix) & set("+#\0"):
        raise ConfigError(f"broker {parts.scheme}://{parts.hostname}{parts.path}: expected mqtt://host:port/prefix")
    user, password = (None if part is None else unquote(part) for part in (parts.username, parts.password))
    return BrokerUrl(parts.hostname, port, prefix, user, password)


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        topic: Where it came, without the prefix.
        content_type: Of the payload; may be empty.
        properties: User properties, by lower-case name; of several of one name, the last.
        deadline: When an answer is of no use any more, by ``time.perf_counter_ns()``; ``None``: never.
    """

    topic: str
    payload: bytes
    content_type: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)
    deadline: int | None = None


@dataclass(frozen=True)
class Answered:
    """An answer to a request; ``properties`` are sent as user properties."""

    payload: bytes
    content_type: str = ""
    properties: Sequence[tuple[str, str]] = ()
    after: Callable[[], None] | None = None
    """Called when the answer is on its way."""


@dataclass
class Tally:
    """What became of requests since the start.

    Attributes:
        answered: An answer went out.
        late: Dropped, since their time was over before their turn.
        refused: Answered by the ``overload`` answer, since too many waited already.
        unanswerable: Dropped, since they named no topic for the answer, or one that no answer goes to.
        unsent: Answers that found no connection.
    """

    answered: int = 0
    late: int = 0
    refused: int = 0
    unanswerable: int = 0
    unsent: int = 0


@dataclass(frozen=True)
class _Waiting:
    """A request with the way back."""

    asked: Asked
    client: paho.Client
    topic: str
    qos: int
    correlation: bytes | None


class MqttRequests:
    """Answers requests over MQTT 5 until it is closed; the connection is made, kept and restored in the background.

    Args:
        broker: Where, and below which topic.
        topics: What to subscribe to below the prefix; ``+`` stands for one level.
        answer: Answers a request; called on several threads at once, and must not raise.
        overload: The answer where too many requests wait already.
        share: Processes with the same share divide the requests among them.
        workers: How many requests are answered at a time.
        max_waiting: How many may wait beside those.
        max_backoff_s: Longest pause between two attempts to connect, in seconds.
    """

    def __init__(
        self,
        broker: BrokerUrl,
        topics: Sequence[str],
        answer: Callable[[Asked], Answered],
        *,
        overload: Answered,
        share: str = "",
        workers: int = 4,
        max_waiting: int = 64,
        max_backoff_s: float = 60.0,
    ) -> None:
        self.broker = broker
        shared = f"$share/{share}/" if share else ""
        self._filters = [f"{shared}{broker.prefix}/{topic}" for topic in topics]
        self._answer, self._overload = answer, overload
        self._waiting: queue.Queue[_Waiting | None] = queue.Queue()
        self._max_waiting = max_waiting
        self._backoff_s, self._max_backoff_s = _FIRST_BACKOFF_S, max_backoff_s
        self._tally = Tally()
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._lost = threading.Event()
        self._closing = threading.Event()
        self._unsubscribed = threading.Event()
        self._is_complete = threading.Event()
        self._own_topic = f"{broker.prefix}/goodbye/{uuid.uuid4().hex}"
        self._changed = threading.Condition()
        self._unacknowledged = 0
        self._workers = [
            threading.Thread(target=self._work, name=f"mqtt request {number}", daemon=True) for number in range(workers)
        ]
        self._keeper = threading.Thread(target=self._keep_connected, name="mqtt requests", daemon=True)

    @property
    def tally(self) -> Tally:
        """A copy of what was counted."""
        with self._lock:
            now = self._tally
            return Tally(now.answered, now.late, now.refused, now.unanswerable, now.unsent)

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
        return self._waiting.qsize()

    def open(self) -> None:
        """Start connecting; returns at once."""
        for thread in (*self._workers, self._keeper):
            thread.start()

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until requests are received; whether they are."""
        return self._ready.wait(timeout_s)

    def close(self) -> None:
        """Take no more requests, answer those that wait, say goodbye; may be called twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._lost.set()
        if self._keeper.is_alive():
            self._keeper.join(timeout=2 * _CONNECT_S)

    def _keep_connected(self) -> None:
        while True:
            self._lost.clear()
            if self._closing.is_set():
                return
            client = self._new_client()
            try:
                client.connect(self.broker.host, self.broker.port, keepalive=30, clean_start=True)
                client.loop_start()
                if not self._lost.wait(_CONNECT_S) and self._ready.is_set():
                    self._lost.wait()
            except (OSError, ValueError) as error:
                logger.debug("%s:%s: %s", self.broker.host, self.broker.port, error)
            finally:
                self._end(client)
            # Full jitter, after "Exponential backoff and jitter" (Brooker, 2015).
            self._closing.wait(random.uniform(0, self._backoff_s))  # noqa: S311 - not a secret
            self._backoff_s = min(self._backoff_s * 2, self._max_backoff_s)

    def _new_client(self) -> paho.Client:
        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5, reconnect_on_failure=False)
        if self.broker.username is not None:
            client.username_pw_set(self.broker.username, self.broker.password)
        client.on_connect = self._connection_made
        client.on_subscribe = self._subscribed
        client.on_publish = self._acknowledged
        client.on_unsubscribe = lambda *_: self._unsubscribed.set()
        client.on_disconnect = self._connection_lost
        client.on_message = self._received
        return client

    def _end(self, client: paho.Client) -> None:
        """Leave; when that is for good, after what waits was answered."""
        if self._closing.is_set():
            if self._ready.is_set():
                self._take_the_rest(client)
            for _ in self._workers:
                self._waiting.put(None)
            for worker in self._workers:
                worker.join(timeout=_CONNECT_S)
            with self._changed:
                self._changed.wait_for(lambda: self._unacknowledged <= 0 or not self._ready.is_set(), _GOODBYE_S)
        self._ready.clear()
        with contextlib.suppress(OSError, ValueError):
            client.disconnect()
        client.loop_stop()
        with self._changed:
            self._unacknowledged = 0

    def _take_the_rest(self, client: paho.Client) -> None:
        """Receive what the broker had for us when it let go of the subscriptions.

        It may send that after it has said so, as far as it sends only so many messages at a time. But it keeps the order, so a
        message to ourselves comes when everything else has come.
        """
        with contextlib.suppress(OSError, ValueError):
            client.unsubscribe(self._filters)
            if self._unsubscribed.wait(_GOODBYE_S):
                client.publish(self._own_topic, qos=1)
                with self._changed:
                    self._unacknowledged += 1
                self._is_complete.wait(_GOODBYE_S)

    def _connection_made(
        self, client: paho.Client, _userdata: object, _flags: object, code: ReasonCode, _properties: object
    ) -> None:
        if code.is_failure:
            logger.warning("%s:%s refused the connection: %s", self.broker.host, self.broker.port, code)
            self._lost.set()
            return
        options = SubscribeOptions(qos=1, retainHandling=_NEVER_RETAINED)
        client.subscribe([(topic, options) for topic in (*self._filters, self._own_topic)])

    def _subscribed(
        self, _client: paho.Client, _userdata: object, _mid: int, codes: list[ReasonCode], _properties: object
    ) -> None:
        # Without our own topic, which a broker may not allow, only the goodbye is worse.
        if any(code.is_failure for code in codes[: len(self._filters)]):
            logger.warning("%s:%s refused a subscription: %s", self.broker.host, self.broker.port, codes[0])
            self._lost.set()
            return
        self._backoff_s = _FIRST_BACKOFF_S
        self._ready.set()

    def _connection_lost(self, *_details: object) -> None:
        self._ready.clear()
        self._lost.set()
        with self._changed:
            self._changed.notify_all()

    def _acknowledged(self, *_details: object) -> None:
        """The broker has an answer, or it is on its way where none is to be acknowledged."""
        with self._changed:
            self._unacknowledged -= 1
            self._changed.notify_all()

    def _received(self, client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        if message.topic == self._own_topic:
            self._is_complete.set()
            return
        if message.retain:
            return  # A retained request would be asked again after every reconnection.
        properties = message.properties
        topic = getattr(properties, "ResponseTopic", "")
        if not topic or set(topic) & set("+#\0") or topic.startswith(_RESERVED):
            self._count("unanswerable")
            return
        expiry_s = getattr(properties, "MessageExpiryInterval", None)
        asked = Asked(
            topic=message.topic.removeprefix(f"{self.broker.prefix}/"),
            payload=bytes(message.payload),
            content_type=getattr(properties, "ContentType", ""),
            properties={name.lower(): value for name, value in getattr(properties, "UserProperty", ())},
            deadline=None if expiry_s is None else time.perf_counter_ns() + int(expiry_s) * 1_000_000_000,
        )
        waiting = _Waiting(asked, client, topic, message.qos, getattr(properties, "CorrelationData", None))
        # Its only producer is this thread, so that the bound holds without a lock.
        if self._waiting.qsize() >= self._max_waiting:
            self._count("refused")
            self._publish(waiting, self._overload)
            return
        self._waiting.put(waiting)

    def _work(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            if self._is_late(waiting.asked):
                self._count("late")
                continue
            answered = self._answer(waiting.asked)
            if self._is_late(waiting.asked):
                self._count("late")
            else:
                self._count("answered" if self._publish(waiting, answered) else "unsent")
            if answered.after is not None:
                answered.after()

    def _publish(self, waiting: _Waiting, answered: Answered) -> bool:
        properties = cast("Any", Properties)(PacketTypes.PUBLISH)
        if waiting.correlation is not None:
            properties.CorrelationData = waiting.correlation
        if answered.content_type:
            properties.ContentType = answered.content_type
        if answered.properties:
            properties.UserProperty = list(answered.properties)
        if waiting.asked.deadline is not None:
            left_s = (waiting.asked.deadline - time.perf_counter_ns()) // 1_000_000_000
            properties.MessageExpiryInterval = max(left_s, 1)
        try:
            info = waiting.client.publish(waiting.topic, answered.payload, qos=waiting.qos, properties=properties)
        except (ValueError, OSError) as error:
            logger.debug("answer to %s: %s", waiting.topic, error)
            return False
        if info.rc != paho.MQTT_ERR_SUCCESS:
            return False
        with self._changed:
            self._unacknowledged += 1
        return True

    def _count(self, what: str) -> None:
        with self._lock:
            setattr(self._tally, what, getattr(self._tally, what) + 1)

    @staticmethod
    def _is_late(asked: Asked) -> bool:
        return asked.deadline is not None and time.perf_counter_ns() >= asked.deadline
