"""Rollouts in the database: create, read, move on, and show.

What to do next is decided in :mod:`edgeops_fleet.rollouts.rollout`.
"""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import sqlalchemy as sa

from edgeops.errors import ConflictError, NotFoundError
from edgeops.messages import DeploymentState, ReasonClass, Transition
from edgeops.selection import BUCKETS, matches, position
from edgeops_fleet.devices import DeviceView
from edgeops_fleet.rollouts.gates import Check
from edgeops_fleet.rollouts.rollout import (
    ACTIVE_STATES,
    DeviceReport,
    PausedBy,
    Phase,
    Progress,
    RolloutSpec,
    RolloutState,
    heard,
)
from edgeops_fleet.schema import deployments, rollouts, targets, waves
from edgeops_fleet.store import LogEntry, Store, read_row, upsert


class WaveView(msgspec.Struct, frozen=True, kw_only=True):
    """A wave that was started; times are Unix seconds.

    Attributes:
        percent: Share of hash space that it reaches to.
        selected: So many had the version, or were to have it, when it started; earlier waves included. ``devices`` is the same.
        state: ``dispatch``, ``soak``, ``gate``, then ``pass``, ``fail`` or ``aborted``.
    """

    index: int
    percent: float
    selected: int
    devices: int
    state: str
    started: float
    ended: float | None = None
    result: str | None = None
    reason: str = ""
    checks: tuple[Check, ...] = ()


class DeploymentView(msgspec.Struct, frozen=True, kw_only=True):
    """How one device stands with a rollout."""

    device: str
    state: str
    reason_class: str | None = None
    reason: str = ""
    attempt: int = 0
    variant: str | None = None
    states: tuple[str, ...] = ()
    """All that it reported, in the order in which they came."""
    first: float = 0.0
    updated: float = 0.0


