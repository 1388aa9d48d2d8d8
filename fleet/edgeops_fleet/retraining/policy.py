"""From drift to one request for retraining: collect samples, wait for labels, judge the harm, write a data set.

Each cause (a cohort that drifts on one version) is one row, moved on *before* each act, so that a kill at any time never makes
two requests of one. What is drift is decided in :mod:`edgeops_fleet.drift`, what is harm in
:mod:`edgeops_fleet.retraining.harm`, and the one who trains is told by :mod:`edgeops_fleet.retraining.trainer`.

::

    collecting → requested → running → done | failed
               ↘ benign                ↘ interrupted
"""

import logging
import math
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from edgeops.errors import InputError
from edgeops.messages import Command, CommandKind, encode_json
from edgeops.signals import EVERYTHING
from edgeops_fleet.catalog import Catalog
from edgeops_fleet.devices import read_devices
from edgeops_fleet.drift import DriftState, Level, Verdict
from edgeops_fleet.retraining.harm import Harm, HarmState, assess
from edgeops_fleet.retraining.records import REQUESTED_STATES, RetrainState, RetrainView
from edgeops_fleet.retraining.samples import Samples, collected
from edgeops_fleet.retraining.trainer import Trainer
from edgeops_fleet.schema import commands, retrains, samples
from edgeops_fleet.settings import RetrainSection
from edgeops_fleet.store import Store, read_row
from edgeops_fleet.watch import cohort_name

logger = logging.getLogger(__name__)

EVENT_TYPE = "org.edgeops.retrain.requested"


