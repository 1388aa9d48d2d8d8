"""One stream of windows, held against one reference: the detector, and the state that a person sees.

The state latches. When the detector fires, the state is DRIFT, the detector starts anew, and the recent windows are judged like a
new stream: the state leaves DRIFT only when, since the last alarm, as many rows and windows have passed as a first verdict of OK
takes, **and** every score that fired is back inside what is tolerated. A change that goes on fires again and again and stays
DRIFT; one that is too small to fire again but still there stays DRIFT too, so the verdict does not flutter. Pure.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.signals import EVERYTHING, Profile
from edgeops_fleet.drift.bets import Bets, rows_to_detect
from edgeops_fleet.drift.descriptions import (
    jensen_shannon,
    jensen_shannon_critical,
    kolmogorov_smirnov,
    kolmogorov_smirnov_critical,
    psi,
    psi_critical,
)
from edgeops_fleet.drift.detector import Detector, log_threshold
from edgeops_fleet.drift.effects import Shift, shift_of
from edgeops_fleet.drift.scores import Counts, FloatArray, ScoreKind
from edgeops_fleet.drift.settings import DriftSettings
from edgeops_fleet.drift.verdicts import DriftState, Effect, SignalView

HISTORY = 60
"""How many values of the evidence are kept for showing."""

_STRONG = 0.25
"""A score has much of the evidence when its logarithm is this share of the strongest's."""

StratumCounts = dict[str, NDArray[np.int64]]


@dataclass
class Window:
    """The profiles of one time slot, added up; a window that is still open only grows.

    Attributes:
        start: Unix time in seconds.
        end: Likewise.
        counts: Stratum → signal → counts of shape ``(bins,)``.
    """

    start: float
    end: float
    rows: int = 0
    counts: dict[str, StratumCounts] = field(default_factory=dict)

    def add(self, profile: Profile, stratum: str) -> None:
        """Add a profile, which must fit the reference."""
        self.rows += profile.rows
        into = self.counts.setdefault(stratum, {})
        for signal, counts in profile.counts.items():
            new = np.asarray(counts, dtype=np.int64)
            into[signal] = into[signal] + new if signal in into else new

    def dump(self) -> dict[str, Any]:
        """The same as lists and numbers."""
        counts = {
            stratum: {signal: array.tolist() for signal, array in by_signal.items()}
            for stratum, by_signal in self.counts.items()
        }
        return {"start": self.start, "end": self.end, "rows": self.rows, "counts": counts}

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> "Window":
        """From what :meth:`dump` gave."""
        counts = {
            stratum: {signal: np.asarray(array, dtype=np.int64) for signal, array in by_signal.items()}
            for stratum, by_signal in state["counts"].items()
        }
        return cls(start=state["start"], end=state["end"], rows=state["rows"], counts=counts)


_REMEMBERED = (
    "rows",
    "windows",
    "threshold",
    "rows_needed",
    "alarms",
    "since",
    "onset",
    "windows_to_detect",
    "rows_to_detect",
)


