"""How many bytes of captured rows may leave a device in a day: an allowance that fills up again evenly, and survives restarts."""

import logging
from pathlib import Path

from edgeops.files import write_durably

logger = logging.getLogger(__name__)

_DAY_S = 86400.0
_WRITE_EVERY = 16
"""The file is written after each sixteenth of a day's allowance, so that a crash gives no more than that back."""


class CaptureQuota:
    """The allowance.

    Args:
        path: Where it is kept.
        bytes_per_day: Filled up to, and by so much in a day.
        now: Seconds of monotonic time. Time in which the agent does not run fills nothing up.
    """

    def __init__(self, path: Path, *, bytes_per_day: int, now: float) -> None:
        self._path = path
        self._bytes_per_day = bytes_per_day
        self._left = min(_read(path, otherwise=bytes_per_day), float(bytes_per_day))
        self._seen = now
        self._written = self._left

    def take(self, size_bytes: int, *, now: float) -> bool:
        """Whether so many bytes may leave now; then they are taken off."""
        self._left = min(self._left + (now - self._seen) / _DAY_S * self._bytes_per_day, float(self._bytes_per_day))
        self._seen = now
        if size_bytes > self._left:
            return False
        self._left -= size_bytes
        if self._written - self._left >= self._bytes_per_day / _WRITE_EVERY:
            self.save()
        return True

    def save(self) -> None:
        """Write what is left."""
        try:
            write_durably(self._path, f"{self._left:.0f}\n".encode())
        except OSError as error:
            logger.warning("%s: not written: %s", self._path, error)
        self._written = self._left


def _read(path: Path, *, otherwise: float) -> float:
    try:
        return max(float(path.read_text()), 0.0)
    except FileNotFoundError:
        return otherwise
    except (OSError, ValueError):
        return 0.0  # Damaged: what has left is not known, so it fills up from nothing.
