"""Tells the one who trains: a command that gets the event on standard input, a webhook that gets it posted, or both.

A command is started at most once for a cause, over any kill. A webhook is tried a few times with the same event, whose ``id``
never changes, so that a receiver that got it and whose answer was lost knows it again; after a kill it is not tried further.
"""

import contextlib
import logging
import os
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path

import sqlalchemy as sa

from edgeops.errors import EdgeOpsError
from edgeops.files import write_durably
from edgeops_fleet.retraining.records import RetrainState, finish
from edgeops_fleet.schema import retrains
from edgeops_fleet.settings import RetrainSection
from edgeops_fleet.store import Store

logger = logging.getLogger(__name__)

RETRY_AFTER_S = (1.0, 10.0, 60.0, 300.0)
"""How long after a delivery that failed the next one is tried, in seconds; then it has failed."""
_LOG_TAIL_BYTES = 4000
_STOP_S = 5.0
_WEBHOOK_TIMEOUT_S = 30.0
# The exit code is written by the shell, so that it is known even if the server was killed meanwhile.
_WRAPPER = '"$@"; code=$?; echo "$code" > "$0.tmp"; mv "$0.tmp" "$0"; exit "$code"'


class Trainer:
    """Delivers requests for retraining, and finds out how they ended.

    Args:
        store: The database.
        section: Command and webhook.
        directory: Where events and logs are kept.
        retry_after_s: Pauses between deliveries to the webhook, in seconds.
    """

    def __init__(
        self,
        store: Store,
        section: RetrainSection,
        directory: Path,
        *,
        retry_after_s: Sequence[float] | None = None,
    ) -> None:
        self._store = store
        self._section = section
        self._directory = directory
        self._retry_after_s = tuple(RETRY_AFTER_S if retry_after_s is None else retry_after_s)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._posts: dict[str, threading.Thread] = {}
        self._stopping = threading.Event()

    def tell(self, row: sa.RowMapping) -> None:
        """Deliver a request, unless it was begun already."""
        if not (self._section.command or self._section.webhook) or row["id"] in self._posts:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        write_durably(self._path(row["id"], "event.json"), row["event"])
        try:
            # Made before the act: where it is there after a kill, the act may have happened, and is not repeated.
            log = os.open(self._path(row["id"], "log"), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        except FileExistsError:
            self._interrupted(row)
            return
        with os.fdopen(log, "wb") as stream:
            if self._section.webhook:
                post = threading.Thread(target=self._post, args=(row,), name=f"webhook {row['id']}", daemon=True)
                self._posts[row["id"]] = post
                post.start()
            if self._section.command:
                self._run(row, stream.fileno())

    def reap(self, row: sa.RowMapping) -> None:
        """Find out whether a command that runs has ended, and how."""
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
            finish(self._store, connection, row["id"], state, code=code, text=f"the command ended with {code}")

    def stop(self) -> None:
        """End commands that run, where the policy says so; otherwise they go on, and the next start finds how they ended."""
        self._stopping.set()
        for post in self._posts.values():
            post.join(timeout=_STOP_S)
        if not self._section.stop_with_server:
            return
        for retrain, child in self._children.items():
            _end(child)
            with self._store.write() as connection:
                finish(
                    self._store,
                    connection,
                    retrain,
                    RetrainState.INTERRUPTED,
                    code=child.returncode,
                    text="ended with the server",
                )
        self._children.clear()

    def log_tail(self, retrain: str) -> str:
        """The end of a command's output."""
        return _tail(self._path(retrain, "log"))

    def _run(self, row: sa.RowMapping, log: int) -> None:
        exit_file = self._path(row["id"], "exit")
        command = ["/bin/sh", "-c", _WRAPPER, str(exit_file), *self._section.command]
        with self._path(row["id"], "event.json").open("rb") as event:
            child = subprocess.Popen(command, stdin=event, stdout=log, stderr=log, start_new_session=True)  # noqa: S603 - the operator's
        self._children[row["id"]] = child
        values = {"state": RetrainState.RUNNING.value, "pid": child.pid, "updated": self._store.clock()}
        with self._store.write() as connection:
            connection.execute(retrains.update().where(retrains.c.id == row["id"]).values(values))
            text = f"retraining {row['id']}: {self._section.command[0]} started, process {child.pid}"
            self._store.note(connection, "retrain.started", text, model=row["model"])

    def _post(self, row: sa.RowMapping) -> None:
        state, code, text = self._deliver(row)
        for pause_s in self._retry_after_s:
            if state is not None:
                break
            self._note(row, "retrain.retried", f"{text}; tried again in {pause_s:g} s")
            if self._stopping.wait(pause_s):
                if not self._section.command:
                    # The next start delivers it; nothing else was done that could be done twice.
                    self._path(row["id"], "log").unlink(missing_ok=True)
                return
            state, code, text = self._deliver(row)
        with contextlib.suppress(EdgeOpsError):
            if self._section.command:
                self._note(row, "retrain.posted", text)
                return
            with self._store.write() as connection:
                finish(self._store, connection, row["id"], state or RetrainState.FAILED, code=code, text=text)

    def _deliver(self, row: sa.RowMapping) -> tuple[RetrainState | None, int, str]:
        """Post the event once: the state that follows (``None``: worth another try), the HTTP status, and words."""
        request = urllib.request.Request(  # noqa: S310 - the operator's own setting
            self._section.webhook,
            data=row["event"],
            headers={"Content-Type": "application/cloudevents+json"},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=_WEBHOOK_TIMEOUT_S) as answer:  # noqa: S310 - the operator's URL
                return RetrainState.DONE, int(answer.status), f"webhook answered {answer.status}"
        except urllib.error.HTTPError as error:
            error.close()
            is_busy = error.code >= HTTPStatus.INTERNAL_SERVER_ERROR or error.code == HTTPStatus.TOO_MANY_REQUESTS
            return None if is_busy else RetrainState.FAILED, error.code, f"webhook answered {error.code}"
        except (OSError, HTTPException) as error:
            return None, 0, f"webhook: {error}"
        except ValueError as error:
            return RetrainState.FAILED, 0, f"webhook: {error}"

    def _note(self, row: sa.RowMapping, kind: str, text: str) -> None:
        with contextlib.suppress(EdgeOpsError), self._store.write() as connection:
            details = {"retrain": row["id"]}
            self._store.note(connection, kind, f"retraining {row['id']}: {text}", model=row["model"], details=details)

    def _interrupted(self, row: sa.RowMapping) -> None:
        code = _read_code(self._path(row["id"], "exit"))
        with self._store.write() as connection:
            if code is not None:
                state = RetrainState.DONE if code == 0 else RetrainState.FAILED
                finish(self._store, connection, row["id"], state, code=code, text=f"the command ended with {code}")
            else:
                text = "the server was killed while it was asking; it is not asked twice, see the log of the command"
                finish(self._store, connection, row["id"], RetrainState.INTERRUPTED, code=None, text=text)

    def _path(self, retrain: str, what: str) -> Path:
        return self._directory / f"{retrain}.{what}"


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
