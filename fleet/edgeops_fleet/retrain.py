"""From drift to one request for retraining: collect samples, wait for labels, judge the harm, write a data set, tell the trainer.

Each cause (a cohort that drifts on one version) is one row, moved on *before* each act, so that a kill at any time never makes
two requests of one. What is drift is decided in :mod:`edgeops_fleet.drift`, what is harm in :mod:`edgeops_fleet.harm`.

::

    collecting → requested → running → done | failed
               ↘ benign                ↘ interrupted
"""

import contextlib
import logging
import math
import os
import secrets
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from edgeops.errors import EdgeOpsError, InputError
from edgeops.files import write_durably
from edgeops.messages import Command, CommandKind, encode_json
from edgeops.signals import EVERYTHING
from edgeops_fleet.catalog import Catalog
from edgeops_fleet.devices import read_devices
from edgeops_fleet.drift import DriftState, Level, Verdict
from edgeops_fleet.harm import Harm, HarmState, assess
from edgeops_fleet.samples import Samples, collected
from edgeops_fleet.schema import commands, retrains, samples
from edgeops_fleet.settings import RetrainSection
from edgeops_fleet.store import Store, read_row
from edgeops_fleet.watch import cohort_name

logger = logging.getLogger(__name__)

EVENT_TYPE = "org.edgeops.retrain.requested"
_LOG_TAIL_BYTES = 4000
_STOP_S = 5.0
_WEBHOOK_TIMEOUT_S = 30.0
# The exit code is written by the shell, so that it is known even if the server was killed meanwhile.
_WRAPPER = '"$@"; code=$?; echo "$code" > "$0.tmp"; mv "$0.tmp" "$0"; exit "$code"'


class RetrainState(StrEnum):
    """Where a cause stands."""

    COLLECTING = "collecting"
    BENIGN = "benign"
    REQUESTED = "requested"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


REQUESTED_STATES = (
    RetrainState.REQUESTED,
    RetrainState.RUNNING,
    RetrainState.DONE,
    RetrainState.FAILED,
    RetrainState.INTERRUPTED,
)


