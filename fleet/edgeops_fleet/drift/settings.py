"""What a person can set about drift detection; two knobs matter, the rest has sound defaults.

The knobs are *one false alarm per so many windows* and *changes smaller than the tolerance do not matter*.
"""

import math
from dataclasses import dataclass

from edgeops.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DriftSettings:
    """Settings of the detector and of the monitor around it.

    Attributes:
        false_alarm_windows: The promise, for each level (the fleet, all cohorts of an attribute together, all devices
            together): at most one false alarm in this many windows on average.
        tolerance: A change of a score's mean that does not matter, in score units: 0.02 of mean rank is what a shift by 0.07
            standard deviations of a normal signal does; for class shares it is an absolute share.
        window_s: Length of a time slot, in seconds; the profiles of a slot are added up and are one window of evidence.
        cohort_attributes: Device attributes whose values make cohorts.
        design_effect: How many correlated rows count as one independent row: 1 for independent requests; neighbouring frames
            of a video need more, ``(1 + ρ) / (1 - ρ)`` at autocorrelation ρ.
        reference_confidence: With which all sampling errors of the reference together are allowed for.
        detectable_shift: The verdict is OK only after so many rows that a shift of the mean rank by this much in a typical
            signal would have been found; until then it is "not enough data".
        min_windows: And only after this many windows.
        lateness_slots: A slot stays open for late profiles while time is at most this many slots past it.
        forget_slots: A version's verdict is dropped when no device of the scope has reported it for this many slots.
        recent_windows: Windows that are kept for the effect and its interval.
        confidence: Of the intervals that are shown.
    """

    false_alarm_windows: float = 1000.0
    tolerance: float = 0.02
    window_s: float = 60.0
    cohort_attributes: tuple[str, ...] = ("site",)
    design_effect: float = 1.0
    reference_confidence: float = 0.99
    detectable_shift: float = 0.1
    min_windows: int = 3
    lateness_slots: int = 1
    forget_slots: int = 10
    recent_windows: int = 12
    confidence: float = 0.95

    def __post_init__(self) -> None:
        _check("false_alarm_windows", self.false_alarm_windows, low=1.0, high=math.inf)
        _check("tolerance", self.tolerance, low=0.0, high=0.5)
        _check("window_s", self.window_s, low=1e-3, high=math.inf)
        _check("design_effect", self.design_effect, low=1.0, high=math.inf)
        _check("reference_confidence", self.reference_confidence, low=0.5, high=1 - 1e-9)
        _check("detectable_shift", self.detectable_shift, low=1e-3, high=0.49)
        _check("min_windows", self.min_windows, low=1, high=math.inf)
        _check("lateness_slots", self.lateness_slots, low=0, high=math.inf)
        _check("forget_slots", self.forget_slots, low=self.lateness_slots + 2, high=math.inf)
        _check("recent_windows", self.recent_windows, low=1, high=1000)
        _check("confidence", self.confidence, low=0.5, high=1 - 1e-9)


def _check(name: str, value: float, *, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"drift.{name}: expected a number from {low:g} to {high:g}, got {value!r}")
