"""Fakes at the project's own seams, public so that users test with the same ones."""

import threading
from collections.abc import Callable

from edgeops.errors import LinkError
from edgeops.link import Handler, Received, Will


class MemoryBroker:
    """A broker in memory: wildcards, retained messages, wills. Deliveries run on the publisher's thread."""

    def __init__(self) -> None:
        self.retained: dict[str, bytes] = {}
        self.reachable = True
        self._links: list[MemoryLink] = []
        self._lock = threading.RLock()

    def link(self) -> "MemoryLink":
        """A new client."""
        return MemoryLink(self)

    def cut(self) -> None:
        """Break every connection, as a power cut would: wills are published, clients stay closed until :meth:`mend`."""
        with self._lock:
            self.reachable = False
            links, self._links = self._links, []
        wills = [link.lose() for link in links]
        for will in filter(None, wills):
            self.deliver(will.topic, will.payload, retain=False)

    def mend(self, *links: "MemoryLink") -> None:
        """Accept connections again, and reconnect these."""
        self.reachable = True
        for link in links:
            link.reconnect()

    def attach(self, link: "MemoryLink") -> None:
        """A client comes; it is sent the retained messages that it subscribes to."""
        with self._lock:
            self._links.append(link)
            retained = list(self.retained.items())
        for topic, payload in retained:
            link.receive(Received(topic, payload, retained=True))

    def detach(self, link: "MemoryLink") -> None:
        """A client goes."""
        with self._lock:
            self._links = [other for other in self._links if other is not link]

    def deliver(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Send a message to all who subscribe to it; an empty retained payload clears."""
        with self._lock:
            if retain and payload:
                self.retained[topic] = payload
            elif retain:
                self.retained.pop(topic, None)
            links = list(self._links)
        for link in links:
            link.receive(Received(topic, payload, retained=False))


class MemoryLink:
    """A :class:`edgeops.link.Link` to a :class:`MemoryBroker`."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._handlers: dict[str, Handler] = {}
        self._will_factory: Callable[[], Will] | None = None
        self._will: Will | None = None
        self._on_connect: Callable[[], None] | None = None
        self._connected = False

    @property
    def connected(self) -> bool:
        """Whether the broker is reachable right now."""
        return self._connected

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Receive what matches."""
        self._handlers[topic_filter] = handler
        if self._connected:
            for topic, payload in list(self._broker.retained.items()):
                if topic_matches(topic_filter, topic):
                    handler(Received(topic, payload, retained=True))

    def open(self, *, will: Callable[[], Will] | None = None, on_connect: Callable[[], None] | None = None) -> None:
        """Connect, when the broker is reachable; otherwise at :meth:`MemoryBroker.mend`."""
        self._will_factory, self._on_connect = will, on_connect
        self.reconnect()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Deliver at once.

        Raises:
            LinkError: There is no connection.
        """
        if not self._connected:
            raise LinkError("memory broker: not connected")
        self._broker.deliver(topic, payload, retain=retain)

    def close(self) -> None:
        """Leave without a will."""
        self._connected = False
        self._broker.detach(self)

    def reconnect(self) -> None:
        """Connect now, when the broker is reachable."""
        if self._connected or not self._broker.reachable:
            return
        self._will = self._will_factory() if self._will_factory else None
        self._connected = True
        self._broker.attach(self)
        if self._on_connect is not None:
            self._on_connect()

    def lose(self) -> Will | None:
        """The connection breaks; returns the will."""
        self._connected = False
        return self._will

    def receive(self, message: Received) -> None:
        """The broker has something."""
        for topic_filter, handler in list(self._handlers.items()):
            if topic_matches(topic_filter, message.topic):
                handler(message)


def topic_matches(topic_filter: str, topic: str) -> bool:
    """Whether a topic is selected by a filter with ``+`` and ``#``.

    >>> topic_matches("a/+/c", "a/b/c"), topic_matches("a/#", "a/b/c"), topic_matches("a/+", "a/b/c")
    (True, True, False)
    """
    wanted, levels = topic_filter.split("/"), topic.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(levels) or level not in {"+", levels[index]}:
            return False
    return len(wanted) == len(levels)
