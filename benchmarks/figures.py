"""A measured figure with its alternative, and how candidates are timed against each other."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

_TURN = 20
_WARM_UP = 50


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        name: What was measured.
        value: In ``unit``.
        alternative: What it is held against, measured in the same run; empty: nothing.
        alternative_value: In the same unit.
        left_out: Why there is no value, and what to do about it; empty: there is one.
    """

    name: str
    value: float
    unit: str
    alternative: str = ""
    alternative_value: float | None = None
    left_out: str = ""

    @classmethod
    def without_value(cls, name: str, why: str) -> "Figure":
        """What could not be measured here."""
        return cls(name, math.nan, "", left_out=why)

    @property
    def difference(self) -> float | None:
        """How much more than the alternative, in ``unit``; ``None`` without one.

        >>> Figure("one call", 7.0, "µs", "bare", 4.0).difference
        3.0
        """
        return None if self.alternative_value is None else self.value - self.alternative_value

    @property
    def ratio(self) -> float | None:
        """The value over the alternative's; ``None`` without one, or when that is zero.

        >>> Figure("one call", 6.0, "µs", "bare", 4.0).ratio
        1.5
        """
        return self.value / self.alternative_value if self.alternative_value else None

    @property
    def shown_alternative(self) -> str:
        """The alternative for the table."""
        return (
            f"{self.alternative}: {self.alternative_value:,.4g} {self.unit}"
            if self.alternative_value is not None
            else ""
        )

    @property
    def shown_comparison(self) -> str:
        """Ratio and difference for the table."""
        if self.ratio is None or self.difference is None:
            return ""
        return f"{self.ratio:.2f}x, {self.difference:+,.4g} {self.unit}"

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self)


def interleaved_us(
    calls: Mapping[str, Callable[[], object]], rounds: int, *, clock: Callable[[], int] = time.perf_counter_ns
) -> dict[str, float]:
    """Median microseconds of one call of each candidate.

    Candidates take turns, so that a neighbour on the machine meets all of them alike. The first call of a turn is left out, since
    it finds the caches full of another's data.

    Args:
        calls: Name → what is timed.
        rounds: Calls of each.
        clock: Nanoseconds.
    """
    taken: dict[str, list[int]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(_WARM_UP):
            call()
    for _ in range(max(rounds // _TURN, 1)):
        for name, call in calls.items():
            times = taken[name]
            call()
            for _ in range(_TURN):
                begun = clock()
                call()
                times.append(clock() - begun)
    return {name: statistics.median(times) / 1000 for name, times in taken.items()}


def blocks_us(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    block: int = 128,
    clock: Callable[[], int] = time.thread_time_ns,
) -> dict[str, float]:
    """Microseconds of a call of each candidate with all that comes now and then: the median over blocks of the mean in a block.

    A block is long enough for a neighbour to come in between, so it is the CPU time of this thread that counts.

    Args:
        calls: Name → what is timed.
        rounds: Calls of each.
        block: How many make one block; what comes every so many calls must come in each at least once.
        clock: Nanoseconds.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(max(rounds // block, 1)):
        for name, call in calls.items():
            call()
            begun = clock()
            for _ in range(block):
                call()
            taken[name].append((clock() - begun) / block)
    return {name: statistics.median(means) / 1000 for name, means in taken.items()}


def quantile(values: list[float], share: float) -> float:
    """The value that so large a share of some values does not exceed; they need not be sorted.

    >>> quantile([4.0, 1.0, 3.0, 2.0], 0.5), quantile([4.0, 1.0, 3.0, 2.0], 0.999)
    (2.0, 4.0)
    """
    ordered = sorted(values)
    return ordered[min(max(math.ceil(share * len(ordered)), 1), len(ordered)) - 1]
