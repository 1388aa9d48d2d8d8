"""What the page needs, read from the database in a few queries; what it makes of it is :mod:`edgeops_fleet.dashboard.view`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import sqlalchemy as sa

from edgeops.latency import Buckets, merge_buckets, quantile_ms
from edgeops_fleet.devices import Devices, DeviceView
from edgeops_fleet.drift import Verdict
from edgeops_fleet.rollouts.records import Rollouts, RolloutView
from edgeops_fleet.schema import devices, retrains, samples, windows
from edgeops_fleet.store import LogEntry, Store

ROLLOUTS_SHOWN = 5
LOG_SHOWN = 80
RECENT_S = 300.0
"""Latency is over the windows that came within this many seconds."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Labelled samples of one cohort on one version."""

    cohort: str
    model: str
    version: str
    correct: int
    labelled: int
    waiting: int


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """One cause for retraining and how far it has come; ``opened`` is Unix time in seconds."""

    id: str
    model: str
    version: str
    cohort: str
    signal: str
    state: str
    reason: str
    opened: float


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The fleet at one moment.

    Attributes:
        now: Unix time in seconds.
        connected: Whether the server has its broker.
        latency_p95_ms: Device → 95th percentile over recent windows.
        rollouts: The newest first, with their deployments and orders.
        log: The newest first.
    """

    fleet: str
    broker: str
    connected: bool
    now: float
    cohort_attribute: str = "site"
    devices: Sequence[DeviceView] = ()
    latency_p95_ms: dict[str, float] = field(default_factory=dict)
    rollouts: Sequence[RolloutView] = ()
    verdicts: Sequence[Verdict] = ()
    labelled: Sequence[Labelled] = ()
    retrainings: Sequence[Retraining] = ()
    log: Sequence[LogEntry] = ()


def read_snapshot(
    store: Store,
    *,
    fleet: str,
    broker: str,
    connected: bool,
    verdicts: Sequence[Verdict],
    cohort_attribute: str = "site",
) -> Snapshot:
    """Read everything that the page shows.

    Args:
        store: The database; its clock is the page's.
        fleet: Name of the fleet.
        broker: Address of the broker, for showing; without credentials.
        connected: Whether the link to it is up.
        verdicts: Of the drift monitor.
        cohort_attribute: Device attribute by which labelled samples are grouped.

    Raises:
        StoreError: The database cannot be read.
    """
    orders = Rollouts(store)
    newest = sorted(orders.all(), key=lambda view: view.created, reverse=True)[:ROLLOUTS_SHOWN]
    with store.read() as connection:
        latency = _latency(connection, since=store.clock() - RECENT_S)
        labelled = _labelled(connection, cohort_attribute)
        retrainings = _retrainings(connection)
    return Snapshot(
        fleet=fleet,
        broker=broker,
        connected=connected,
        now=store.clock(),
        cohort_attribute=cohort_attribute,
        devices=Devices(store).all(with_figures=True),
        latency_p95_ms=latency,
        rollouts=tuple(orders.get(view.id) for view in newest),
        verdicts=verdicts,
        labelled=labelled,
        retrainings=retrainings,
        log=tuple(reversed(store.log(limit=LOG_SHOWN))),
    )


def _latency(connection: sa.Connection, *, since: float) -> dict[str, float]:
    histograms: dict[str, list[Buckets]] = {}
    query = sa.select(windows.c.device, windows.c.latency).where(windows.c.received >= since)
    for device, packed in connection.execute(query):
        histograms.setdefault(device, []).append(msgspec.msgpack.decode(packed, type=Buckets))
    found = {device: quantile_ms(merge_buckets(parts), 0.95) for device, parts in histograms.items()}
    return {device: value for device, value in found.items() if value is not None}


def _labelled(connection: sa.Connection, attribute: str) -> tuple[Labelled, ...]:
    is_right = sa.and_(samples.c.label.is_not(None), samples.c.predicted == samples.c.label)
    query = (
        sa.select(
            devices.c.attributes,
            samples.c.model,
            samples.c.version,
            sa.func.sum(sa.case((is_right, 1), else_=0)),
            sa.func.count(samples.c.label),
            sa.func.count(),
        )
        .join(devices, devices.c.id == samples.c.device)
        .group_by(devices.c.id, samples.c.model, samples.c.version)
    )
    counts: dict[tuple[str, str, str], list[int]] = {}
    for attributes, model, version, correct, labelled, total in connection.execute(query):
        count = counts.setdefault((str(attributes.get(attribute, "–")), model, version), [0, 0, 0])
        for index, number in enumerate((correct, labelled, total - labelled)):
            count[index] += number
    return tuple(
        Labelled(cohort=cohort, model=model, version=version, correct=correct, labelled=labelled, waiting=waiting)
        for (cohort, model, version), (correct, labelled, waiting) in sorted(counts.items())
    )


def _retrainings(connection: sa.Connection) -> tuple[Retraining, ...]:
    query = sa.select(retrains).order_by(retrains.c.opened.desc()).limit(10)
    return tuple(
        Retraining(**{name: row[name] for name in Retraining.__dataclass_fields__})
        for row in connection.execute(query).mappings()
    )
