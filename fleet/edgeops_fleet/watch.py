"""The drift monitor at work: fed by the ingest, rebuilt from stored windows, asked by the API and the retraining policy.

What is drift and what is not is decided in :mod:`edgeops_fleet.drift`.
"""

import logging
import time
import zlib
from typing import Any

import msgspec
import sqlalchemy as sa

from edgeops.errors import ConfigError, EdgeOpsError
from edgeops_fleet.catalog import Catalog
from edgeops_fleet.drift import DriftMonitor, DriftSettings, Level, Verdict, WindowObservation
from edgeops_fleet.schema import checkpoints
from edgeops_fleet.settings import DriftSection
from edgeops_fleet.store import Store, StoreError, upsert
from edgeops_fleet.telemetry import replay_windows

logger = logging.getLogger(__name__)

_NAME = "drift"
_KEEP_EVERY_S = 600.0
"""A server that was killed replays what came in so many seconds at most, and what its start takes."""


class Watch:
    """A drift monitor that several threads may use.

    Args:
        section: The knobs.
        catalog: Has the references.

    Raises:
        ConfigError: A knob is out of range.
    """

    def __init__(self, section: DriftSection, catalog: Catalog) -> None:
        try:
            settings = DriftSettings(
                cohort_attributes=(section.attribute,),
                false_alarm_windows=section.false_alarm_windows,
                tolerance=section.tolerance,
                window_s=section.window_s,
                design_effect=section.design_effect,
                detectable_shift=section.detectable_shift,
                min_windows=section.min_windows,
            )
        except EdgeOpsError as error:
            raise ConfigError(f"[drift]: {error}") from error
        self._monitor = DriftMonitor(settings, catalog.reference)
        self._newest = self._kept = 0
        self._kept_at = time.monotonic()

    def observe(self, observation: WindowObservation) -> bool:
        """Take in what a device counted; whether it counted."""
        return self._monitor.observe(observation)

    def verdicts(self) -> tuple[Verdict, ...]:
        """The answers of now."""
        return self._monitor.verdicts()

    def rebuild(self, store: Store) -> int:
        """Stand where the server stood: load the state that was kept, and show the monitor what was stored since; how many."""
        with store.read() as connection:
            row = connection.execute(sa.select(checkpoints).where(checkpoints.c.name == _NAME)).mappings().first()
        if row is not None and self._monitor.load(msgspec.msgpack.decode(zlib.decompress(row["state"]))):
            self._newest = self._kept = row["window"]
        count, self._newest = replay_windows(store, self.observe, after=self._kept)
        return count

    def settled(self, store: Store, window: int) -> None:
        """Everything up to this row was observed; called by the one who observes. Now and then the state is kept."""
        self._newest = window
        if time.monotonic() - self._kept_at >= _KEEP_EVERY_S:
            try:
                self.keep(store)
            except StoreError as error:
                logger.warning("drift: the state is not kept this time: %s", error)

    def keep(self, store: Store) -> None:
        """Write down where the monitor stands; while nobody observes, or by the one who does."""
        self._kept_at = time.monotonic()
        if self._newest == self._kept:
            return
        state = zlib.compress(msgspec.msgpack.encode(self._monitor.dump()), 1)
        with store.write() as connection:
            values = {"window": self._newest, "time": store.clock(), "state": state}
            upsert(connection, checkpoints, {"name": _NAME}, values)
        self._kept = self._newest


def cohort_name(verdict: Verdict) -> str:
    """Whose rows it is about: ``site=south``, a device's id, or nothing for the fleet."""
    scope = verdict.scope
    return f"{scope.attribute}={scope.name}" if scope.level is Level.COHORT else scope.name


def verdict_view(verdict: Verdict) -> dict[str, Any]:
    """A verdict for JSON: its own fields, with the scope as words and the signal by name."""
    view: dict[str, Any] = msgspec.to_builtins(verdict)
    view.update(
        scope=verdict.scope.level.value,
        cohort=cohort_name(verdict),
        attribute=verdict.scope.attribute,
        name=verdict.scope.name,
        signal=verdict.signal,
    )
    return view