class Stream:
    """The windows of one scope under one reference.

    Args:
        bets_of: Bets of a stratum of the reference.
        settings: Of the monitor.
    """

    def __init__(self, bets_of: Callable[[str], Bets], settings: DriftSettings) -> None:
        self._bets_of = bets_of
        self._settings = settings
        self._layout = bets_of(EVERYTHING)
        self._strata: dict[str, Bets] = {}
        self._detector = Detector(self._layout.log_weights)
        self._fresh_rows = 0
        self._told = np.zeros(len(self._layout.scores))
        self._recent: deque[Window] = deque(maxlen=settings.recent_windows)
        self._past: deque[tuple[float, int]] = deque(maxlen=HISTORY)
        self.state = DriftState.NOT_ENOUGH_DATA
        self.history: deque[float] = deque(maxlen=HISTORY)
        self.threshold = math.log10(settings.false_alarm_windows)
        self.rows = 0
        self.windows = 0
        self.rows_needed = math.inf
        self.alarms = 0
        self.since = 0.0
        self.onset: float | None = None
        self.windows_to_detect: int | None = None
        self.rows_to_detect: int | None = None

    def dump(self) -> dict[str, Any]:
        """Everything that it remembers, as lists and numbers; exact."""
        return {
            "strata": list(self._strata),
            "detector": self._detector.dump(),
            "fresh_rows": self._fresh_rows,
            "told": self._told.tolist(),
            "recent": [window.dump() for window in self._recent],
            "past": [list(each) for each in self._past],
            "state": self.state.value,
            "history": list(self.history),
            **{name: getattr(self, name) for name in _REMEMBERED},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Stand where another stream with the same reference and settings stood.

        Raises:
            ValueError: The state is of other bets.
        """
        self._strata = {stratum: self._bets_of(stratum) for stratum in state["strata"]}
        self._detector.load(state["detector"])
        self._fresh_rows = state["fresh_rows"]
        self._told = np.asarray(state["told"], dtype=np.float64)
        self._recent.extend(Window.load(each) for each in state["recent"])
        self._past.extend((start, rows) for start, rows in state["past"])
        self.state = DriftState(state["state"])
        self.history.extend(state["history"])
        for name in _REMEMBERED:
            setattr(self, name, state[name])

    def absorb(self, window: Window, *, streams: int = 1) -> None:
        """Take in a closed window; one without rows says nothing, and no time passes for the detector.

        Args:
            window: Not changed afterwards.
            streams: How many streams share the promise about false alarms.
        """
        if not window.rows:
            return
        evidence = self._evidence(window.counts)
        self.since = self.since if self.windows else window.end
        self.rows += window.rows
        self.windows += 1
        self._fresh_rows += window.rows
        self._recent.append(window)
        self._past.append((window.start, window.rows))
        limit = log_threshold(self._settings.false_alarm_windows, streams)
        level = self._detector.update(evidence)
        self.threshold = limit / math.log(10)
        self.history.append(level / math.log(10))
        self._decide(window.end, level=level, limit=limit)

    def signals(self) -> tuple[SignalView, ...]:
        """Every signal by its most telling score, the most telling first; in drift over the recent windows since the onset."""
        counts = _added(list(self._recent))
        shifts = [self._shift(index, counts) for index in range(len(self._layout.scores))] if self.windows else []
        by_signal: dict[str, list[int]] = {}
        for index, _ in enumerate(shifts):
            by_signal.setdefault(self._layout.scores[index].signal, []).append(index)
        fired = self._has_fired if self.state is DriftState.DRIFT else np.zeros(len(shifts), dtype=np.bool_)
        told = sorted((self._tell(indices, shifts, fired) for indices in by_signal.values()), reverse=True)
        return tuple(self._view(-index, shifts[-index], counts) for *_, index in told)

    def _tell(self, scores: list[int], shifts: list[Shift], fired: NDArray[np.bool_]) -> tuple[bool, bool, float, int]:
        """How much a signal explains, as a sorting key, and by which of its scores (negative, so that the first wins a tie).

        A location is easier to understand than a spread, so where the mean rank has fired too it speaks for its signal, unless
        most of the evidence is elsewhere.
        """
        moved = [score for score in scores if fired[score]]
        if not moved:
            how_far = {score: abs(shifts[score].value) / shifts[score].half_width for score in scores}
            best = max(scores, key=lambda score: how_far[score])
            return False, False, how_far[best], -best
        layout = self._layout.scores
        most = float(self._told[moved].max())
        strong = [score for score in moved if self._told[score] >= _STRONG * most]
        best = max(strong, key=lambda score: (layout[score].kind is ScoreKind.MEAN_RANK, self._told[score]))
        return True, not layout[best].is_answer, most, -best

    @property
    def _has_fired(self) -> NDArray[np.bool_]:
        """Which scores' evidence would have been enough by itself; if none's, the strongest."""
        fired: NDArray[np.bool_] = self._told >= min(self.threshold * math.log(10), float(self._told.max()))
        return fired

    def _evidence(self, strata: Mapping[str, Counts]) -> FloatArray:
        total = np.zeros(len(self._layout.log_weights))
        for stratum, counts in sorted(strata.items()):
            if stratum not in self._strata:
                self._strata[stratum] = self._bets_of(stratum)
            total += self._strata[stratum].evidence(counts, design_effect=self._settings.design_effect)
        return total

    def _decide(self, time: float, *, level: float, limit: float) -> None:
        settings = self._settings
        self.rows_needed = settings.design_effect * max(
            rows_to_detect(bets, shift=settings.detectable_shift, log_threshold=limit) for bets in self._strata.values()
        )
        if level >= limit:
            self._alarm(time)
            return
        enough = self._fresh_rows >= self.rows_needed and self._detector.windows >= settings.min_windows
        if self.state is DriftState.DRIFT:
            if enough and self._is_back():
                self._recent = deque(self._fresh_windows(), maxlen=settings.recent_windows)
                self.state, self.since = DriftState.OK, time
                self.onset = self.windows_to_detect = self.rows_to_detect = None
        elif enough and self.state is DriftState.NOT_ENOUGH_DATA:
            self.state, self.since = DriftState.OK, time
        if self.state is not DriftState.DRIFT:
            self._told = np.maximum(self._detector.by_score(), 0.0)

    def _alarm(self, time: float) -> None:
        self.alarms += 1
        evidence = np.maximum(self._detector.by_score(), 0.0)
        self._told = self._told + evidence if self.state is DriftState.DRIFT else evidence
        if self.state is not DriftState.DRIFT:
            windows = self._detector.windows - self._detector.onset()
            self.state, self.since = DriftState.DRIFT, time
            self.windows_to_detect = windows
            since_onset = list(self._past)[-windows:]
            self.onset, self.rows_to_detect = since_onset[0][0], sum(rows for _, rows in since_onset)
            self._recent = deque(list(self._recent)[-windows:], maxlen=self._settings.recent_windows)
        self._detector = Detector(self._layout.log_weights)
        self._fresh_rows = 0

    def _is_back(self) -> bool:
        """Whether every score that fired lies within what is tolerated, since the last alarm."""
        counts = _added(self._fresh_windows())
        return all(self._shift(int(score), counts).tolerated for score in np.flatnonzero(self._has_fired))

    def _fresh_windows(self) -> list[Window]:
        """The windows since the last alarm, as far as they are kept."""
        return list(self._recent)[-self._detector.windows :] if self._detector.windows else []

    def _shift(self, score: int, counts: Mapping[str, Counts]) -> Shift:
        return shift_of(
            score,
            bets=self._strata,
            counts=counts,
            tolerance=self._settings.tolerance,
            design_effect=self._settings.design_effect,
            confidence=self._settings.confidence,
        )

    def _view(self, index: int, shift: Shift, counts: Mapping[str, Counts]) -> SignalView:
        score = self._layout.scores[index]
        window, reference = self._pooled(score.signal, counts)
        rows, held = float(window.sum()) / self._settings.design_effect, float(reference.sum())
        used = int(((window + reference) > 0).sum())
        return SignalView(
            effect=Effect(
                signal=score.signal,
                score=score.label,
                shift=shift.value,
                low=max(shift.value - shift.half_width, -1.0),
                high=min(shift.value + shift.half_width, 1.0),
                evidence=float(self._told[index]) / math.log(10),
            ),
            psi=psi(window, reference),
            psi_critical=psi_critical(rows, held, used),
            js=jensen_shannon(window, reference),
            js_critical=jensen_shannon_critical(rows, held, used),
            ks=kolmogorov_smirnov(window, reference),
            ks_critical=kolmogorov_smirnov_critical(rows, held),
        )

    def _pooled(self, signal: str, counts: Mapping[str, Counts]) -> tuple[FloatArray, FloatArray]:
        """Counts of a signal over all strata, and the reference's shares in the same mixture, as counts."""
        bins = self._layout.by_signal[signal].shape[1]
        window, shares, held = np.zeros(bins), np.zeros(bins), 0
        for stratum, counted in counts.items():
            here = counted.get(signal, np.zeros(bins))
            score = next(score for score in self._strata[stratum].scores if score.signal == signal)
            window += here
            shares += score.shares * float(here.sum())
            held += score.rows
        total = float(shares.sum())
        return window, shares * (held / total) if total else shares


def _added(windows: list[Window]) -> dict[str, StratumCounts]:
    """The counts of several windows, by stratum."""
    total: dict[str, StratumCounts] = {}
    for window in windows:
        for stratum, signals in window.counts.items():
            into = total.setdefault(stratum, {})
            for signal, counts in signals.items():
                into[signal] = into[signal] + counts if signal in into else counts
    return total
