"""The seam to a message broker: publish, subscribe, know whether one is connected.

Implementations: :class:`edgeops.mqtt.MqttLink` for real brokers, :class:`edgeops.testing.MemoryLink` for tests. A link delivers
at least once and may deliver twice; what must not be lost is acknowledged by its receiver (:class:`edgeops.messages.Ack`).
"""

from collections.abc import Callable
from typing import Protocol

import msgspec


class Will(msgspec.Struct, frozen=True):
    """What the broker publishes when the connection ends without a goodbye."""

    topic: str
    payload: bytes


class Received(msgspec.Struct, frozen=True):
    """A message that arrived."""

    topic: str
    payload: bytes
    retained: bool
    """Whether it was stored by the broker before we subscribed."""


Handler = Callable[[Received], None]


class Link(Protocol):
    """A connection to a broker that is made, kept and restored in the background.

    Callbacks run on the link's own thread: they hand over and return, and must not raise.
    """

    @property
    def connected(self) -> bool:
        """Whether the broker is reachable right now."""

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Receive what matches (``+`` and ``#``); holds over reconnections. Call before :meth:`open`, or later."""

    def open(self, *, will: Callable[[], Will] | None = None, on_connect: Callable[[], None] | None = None) -> None:
        """Start connecting; returns at once, and goes on trying until :meth:`close`.

        Args:
            will: Asked before every attempt, so that each session has its own.
            on_connect: Called after every successful connection, once subscriptions stand.
        """

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Hand a message to the broker, at least once.

        Raises:
            LinkError: There is no connection, or too much is under way; keep the message and try later.
        """

    def close(self) -> None:
        """End the connection in good order (no will) and stop trying; may be called twice."""