class RolloutView(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout as a person sees it; times are Unix seconds.

    Attributes:
        counts: Deployment state → number of devices.
        planned_waves: All waves of the order; ``waves`` has those that were started.
        transitions: What happened and why, oldest first; only where one rollout is asked for.
    """

    id: str
    group: str
    model: str
    version: str
    digest: str
    from_version: str | None
    from_digest: str | None
    state: RolloutState
    paused_by: PausedBy | None
    reason: str
    wave: int
    phase: Phase
    phase_since: float
    extended: int
    rotation: int
    created: float
    updated: float
    planned_waves: int = 0
    waves: tuple[WaveView, ...] = ()
    counts: dict[str, int] = {}
    deployments: tuple[DeploymentView, ...] = ()
    transitions: tuple[LogEntry, ...] = ()
    spec: RolloutSpec | None = None


class Rollouts:
    """Reads and orders rollouts."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, spec: RolloutSpec, *, digest: str) -> str:
        """Write the order; it starts with the controller's next step unless it is a draft.

        Raises:
            ConflictError: Another rollout of this group and model is active, or the digest was taken back before.
        """
        with self._store.write() as connection:
            objection = conflict(connection, spec, digest=digest)
            if objection:
                raise ConflictError(objection)
            return self._insert(connection, spec, digest=digest)

    def objection(self, spec: RolloutSpec, *, digest: str) -> str:
        """What is in the way of an order; empty: nothing."""
        with self._store.read() as connection:
            return conflict(connection, spec, digest=digest)

    def all(self) -> tuple[RolloutView, ...]:
        """Every rollout, the newest last."""
        with self._store.read() as connection:
            rows = connection.execute(sa.select(rollouts).order_by(rollouts.c.created)).mappings().all()
            return tuple(_view(connection, row) for row in rows)

    def get(self, rollout: str) -> RolloutView:
        """One rollout, with its devices and what happened.

        Raises:
            NotFoundError: There is none.
        """
        with self._store.read() as connection:
            row = rollout_row(connection, rollout)
            view = _view(connection, row)
            query = sa.select(deployments).where(deployments.c.rollout == rollout).order_by(deployments.c.device)
            found = tuple(read_row(each, DeploymentView) for each in connection.execute(query).mappings())
        spec = msgspec.json.decode(row["spec"], type=RolloutSpec)
        transitions = self._store.log(rollout=rollout, limit=10_000)
        return msgspec.structs.replace(view, deployments=found, transitions=transitions, spec=spec)

    def _insert(self, connection: sa.Connection, spec: RolloutSpec, *, digest: str) -> str:
        target = ensure_target(connection, spec.group, spec.model)
        rollout = f"r-{secrets.token_hex(4)}"
        now = self._store.clock()
        state = RolloutState.DRAFT if spec.draft else RolloutState.PLANNED
        connection.execute(
            rollouts.insert().values(
                id=rollout,
                group=spec.group,
                model=spec.model,
                version=spec.version,
                digest=digest,
                from_version=target["version"],
                from_digest=target["digest"],
                spec=msgspec.json.encode(spec),
                rotation=secrets.randbelow(BUCKETS),
                state=state.value,
                reason="",
                wave=0,
                phase=Phase.DISPATCH.value,
                phase_since=now,
                extended=0,
                created=now,
                updated=now,
            )
        )
        text = f"rollout of {spec.model} {spec.version} to group {spec.group} created, {len(spec.waves)} waves"
        self._store.note(
            connection, f"rollout.{state.value}", text, actor="operator", rollout=rollout, model=spec.model
        )
        return rollout


def rollout_row(connection: sa.Connection, rollout: str) -> sa.RowMapping:
    """The row of a rollout.

    Raises:
        NotFoundError: There is none.
    """
    row = connection.execute(sa.select(rollouts).where(rollouts.c.id == rollout)).mappings().first()
    if row is None:
        raise NotFoundError(f"rollout {rollout!r}: there is none")
    return row


def ensure_target(connection: sa.Connection, group: str, model: str) -> sa.RowMapping:
    """The target of a group and model; an empty one is made where there is none."""
    condition = sa.and_(targets.c.group == group, targets.c.model == model)
    query = sa.select(targets).where(condition)
    row = connection.execute(query).mappings().first()
    if row is None:
        connection.execute(targets.insert().values(group=group, model=model, floor="0.0.0", quarantine=[]))
        row = connection.execute(query).mappings().one()
    return row


def conflict(connection: sa.Connection, spec: RolloutSpec, *, digest: str) -> str:
    """What is in the way of an order; empty: nothing."""
    active = connection.execute(
        sa.select(rollouts).where(
            rollouts.c.group == spec.group, rollouts.c.model == spec.model, rollouts.c.state.in_(ACTIVE_STATES)
        )
    ).mappings()
    for row in active:
        return (
            f"rollout {row['id']} of {row['model']} {row['version']} is {row['state']} in group {row['group']}; "
            "wait for it, or roll it back"
        )
    condition = sa.and_(targets.c.group == spec.group, targets.c.model == spec.model)
    target = connection.execute(sa.select(targets).where(condition)).mappings().first()
    if target is not None and digest in target["quarantine"]:
        return f"{spec.model} {spec.version} was taken back from group {spec.group}; publish a new version instead"
    if target is not None and target["digest"] == digest:
        return f"{spec.model} {spec.version} is the version of group {spec.group} already"
    return ""


def progress_of(connection: sa.Connection, row: sa.RowMapping) -> Progress:
    """What the decision needs of a rollout's row."""
    started = connection.execute(
        sa.select(waves.c.started).where(waves.c.rollout == row["id"], waves.c.index == row["wave"])
    ).scalar()
    return Progress(
        state=RolloutState(row["state"]),
        spec=msgspec.json.decode(row["spec"], type=RolloutSpec),
        wave=row["wave"],
        phase=Phase(row["phase"]),
        wave_started=started if started is not None else row["created"],
        phase_since=row["phase_since"],
        extended=row["extended"],
    )


def device_reports(
    connection: sa.Connection,
    row: sa.RowMapping,
    spec: RolloutSpec,
    devices: Sequence[DeviceView],
    *,
    listening_since: float,
    now: float,
) -> tuple[tuple[DeviceReport, ...], int]:
    """The devices of the current wave as they stand, and how many of the group ``where`` leaves out and completion would move."""
    percent = connection.execute(
        sa.select(waves.c.percent).where(waves.c.rollout == row["id"], waves.c.index == row["wave"])
    ).scalar()
    reach = (percent or 0.0) * (BUCKETS / 100)
    query = sa.select(deployments).where(deployments.c.rollout == row["id"])
    reported = {each["device"]: each for each in connection.execute(query).mappings()}
    reports = []
    left_out = 0
    for device in devices:
        is_selected = matches(spec.where, device.attributes)
        pinned = device.is_pinned(row["model"])
        holds = device.holds(row["model"]) == row["digest"]
        if not is_selected and not pinned and not holds and device.models:
            left_out += 1
        is_to_return = holds and row["state"] == RolloutState.ROLLING_BACK
        if (
            device.id in reported
            or is_to_return
            or (is_selected and position(device.id, rotation=row["rotation"]) < reach)
        ):
            report = _report(device, reported.get(device.id), holds=holds, pinned=pinned)
            reports.append(replace(report, updated=heard(report.updated, listening_since=listening_since, now=now)))
    return tuple(reports), left_out


def record_transition(connection: sa.Connection, device: str, record: Transition, *, now: float) -> bool:
    """Take a device's step in a rollout; ``False`` when it belongs to none, or a later step is known."""
    if record.rollout is None:
        return False
    if connection.execute(sa.select(rollouts.c.id).where(rollouts.c.id == record.rollout)).first() is None:
        return False
    condition = sa.and_(deployments.c.rollout == record.rollout, deployments.c.device == device)
    known = connection.execute(sa.select(deployments).where(condition)).mappings().first()
    states = [*(known["states"] if known is not None else ()), record.state.value]
    if known is not None and known["epoch"] == record.epoch and known["sequence"] >= record.sequence:
        # It was overtaken: it happened, and is not where the device stands.
        connection.execute(deployments.update().where(condition).values(states=states))
        return False
    values: dict[str, Any] = {
        "states": states,
        "state": record.state.value,
        "reason_class": record.reason_class.value if record.reason_class else None,
        "reason": record.reason,
        "attempt": record.attempt,
        "variant": record.variant,
        "epoch": record.epoch,
        "sequence": record.sequence,
        "updated": now,
    }
    if known is None:
        values["first"] = now
    upsert(connection, deployments, {"rollout": record.rollout, "device": device}, values)
    return True


def _report(device: DeviceView, row: sa.RowMapping | None, *, holds: bool, pinned: bool) -> DeviceReport:
    if row is None:
        return DeviceReport(device=device.id, holds=holds, online=device.online, pinned=pinned)
    return DeviceReport(
        device=device.id,
        state=DeploymentState(row["state"]),
        reason_class=ReasonClass(row["reason_class"]) if row["reason_class"] else None,
        reason=row["reason"],
        updated=row["updated"],
        holds=holds,
        online=device.online,
        pinned=pinned,
    )


def _view(connection: sa.Connection, row: sa.RowMapping) -> RolloutView:
    spec = msgspec.json.decode(row["spec"], type=RolloutSpec)
    wave_query = sa.select(waves).where(waves.c.rollout == row["id"]).order_by(waves.c.index)
    count_query = (
        sa.select(deployments.c.state, sa.func.count().label("number"))
        .where(deployments.c.rollout == row["id"])
        .group_by(deployments.c.state)
    )
    values = {str(name): value for name, value in row.items() if name != "spec"}
    view = msgspec.convert(values, RolloutView)
    return msgspec.structs.replace(
        view,
        planned_waves=len(spec.waves),
        waves=tuple(_wave_view(each, row["phase"]) for each in connection.execute(wave_query).mappings().all()),
        counts={each.state: each.number for each in connection.execute(count_query)},
    )


def _wave_view(row: sa.RowMapping, phase: str) -> WaveView:
    state = row["result"] if row["ended"] is not None else phase
    return msgspec.convert(
        {**{str(name): value for name, value in row.items()}, "devices": row["selected"], "state": state}, WaveView
    )
