"""Latency on a machine that others use too: calls of all candidates interleaved, and medians compared."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from edgeops.manifest import Interval

_WARM_UP_CALLS = 3
_FEWEST_ROUNDS = 15
_MOST_ROUNDS = 300
_CALLS_A_TURN = 5
_Z = 1.959964  # of the 95 % interval


def interleaved_medians(
    calls: Mapping[str, Callable[[int], object]], *, clock: Callable[[], float], budget_s: float
) -> dict[str, float]:
    """The medians of :func:`interleaved_latencies` alone, in milliseconds."""
    return {name: found.value for name, found in interleaved_latencies(calls, clock=clock, budget_s=budget_s).items()}


def interleaved_latencies(
    calls: Mapping[str, Callable[[int], object]], *, clock: Callable[[], float], budget_s: float
) -> dict[str, Interval]:
    """Median duration of one call of each candidate with its 95 % interval, in milliseconds.

    The candidates take turns, so that a change of clock frequency or a busy neighbour meets all of them alike.

    Args:
        calls: Name → what to time; takes the number of the call, to vary its input.
        clock: Seconds that only go forward.
        budget_s: Time to stop after, once every candidate has had a fair number of turns.
    """
    for call in calls.values():
        for index in range(_WARM_UP_CALLS):
            call(index)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    begin, turns = clock(), 0
    while turns < _FEWEST_ROUNDS or (turns < _MOST_ROUNDS and clock() - begin <= budget_s):
        for name, call in calls.items():
            for repeat in range(_CALLS_A_TURN):
                start = clock()
                call(turns * _CALLS_A_TURN + repeat)
                # The first call of a turn finds the caches full of the others' data.
                if repeat:
                    seconds[name].append(clock() - start)
        turns += 1
    return {name: median_interval([1000 * one for one in times], draws=turns) for name, times in seconds.items()}


def median_interval(values: Sequence[float], *, draws: int) -> Interval:
    """The median with the order statistics that enclose it at 95 % (Conover, Practical Nonparametric Statistics, 3.2).

    Args:
        values: At least one.
        draws: How many of them are independent: calls of one turn meet the same neighbour.

    >>> median_interval([float(value) for value in range(1, 101)], draws=100)
    Interval(value=50.5, low=40.0, high=61.0)
    """
    ordered = sorted(values)
    half = _Z / (2 * math.sqrt(draws))
    low = max(0, math.floor(len(ordered) * (0.5 - half)) - 1)
    high = min(len(ordered) - 1, math.ceil(len(ordered) * (0.5 + half)))
    return Interval(value=statistics.median(ordered), low=ordered[low], high=ordered[high])
