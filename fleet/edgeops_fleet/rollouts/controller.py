"""The controller: looks at every active rollout, lets it be decided, writes the decision, publishes what changed.

The decisions are :mod:`edgeops_fleet.rollouts.rollout`'s. It keeps nothing: after a kill at any point, the next start reads the
rows and goes on. Documents are signed in the transaction that decided, and published afterwards until the broker has them.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

import msgspec
import sqlalchemy as sa

from edgeops.errors import ConflictError, LinkError
from edgeops.latency import Buckets, merge_buckets
from edgeops.link import Link
from edgeops.topics import Topics
from edgeops_fleet.catalog import Catalog
from edgeops_fleet.devices import DeviceView, read_devices
from edgeops_fleet.roll_call import RollCall
from edgeops_fleet.rollouts.desired import Director
from edgeops_fleet.rollouts.gates import Check, Figures
from edgeops_fleet.rollouts.planning import ranked_positions, wave_percent, why_not
from edgeops_fleet.rollouts.records import device_reports, ensure_target, progress_of, rollout_row
from edgeops_fleet.rollouts.rollout import (
    ACTIVE_STATES,
    Ask,
    Complete,
    Decision,
    EnterSoak,
    FinishRollback,
    Observation,
    PausedBy,
    Phase,
    Progress,
    RollBack,
    RolloutState,
    StartWave,
    approve,
    decide,
)
from edgeops_fleet.schema import commands, deployments, documents, rollouts, targets, waves, windows
from edgeops_fleet.store import Clock, Store

logger = logging.getLogger(__name__)

_ISSUE_EVERY_S = 60.0
_STEP_S = 30.0
"""Wall clock and monotonic clock part by this much between two looks only when somebody has set the time."""


class Action(StrEnum):
    """What a person can do to a rollout."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    ROLLBACK = "rollback"
    ABORT = "abort"


_ALLOWED = {
    Action.START: {RolloutState.DRAFT},
    Action.PAUSE: {RolloutState.RUNNING},
    Action.RESUME: {RolloutState.PAUSED},
    Action.ROLLBACK: {RolloutState.RUNNING, RolloutState.PAUSED, RolloutState.COMPLETED},
    Action.ABORT: {RolloutState.DRAFT, RolloutState.PLANNED, RolloutState.RUNNING, RolloutState.PAUSED},
}


