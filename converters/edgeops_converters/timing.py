"""Latency on a machine that others use too: calls of all candidates interleaved, and medians compared."""

import statistics
from collections.abc import Callable, Mapping

_WARM_UP_CALLS = 3
_FEWEST_ROUNDS = 15
_MOST_ROUNDS = 300
_CALLS_A_TURN = 5


def interleaved_medians(
    calls: Mapping[str, Callable[[int], object]], *, clock: Callable[[], float], budget_s: float
) -> dict[str, float]:
    """Median duration of one call of each candidate, in milliseconds.

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
    begin = clock()
    for turn in range(_MOST_ROUNDS):
        if turn >= _FEWEST_ROUNDS and clock() - begin > budget_s:
            break
        for name, call in calls.items():
            for repeat in range(_CALLS_A_TURN):
                start = clock()
                call(turn * _CALLS_A_TURN + repeat)
                # The first call of a turn finds the caches full of the others' data.
                if repeat:
                    seconds[name].append(clock() - start)
    return {name: 1000 * statistics.median(times) for name, times in seconds.items()}
