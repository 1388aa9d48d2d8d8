"""Brings a database that an earlier release wrote to the tables of this one; a step for each version of the schema."""

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.schema import CreateIndex

from edgeops_fleet.schema import samples, windows


def _add_machine_clock(connection: sa.Connection) -> None:
    """1 to 2: what windows and samples are dated by."""
    for table in (windows, samples):
        for column in ("machine_boot", "uptime_s", "machine_started", "clock_trusted"):
            _add_column(connection, table.c[column])
        for index in table.indexes:
            if index.name is not None and index.name.endswith("_by_machine"):
                connection.execute(CreateIndex(index, if_not_exists=True))


def _add_column(connection: sa.Connection, column: sa.Column[object]) -> None:
    kind = column.type.compile(connection.dialect)
    default = column.server_default
    value = default.arg if isinstance(default, sa.DefaultClause) else "''"
    statement = f'ALTER TABLE {column.table.name} ADD COLUMN "{column.name}" {kind} NOT NULL DEFAULT {value}'
    connection.exec_driver_sql(statement)


MIGRATIONS: dict[str, tuple[str, Callable[[sa.Connection], None]]] = {"1": ("2", _add_machine_clock)}
"""Version → the next one, and how to get there."""
