"""When a record was made: by its own clock where that can be right, else by what the machine's clock was set to later.

Every record has the monotonic time since the machine started, so one moment at which the clock of a machine was right dates all
records of that start of the machine. Such moments are told by anchors. The latest one counts, unless it lies in our future: a
device cannot know that, but we do.
"""

import math
from typing import Any

import msgspec
import sqlalchemy as sa

from edgeops.messages import Anchor, Record, Sample, Telemetry
from edgeops_fleet.schema import machine_clocks, samples, windows
from edgeops_fleet.store import upsert

_AHEAD_S = 3600.0
"""How far a device's clock may be ahead of ours before we do not believe it, in seconds."""
_EARLIEST = 1_577_836_800.0
"""No device is as old as this: 2020-01-01, Unix time in seconds."""
_SAME_S = 2.0
_KEPT_STARTS = 64
"""So many starts of a machine are remembered."""


class MachineClock(msgspec.Struct, frozen=True):
    """What is known of the clock of one start of a machine.

    Attributes:
        started: When the machine started, Unix time in seconds.
        uptime_s: Up to this monotonic time no other clock of the machine is to be believed, in seconds.
    """

    started: float
    uptime_s: float


class Dating(msgspec.Struct, frozen=True):
    """How a record is dated.

    Attributes:
        shift_s: To be added to the times that it claims.
        started: When its machine started, by the times that follow.
        is_credible: Whether its own clock can have been right.
    """

    shift_s: float
    started: float
    is_credible: bool


def is_credible(moment: float, *, is_trusted: bool, now: float) -> bool:
    """Whether a device's clock can have been right.

    Args:
        moment: What it said, Unix time in seconds.
        is_trusted: Whether the device believed it.
        now: Unix time in seconds by our clock.
    """
    return is_trusted and _EARLIEST <= moment <= now + _AHEAD_S


def date(record: Record, clock: MachineClock | None, *, now: float) -> Dating:
    """How to date a record.

    Args:
        record: As it came.
        clock: What is known of its machine; ``None``: nothing.
        now: Unix time in seconds by our clock.
    """
    own = record.time - record.uptime_s
    credible = is_credible(record.time, is_trusted=record.clock_trusted, now=now)
    is_own_right = clock is None or (credible and record.uptime_s > clock.uptime_s)
    if clock is None or is_own_right or abs(clock.started - own) <= _SAME_S:
        return Dating(0.0, own, credible)
    return Dating(clock.started - own, clock.started, credible)


def clock_of(anchor: Anchor, *, now: float) -> MachineClock | None:
    """What an anchor says of its machine's clock; ``None``: nothing that can be believed.

    A clock that was set to what cannot be right says at least what it was before.
    """
    if is_credible(anchor.time, is_trusted=anchor.clock_trusted, now=now):
        return MachineClock(anchor.time - anchor.uptime_s, anchor.uptime_s)
    if anchor.before_s is None:
        return None
    before = anchor.before_s + anchor.uptime_s
    if not is_credible(before, is_trusted=anchor.before_trusted, now=now):
        return None
    return MachineClock(anchor.before_s, anchor.uptime_s)


def known_clock(connection: sa.Connection, device: str, machine_boot: str) -> MachineClock | None:
    """What is known of the clock of a start of a machine."""
    if not machine_boot:
        return None
    table = machine_clocks
    query = sa.select(table.c.started, table.c.uptime_s).where(
        table.c.device == device, table.c.machine_boot == machine_boot
    )
    row = connection.execute(query).first()
    return MachineClock(row.started, row.uptime_s) if row is not None else None


def dated(record: Telemetry | Sample, dating: Dating) -> Telemetry | Sample:
    """The record with its times put right."""
    if not dating.shift_s:
        return record
    shift_s = dating.shift_s
    if isinstance(record, Sample):
        return msgspec.structs.replace(record, time=record.time + shift_s)
    return msgspec.structs.replace(
        record, time=record.time + shift_s, start=record.start + shift_s, end=record.end + shift_s
    )


def dating_columns(record: Record, dating: Dating) -> dict[str, Any]:
    """What a row keeps so that it can be dated anew."""
    return {
        "machine_boot": record.machine_boot,
        "uptime_s": record.uptime_s,
        "machine_started": dating.started,
        "clock_trusted": dating.is_credible,
    }


def apply_anchor(connection: sa.Connection, device: str, anchor: Anchor, *, now: float) -> int:
    """Remember what an anchor says, and date the rows that it concerns anew.

    Returns:
        How many rows have other times now.
    """
    clock = clock_of(anchor, now=now)
    if clock is None or not anchor.machine_boot or not math.isfinite(clock.started):
        return 0
    known = known_clock(connection, device, anchor.machine_boot)
    if known is not None and known.uptime_s > clock.uptime_s:
        return 0  # It was overtaken.
    key = {"device": device, "machine_boot": anchor.machine_boot}
    upsert(connection, machine_clocks, key, {"started": clock.started, "uptime_s": clock.uptime_s, "received": now})
    _forget_old(connection, device)
    return sum(
        _redate(connection, table, columns, key=key, clock=clock)
        for table, columns in ((windows, ("start", "end")), (samples, ("time",)))
    )


def _redate(
    connection: sa.Connection, table: sa.Table, columns: tuple[str, ...], *, key: dict[str, str], clock: MachineClock
) -> int:
    shift = clock.started - table.c.machine_started
    concerned = sa.and_(
        table.c.device == key["device"],
        table.c.machine_boot == key["machine_boot"],
        sa.or_(table.c.uptime_s <= clock.uptime_s, sa.not_(table.c.clock_trusted)),
        sa.func.abs(shift) > _SAME_S,
    )
    values = {name: table.c[name] + shift for name in columns}
    result = connection.execute(table.update().where(concerned).values(**values, machine_started=clock.started))
    return int(result.rowcount)


def _forget_old(connection: sa.Connection, device: str) -> None:
    table = machine_clocks
    mine = sa.select(table.c.received).where(table.c.device == device)
    oldest = connection.execute(mine.order_by(table.c.received.desc()).offset(_KEPT_STARTS).limit(1)).scalar()
    if oldest is not None:
        connection.execute(table.delete().where(table.c.device == device, table.c.received <= oldest))
