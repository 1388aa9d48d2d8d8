"""A measured figure with its alternative, and how candidates are timed against each other."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

_TURN = 20


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        name: What was measured.
        value: In ``unit``.
        alternative: What it is held against, measured in the same run; empty: nothing.
        alternative_value: In the same unit.
    """

    name: str
    value: float
    unit: str
    alternative: str = ""
    alternative_value: float | None = None

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
        if not self.alternative_value:
            return ""
        difference = self.value - self.alternative_value
        return f"{self.value / self.alternative_value:.2f}x, {difference:+,.4g} {self.unit}"

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self)


def interleaved_us(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median microseconds of one call of each candidate.

    Candidates take turns, so that a neighbour on the machine meets all of them alike. The first call of a turn is left out, since
    it finds the caches full of another's data.
    """
    clock = time.perf_counter_ns
    taken: dict[str, list[int]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(50):
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
