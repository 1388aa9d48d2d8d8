"""The drift monitor at work: fed by the ingest, rebuilt from stored windows, asked by the API and the retraining policy.

What is drift and what is not is decided in :mod:`edgeops_fleet.drift`.
"""

import threading
from typing import Any

import msgspec

from edgeops.errors import ConfigError, EdgeOpsError
from edgeops_fleet.catalog import Catalog
from edgeops_fleet.drift import DriftMonitor, DriftSettings, Level, Verdict, WindowObservation
from edgeops_fleet.ingest import replay_windows
from edgeops_fleet.settings import DriftSection
from edgeops_fleet.store import Store


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
        self._lock = threading.Lock()

    def observe(self, observation: WindowObservation) -> bool:
        """Take in what a device counted; whether it counted."""
        with self._lock:
            return self._monitor.observe(observation)

    def verdicts(self) -> tuple[Verdict, ...]:
        """The answers of now."""
        with self._lock:
            return self._monitor.verdicts()

    def rebuild(self, store: Store) -> int:
        """Show the monitor what was stored before; returns how many windows."""
        return replay_windows(store, self.observe)


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