class Retraining:
    """The policy, and its acts; :meth:`look` is called by the controller's loop.

    Args:
        store: The database.
        section: The policy's figures.
        catalog: Has the references with the accuracy that was promised.
        samples: Writes data sets.
        verdicts: The drift monitor's answers of now.
        fleet: Its name, in the event's source.
        directory: Where events and logs are kept.
    """

    def __init__(
        self,
        store: Store,
        section: RetrainSection,
        *,
        catalog: Catalog,
        samples: Samples,
        verdicts: Callable[[], tuple[Verdict, ...]],
        fleet: str,
        directory: Path,
    ) -> None:
        self._store = store
        self._section = section
        self._catalog = catalog
        self._samples = samples
        self._verdicts = verdicts
        self._fleet = fleet
        self._trainer = Trainer(store, section, directory)

    def look(self) -> None:
        """One look at verdicts, samples, labels and running commands."""
        self._follow_verdicts(self._verdicts())
        for row in self._rows(RetrainState.COLLECTING):
            self._collect(row)
            self._judge(row)
        for row in self._rows(RetrainState.REQUESTED):
            self._act(row)
        for row in self._rows(RetrainState.RUNNING):
            self._trainer.reap(row)

    def stop(self) -> None:
        """Stop telling; see :meth:`edgeops_fleet.retraining.trainer.Trainer.stop` for what becomes of commands."""
        self._trainer.stop()

    def all(self, *, only_requested: bool = True) -> tuple[RetrainView, ...]:
        """Causes for which retraining was requested, oldest first; with ``only_requested=False``, all of them."""
        query = sa.select(retrains).order_by(retrains.c.opened)
        if only_requested:
            query = query.where(retrains.c.state.in_([state.value for state in REQUESTED_STATES]))
        with self._store.read() as connection:
            return tuple(self._view(connection, row) for row in connection.execute(query).mappings().all())

    def event(self, retrain: str) -> bytes | None:
        """The CloudEvent of a retraining, as JSON; ``None`` before it was requested."""
        with self._store.read() as connection:
            event: bytes | None = connection.execute(
                sa.select(retrains.c.event).where(retrains.c.id == retrain)
            ).scalar()
        return event

    def _rows(self, state: RetrainState) -> list[sa.RowMapping]:
        query = sa.select(retrains).where(retrains.c.state == state.value).order_by(retrains.c.opened)
        with self._store.read() as connection:
            return list(connection.execute(query).mappings().all())

    # Drift opens and closes causes.

    def _follow_verdicts(self, verdicts: tuple[Verdict, ...]) -> None:
        with self._store.read() as connection:
            rows = connection.execute(sa.select(retrains).where(retrains.c.closed.is_(None))).mappings().all()
        open_causes = {(row["digest"], row["cohort"]): row for row in rows}
        for verdict in verdicts:
            if verdict.scope.level is not Level.COHORT:
                continue
            row = open_causes.get((verdict.digest, cohort_name(verdict)))
            if verdict.state is DriftState.DRIFT and row is None:
                self._open(verdict)
            elif verdict.state is DriftState.OK and row is not None:
                self._close(row)

    def _open(self, verdict: Verdict) -> None:
        cohort = cohort_name(verdict)
        now = self._store.clock()
        with self._store.write() as connection:
            same = sa.and_(retrains.c.model == verdict.model, retrains.c.cohort == cohort)
            earlier = connection.execute(sa.select(retrains).where(same)).mappings().all()
            if any(row["digest"] == verdict.digest and row["closed"] is None for row in earlier):
                return
            requested = [row["updated"] for row in earlier if row["event"] is not None]
            if requested and now - max(requested) < self._section.cooldown_s:
                return
            episode = sum(row["digest"] == verdict.digest for row in earlier) + 1
            retrain = f"t-{secrets.token_hex(4)}"
            connection.execute(
                retrains.insert().values(
                    id=retrain,
                    cause=f"{verdict.model}/{verdict.digest}/{cohort}/{episode}",
                    model=verdict.model,
                    version=verdict.version,
                    digest=verdict.digest,
                    cohort=cohort,
                    signal=verdict.signal or "",
                    state=RetrainState.COLLECTING.value,
                    reason=verdict.reason,
                    verdict=_plain(verdict),
                    assessed=0,
                    opened=now,
                    updated=now,
                )
            )
            text = f"{cohort}: {verdict.model} {verdict.version}: {verdict.reason}"
            self._store.note(connection, "drift.detected", text, model=verdict.model, details={"retrain": retrain})

    def _close(self, row: sa.RowMapping) -> None:
        with self._store.write() as connection:
            connection.execute(retrains.update().where(retrains.c.id == row["id"]).values(closed=self._store.clock()))
            if row["state"] == RetrainState.COLLECTING:
                values = {"state": RetrainState.BENIGN.value, "reason": "the drift went before it was judged"}
                connection.execute(retrains.update().where(retrains.c.id == row["id"]).values(values))
            text = f"{row['cohort']}: {row['model']} {row['version']}: drift has gone"
            self._store.note(connection, "drift.cleared", text, model=row["model"])

    # Samples and labels.

    def _collect(self, row: sa.RowMapping) -> None:
        now = self._store.clock()
        with self._store.read() as connection:
            query = collected(row["id"], digest=row["digest"])
            count = connection.execute(sa.select(sa.func.count()).select_from(query.subquery())).scalar() or 0
            running = sa.select(commands.c.id).where(commands.c.retrain == row["id"], commands.c.expires > now)
            is_collecting = connection.execute(running).first() is not None
            cohort = [
                device.id
                for device in read_devices(connection)
                if _in_cohort(device.attributes, row["cohort"])
                and device.online
                and device.holds(row["model"]) == row["digest"]
            ]
        missing = self._section.samples - count
        if missing <= 0 or is_collecting or not cohort:
            return
        each = math.ceil(missing / len(cohort))
        with self._store.write() as connection:
            for device in cohort:
                command = Command(
                    id=f"c-{secrets.token_hex(6)}",
                    kind=CommandKind.COLLECT,
                    expires=now + self._section.collect_ttl_s,
                    model=row["model"],
                    count=each,
                    share=self._section.share,
                )
                add_command(connection, device, command, retrain=row["id"])
            text = f"{row['cohort']}: {len(cohort)} devices collect {each} samples each"
            self._store.note(connection, "samples.requested", text, model=row["model"], details={"retrain": row["id"]})

    def _judge(self, row: sa.RowMapping) -> None:
        query = collected(row["id"], digest=row["digest"]).where(
            samples.c.label.is_not(None), samples.c.predicted.is_not(None)
        )
        with self._store.read() as connection:
            found = connection.execute(query).mappings().all()
        labelled = sorted(found, key=lambda sample: (sample["labelled"], sample["received"], sample["id"]))
        if len(labelled) == row["assessed"] or len(labelled) < self._section.min_labels:
            return
        baseline = self._baseline(row)
        if baseline is None:
            self._remember(row, len(labelled), None)
            return
        harm = assess(
            [sample["label"] == sample["predicted"] for sample in labelled],
            baseline=baseline,
            tolerance=self._section.harm_tolerance,
        )
        if harm.state is HarmState.HARMFUL:
            self._request(row, harm)
        else:
            self._remember(row, len(labelled), harm)

    def _baseline(self, row: sa.RowMapping) -> tuple[int, int] | None:
        reference = self._catalog.reference(row["digest"])
        if reference is None:
            return None
        attribute, _, value = row["cohort"].partition("=")
        stratum = value if reference.stratum_attribute == attribute else EVERYTHING
        return reference.accuracy.get(stratum) or reference.accuracy.get(EVERYTHING)

    def _remember(self, row: sa.RowMapping, count: int, harm: Harm | None) -> None:
        values: dict[str, Any] = {"assessed": count, "updated": self._store.clock()}
        if harm is None:
            values["reason"] = "harm is unknown: the reference of this version has no accuracy to compare with"
        else:
            values.update(assessment=msgspec.to_builtins(harm), reason=harm.reason)
            if harm.state is HarmState.BENIGN:
                values["state"] = RetrainState.BENIGN.value
        with self._store.write() as connection:
            connection.execute(retrains.update().where(retrains.c.id == row["id"]).values(values))
            if values.get("state"):
                text = f"{row['cohort']}: {row['model']} {row['version']}: {values['reason']}"
                self._store.note(connection, "drift.benign", text, model=row["model"])

    # The request: written down first, then acted on.

    def _request(self, row: sa.RowMapping, harm: Harm) -> None:
        dataset = f"d-{row['id'].removeprefix('t-')}"
        about = {key: row[key] for key in ("model", "version", "digest", "cohort")}
        try:
            path, digest = self._samples.write_dataset(dataset, cause=row["cause"], retrain=row["id"], about=about)
        except InputError as error:
            logger.warning("retraining %s: no data set: %s", row["id"], error)
            return
        now = self._store.clock()
        event = {
            "specversion": "1.0",
            "id": row["id"],
            "source": f"/edgeops/fleets/{self._fleet}",
            "type": EVENT_TYPE,
            "subject": row["model"],
            "time": datetime.fromtimestamp(now, tz=UTC).isoformat(),
            "datacontenttype": "application/json",
            "data": {
                **about,
                "cause": row["cause"],
                "signal": row["signal"],
                "drift": row["verdict"],
                "harm": msgspec.to_builtins(harm),
                "dataset": {
                    "id": dataset,
                    "path": str(path.resolve()),
                    "digest": digest,
                    "url": f"/api/v1/datasets/{dataset}",
                },
            },
        }
        values = {
            "state": RetrainState.REQUESTED.value,
            "event": msgspec.json.encode(event),
            "dataset": dataset,
            "reason": harm.reason,
            "assessed": harm.labels,
            "assessment": msgspec.to_builtins(harm),
            "updated": now,
        }
        with self._store.write() as connection:
            unrequested = sa.and_(retrains.c.id == row["id"], retrains.c.state == RetrainState.COLLECTING.value)
            if not connection.execute(retrains.update().where(unrequested).values(values)).rowcount:
                return
            text = f"{row['cohort']}: retraining of {row['model']} {row['version']} requested: {harm.reason}"
            details = {"retrain": row["id"], "dataset": dataset}
            self._store.note(connection, "retrain.requested", text, model=row["model"], details=details)

    def _act(self, row: sa.RowMapping) -> None:
        self._trainer.tell(row)

    def _view(self, connection: sa.Connection, row: sa.RowMapping) -> RetrainView:
        query = collected(row["id"], digest=row["digest"])
        found = connection.execute(query.with_only_columns(samples.c.label)).all()
        assessment = row["assessment"] or {}
        view = read_row({**row, "event": row["id"] if row["event"] is not None else None}, RetrainView)
        return msgspec.structs.replace(
            view,
            samples=len(found),
            labels=sum(sample.label is not None for sample in found),
            error_rate=assessment.get("error_rate"),
            log=self._trainer.log_tail(row["id"]),
        )


def add_command(connection: sa.Connection, device: str, command: Command, *, retrain: str | None = None) -> None:
    """Put a command into the outbox; the controller publishes it while it has not expired."""
    connection.execute(
        commands.insert().values(
            id=command.id,
            device=device,
            retrain=retrain,
            expires=command.expires,
            payload=encode_json(command),
            published=False,
        )
    )


def _plain(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON, without what is there for pictures."""
    view: dict[str, Any] = msgspec.to_builtins(verdict)
    return {key: value for key, value in view.items() if key not in {"history", "signals"}}


def _in_cohort(attributes: dict[str, Any], cohort: str) -> bool:
    attribute, _, value = cohort.partition("=")
    return attribute in attributes and str(attributes[attribute]) == value
