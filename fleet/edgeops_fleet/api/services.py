"""The server's parts, as the routes of the API see them."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from edgeops.enrolment import Enrolment
from edgeops_fleet.blobs import Blobs
from edgeops_fleet.catalog import Catalog
from edgeops_fleet.devices import Devices
from edgeops_fleet.enrolments import Enrolled, Enrolments
from edgeops_fleet.ingest import Ingest
from edgeops_fleet.retraining.policy import Retraining
from edgeops_fleet.retraining.samples import Samples
from edgeops_fleet.rollouts.controller import Controller
from edgeops_fleet.rollouts.records import Rollouts
from edgeops_fleet.store import Store
from edgeops_fleet.watch import Watch


@dataclass(frozen=True)
class Services:
    """The server's parts, as the API sees them.

    Attributes:
        operator_token: Who has it may change things.
        identity: Makes the whole answer to an enrolment, given who was let in and the host name by which it came.
        closing: Set when the server stops, so that streams end.
    """

    store: Store
    blobs: Blobs
    catalog: Catalog
    enrolments: Enrolments
    devices: Devices
    rollouts: Rollouts
    controller: Controller
    ingest: Ingest
    watch: Watch
    samples: Samples
    retraining: Retraining
    operator_token: str
    identity: Callable[[Enrolled, str], Enrolment]
    is_connected: Callable[[], bool]
    closing: asyncio.Event
    fleet: str
    open_reads: bool
    max_bundle_bytes: int
