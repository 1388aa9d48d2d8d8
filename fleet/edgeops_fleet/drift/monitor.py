"""The drift of a whole fleet: profiles in, verdicts out, for the fleet, for cohorts and for single devices.

Profiles of a time slot are added up and make one window of evidence; a profile that comes after its slot was closed counts in the
oldest slot that is still open, since merged windows are valid evidence. What is decided depends on the observations and their
order alone, so a server that starts again loads a state that it kept,
replays what came since, and stands where it stood. Storing, clocks and the network are left to others.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

from edgeops.selection import Attribute
from edgeops.signals import Profile, Reference
from edgeops_fleet.drift.bets import Bets, place_bets
from edgeops_fleet.drift.scores import scores_of
from edgeops_fleet.drift.sentences import sentence
from edgeops_fleet.drift.settings import DriftSettings
from edgeops_fleet.drift.stream import Stream, Window
from edgeops_fleet.drift.verdicts import Level, Scope, Verdict

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WindowObservation:
    """What one device counted in one telemetry window.

    Attributes:
        time: Unix time in seconds that puts it into a slot. The server's time of receipt is the safe choice: it is one clock, and
            it never runs backwards by decades. It has to be the same when the observation is replayed.
        attributes: Of the device; a cohort is a value of one of them.
        digest: Manifest digest, which leads to the reference.
    """

    time: float
    device: str
    attributes: Mapping[str, Attribute]
    model: str
    version: str
    digest: str
    profile: Profile


@dataclass(frozen=True, kw_only=True)
class _Key:
    """What is kept apart: scope, model, and bundle, hence reference."""

    scope: Scope
    model: str
    digest: str


@dataclass
class _Tracked:
    version: str
    reference: str
    stream: Stream
    open: dict[int, Window] = field(default_factory=dict)
    last_slot: int = 0
    verdict: Verdict | None = None
    """Until the next window, so that looking often is cheap."""


class DriftMonitor:
    """Watches everything that reports profiles. It may be fed and asked from different threads.

    Args:
        settings: The knobs.
        reference_of: The reference of a bundle by its manifest digest; ``None`` when it has none. It is asked once for each.
    """

    def __init__(self, settings: DriftSettings, reference_of: Callable[[str], Reference | None]) -> None:
        self.settings = settings
        self._reference_of = reference_of
        self._references: dict[str, tuple[str, Reference, Callable[[str], Bets]]] = {}
        self._tracked: dict[_Key, _Tracked] = {}
        self._slot = -(2**62)
        self._lock = threading.Lock()

    def observe(self, observation: WindowObservation) -> bool:
        """Take in what a device counted.

        Returns:
            Whether it was counted. It was not when its bundle has no reference, when it counted into the bins of another
            reference, or when the counts cannot be; the last two are logged.
        """
        with self._lock:
            if not math.isfinite(observation.time) or not self._fits(observation):
                return False
            slot = math.floor(observation.time / self.settings.window_s)
            for scope in self._scopes(observation):
                self._add(scope, observation, slot)
            if slot > self._slot:
                self._slot = slot
                self._close()
            return True

    def verdicts(self) -> tuple[Verdict, ...]:
        """One for each scope and version that is still reported: the fleet first, then cohorts, then devices, by name."""
        levels = list(Level)
        with self._lock:
            kept = sorted(
                self._tracked.items(),
                key=lambda item: (levels.index(item[0].scope.level), item[0].scope, item[0].model, item[1].version),
            )
            for key, tracked in kept:
                tracked.verdict = tracked.verdict or _verdict(key, tracked)
            return tuple(tracked.verdict for _, tracked in kept if tracked.verdict)

    def dump(self) -> dict[str, Any]:
        """Everything that it remembers, as lists and numbers: what follows from all observations so far; exact."""
        with self._lock:
            return {
                "settings": _plain(self.settings),
                "slot": self._slot,
                "tracked": [_dump_tracked(key, tracked) for key, tracked in self._tracked.items()],
            }

    def load(self, state: Mapping[str, Any]) -> bool:
        """Stand where another monitor stood; ``False``, and nothing changed, when its settings or references were others."""
        with self._lock:
            if state.get("settings") != _plain(self.settings):
                return False
            try:
                tracked = dict(self._load_tracked(each) for each in state["tracked"])
            except (KeyError, ValueError, TypeError) as error:
                logger.warning("drift: the state that was kept does not fit: %s", error)
                return False
            self._tracked, self._slot = tracked, state["slot"]
            return True

    def _load_tracked(self, state: Mapping[str, Any]) -> tuple[_Key, _Tracked]:
        scope = Scope(level=Level(state["level"]), attribute=state["attribute"], name=state["name"])
        key = _Key(scope=scope, model=state["model"], digest=state["digest"])
        if not self._knows(key.digest) or self._references[key.digest][0] != state["reference"]:
            raise ValueError(f"the reference of {key.digest} is another one")
        stream = Stream(self._references[key.digest][2], self.settings)
        stream.load(state["stream"])
        windows = {slot: Window.load(window) for slot, window in state["open"]}
        last = state["last_slot"]
        return key, _Tracked(
            version=state["version"], reference=state["reference"], stream=stream, open=windows, last_slot=last
        )

    def _knows(self, digest: str) -> bool:
        """Whether a bundle has a reference; read once."""
        if digest not in self._references:
            reference = self._reference_of(digest)
            if reference is None:
                return False
            self._references[digest] = (reference.id, reference, self._bets_of(reference))
        return True

    def _fits(self, observation: WindowObservation) -> bool:
        if not self._knows(observation.digest):
            return False
        identity, reference, _ = self._references[observation.digest]
        complaint = _complaint(observation.profile, identity, reference)
        if complaint:
            logger.warning("drift: profile of %s is not counted: %s", observation.device, complaint)
        return not complaint

    def _bets_of(self, reference: Reference) -> Callable[[str], Bets]:
        settings = self.settings

        @cache
        def bets_of(stratum: str) -> Bets:
            scores = scores_of(reference, stratum, confidence=settings.reference_confidence)
            return place_bets(scores, tolerance=settings.tolerance)

        # Strata that the reference does not have all stand for its rows together; one set of bets serves them.
        known = {stratum for signal in reference.signals for stratum in signal.counts}
        return lambda stratum: bets_of(stratum if stratum in known else "")

    def _scopes(self, observation: WindowObservation) -> Iterator[Scope]:
        yield Scope(level=Level.FLEET)
        for attribute in self.settings.cohort_attributes:
            if attribute in observation.attributes:
                yield Scope(level=Level.COHORT, attribute=attribute, name=str(observation.attributes[attribute]))
        yield Scope(level=Level.DEVICE, name=observation.device)

    def _add(self, scope: Scope, observation: WindowObservation, slot: int) -> None:
        identity, reference, bets_of = self._references[observation.digest]
        key = _Key(scope=scope, model=observation.model, digest=observation.digest)
        tracked = self._tracked.get(key)
        if tracked is None:
            stream = Stream(bets_of, self.settings)
            tracked = self._tracked[key] = _Tracked(version=observation.version, reference=identity, stream=stream)
        # Closed slots stay closed: what comes late counts in the oldest open one.
        slot = max(slot, self._slot - self.settings.lateness_slots)
        window_s = self.settings.window_s
        window = tracked.open.setdefault(slot, Window(start=slot * window_s, end=(slot + 1) * window_s))
        stratum = (
            str(observation.attributes.get(reference.stratum_attribute, "")) if reference.stratum_attribute else ""
        )
        window.add(observation.profile, stratum)
        tracked.last_slot = max(tracked.last_slot, slot)

    def _close(self) -> None:
        """Hand over the windows that time has left behind, and forget versions that were superseded."""
        due = self._slot - self.settings.lateness_slots
        streams = self._streams_by_level()
        for key, tracked in self._tracked.items():
            for slot in sorted(slot for slot in tracked.open if slot < due):
                tracked.verdict = None
                tracked.stream.absorb(tracked.open.pop(slot), streams=streams[key.scope.level, key.scope.attribute])
        latest: dict[tuple[Scope, str], int] = {}
        for key, tracked in self._tracked.items():
            latest[key.scope, key.model] = max(tracked.last_slot, latest.get((key.scope, key.model), tracked.last_slot))
        # Only a newer version makes an old one forgotten; a scope that is silent keeps what was found out about it.
        self._tracked = {
            key: tracked
            for key, tracked in self._tracked.items()
            if latest[key.scope, key.model] - tracked.last_slot <= self.settings.forget_slots
        }

    def _streams_by_level(self) -> dict[tuple[Level, str], int]:
        counted: dict[tuple[Level, str], int] = {}
        for key in self._tracked:
            level = key.scope.level, key.scope.attribute
            counted[level] = counted.get(level, 0) + 1
        return counted


def _plain(settings: DriftSettings) -> dict[str, Any]:
    return {**asdict(settings), "cohort_attributes": list(settings.cohort_attributes)}


def _dump_tracked(key: _Key, tracked: _Tracked) -> dict[str, Any]:
    return {
        "level": key.scope.level.value,
        "attribute": key.scope.attribute,
        "name": key.scope.name,
        "model": key.model,
        "digest": key.digest,
        "version": tracked.version,
        "reference": tracked.reference,
        "open": [[slot, window.dump()] for slot, window in tracked.open.items()],
        "last_slot": tracked.last_slot,
        "stream": tracked.stream.dump(),
    }


def _complaint(profile: Profile, identity: str, reference: Reference) -> str:
    """Why a profile cannot be held against a reference; empty when it can."""
    if profile.reference != identity:
        return f"expected counts for the reference {identity[:19]}, got {profile.reference[:19]}"
    bins = {signal.name: signal.bins for signal in reference.signals}
    for name, counts in profile.counts.items():
        if len(counts) != bins.get(name):
            return f"signal {name!r}: expected {bins.get(name, 'no such signal')} bins, got {len(counts)}"
        if min(counts) < 0 or sum(counts) > profile.rows:
            return f"signal {name!r}: expected counts that add up to {profile.rows} rows at most, got {sum(counts)}"
    return ""


def _verdict(key: _Key, tracked: _Tracked) -> Verdict:
    stream = tracked.stream
    signals = stream.signals()
    verdict = Verdict(
        scope=key.scope,
        model=key.model,
        version=tracked.version,
        digest=key.digest,
        reference=tracked.reference,
        state=stream.state,
        effect=signals[0].effect if signals else None,
        evidence=stream.history[-1] if stream.history else None,
        threshold=stream.threshold,
        history=tuple(stream.history),
        rows=stream.rows,
        windows=stream.windows,
        rows_needed=math.ceil(stream.rows_needed) if math.isfinite(stream.rows_needed) else None,
        since=stream.since,
        onset=stream.onset,
        windows_to_detect=stream.windows_to_detect,
        rows_to_detect=stream.rows_to_detect,
        alarms=stream.alarms,
        signals=signals,
        reason="",
    )
    return replace(verdict, reason=sentence(verdict))
