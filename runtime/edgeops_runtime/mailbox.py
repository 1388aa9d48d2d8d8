"""What the server tells the device: desired documents, commands, acknowledgements; each understood, checked and handed on, once.

Messages arrive on the link's thread and are looked at in the loop's. What follows from a document is decided in
:mod:`edgeops_runtime.admission`.
"""

import logging
from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec

from edgeops.errors import EdgeOpsError
from edgeops.link import Handler, Link, Received
from edgeops.messages import Ack, Command, CommandKind, decode_json
from edgeops.topics import Topics
from edgeops_runtime.clock import TrustedClock
from edgeops_runtime.desired import DEVICE, GROUP, DesiredState
from edgeops_runtime.identity import Identity
from edgeops_runtime.loop import Loop
from edgeops_runtime.slots import SlotStore

logger = logging.getLogger(__name__)

_OVERRIDE_WAIT_S = 10.0
_SEEN_COMMANDS = 256


class Receivers(msgspec.Struct, frozen=True, kw_only=True):
    """Who is told of what.

    Attributes:
        wanted: What is wanted may have changed; the argument says whether its generation is new.
        acknowledged: The server has stored records.
        report: It wants a telemetry window now.
        collect: It wants samples.
        notice: Takes ``(kind, text)`` about what was refused.
    """

    wanted: Callable[[bool], None]
    acknowledged: Callable[[Ack], None]
    report: Callable[[], None]
    collect: Callable[[Command], None]
    notice: Callable[[str, str], None]


class Mailbox:
    """The way down.

    Args:
        loop: Where messages are looked at.
        clock: Learns from documents what time it is at least.
        desired: Takes the documents.
        store: Remembers the highest generation of each source.
        session: The number of the connection, for messages that come with it.
        receivers: Who is told.
    """

    def __init__(
        self,
        *,
        loop: Loop,
        clock: TrustedClock,
        desired: DesiredState,
        store: SlotStore,
        session: Callable[[], int],
        receivers: Receivers,
    ) -> None:
        self._loop, self._clock = loop, clock
        self._desired, self._store = desired, store
        self._session = session
        self._tell = receivers
        self._override_session = 0
        self._seen_commands: deque[str] = deque(maxlen=_SEEN_COMMANDS)

    def subscribe(self, link: Link, topics: Topics, identity: Identity) -> None:
        """Receive from now on, over all reconnections."""
        handlers: dict[str, Handler] = {
            topics.group_desired(identity.group): partial(self._desired_came, GROUP),
            topics.device_desired(identity.device): partial(self._desired_came, DEVICE),
            topics.command(identity.device): self._command_came,
            topics.ack(identity.device): self._ack_came,
        }
        for topic, handler in handlers.items():
            link.subscribe(topic, partial(self._hand_over, handler))

    def _hand_over(self, handler: Handler, message: Received) -> None:
        self._loop.post(lambda: handler(message))

    def _desired_came(self, source: str, message: Received) -> None:
        if not message.payload:
            if source == DEVICE and self._desired.withdraw_override():
                self._tell.wanted(False)
            return
        seen = self._store.slots.generations.get(source, 0)
        try:
            desired = self._desired.accept(source, message.payload, seen=seen)
        except EdgeOpsError as error:
            self._tell.notice("desired-refused", str(error))
            return
        self._clock.vouch(desired.issued)
        if desired.generation > seen:
            self._remember_generation(source, desired.generation)
        if source == DEVICE:
            self._override_session = self._session()
        elif message.retained and self._desired.has(DEVICE):
            self._expect_override(self._session())
        self._tell.wanted(desired.generation > seen)

    def _remember_generation(self, source: str, generation: int) -> None:
        try:
            self._store.change(generations={**self._store.slots.generations, source: generation})
        except OSError as error:
            logger.warning("slots: %s", error)

    def _expect_override(self, session: int) -> None:
        """A retained override comes with the group's document; where it does not, it was removed while we were away."""

        def give_up() -> None:
            if self._override_session < session == self._session() and self._desired.withdraw_override():
                self._tell.wanted(False)

        self._loop.call_later(_OVERRIDE_WAIT_S, give_up)

    def _ack_came(self, message: Received) -> None:
        try:
            ack = decode_json(message.payload, Ack, where="ack")
        except EdgeOpsError as error:
            logger.warning("%s", error)
            return
        self._tell.acknowledged(ack)

    def _command_came(self, message: Received) -> None:
        try:
            command = decode_json(message.payload, Command, where="command")
        except EdgeOpsError as error:
            self._tell.notice("command-refused", str(error))
            return
        is_late = self._clock.is_trusted and self._clock.now() >= command.expires
        is_meant = command.model in {"", self._store.slots.model}
        if is_late or not is_meant or command.id in self._seen_commands:
            return
        self._seen_commands.append(command.id)
        if command.kind is CommandKind.REPORT:
            self._tell.report()
        else:
            self._tell.collect(command)
