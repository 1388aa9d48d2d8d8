"""Which side of a limit is good, and what becomes of a bar. Pure."""

from enum import StrEnum


class Bound(StrEnum):
    """Which side of a limit is good."""

    AT_LEAST = "≥"
    AT_MOST = "≤"

    def admits(self, value: float, limit: float) -> bool:
        """Whether a figure is on the good side; NaN never is."""
        return value >= limit if self is Bound.AT_LEAST else value <= limit


class Verdict(StrEnum):
    """What became of a bar."""

    MET = "met"
    NOT_MET = "not met"
    NOT_MEASURED = "not measured"
