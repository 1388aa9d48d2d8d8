"""When records that wait in memory go to disk: at once while that is rare, and by the group when it is not. Pure.

A flash writes whole pages whatever a record takes, so it is the number of commits that wears it. Each stream may have one a
minute, and saves up those that it does not use: a window a minute is on disk at once, and so are the first of a burst.
"""

EVERY_S = 60.0
"""No record waits longer than this, in seconds."""
_SAVED = 120.0


class Allowance:
    """The commits of one stream; times are seconds of monotonic time."""

    def __init__(self) -> None:
        self._left = _SAVED
        self._seen: float | None = None
        self._waiting_since: float | None = None

    def note_waiting(self, now: float) -> None:
        """A record waits."""
        if self._waiting_since is None:
            self._waiting_since = now

    def is_due(self, now: float) -> bool:
        """Whether what waits is to be written now."""
        if self._waiting_since is None:
            return False
        since_s = now - self._seen if self._seen is not None else 0.0
        self._left = min(self._left + max(since_s, 0.0) / EVERY_S, _SAVED)
        self._seen = now
        return self._left >= 1 or now - self._waiting_since >= EVERY_S

    def spend(self) -> None:
        """It was written."""
        self._left = max(self._left - 1, 0)
        self._waiting_since = None
