"""Counters of workers, added up into telemetry windows, and the live figures that a probation is judged by.

Every window that a worker closes is added exactly once; the sum over all telemetry records is the sum over all requests that the
workers reported. Asking for windows and keeping the records is left to :mod:`edgeops_runtime.agent`.
"""

from collections import deque

import msgspec

from edgeops.errors import ManifestError
from edgeops.latency import Buckets, merge_buckets, quantile_ms
from edgeops.signals import Profile
from edgeops_runtime.control import WindowClosed
from edgeops_runtime.slots import Slot

_BASELINE_WINDOWS = 30
_MEDIAN, _P95 = 0.5, 0.95


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What one version did in one window; fields as in :class:`edgeops.messages.Telemetry`."""

    slot: Slot
    start: float
    end: float
    requests: int = 0
    rows: int = 0
    errors: int = 0
    not_finite: int = 0
    latency: Buckets = {}
    profile: Profile | None = None
    rss_bytes: int = 0

    def __add__(self, closed: WindowClosed) -> "Window":
        """Add what a worker counted since it was last asked."""
        return Window(
            slot=self.slot,
            start=min(self.start, closed.start),
            end=max(self.end, closed.end),
            requests=self.requests + closed.requests,
            rows=self.rows + closed.rows,
            errors=self.errors + closed.errors,
            not_finite=self.not_finite + closed.not_finite,
            latency=merge_buckets((self.latency, closed.latency)),
            profile=_add_profiles(self.profile, closed.profile),
            rss_bytes=closed.rss_bytes,
        )


class Windows:
    """The windows that are open, one for each version that did something."""

    def __init__(self) -> None:
        self._open: dict[str, Window] = {}
        self._recent: dict[str, deque[Buckets]] = {}
        self.answered = 0
        """Requests without an error since the agent's start, over all versions."""

    def add(self, slot: Slot, closed: WindowClosed) -> None:
        """A worker of this version has reported."""
        self.answered += closed.requests - closed.errors
        before = self._open.get(slot.digest) or Window(slot=slot, start=closed.start, end=closed.end)
        self._open[slot.digest] = before + closed
        if closed.latency:
            self._recent.setdefault(slot.digest, deque(maxlen=_BASELINE_WINDOWS)).append(closed.latency)

    def close(self) -> list[Window]:
        """End the telemetry window: what was added since the last time."""
        closed, self._open = list(self._open.values()), {}
        return closed

    def usual_latency_ms(self, digest: str) -> tuple[float | None, float | None]:
        """Median and p95 over the last windows of a version, in milliseconds; ``None`` when it had no requests."""
        merged = merge_buckets(self._recent.get(digest, ()))
        return quantile_ms(merged, _MEDIAN), quantile_ms(merged, _P95)

    def forget_all_but(self, digests: frozenset[str]) -> None:
        """Drop the latency of versions that are gone."""
        self._recent = {digest: recent for digest, recent in self._recent.items() if digest in digests}


class LiveFigures(msgspec.Struct):
    """What a candidate did since the switch."""

    requests: int = 0
    errors: int = 0
    not_finite: int = 0
    latency: Buckets = {}
    busy_s: float = 0.0

    def add(self, closed: WindowClosed) -> None:
        """Its worker has reported."""
        self.busy_s = closed.busy_s
        self.requests += closed.requests
        self.errors += closed.errors
        self.not_finite += closed.not_finite
        self.latency = merge_buckets((self.latency, closed.latency))

    @property
    def p95_ms(self) -> float | None:
        """95th percentile of its latency, in milliseconds."""
        return quantile_ms(self.latency, _P95)


def _add_profiles(first: Profile | None, second: Profile | None) -> Profile | None:
    if first is None or second is None:
        return first or second
    try:
        return first + second
    except ManifestError:
        # The reference changed under the same digest, which cannot be: the later one is at least consistent.
        return second