class Controller:
    """Moves rollouts on and keeps the broker's retained documents right.

    Args:
        store: The database.
        catalog: For the manifests of what goes out.
        director: Signs.
        link: To the broker.
        topics: Of the fleet.
        tick_s: Looks at least this often, in seconds; commits wake it earlier.
        duties: Called after every look, for example the retraining policy.
        steady: Seconds on a clock that nobody sets; where the store's clock parts from it, it was set.
    """

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        director: Director,
        link: Link,
        topics: Topics,
        *,
        tick_s: float = 0.5,
        duties: Sequence[Callable[[], None]] = (),
        steady: Clock = time.monotonic,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._director = director
        self._link = link
        self._topics = topics
        self._tick_s = tick_s
        self._duties = tuple(duties)
        self._steady = steady
        self._wake = threading.Event()
        self._reconnected = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._issued = float("-inf")
        self._listening_since = float("-inf")
        self._offset: float | None = None
        self._roll_call = RollCall(store, link, topics)

    def start(self) -> None:
        """Begin to look."""
        self._store.add_listener(self._wake.set)
        self._thread = threading.Thread(target=self._run, name="controller", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the current look, and end."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=30)
        self._store.remove_listener(self._wake.set)

    def wake(self) -> None:
        """Look soon."""
        self._wake.set()

    def republish(self) -> None:
        """The broker may have lost its retained messages: publish them all again. Returns at once."""
        self._reconnected.set()
        self._wake.set()

    def act(self, rollout: str, action: Action, *, actor: str = "operator") -> None:
        """Do what a person wants with a rollout.

        Raises:
            NotFoundError: There is no such rollout.
            ConflictError: It is in a state in which that makes no sense.
        """
        with self._store.write() as connection:
            row = rollout_row(connection, rollout)
            state = RolloutState(row["state"])
            if state not in _ALLOWED[action]:
                allowed = ", ".join(sorted(_ALLOWED[action]))
                raise ConflictError(f"rollout {rollout} is {state}; {action} needs one that is {allowed}")
            self._act(connection, row, action, actor=actor)
            self._director.issue(connection, now=self._store.clock())
        self.wake()

    def issue(self) -> None:
        """Sign the documents that changed, for example after a pin."""
        with self._store.write() as connection:
            self._director.issue(connection, now=self._store.clock())
        self._issued = self._store.clock()
        self.wake()

    def step(self) -> bool:
        """One look: decide, write, publish; ``True`` when anything was decided."""
        now = self._store.clock()
        if self._reconnected.is_set():
            self._reconnected.clear()
            with self._store.write() as connection:
                connection.execute(documents.update().values(published=False))
            self._listening_since = now
            self._roll_call.begin()
        self._notice_deafness(now=now)
        decided = [rollout for rollout in self._active() if self._decide_one(rollout, now=now)]
        if now - self._issued > _ISSUE_EVERY_S:
            self.issue()
        self._publish_documents()
        self._publish_commands(now=now)
        self._roll_call.go_on(now=now)
        return bool(decided)

    def _notice_deafness(self, *, now: float) -> None:
        """While the broker is away nobody can be heard, and after a step of the clock silence cannot be measured: count anew."""
        offset = now - self._steady()
        has_stepped = self._offset is None or abs(offset - self._offset) > _STEP_S
        self._offset = offset
        if has_stepped or not self._link.connected:
            self._listening_since = now

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                self.step()
                for duty in self._duties:
                    duty()
            except Exception:  # a loop that ended would strand every rollout
                logger.exception("controller: this look failed; the next one tries again")
            # Reports come in crowds; one look serves them all.
            self._stopping.wait(self._tick_s / 10)
            self._wake.wait(self._tick_s)

    def _active(self) -> list[str]:
        with self._store.read() as connection:
            query = sa.select(rollouts.c.id).where(rollouts.c.state.in_(ACTIVE_STATES))
            return list(connection.execute(query).scalars())

    def _decide_one(self, rollout: str, *, now: float) -> bool:
        with self._store.read() as connection:
            decision = self._look(connection, rollout_row(connection, rollout), now=now)
        if decision is None:
            return False
        with self._store.write() as connection:
            row = rollout_row(connection, rollout)
            # Decided again on what the transaction sees: a person may have acted in between.
            decision = self._look(connection, row, now=now)
            if decision is None:
                return False
            self._apply(connection, row, decision)
            self._director.issue(connection, now=now)
        return True

    def _look(self, connection: sa.Connection, row: sa.RowMapping, *, now: float) -> Decision | None:
        progress = progress_of(connection, row)
        members = read_devices(connection, group=row["group"])
        since = self._listening_since
        reports, left_out = device_reports(connection, row, progress.spec, members, listening_since=since, now=now)
        updated, control = Figures(), Figures()
        if progress.phase is Phase.SOAK:
            updated, control = _live_figures(connection, row, members, since=progress.wave_started)
        seen = Observation(devices=reports, left_out=left_out, listening_since=since, updated=updated, control=control)
        return decide(progress, seen, now=now)

    def _act(self, connection: sa.Connection, row: sa.RowMapping, action: Action, *, actor: str) -> None:
        progress = progress_of(connection, row)
        match action:
            case Action.START:
                self._move(connection, row, RolloutState.PLANNED, "started by a person", actor=actor)
            case Action.PAUSE:
                values = {"paused_by": PausedBy.PERSON.value}
                self._move(connection, row, RolloutState.PAUSED, "paused by a person", actor=actor, values=values)
            case Action.RESUME:
                self._resume(connection, row, progress, actor=actor)
            case Action.ROLLBACK:
                self._roll_back(connection, row, "rolled back by a person", checks=(), actor=actor, by_person=True)
            case Action.ABORT:
                self._end_wave(connection, row, result="aborted", reason="aborted by a person")
                self._move(connection, row, RolloutState.ABORTED, "aborted by a person", actor=actor)

    def _resume(self, connection: sa.Connection, row: sa.RowMapping, progress: Progress, *, actor: str) -> None:
        if progress.phase is Phase.GATE:
            self._apply(connection, row, approve(progress), actor=actor)
            return
        values = {"paused_by": None, "phase_since": self._store.clock()}
        self._move(connection, row, RolloutState.RUNNING, "resumed by a person", actor=actor, values=values)

    def _apply(
        self, connection: sa.Connection, row: sa.RowMapping, decision: Decision, *, actor: str = "controller"
    ) -> None:
        match decision:
            case StartWave():
                self._start_wave(connection, row, decision, actor=actor)
            case EnterSoak():
                values = {
                    "phase": Phase.SOAK.value,
                    "phase_since": self._store.clock(),
                    "extended": decision.extended,
                    "updated": self._store.clock(),
                }
                connection.execute(rollouts.update().where(rollouts.c.id == row["id"]).values(values))
                self._note(connection, row, "rollout.soak", decision.reason, actor=actor)
            case Complete():
                self._complete(connection, row, decision, actor=actor)
            case Ask():
                values = {"paused_by": PausedBy.AUTO.value, "phase": Phase.GATE.value}
                self._keep_checks(connection, row, decision.checks)
                self._move(connection, row, RolloutState.PAUSED, decision.reason, actor=actor, values=values)
            case RollBack():
                self._roll_back(connection, row, decision.reason, checks=decision.checks, actor=actor, by_person=False)
            case FinishRollback():
                self._move(
                    connection,
                    row,
                    RolloutState.ROLLED_BACK,
                    decision.reason,
                    actor=actor,
                    values={"reason": row["reason"]},
                )

    def _start_wave(self, connection: sa.Connection, row: sa.RowMapping, decision: StartWave, *, actor: str) -> None:
        progress = progress_of(connection, row)
        if decision.wave:
            self._end_wave(connection, row, result="pass", reason=decision.reason, checks=decision.checks)
        percent, selected = self._size_wave(connection, row, progress, decision.wave)
        now = self._store.clock()
        connection.execute(
            waves.insert().values(
                rollout=row["id"],
                index=decision.wave,
                percent=percent,
                selected=selected,
                started=now,
                reason="",
                checks=[],
            )
        )
        values = {
            "wave": decision.wave,
            "phase": Phase.DISPATCH.value,
            "phase_since": now,
            "extended": 0,
            "paused_by": None,
        }
        reach = f"{selected} device{'' if selected == 1 else 's'}"
        text = f"wave {decision.wave + 1} of {len(progress.spec.waves)}, {reach}: {decision.reason}"
        self._move(connection, row, RolloutState.RUNNING, text, actor=actor, values=values)

    def _size_wave(
        self, connection: sa.Connection, row: sa.RowMapping, progress: Progress, wave: int
    ) -> tuple[float, int]:
        spec = progress.spec
        manifest = self._catalog.manifest(row["digest"])
        moved = set(
            connection.execute(sa.select(deployments.c.device).where(deployments.c.rollout == row["id"])).scalars()
        )
        selection = [
            device
            for device in read_devices(connection, group=row["group"])
            if device.id in moved or not why_not(spec, device, manifest=manifest, digest=row["digest"])
        ]
        positions = [place for place, _ in ranked_positions(selection, rotation=row["rotation"])]
        before = connection.execute(
            sa.select(sa.func.max(waves.c.percent)).where(waves.c.rollout == row["id"])
        ).scalar()
        percent = max(wave_percent(spec.waves[wave], positions), before or 0.0)
        return percent, sum(place < percent * 100 for place in positions)

    def _complete(self, connection: sa.Connection, row: sa.RowMapping, decision: Complete, *, actor: str) -> None:
        ensure_target(connection, row["group"], row["model"])
        self._set_target(connection, row, version=row["version"], digest=row["digest"])
        self._end_wave(connection, row, result="pass", reason=decision.reason, checks=decision.checks)
        text = f"now the version of group {row['group']}: {decision.reason}"
        self._move(connection, row, RolloutState.COMPLETED, text, actor=actor, values={"paused_by": None})

    def _roll_back(
        self,
        connection: sa.Connection,
        row: sa.RowMapping,
        reason: str,
        *,
        checks: tuple[Check, ...],
        actor: str,
        by_person: bool,
    ) -> None:
        target = ensure_target(connection, row["group"], row["model"])
        if row["state"] == RolloutState.COMPLETED:
            if target["digest"] != row["digest"] or row["from_digest"] is None:
                raise ConflictError(
                    f"rollout {row['id']}: its version is not the group's any more, or there is none before it"
                )
            self._set_target(connection, row, version=row["from_version"], digest=row["from_digest"])
        # A person may want the version back later; what failed, or has nothing to go back to, is barred.
        if not by_person or row["from_digest"] is None:
            barred = sorted({*target["quarantine"], row["digest"]})
            self._set_target(connection, row, quarantine=barred)
        self._end_wave(connection, row, result="aborted" if by_person else "fail", reason=reason, checks=checks)
        values = {"paused_by": None, "phase_since": self._store.clock()}
        self._move(connection, row, RolloutState.ROLLING_BACK, reason, actor=actor, values=values)

    def _set_target(self, connection: sa.Connection, row: sa.RowMapping, **values: Any) -> None:  # noqa: ANN401 - columns
        condition = sa.and_(targets.c.group == row["group"], targets.c.model == row["model"])
        connection.execute(targets.update().where(condition).values(values))

    def _move(
        self,
        connection: sa.Connection,
        row: sa.RowMapping,
        state: RolloutState,
        reason: str,
        *,
        actor: str,
        values: dict[str, Any] | None = None,
    ) -> None:
        changes = {"state": state.value, "reason": reason, "updated": self._store.clock(), **(values or {})}
        connection.execute(rollouts.update().where(rollouts.c.id == row["id"]).values(changes))
        self._note(connection, row, f"rollout.{state.value}", reason, actor=actor)

    def _note(self, connection: sa.Connection, row: sa.RowMapping, kind: str, reason: str, *, actor: str) -> None:
        text = f"{row['model']} {row['version']}: {reason}"
        details = {"from": row["state"]}
        self._store.note(connection, kind, text, actor=actor, rollout=row["id"], model=row["model"], details=details)

    def _end_wave(
        self,
        connection: sa.Connection,
        row: sa.RowMapping,
        *,
        result: str,
        reason: str,
        checks: tuple[Check, ...] = (),
    ) -> None:
        values: dict[str, Any] = {"ended": self._store.clock(), "result": result, "reason": reason}
        if checks:
            values["checks"] = msgspec.to_builtins(checks)
        connection.execute(
            waves.update()
            .where(waves.c.rollout == row["id"], waves.c.index == row["wave"], waves.c.ended.is_(None))
            .values(values)
        )

    @staticmethod
    def _keep_checks(connection: sa.Connection, row: sa.RowMapping, checks: tuple[Check, ...]) -> None:
        connection.execute(
            waves.update()
            .where(waves.c.rollout == row["id"], waves.c.index == row["wave"])
            .values(checks=msgspec.to_builtins(checks), result="inconclusive")
        )

    def _publish_documents(self) -> None:
        query = sa.select(documents).where(sa.not_(documents.c.published)).order_by(documents.c.generation)
        with self._store.read() as connection:
            waiting = connection.execute(query).mappings().all()
        done = []
        try:
            for row in waiting:
                self._link.publish(row["topic"], row["payload"], retain=True)
                done.append((row["topic"], row["generation"]))
        except LinkError as error:
            logger.debug("documents wait: %s", error)
        if not done:
            return
        with self._store.write() as connection:
            for topic, generation in done:
                # A newer generation that was written meanwhile is still to be published.
                condition = sa.and_(documents.c.topic == topic, documents.c.generation == generation)
                connection.execute(documents.update().where(condition).values(published=True))

    def _publish_commands(self, *, now: float) -> None:
        query = sa.select(commands).where(sa.not_(commands.c.published), commands.c.expires > now)
        with self._store.read() as connection:
            waiting = connection.execute(query).mappings().all()
        done = []
        try:
            for row in waiting:
                self._link.publish(self._topics.command(row["device"]), row["payload"])
                done.append(row["id"])
        except LinkError as error:
            logger.debug("commands wait: %s", error)
        if done:
            with self._store.write() as connection:
                connection.execute(commands.update().where(commands.c.id.in_(done)).values(published=True))


def _live_figures(
    connection: sa.Connection, row: sa.RowMapping, members: Sequence[DeviceView], *, since: float
) -> tuple[Figures, Figures]:
    """Requests, errors and latency since a time, of devices with the new version and of those with another one."""
    query = sa.select(windows).where(windows.c.model == row["model"], windows.c.received >= since)
    names = {device.id for device in members}
    found: dict[bool, list[sa.RowMapping]] = {True: [], False: []}
    for window in connection.execute(query).mappings():
        if window["device"] in names:
            found[window["digest"] == row["digest"]].append(window)
    return _sum(found[True]), _sum(found[False])


def _sum(found: Sequence[sa.RowMapping]) -> Figures:
    histograms = [msgspec.msgpack.decode(window["latency"], type=Buckets) for window in found]
    return Figures(
        devices=len({window["device"] for window in found}),
        requests=sum(window["requests"] for window in found),
        errors=sum(window["errors"] for window in found),
        latency=merge_buckets(histograms),
    )
