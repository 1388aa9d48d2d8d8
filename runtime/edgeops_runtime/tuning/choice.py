"""Which settings to try, and which of those that were measured to take. Pure.

Settings are tried one after the other, each decided by what was measured before: every variant and engine as usual, then the
fastest with other numbers of threads, then that one with its engine's options changed in turn.

The choice is lexicographic. Of what answers rightly, whatever is within :data:`NOISE` of the least is kept: by the latency of one
row, then of a batch, then by memory, then by CPU time. Of what is left, the first that was tried is taken, and what is usual is
tried first.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from edgeops_runtime.engines.options import SessionOptions

NOISE = 0.05
"""A difference by less than this share is none; nor is one of some microseconds."""

FAST_MS = 1.0
"""A model that is faster than this on one thread gains nothing from more: waking them takes as long."""

BATCH_ROWS = 8


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """How to run a model."""

    variant: str
    engine: str
    threads: int = 1
    options: SessionOptions = SessionOptions()

    @property
    def words(self) -> str:
        """For people."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.variant} on {self.engine}, {threads}, {self.options.words}"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A setting that was tried.

    Attributes:
        latency_ms: Median of one call with one row.
        batch_ms: Likewise with :data:`BATCH_ROWS` rows; ``None`` where the file takes a fixed number.
        cpu_ms: CPU time of all threads, for one row.
        rss_bytes: Resident memory of the process with the model, after the calls.
        load_ms: Until it was warm, without the start of the process.
        objection: Why it cannot be taken, for example a golden answer that was wrong; then there need be no figures.
    """

    setting: Setting
    latency_ms: float = 0.0
    batch_ms: float | None = None
    cpu_ms: float = 0.0
    rss_bytes: int = 0
    load_ms: float = 0.0
    objection: str = ""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What was taken, and why."""

    setting: Setting
    reason: str
    measured: tuple[Measured, ...]


class _Criterion(NamedTuple):
    """What settings are compared by; a difference below ``floor`` is none either, whatever its share."""

    name: str
    figure: Callable[[Measured], float | None]
    floor: float
    unit: str
    scale: float = 1.0

    def keeps(self, measured: Measured, least: float) -> bool:
        """Whether a setting is as good as the best; one whose figure is unknown is."""
        figure = self.figure(measured)
        return figure is None or figure <= least + max(least * NOISE, self.floor)

    def in_words(self, measured: Measured) -> str:
        figure = self.figure(measured)
        return "unknown" if figure is None else f"{figure * self.scale:.3g} {self.unit}"


_CRITERIA = (
    # What a request over a socket costs beside the model.
    _Criterion("latency", lambda each: each.latency_ms, 0.05, "ms"),
    _Criterion(f"latency of {BATCH_ROWS} rows", lambda each: each.batch_ms, 0.05, "ms"),
    _Criterion("memory", lambda each: float(each.rss_bytes), 1e6, "MB", 1e-6),
    _Criterion("CPU time", lambda each: each.cpu_ms, 0.05, "ms"),
)


def choose(measured: Sequence[Measured]) -> Choice | None:
    """Take one of those that were measured; ``None`` when none answers rightly.

    Args:
        measured: In the order in which they were tried; the first is what is usual.

    >>> usual, two = (Setting(variant="v", engine="onnxruntime", threads=threads) for threads in (1, 2))
    >>> figures = {"rss_bytes": 70_000_000, "load_ms": 9.0}
    >>> choose(
    ...     [
    ...         Measured(setting=usual, latency_ms=6.0, cpu_ms=6.0, **figures),
    ...         Measured(setting=two, latency_ms=3.5, cpu_ms=6.8, **figures),
    ...     ]
    ... ).reason
    'latency: 3.5 ms against 6 ms as usual'
    """
    left = [each for each in measured if not each.objection]
    if not left:
        return None
    usual, decided = left[0], ""
    for criterion in _CRITERIA:
        least = min((figure for each in left if (figure := criterion.figure(each)) is not None), default=0.0)
        kept = [each for each in left if criterion.keeps(each, least)]
        if usual in left and usual not in kept:
            decided = f"{criterion.name}: {criterion.in_words(kept[0])} against {criterion.in_words(usual)} as usual"
        left = kept
    taken = left[0]
    if taken is usual:
        decided = f"nothing that was tried is better by more than {NOISE:.0%}"
    return Choice(setting=taken.setting, reason=decided, measured=tuple(measured))


def next_setting(
    usual: Sequence[Setting], measured: Sequence[Measured], *, threads: Sequence[int], flips: "Flips"
) -> Setting | None:
    """What to try next; ``None`` when there is nothing more.

    Args:
        usual: Every variant and engine, the preferred first, as it would run without tuning.
        measured: So far.
        threads: Numbers of threads that may be taken.
        flips: Options of an engine that are worth a try, for a setting.
    """
    tried = {each.setting for each in measured}
    return next((each for each in _worth_a_try(usual, measured, threads, flips) if each not in tried), None)


Flips = Callable[[Setting], Sequence[SessionOptions]]


def _worth_a_try(
    usual: Sequence[Setting], measured: Sequence[Measured], threads: Sequence[int], flips: Flips
) -> Iterator[Setting]:
    yield from usual
    best = choose([each for each in measured if each.setting in usual])
    if best is None:
        return
    first = next(each for each in measured if each.setting == best.setting)
    counts = threads if first.latency_ms >= FAST_MS else ()
    others = [msgspec.structs.replace(best.setting, threads=count) for count in counts]
    yield from others
    best = choose([each for each in measured if each.setting in {best.setting, *others}]) or best
    yield from _with_flips(best.setting, measured, flips)


def _with_flips(start: Setting, measured: Sequence[Measured], flips: Flips) -> Iterator[Setting]:
    """Each option changed in the best so far: one that helped is kept while the next is tried."""
    family = [start]
    for flip in flips(start):
        best = choose([each for each in measured if each.setting in family])
        current = best.setting if best is not None else start
        changed = _merged(current, flip)
        yield changed
        family.append(changed)


def _merged(setting: Setting, flip: SessionOptions) -> Setting:
    usual = SessionOptions()
    changes = {
        name: getattr(flip, name) for name in flip.__struct_fields__ if getattr(flip, name) != getattr(usual, name)
    }
    return msgspec.structs.replace(setting, options=msgspec.structs.replace(setting.options, **changes))


def thread_counts(*, cores: int, big_cores: int | None) -> tuple[int, ...]:
    """Numbers of threads to try: 1, 2, and the fast cores of a board that has slow ones too, else all.

    >>> thread_counts(cores=4, big_cores=None), thread_counts(cores=8, big_cores=4), thread_counts(cores=1, big_cores=None)
    ((1, 2, 4), (1, 2, 4), (1,))
    """
    most = min(big_cores or cores, cores)
    return tuple(sorted({1, min(2, most), most}))


def option_flips(setting: Setting, *, fixed_rows: bool) -> tuple[SessionOptions, ...]:
    """The options of an engine that are worth a try.

    Args:
        setting: Names the engine.
        fixed_rows: Whether the file takes a fixed number of rows; only then memory is planned ahead.
    """
    if setting.engine != "onnxruntime":
        return ()
    without = (SessionOptions(prepack=False), SessionOptions(arena=False))
    return (*without, SessionOptions(memory_pattern=False)) if fixed_rows else without
