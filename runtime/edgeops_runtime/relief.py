"""Lightens the load while the board is hot or short of memory: reads the signals, asks the ladder, tells workers and deployer.

Which rung follows from which readings is :mod:`edgeops_runtime.ladder`'s decision.
"""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from edgeops_runtime import host
from edgeops_runtime.control import Ease
from edgeops_runtime.host import Throttling
from edgeops_runtime.ladder import Ladder, Rung
from edgeops_runtime.loop import Loop

logger = logging.getLogger(__name__)

EVERY_S = 5.0
SHED_SHARE = 0.5
"""Of the inference requests, on the last rung."""

Readings = Mapping[str, float | None]


class Relief:
    """Keeps the load on its rung.

    Args:
        loop: For the next look.
        uptime: Monotonic time in seconds.
        read: The signals, as :func:`read_signals` gives them.
        ladder: Decides.
        ease: Tells every worker.
        strain: Told whether trials have to wait.
        notice: Takes ``(kind, text)`` for the log.
        cores: That the workers may use.
    """

    def __init__(
        self,
        *,
        loop: Loop,
        uptime: Callable[[], float],
        read: Callable[[], Readings],
        ladder: Ladder,
        ease: Callable[[Ease], None],
        strain: Callable[[bool], None],
        notice: Callable[[str, str], None],
        cores: int | None = None,
    ) -> None:
        self._loop, self._uptime = loop, uptime
        self._read, self._ladder = read, ladder
        self._ease, self._strain, self._notice = ease, strain, notice
        self._cores = cores or len(os.sched_getaffinity(0))
        self.rung = Rung.NORMAL

    def look(self) -> None:
        """Read once, act when the rung has changed, and look again after a while."""
        self._loop.call_later(EVERY_S, self.look)
        rung = self._ladder.read(self._read(), now=self._uptime())
        if rung is self.rung:
            return
        before, self.rung = self.rung, rung
        self._ease(ease_of(rung, cores=self._cores))
        self._strain(rung >= Rung.NO_SHADOW)
        reason = self._ladder.reason or "all signals are calm"
        self._notice("load", f"{before.words} -> {rung.words}: {reason}")


def ease_of(rung: Rung, *, cores: int) -> Ease:
    """What workers have to do on a rung.

    >>> ease_of(Rung.FEWER_THREADS, cores=4)
    Ease(capture=False, cores=2, shed=0.0)
    """
    return Ease(
        capture=rung < Rung.NO_CAPTURE,
        cores=max(cores // 2, 1) if rung >= Rung.FEWER_THREADS else None,
        shed=SHED_SHARE if rung >= Rung.SHED_LOAD else 0.0,
    )


def read_signals(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Readings:
    """The ladder's signals on this machine; ``None`` where one cannot be had.

    Args:
        proc: In place of ``/proc``.
        sys: In place of ``/sys``.
    """
    group = host.cgroup_memory(proc, sys)
    held_back = host.throttling(sys)
    pressures = (host.pressure_percent("memory", proc), group.pressure if group is not None else None)
    share = _free_share(host.available_memory_bytes(proc), host.total_memory_bytes(proc))
    group_share = None
    if group is not None and group.limit_bytes and group.used_bytes is not None:
        group_share = _free_share(group.limit_bytes - group.used_bytes, group.limit_bytes)
    lowest = min((each for each in (share, group_share) if each is not None), default=None)
    return {
        "temperature": host.temperature_c(sys / "class" / "thermal"),
        "throttling": None if held_back is None else _severity(held_back[0]),
        "memory pressure": max((each for each in pressures if each is not None), default=None),
        "available memory": None if lowest is None else -lowest,
    }


def _free_share(free: int | None, total: int | None) -> float | None:
    """In percent."""
    return 100 * max(free, 0) / total if free is not None and total else None


def _severity(now: Throttling) -> float:
    if Throttling.THROTTLED in now:
        return 3.0
    if Throttling.SOFT_LIMIT in now:
        return 2.0
    return 1.0 if now else 0.0
