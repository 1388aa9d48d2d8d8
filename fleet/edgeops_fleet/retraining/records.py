"""Causes for retraining in the database: their states, how one ends, and what a person sees of them."""

from enum import StrEnum
from typing import Any

import msgspec
import sqlalchemy as sa

from edgeops_fleet.schema import retrains
from edgeops_fleet.store import Store


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


def finish(
    store: Store, connection: sa.Connection, retrain: str, state: RetrainState, *, code: int | None, text: str
) -> None:
    """A request for retraining has ended; written with its reason."""
    values = {"state": state.value, "exit_code": code, "updated": store.clock()}
    connection.execute(retrains.update().where(retrains.c.id == retrain).values(values))
    store.note(connection, f"retrain.{state}", f"retraining {retrain}: {text}", details={"retrain": retrain})
