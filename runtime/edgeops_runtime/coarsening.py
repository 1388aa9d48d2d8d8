"""Telemetry windows added up into longer ones, for an outbox that runs out of room. Pure.

Counters, latency histograms and drift profiles merge by adding, so every sum over the records stays what it was. Only windows of
the same version, variant, engine and drift reference are added, and only of one start of the agent and of an unchanged clock.
The records must not have been sent: sequences that nobody has seen may be given anew, so windows of two versions that took turns
become two records that share the range between them.
"""

from collections.abc import Iterable, Iterator

import msgspec

from edgeops.errors import ManifestError, MessageError
from edgeops.latency import Buckets, merge_buckets
from edgeops.messages import Telemetry, decode_record, encode_record
from edgeops.signals import Profile
from edgeops_runtime.frames import Kept

SPANS_S = (900.0, 3600.0, 4 * 3600.0, 86400.0)
"""How long windows become, one after the other, as room gets scarcer, in seconds."""
_SAME_CLOCK_S = 2.0
_SUMMED = ("requests", "rows", "errors", "not_finite", "windows")
_SAME_MODEL = ("model", "version", "digest", "variant", "engine")
_SAME_LIFE = ("epoch", "stream", "boot", "machine_boot", "clock_trusted")


def coarsen(records: Iterable[Kept], *, span_s: float) -> Iterator[Kept]:
    """Add up windows that together are no longer than a span.

    Args:
        records: In order; what is no telemetry, or cannot be read, is handed on as it is.
        span_s: In seconds.

    Yields:
        Records that stand for the same sequences, in order.

    Raises:
        MessageError: A sum is larger than a broker takes.
    """
    block: _Block | None = None
    for kept in records:
        window = _telemetry(kept)
        if block is not None and window is not None and block.add(kept, window, span_s=span_s):
            continue
        if block is not None:
            yield from block.close()
        block = _Block(kept, window) if window is not None else None
        if block is None:
            yield kept
    if block is not None:
        yield from block.close()


class _Block:
    """Windows that follow each other, added up by version."""

    def __init__(self, kept: Kept, window: Telemetry) -> None:
        self._only: Kept | None = kept
        self._first, self._last = kept.first, kept.sequence
        self._start, self._end = window.start, window.end
        self._latest = window
        self._sums = [_Sum(window)]

    def add(self, kept: Kept, window: Telemetry, *, span_s: float) -> bool:
        """Take one more window; ``False`` when it does not belong here."""
        start, end = min(self._start, window.start), max(self._end, window.end)
        if kept.first != self._last + 1 or not end - start <= span_s or not self._is_same_life(window):
            return False
        if not any(known.add(window) for known in self._sums):
            self._sums.append(_Sum(window))
        self._only, self._last = None, kept.sequence
        self._start, self._end, self._latest = start, end, window
        return True

    def close(self) -> Iterator[Kept]:
        """The sums, which share the sequences: the first takes all that the others can spare."""
        if self._only is not None:
            yield self._only
            return
        first = self._first
        for index, each in enumerate(self._sums):
            last = self._last - (len(self._sums) - 1 - index)
            yield Kept(first, last, encode_record(each.record(first, last)))
            first = last + 1

    def _is_same_life(self, window: Telemetry) -> bool:
        known = self._latest
        shift_s = (window.time - window.uptime_s) - (known.time - known.uptime_s)
        return abs(shift_s) <= _SAME_CLOCK_S and all(
            getattr(window, name) == getattr(known, name) for name in _SAME_LIFE
        )


class _Sum:
    """The windows of one version, added up."""

    def __init__(self, window: Telemetry) -> None:
        self._latest = window
        self._start, self._end = window.start, window.end
        self._counters = {name: getattr(window, name) for name in _SUMMED}
        self._latency: Buckets = dict(window.latency)
        self._profile = window.profile

    def add(self, window: Telemetry) -> bool:
        """Take one more; ``False`` when it is of something else."""
        if any(getattr(window, name) != getattr(self._latest, name) for name in _SAME_MODEL):
            return False
        try:
            profile = _add_profiles(self._profile, window.profile)
        except ManifestError:
            return False
        self._profile = profile
        self._latency = merge_buckets((self._latency, window.latency))
        for name in _SUMMED:
            self._counters[name] += getattr(window, name)
        self._start, self._end = min(self._start, window.start), max(self._end, window.end)
        self._latest = window
        return True

    def record(self, first: int, sequence: int) -> Telemetry:
        return msgspec.structs.replace(
            self._latest,
            first=first,
            sequence=sequence,
            start=self._start,
            end=self._end,
            latency=self._latency,
            profile=self._profile,
            **self._counters,
        )


def _add_profiles(first: Profile | None, second: Profile | None) -> Profile | None:
    """The sum; a window without requests has none, and belongs to any.

    Raises:
        ManifestError: They are of different references.
    """
    return first + second if first is not None and second is not None else first or second


def _telemetry(kept: Kept) -> Telemetry | None:
    try:
        record = decode_record(kept.payload, where="outbox")
    except MessageError:
        return None
    return record if isinstance(record, Telemetry) else None
