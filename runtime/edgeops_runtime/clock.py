"""What time it is, and whether to believe it: a floor on disk below which the wall clock is not trusted.

Boards without a battery wake in 1970. The floor is the newest moment that somebody else vouched for (the ``issued`` of a signed
document), plus the monotonic time that has passed since. It never follows the wall clock, so that a clock that once jumped into
the future does not condemn the right time afterwards. What to do without trust is :mod:`edgeops_runtime.admission`'s decision.
"""

import logging
import math
import time
from pathlib import Path
from typing import Protocol

from edgeops.files import write_durably

logger = logging.getLogger(__name__)

RELEASED = 1_763_856_000.0
"""No earlier moment passes as now: 2025-11-23, Unix time in seconds."""

_SAVE_EVERY_S = 3600.0


class Clock(Protocol):
    """The clocks of a machine."""

    def wall(self) -> float:
        """Unix time in seconds, as the machine believes."""

    def uptime(self) -> float:
        """Seconds since the machine started, sleep included; only grows."""


class SystemClock:
    """The clocks of this machine."""

    def wall(self) -> float:
        """Unix time in seconds."""
        return time.time()

    def uptime(self) -> float:
        """Seconds since the machine started."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


class TrustedClock:
    """A clock with a floor that survives restarts.

    Args:
        clock: The machine's clocks.
        path: Where the floor is kept.
        released: The floor of a new device, Unix time in seconds.
    """

    def __init__(self, clock: Clock, path: Path, *, released: float = RELEASED) -> None:
        self._clock = clock
        self._path = path
        self._base = max(released, _read_floor(path))
        self._base_uptime = clock.uptime()
        self._saved_uptime = self._base_uptime

    def now(self) -> float:
        """Unix time in seconds, trusted or not."""
        return self._clock.wall()

    def uptime(self) -> float:
        """Seconds of monotonic time since the machine started."""
        return self._clock.uptime()

    @property
    def floor(self) -> float:
        """The earliest moment that it can be now, Unix time in seconds."""
        return self._base + self._clock.uptime() - self._base_uptime

    @property
    def is_trusted(self) -> bool:
        """Whether the wall clock is not before the floor."""
        return self._clock.wall() >= self.floor

    def vouch(self, moment: float) -> None:
        """Somebody who is trusted says that ``moment`` (Unix time in seconds) has passed."""
        if moment > self.floor:
            self._base, self._base_uptime = moment, self._clock.uptime()
            self.save()

    def save_sometimes(self) -> None:
        """Write the floor when the last writing is an hour ago, to spare the flash."""
        if self._clock.uptime() - self._saved_uptime >= _SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the floor; a disk that refuses only costs precision after the next start."""
        self._saved_uptime = self._clock.uptime()
        try:
            write_durably(self._path, f"{self.floor:.0f}\n".encode())
        except OSError as error:
            logger.warning("%s: cannot write the clock's floor: %s", self._path, error)


def _read_floor(path: Path) -> float:
    try:
        floor = float(path.read_text())
    except (OSError, ValueError):
        return 0.0
    return floor if math.isfinite(floor) else 0.0