class RetrainView(msgspec.Struct, frozen=True, kw_only=True):
    """A cause, and what became of it; times are Unix seconds.

    Attributes:
        samples: How many were collected for it; ``labels`` how many of them are labelled.
        error_rate: Of the labelled ones.
        event: Id of the CloudEvent; ``None`` before it.
        log: The end of the command's output.
    """

    id: str
    cause: str
    model: str
    version: str
    digest: str
    cohort: str
    signal: str
    state: RetrainState
    reason: str
    opened: float
    updated: float
    closed: float | None = None
    dataset: str | None = None
    exit_code: int | None = None
    assessment: dict[str, Any] | None = None
    samples: int = 0
    labels: int = 0
    error_rate: float | None = None
    event: str | None = None
    log: str = ""


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
        self._directory = directory
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._posts: dict[str, threading.Thread] = {}

    def look(self) -> None:
        """One look at verdicts, samples, labels and running commands."""
        self._follow_verdicts(self._verdicts())
        for row in self._rows(RetrainState.COLLECTING):
            self._collect(row)
            self._judge(row)
        for row in self._rows(RetrainState.REQUESTED):
            self._act(row)
        for row in self._rows(RetrainState.RUNNING):
            self._reap(row)

    def stop(self) -> None:
        """End commands that run, where the policy says so; otherwise they go on, and the next start finds how they ended."""
        if self._section.stop_with_server:
            for retrain, child in self._children.items():
                _end(child)
                with self._store.write() as connection:
                    self._finish(
                        connection, retrain, RetrainState.INTERRUPTED, child.returncode, "ended with the server"
                    )
            self._children.clear()

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
        if not self._section.command and not self._section.webhook:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            # Made before the act: where it is there after a kill, the act may have happened, and is not repeated.
            log = os.open(self._path(row["id"], "log"), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        except FileExistsError:
            if row["id"] not in self._posts:
                self._interrupted(row)
            return
        with os.fdopen(log, "wb") as stream:
            write_durably(self._path(row["id"], "event.json"), row["event"])
            if self._section.webhook:
                post = threading.Thread(target=self._post, args=(row,), name=f"webhook {row['id']}", daemon=True)
                self._posts[row["id"]] = post
                post.start()
            if self._section.command:
                self._run(row, stream.fileno())

    def _run(self, row: sa.RowMapping, log: int) -> None:
        exit_file = self._path(row["id"], "exit")
        command = ["/bin/sh", "-c", _WRAPPER, str(exit_file), *self._section.command]
        with self._path(row["id"], "event.json").open("rb") as event:
            child = subprocess.Popen(command, stdin=event, stdout=log, stderr=log, start_new_session=True)  # noqa: S603
        self._children[row["id"]] = child
        values = {"state": RetrainState.RUNNING.value, "pid": child.pid, "updated": self._store.clock()}
        with self._store.write() as connection:
            connection.execute(retrains.update().where(retrains.c.id == row["id"]).values(values))
            text = f"retraining {row['id']}: {self._section.command[0]} started, process {child.pid}"
            self._store.note(connection, "retrain.started", text, model=row["model"])

    def _post(self, row: sa.RowMapping) -> None:
        request = urllib.request.Request(  # noqa: S310 - the operator's own setting
            self._section.webhook,
            data=row["event"],
            headers={"Content-Type": "application/cloudevents+json"},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=_WEBHOOK_TIMEOUT_S) as answer:  # noqa: S310
                state, code, text = RetrainState.DONE, int(answer.status), f"webhook answered {answer.status}"
        except urllib.error.HTTPError as error:
            state, code, text = RetrainState.FAILED, error.code, f"webhook answered {error.code}"
        except (OSError, ValueError) as error:
            state, code, text = RetrainState.FAILED, 0, f"webhook: {error}"
        with contextlib.suppress(EdgeOpsError), self._store.write() as connection:
            if self._section.command:
                self._store.note(connection, "retrain.posted", f"retraining {row['id']}: {text}", model=row["model"])
            else:
                self._finish(connection, row["id"], state, code, text)

    def _reap(self, row: sa.RowMapping) -> None:
        child = self._children.get(row["id"])
        if child is not None and child.poll() is None:
            return
        code = _read_code(self._path(row["id"], "exit"))
        if code is None and child is not None:
            code = child.returncode
        if code is None and row["pid"] is not None and _is_alive(row["pid"]):
            return
        self._children.pop(row["id"], None)
        if code is None:
            self._interrupted(row)
            return
        state = RetrainState.DONE if code == 0 else RetrainState.FAILED
        with self._store.write() as connection:
            self._finish(connection, row["id"], state, code, f"the command ended with {code}")

    def _interrupted(self, row: sa.RowMapping) -> None:
        code = _read_code(self._path(row["id"], "exit"))
        with self._store.write() as connection:
            if code is not None:
                state = RetrainState.DONE if code == 0 else RetrainState.FAILED
                self._finish(connection, row["id"], state, code, f"the command ended with {code}")
            else:
                text = "the server was killed while it was asking; it is not asked twice, see the log of the command"
                self._finish(connection, row["id"], RetrainState.INTERRUPTED, None, text)

    def _finish(
        self, connection: sa.Connection, retrain: str, state: RetrainState, code: int | None, text: str
    ) -> None:
        values = {"state": state.value, "exit_code": code, "updated": self._store.clock()}
        connection.execute(retrains.update().where(retrains.c.id == retrain).values(values))
        self._store.note(connection, f"retrain.{state}", f"retraining {retrain}: {text}", details={"retrain": retrain})

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
            log=_tail(self._path(row["id"], "log")),
        )

    def _path(self, retrain: str, what: str) -> Path:
        return self._directory / f"{retrain}.{what}"


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


def _read_code(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(size - _LOG_TAIL_BYTES, 0))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a command and everything that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=_STOP_S)
            return
