"""The database: connections, transactions, one writer at a time, and the log that every act writes to.

What is in the tables is the business of the modules named after it. Readers see the last commit and never wait; writers take
turns, so SQLite never answers "database is locked".
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from edgeops.errors import ConfigError, EdgeOpsError, InputError, TransientError
from edgeops_fleet import schema
from edgeops_fleet.migrations import MIGRATIONS

RowType = TypeVar("RowType")

logger = logging.getLogger(__name__)

SCHEMA_VERSION = "2"
Clock = Callable[[], float]
"""Unix time in seconds."""


class StoreError(TransientError):
    """The database cannot be read or written right now (a full disk, for example)."""


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened, and why."""

    id: int
    time: float
    actor: str
    kind: str
    text: str
    rollout: str | None = None
    device: str | None = None
    model: str | None = None
    details: dict[str, Any] = {}


class Store:
    """The database of one fleet.

    Args:
        path: The SQLite file; made when missing.
        clock: Unix time in seconds; for the log.

    Raises:
        ConfigError: The file is no database, is damaged, or was written by another release.
    """

    def __init__(self, path: Path, *, clock: Clock = time.time) -> None:
        self.clock = clock
        self._turn = threading.RLock()
        self._listeners: list[Callable[[], None]] = []
        self._engine = sa.create_engine(f"sqlite:///{path}", pool_size=8, max_overflow=24)
        sa.event.listen(self._engine, "connect", _configure)
        sa.event.listen(self._engine, "begin", _begin)
        self._prepare(path)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A consistent view of the last commit.

        Raises:
            StoreError: The database cannot be read.
        """
        with _translated(), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction: all of it is on disk when the block ends, or none of it.

        Raises:
            StoreError: The database cannot be written; nothing was.
        """
        with self._turn, _translated(), self._engine.connect() as plain:
            connection = plain.execution_options(is_writer=True)
            with connection.begin():
                yield connection
        for listener in list(self._listeners):
            listener()

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called after every commit, on the writer's thread; it hands over and returns."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """Stop calling it."""
        self._listeners = [known for known in self._listeners if known is not listener]

    def note(
        self,
        connection: sa.Connection,
        kind: str,
        text: str,
        *,
        actor: str = "controller",
        rollout: str | None = None,
        device: str | None = None,
        model: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        """Write a line of the log, as part of the transaction that did what it tells."""
        logger.info("%s: %s", kind, text)
        connection.execute(
            schema.log.insert().values(
                time=self.clock(),
                actor=actor,
                kind=kind,
                text=text,
                rollout=rollout,
                device=device,
                model=model,
                details=details or {},
            )
        )

    def log(
        self, *, after: int = 0, limit: int = 500, rollout: str | None = None, device: str | None = None
    ) -> tuple[LogEntry, ...]:
        """Lines of the log above an id, oldest first; without ``after``, the last ``limit``."""
        table = schema.log
        query = sa.select(table).where(table.c.id > after)
        if rollout is not None:
            query = query.where(table.c.rollout == rollout)
        if device is not None:
            query = query.where(table.c.device == device)
        order = table.c.id if after else table.c.id.desc()
        with self.read() as connection:
            rows = connection.execute(query.order_by(order).limit(limit)).mappings().all()
        return tuple(sorted((read_row(row, LogEntry) for row in rows), key=lambda entry: entry.id))

    def _prepare(self, path: Path) -> None:
        try:
            with self.write() as connection:
                schema.metadata.create_all(connection)
                version = get_setting(connection, "schema") or SCHEMA_VERSION
                while version in MIGRATIONS:
                    version, migrate = MIGRATIONS[version]
                    migrate(connection)
                set_setting(connection, "schema", version)
                if version != SCHEMA_VERSION:
                    raise ConfigError(f"{path}: schema {version}; this release reads schema {SCHEMA_VERSION}")
        except StoreError as error:
            self.close()
            raise ConfigError(f"{path}: {error}; free its disk, or put a copy of it in its place") from error


def read_row(row: Mapping[Any, Any], kind: type[RowType]) -> RowType:
    """A row as a struct; columns that the struct does not have are left out."""
    return msgspec.convert({str(name): value for name, value in row.items()}, kind)


def get_setting(connection: sa.Connection, key: str) -> str | None:
    """What the server remembers under a key."""
    table = schema.settings
    value: str | None = connection.execute(sa.select(table.c.value).where(table.c.key == key)).scalar()
    return value


def set_setting(connection: sa.Connection, key: str, value: str) -> None:
    """Remember a value."""
    upsert(connection, schema.settings, {"key": key}, {"value": value})


def upsert(connection: sa.Connection, table: sa.Table, key: dict[str, Any], values: dict[str, Any]) -> None:
    """Update the row with this key, or insert it; safe because writers take turns."""
    condition = sa.and_(*(table.c[name] == value for name, value in key.items()))
    if not connection.execute(table.update().where(condition).values(values)).rowcount:
        connection.execute(table.insert().values({**key, **values}))


def _configure(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    # The driver must not begin transactions by itself: `_begin` does.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "temp_store=MEMORY"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    is_writer = connection.get_execution_options().get("is_writer", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writer else "BEGIN")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except EdgeOpsError:
        raise
    except OverflowError as error:
        raise InputError(f"a number is too large for the database: {error}") from error
    except sa.exc.DBAPIError as error:
        # Without the statement and its values, which say nothing to the reader and may be megabytes.
        raise StoreError(f"database: {error.orig}") from error
    except sa.exc.SQLAlchemyError as error:
        raise StoreError(f"database: {error}") from error
