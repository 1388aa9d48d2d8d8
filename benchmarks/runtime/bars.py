"""What is asked of the device runtime, as data, and whether figures meet it. Pure; nothing is measured here.

A bar names a figure by its part and its name, of which the end may be left out where it says under what conditions the figure was
taken. A bar whose part was measured and has no such figure is not met, so that a figure which is renamed or left out cannot go
unnoticed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from benchmarks.figures import Figure
from benchmarks.limits import Bound, Verdict


class Quantity(StrEnum):
    """What of a figure is limited, as the table shows it."""

    VALUE = ""
    DIFFERENCE = " above"
    """Over the alternative, in the figure's unit."""
    RATIO = " times"
    """The value over the alternative's."""

    def of(self, figure: Figure) -> float | None:
        """The number that is held against the limit; ``None`` where a figure has no alternative."""
        match self:
            case Quantity.VALUE:
                return figure.value
            case Quantity.DIFFERENCE:
                return figure.difference
            case Quantity.RATIO:
                return figure.ratio


@dataclass(frozen=True)
class Bar:
    """One condition on one figure.

    Attributes:
        what: The line of the table that it belongs to.
        part: Who measures it.
        figure: Its name, or how it begins where no figure has exactly that name.
        quantity: What of it.
        bound: Which side of the limit is good.
        limit: In the figure's unit, or without one for a ratio.
    """

    what: str
    part: str
    figure: str
    quantity: Quantity
    bound: Bound
    limit: float


@dataclass(frozen=True)
class Outcome:
    """What became of one bar.

    Attributes:
        what: As the bar says; likewise ``part`` and ``figure``.
        asked: The condition, for people.
        got: What was measured, for people.
        verdict: Whether the condition holds.
    """

    what: str
    part: str
    figure: str
    asked: str
    got: str
    verdict: Verdict


def judge(bars: Sequence[Bar], figures: Mapping[str, Sequence[Figure]]) -> list[Outcome]:
    """Hold figures against bars.

    Args:
        bars: What is asked.
        figures: Part → what it found; empty for a part that failed, whose bars are then not met. About what is left out nothing
            is said.
    """
    return [_outcome(bar, figures) for bar in bars]


def _outcome(bar: Bar, figures: Mapping[str, Sequence[Figure]]) -> Outcome:
    found = _find(bar.figure, figures.get(bar.part, ()))
    number = bar.quantity.of(found) if found is not None else None
    if bar.part not in figures or (found is not None and found.left_out):
        verdict = Verdict.NOT_MEASURED
    elif number is not None and bar.bound.admits(number, bar.limit):
        verdict = Verdict.MET
    else:
        verdict = Verdict.NOT_MET
    unit = found.unit if found is not None and bar.quantity is not Quantity.RATIO else ""
    return Outcome(
        what=bar.what,
        part=bar.part,
        figure=bar.figure,
        asked=_in_words(f"{bar.bound} {bar.limit:g}", unit, bar.quantity),
        got="none" if number is None or math.isnan(number) else _in_words(f"{number:.4g}", unit, bar.quantity),
        verdict=verdict,
    )


def _find(name: str, figures: Sequence[Figure]) -> Figure | None:
    """The figure of a name, or else the first whose name goes on after it."""
    exact = (each for each in figures if each.name == name)
    longer = (each for each in figures if each.name.startswith(name))
    return next(exact, None) or next(longer, None)


def _in_words(number: str, unit: str, quantity: Quantity) -> str:
    return f"{number} {unit}".strip() + quantity


def _at_least(part: str, figure: str, limit: float, *, what: str, of: Quantity = Quantity.VALUE) -> Bar:
    return Bar(what, part, figure, of, Bound.AT_LEAST, limit)


def _at_most(part: str, figure: str, limit: float, *, what: str, of: Quantity = Quantity.VALUE) -> Bar:
    return Bar(what, part, figure, of, Bound.AT_MOST, limit)


_DIFFERENCE, _RATIO = Quantity.DIFFERENCE, Quantity.RATIO
_IN_PROCESS = "in-process call"
_SOCKET = "V2 binary over the Unix socket"
_MEMORY = "memory and start"
_SWAPS = "swaps under load"
_KILLS = "kill -9 at random points"
_AWAY = "broker away for 21 days"

BARS = (
    _at_most("hot_path", "linear: in-process call", 1, of=_DIFFERENCE, what=_IN_PROCESS),
    _at_most("hot_path", "linear: in-process call, with the drift profile", 10, of=_DIFFERENCE, what=_IN_PROCESS),
    _at_most("hot_path", "linear: mean of a call, with the drift profile and its binning", 10, of=_DIFFERENCE,
             what=_IN_PROCESS),
    _at_most("hot_path", "linear: V2 binary over the Unix socket, round trip", 40, of=_DIFFERENCE, what=_SOCKET),
    _at_most("rivals", "MLServer: ours over the Unix socket", 0.1, of=_RATIO, what=_SOCKET),
    _at_most("rivals", "BentoML: ours over the Unix socket", 0.1, of=_RATIO, what=_SOCKET),
    _at_most("shared_memory", "602 kB: shared memory over a Unix socket", 15, of=_DIFFERENCE, what="shared memory"),
    _at_most("spinning", "CPU of 50 inferences a second, 2 threads", 0.35, of=_RATIO, what="CPU at 50 a second"),
    *(
        bar
        for engine in ("onnxruntime", "litert")
        for bar in (
            _at_most("footprint", f"{engine}: agent, resident", 30, what=_MEMORY),
            _at_most("footprint", f"{engine}: worker, resident, with a model of some kB", 65, what=_MEMORY),
            _at_most("footprint", f"{engine}: from exec of the agent to the first answer", 400, what=_MEMORY),
        )
    ),
    *(
        bar
        for way in ("agent", "in process")
        for bar in (
            _at_most("swaps", f"{way}: failed requests", 0, what=_SWAPS),
            _at_most("swaps", f"{way}: p99.9 while swapping", 2, of=_RATIO, what=_SWAPS),
            _at_most("swaps", f"{way}: resident memory at the end", 5, of=_DIFFERENCE, what=_SWAPS),
        )
    ),
    _at_most("kills", "records lost", 0, what=_KILLS),
    _at_most("kills", "records counted twice", 0, what=_KILLS),
    _at_most("kills", "worker killed: away, longest", 2, what=_KILLS),
    _at_most("kills", "agent killed: away, longest", 2, what=_KILLS),
    _at_most("outbox", "21 days offline", 2, what=_AWAY),
    _at_most("outbox", "… on disk at most", 0, of=_DIFFERENCE, what=_AWAY),
    _at_least("outbox", "… requests that arrive", 0, of=_DIFFERENCE, what=_AWAY),
    _at_least("outbox", "… records that arrive or are accounted for", 0, of=_DIFFERENCE, what=_AWAY),
    _at_most("outbox", "… out of order, or twice in a sum", 0, what=_AWAY),
    _at_most("outbox", "written in a day of one record a second", 40, what="flash writes"),
    *(
        _at_most("proofs", f"{row}: failed", 0, what=f"{row} (tests)")
        for row in ("power cut", "disk faults", "clock", "hostile bundles and models", "fuzz over the corpus")
    ),
)  # fmt: skip
"""What is asked: the difference or the ratio to an alternative that was measured in the same run, or the value itself."""
