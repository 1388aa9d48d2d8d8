"""Forgets what is too old or too much: telemetry windows, events, inputs of samples. In small steps, so nobody waits for it.

The drift monitor's state is kept apart (:mod:`edgeops_fleet.watch`); a window goes only when that state has it. The log stays.
"""

import logging

import sqlalchemy as sa

from edgeops_fleet.schema import checkpoints, commands, events, retrains, samples, windows
from edgeops_fleet.settings import RetentionSection
from edgeops_fleet.store import Store

logger = logging.getLogger(__name__)

STEP_ROWS = 500
"""At most so many rows of a table go at once."""
_EVERY_S = 10.0
_DAY_S = 86400.0
_MB = 1e6


class Retention:
    """Looks now and then whether something is to go.

    Args:
        store: The database.
        section: How much is kept.
    """

    def __init__(self, store: Store, section: RetentionSection) -> None:
        self._store = store
        self._section = section
        self._looked = float("-inf")

    def look(self) -> None:
        """A step, when it is time for one."""
        now = self._store.clock()
        if 0 <= now - self._looked < _EVERY_S:
            return
        self._looked = now
        self.step(now=now)

    def step(self, *, now: float) -> int:
        """Delete a few rows of each table; returns how many went.

        Args:
            now: Unix time in seconds.
        """
        with self._store.read() as connection:
            kept = connection.execute(sa.select(sa.func.max(checkpoints.c.window))).scalar() or 0
            old_windows = _oldest(connection, windows, before=now - self._section.windows_days * _DAY_S, up_to=kept)
            old_events = _oldest(connection, events, before=now - self._section.events_days * _DAY_S)
            surplus = _surplus_samples(connection, limit_bytes=self._section.samples_mb * _MB)
        if not (old_windows or old_events or surplus):
            return 0
        with self._store.write() as connection:
            for table, ids in ((windows, old_windows), (events, old_events), (samples, surplus)):
                if ids:
                    connection.execute(table.delete().where(table.c.id.in_(ids)))
            if surplus:
                text = f"{len(surplus)} samples deleted, the oldest: more than {self._section.samples_mb:g} MB (samples_mb)"
                self._store.note(connection, "samples.deleted", text)
        return len(old_windows) + len(old_events) + len(surplus)


def _oldest(connection: sa.Connection, table: sa.Table, *, before: float, up_to: int | None = None) -> list[int]:
    """Of the first rows those that came before a time; the newest row always stays, so that its id is not given again."""
    newest = connection.execute(sa.select(sa.func.max(table.c.id))).scalar() or 0
    last = newest - 1 if up_to is None else min(up_to, newest - 1)
    query = sa.select(table.c.id, table.c.received).where(table.c.id <= last).order_by(table.c.id).limit(STEP_ROWS)
    return [row.id for row in connection.execute(query) if row.received < before]


def _surplus_samples(connection: sa.Connection, *, limit_bytes: float) -> list[str]:
    """The oldest samples beyond the limit; those that an open cause asked for only when nothing else is left."""
    size = sa.func.length(samples.c.inputs)
    surplus = (connection.execute(sa.select(sa.func.sum(size))).scalar() or 0) - limit_bytes
    if surplus <= 0:
        return []
    is_open = sa.and_(retrains.c.id == commands.c.retrain, retrains.c.closed.is_(None))
    wanted = sa.select(commands.c.id).join(retrains, is_open).where(commands.c.id == samples.c.command).exists()
    query = sa.select(samples.c.id, size.label("size")).order_by(wanted, samples.c.received).limit(STEP_ROWS)
    going = []
    for row in connection.execute(query):
        if surplus <= 0:
            break
        going.append(row.id)
        surplus -= row.size
    return going
