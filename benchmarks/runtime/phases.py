"""Something done again and again under load, with quiet in between, and which requests met which of the two."""

import bisect
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

_BLOCKS = 10
_QUIET_SHARE = 0.5


@dataclass
class Phases:
    """When it was done, and when nothing was.

    Attributes:
        changes: Nanoseconds of the monotonic clock, increasing: a busy phase begins at the first, a quiet one at the second, and
            so on; what is before the first or from the last on is neither.
    """

    changes: list[int] = field(default_factory=list)

    def split(self, requests: Iterable[tuple[int, int]]) -> tuple[list[int], list[int]]:
        """How long requests took that began in quiet phases, and those that began in busy ones.

        Args:
            requests: Beginning and length of each, in nanoseconds.

        >>> Phases([10, 20, 30]).split([(5, 1), (12, 2), (25, 3), (30, 4)])
        ([3], [2])
        """
        quiet, busy = [], []
        for begun, length in requests:
            phase = bisect.bisect_right(self.changes, begun)
            if 0 < phase < len(self.changes):
                (busy if phase % 2 else quiet).append(length)
        return quiet, busy


def take_turns(
    act: Callable[[int], None],
    times: int,
    *,
    clock: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> Phases:
    """Do something so many times, in up to ten blocks, each followed by half as long without.

    Args:
        act: Given the number of the time, from 0.
        times: How often.
        clock: Nanoseconds, monotonic.
        sleep: For the quiet.
    """
    phases, blocks = Phases(), min(_BLOCKS, times)
    for block in range(blocks):
        begun = clock()
        phases.changes.append(begun)
        for number in range(block * times // blocks, (block + 1) * times // blocks):
            act(number)
        ended = clock()
        phases.changes.append(ended)
        sleep(_QUIET_SHARE * (ended - begun) / 1e9)
    phases.changes.append(clock())
    return phases
