"""Drift detection on summed counters: sequential, valid at every look, tolerant of changes that do not matter.

:class:`DriftMonitor` takes profiles and gives verdicts; below it stand, one in each module, the scores of a reference, the bets
on them, the detector, the state of one stream, and descriptive numbers that people know from elsewhere. All of it is pure.
"""

from edgeops_fleet.drift.monitor import DriftMonitor, WindowObservation
from edgeops_fleet.drift.settings import DriftSettings
from edgeops_fleet.drift.verdicts import DriftState, Effect, Level, Scope, SignalView, Verdict

__all__ = [
    "DriftMonitor",
    "DriftSettings",
    "DriftState",
    "Effect",
    "Level",
    "Scope",
    "SignalView",
    "Verdict",
    "WindowObservation",
]
