"""Asks every device to say again how it is, after the server was away from the broker.

A device may have connected before the server subscribed, and its birth was lost then. The question is a command that nobody has
to keep: a device that is away tells everything when it returns. A few are asked at each look, so that their answers come spread.
"""

import logging
import secrets

import sqlalchemy as sa

from edgeops.errors import LinkError
from edgeops.link import Link
from edgeops.messages import Command, CommandKind, encode_json
from edgeops.topics import Topics
from edgeops_fleet.schema import devices
from edgeops_fleet.store import Store

logger = logging.getLogger(__name__)

EACH_LOOK = 100
"""Devices that are asked at once; at two looks a second, 10,000 devices take 50 seconds."""
_EVERY_S = 0.4
_VALID_S = 60.0


class RollCall:
    """Who is still to be asked; a round that is begun again starts over.

    Args:
        store: Knows the devices.
        link: To the broker.
        topics: Of the fleet.
    """

    def __init__(self, store: Store, link: Link, topics: Topics) -> None:
        self._store = store
        self._link = link
        self._topics = topics
        self._waiting: list[str] = []
        self._asked = float("-inf")

    def begin(self) -> None:
        """Everybody is to be asked; those first whom the server believes to be there."""
        query = sa.select(devices.c.id).order_by(devices.c.online, devices.c.id.desc())
        with self._store.read() as connection:
            self._waiting = list(connection.execute(query).scalars())
        self._asked = float("-inf")

    def go_on(self, *, now: float) -> int:
        """Ask the next few; returns how many.

        Args:
            now: Unix time in seconds.
        """
        if not self._waiting or 0 <= now - self._asked < _EVERY_S:
            return 0
        self._asked = now
        asked = 0
        try:
            for _ in range(min(EACH_LOOK, len(self._waiting))):
                command = Command(id=f"c-{secrets.token_hex(6)}", kind=CommandKind.REPORT, expires=now + _VALID_S)
                self._link.publish(self._topics.command(self._waiting[-1]), encode_json(command))
                self._waiting.pop()
                asked += 1
        except LinkError as error:
            logger.debug("roll call waits: %s", error)
        return asked
