"""What time it is, whether to believe it, and when it was set: a floor on disk below which the wall clock is not trusted.

Boards without a battery wake in 1970. The floor is the newest moment that somebody else vouched for (the ``issued`` of a signed
document), plus the monotonic time that has passed since. It never follows the wall clock, so that a clock that once jumped into
the future does not condemn the right time afterwards. What to do without trust is :mod:`edgeops_runtime.admission`'s decision.
"""

import logging
import math
import time
from collections import deque
from pathlib import Path
from typing import Protocol

import msgspec

from edgeops.files import write_durably

logger = logging.getLogger(__name__)

RELEASED = 1_763_856_000.0
"""No earlier moment passes as now: 2025-11-23, Unix time in seconds."""

_SAVE_EVERY_S = 3600.0
_STEP_S = 2.0
"""A wall clock that is off by more than this against monotonic time was set; less is how it is kept right."""
_QUICK_S = 0.1
_TRIES = 5
_REMEMBERED_STEPS = 8


class Reading(msgspec.Struct, frozen=True):
    """Both clocks at one moment.

    Attributes:
        wall: Unix time in seconds.
        uptime_s: Seconds of monotonic time since the machine started.
        is_trusted: Whether the wall clock is to be believed.
    """

    wall: float
    uptime_s: float
    is_trusted: bool

    @property
    def started(self) -> float:
        """When the machine started, by the wall clock; Unix time in seconds."""
        return self.wall - self.uptime_s


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

    def read(self) -> Reading:
        """Both clocks; again when something came between the two, since what they differ by tells a step of the clock."""
        for _ in range(_TRIES):
            before = self._clock.uptime()
            wall = self._clock.wall()
            after = self._clock.uptime()
            if after - before <= _QUICK_S:
                break
        return Reading(wall, after, wall >= self._floor_at(after))

    def now(self) -> float:
        """Unix time in seconds, trusted or not."""
        return self._clock.wall()

    def uptime(self) -> float:
        """Seconds of monotonic time since the machine started."""
        return self._clock.uptime()

    @property
    def floor(self) -> float:
        """The earliest moment that it can be now, Unix time in seconds."""
        return self._floor_at(self._clock.uptime())

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

    def _floor_at(self, uptime_s: float) -> float:
        return self._base + uptime_s - self._base_uptime


class Step(msgspec.Struct, frozen=True):
    """The wall clock was set, or is believed from now on.

    Attributes:
        now: The clocks afterwards.
        before_s: When the machine started, by the clock before; ``None`` at the first look.
        before_trusted: Whether that clock was believed.
    """

    now: Reading
    before_s: float | None
    before_trusted: bool


class ClockWatch:
    """Notices when the wall clock is set or becomes believable; somebody has to look.

    Args:
        clock: The clock.
    """

    def __init__(self, clock: TrustedClock) -> None:
        self._clock = clock
        self._began_s = clock.uptime()
        self._known: Reading | None = None
        self._before: deque[float] = deque(maxlen=_REMEMBERED_STEPS)

    def look(self) -> Step | None:
        """What happened to the clock since the last look, if anything did."""
        reading, known = self._clock.read(), self._known
        if known is None:
            self._known = reading
            return Step(reading, None, False) if reading.is_trusted else None
        was_set = abs(reading.started - known.started) > _STEP_S
        if not was_set and (known.is_trusted or not reading.is_trusted):
            return None
        self._known = reading
        if was_set:
            self._before.appendleft(known.started)
        return Step(reading, known.started, known.is_trusted)

    def corrected(self, moment: float) -> float:
        """A moment that was read off the wall clock lately, in the time of now, though the clock may have been set since.

        Args:
            moment: Unix time in seconds; likewise what is returned.
        """
        if self._known is None or not self._before:
            return moment
        now_s = self._clock.uptime()
        for started in (self._known.started, *self._before):
            if self._began_s - _STEP_S <= moment - started <= now_s + _STEP_S:
                return self._known.started + moment - started
        return self._known.started + now_s


def _read_floor(path: Path) -> float:
    try:
        floor = float(path.read_text())
    except (OSError, ValueError):
        return 0.0
    return floor if math.isfinite(floor) else 0.0
