"""What the device tells the server: that it is there and how it is (birth), the records of its outbox, that it goes (death).

What is in a record is the part of :mod:`edgeops_runtime.journal`, which goes when of :mod:`edgeops_runtime.sender`. Nobody
acknowledges a birth, and a server that has just started may not listen yet when its devices are back already; so each connection
is followed by a second and a third birth soon, and by one every few minutes.
"""

import contextlib
import logging
from collections.abc import Callable

from edgeops.errors import LinkError
from edgeops.link import Link, Will
from edgeops.messages import Birth, Death, encode_json
from edgeops.topics import Topics, Upstream
from edgeops_runtime.loop import Loop, Timer
from edgeops_runtime.outbox import Outbox, Stream
from edgeops_runtime.sender import Sender

logger = logging.getLogger(__name__)

_PUMP_S = 0.05
_RESEND_LOOK_S = 1.0
_BIRTHS_AFTER_S = (3.0, 12.0)
"""Pauses between the births after a connection; then comes :data:`_BIRTH_EVERY_S`."""
_BIRTH_EVERY_S = 300.0


class Uplink:
    """The way up; everything but :meth:`connected` and :meth:`next_will` happens in the loop's thread.

    Args:
        loop: For what is done soon, or again.
        uptime: Monotonic time in seconds.
        link: To the broker; opened by the agent, ended by :meth:`close`.
        topics: Of the fleet.
        device: The id of this device.
        boot: How many times the agent had started.
        outbox: The records.
        describe: The state of the device in a session, when a birth is due.
    """

    def __init__(
        self,
        *,
        loop: Loop,
        uptime: Callable[[], float],
        link: Link,
        topics: Topics,
        device: str,
        boot: int,
        outbox: Outbox,
        describe: Callable[[int], Birth],
    ) -> None:
        self._loop, self._uptime, self._link = loop, uptime, link
        self._topics, self._device, self._boot = topics, device, boot
        self._describe = describe
        self._outbox = outbox
        self._sender = Sender(outbox, self._publish_record)
        self.session = 0
        """Counts connections."""
        self._is_birth_due = False
        self._pump_at: Timer | None = None
        self._resend_at: Timer | None = None
        self._birth_at: Timer | None = None

    @property
    def is_connected(self) -> bool:
        """Whether the broker is there right now."""
        return self._link.connected

    def next_will(self) -> Will:
        """A new session begins: what the broker says when it breaks. Called by the link's thread."""
        self.session += 1
        return Will(self._topics.upstream(self._device, Upstream.DEATH), encode_json(self._death()))

    def connected(self) -> None:
        """The broker is there again. Called by the link's thread."""
        self._loop.post(self._begin_session)

    def state_changed(self) -> None:
        """A birth is due; several changes at about the same time make one."""
        self._is_birth_due = True
        self.pump_soon()

    def acknowledged(self) -> None:
        """The server has more than before."""
        self._sender.acknowledged()
        self.pump_soon()

    def pump_soon(self) -> None:
        """Send what is new, in a moment, together with what comes until then."""
        if self._pump_at is None or not self._pump_at.is_pending:
            self._pump_at = self._loop.call_later(_PUMP_S, self.pump)

    def pump(self) -> None:
        """Commit and send what is due, and look again while anything waits."""
        if self._resend_at is not None:
            self._resend_at.cancel()
        self._outbox.commit()
        if not self._link.connected:
            return
        self._publish_birth()
        still_waits = self._sender.pump(self._uptime())
        if still_waits or self._is_birth_due:
            self._resend_at = self._loop.call_later(_RESEND_LOOK_S, self.pump)

    def close(self) -> None:
        """Say goodbye, and end the connection."""
        if self._link.connected:
            with contextlib.suppress(LinkError):
                self._link.publish(self._topics.upstream(self._device, Upstream.DEATH), encode_json(self._death()))
        self._link.close()

    def _begin_session(self) -> None:
        self._sender.reconnected()
        self._is_birth_due = True
        self.pump()
        self._repeat_birth(_BIRTHS_AFTER_S)

    def _repeat_birth(self, pauses_s: tuple[float, ...]) -> None:
        def again() -> None:
            self.state_changed()
            self._repeat_birth(pauses_s[1:])

        if self._birth_at is not None:
            self._birth_at.cancel()
        self._birth_at = self._loop.call_later(pauses_s[0] if pauses_s else _BIRTH_EVERY_S, again)

    def _publish_birth(self) -> None:
        if not self._is_birth_due:
            return
        try:
            self._link.publish(
                self._topics.upstream(self._device, Upstream.BIRTH), encode_json(self._describe(self.session))
            )
            self._is_birth_due = False
        except LinkError as error:
            logger.debug("%s", error)

    def _publish_record(self, stream: Stream, payload: bytes) -> None:
        self._link.publish(self._topics.upstream(self._device, Upstream(stream.value)), payload)

    def _death(self) -> Death:
        return Death(device=self._device, boot=self._boot, session=self.session)
