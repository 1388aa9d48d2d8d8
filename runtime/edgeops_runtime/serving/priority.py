"""How much of the CPU this process may take from others: a thread that only gets what is idle, and fewer cores for all threads.

Linux only. What is refused (a sandbox without these system calls) is left as it was: both are comforts.
"""

import contextlib
import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)

_LOWEST_NICE = 19


def yield_to_others() -> str:
    """Let the calling thread run only when nothing else wants the CPU; returns how: ``idle``, ``nice`` or ``normal``.

    There is no way back without privileges, so it is for a thread that ends. Threads that it starts are like it; an engine's own,
    which were started before, are not.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        try:
            # On Linux, 0 is the calling thread.
            os.setpriority(os.PRIO_PROCESS, 0, _LOWEST_NICE)
        except OSError as error:
            logger.warning("the shadow runs at normal priority: %s", error)
            return "normal"
        return "nice"
    return "idle"


class Cores:
    """The cores that this process may use; at first those that it was started with."""

    def __init__(self) -> None:
        self._all = os.sched_getaffinity(0)

    def limit(self, count: int | None) -> int:
        """Keep every thread to so many cores; ``None``: all that there were. Returns how many it is.

        An engine fixes its number of threads when it loads; on fewer cores they take turns, at once and without a reload.
        """
        kept = set(sorted(self._all)[: max(count, 1)]) if count is not None else self._all
        # The affinity is a thread's; those to come inherit it. One that has ended meanwhile needs none.
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(task.name), kept)
        return len(kept)
