"""What is counted about the requests of one window; pure, and without numpy."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from edgeops.latency import Buckets, merge_buckets


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums over one window.

    Attributes:
        requests: Answered, errors included; bad requests are not counted.
        rows: Rows of the requests that were answered well.
        errors: Failed on the device's account.
        not_finite: Answers that held NaN or infinity; they are among the errors.
        latency: Histogram of :mod:`edgeops.latency`.
    """

    requests: int = 0
    rows: int = 0
    errors: int = 0
    not_finite: int = 0
    latency: Buckets = field(default_factory=dict)

    @staticmethod
    def total(counters: "Iterable[Counters]") -> "Counters":
        """The sum of several."""
        each = list(counters)
        return Counters(
            requests=sum(one.requests for one in each),
            rows=sum(one.rows for one in each),
            errors=sum(one.errors for one in each),
            not_finite=sum(one.not_finite for one in each),
            latency=merge_buckets(one.latency for one in each),
        )
