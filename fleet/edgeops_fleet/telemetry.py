"""Telemetry windows in the database: written when they come, shown again to the drift monitor when the server starts."""

from collections.abc import Callable
from typing import Any

import msgspec
import sqlalchemy as sa

from edgeops.errors import MessageError
from edgeops.messages import Telemetry
from edgeops.selection import Attribute
from edgeops.signals import Profile
from edgeops_fleet.drift import WindowObservation
from edgeops_fleet.schema import devices, windows
from edgeops_fleet.store import Store


def insert_window(
    connection: sa.Connection, device: str, record: Telemetry, *, dating: dict[str, Any], now: float
) -> int:
    """Store a window; returns the id of its row.

    Args:
        connection: Of the transaction.
        device: Whose it is.
        record: Its times are put right.
        dating: By what (:func:`edgeops_fleet.dating.dating_columns`).
        now: Unix time in seconds.
    """
    result = connection.execute(
        windows.insert().values(
            device=device,
            model=record.model,
            version=record.version,
            digest=record.digest,
            start=record.start,
            end=record.end,
            received=now,
            requests=record.requests,
            rows=record.rows,
            errors=record.errors,
            not_finite=record.not_finite,
            latency=msgspec.msgpack.encode(record.latency),
            profile=msgspec.msgpack.encode(record.profile) if record.profile is not None else None,
            host=msgspec.to_builtins(record.host),
            **dating,
        )
    )
    (row_id,) = result.inserted_primary_key or (0,)
    return int(row_id)


def observation_of(
    device: str, record: Telemetry, attributes: dict[str, Attribute], *, now: float
) -> WindowObservation:
    """What the drift monitor is shown of a window.

    Raises:
        MessageError: It has no profile.
    """
    if record.profile is None:
        raise MessageError(f"{device}: a window without a profile is not observed")
    return WindowObservation(
        time=now,
        device=device,
        attributes=attributes,
        model=record.model,
        version=record.version,
        digest=record.digest,
        profile=record.profile,
    )


def replay_windows(store: Store, observe: Callable[[WindowObservation], object], *, after: int = 0) -> tuple[int, int]:
    """Show the stored windows after an id to an observer, in the order in which they were stored; how many, and the last id."""
    query = (
        sa.select(windows, devices.c.attributes)
        .join(devices, devices.c.id == windows.c.device)
        .where(windows.c.profile.is_not(None), windows.c.id > after)
        .order_by(windows.c.id)
    )
    count, last = 0, after
    with store.read() as connection:
        for row in connection.execution_options(yield_per=500).execute(query).mappings():
            observe(
                WindowObservation(
                    time=row["received"],
                    device=row["device"],
                    attributes=row["attributes"],
                    model=row["model"],
                    version=row["version"],
                    digest=row["digest"],
                    profile=msgspec.msgpack.decode(row["profile"], type=Profile),
                )
            )
            count, last = count + 1, row["id"]
    return count, last
