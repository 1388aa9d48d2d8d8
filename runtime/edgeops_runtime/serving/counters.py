"""What is counted about the requests of one window; pure, and without numpy."""

from dataclasses import dataclass, field

from edgeops.latency import Buckets, latency_bucket


@dataclass(slots=True)
class Counters:
    """Sums over one window; who shares them holds a lock.

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

    def answered(self, rows: int, nanoseconds: int) -> None:
        """Count an answer."""
        self.requests += 1
        self.rows += rows
        bucket = latency_bucket(nanoseconds)
        self.latency[bucket] = self.latency.get(bucket, 0) + 1

    def failed(self, nanoseconds: int, *, is_not_finite: bool) -> None:
        """Count a request that the device could not answer."""
        self.requests += 1
        self.errors += 1
        self.not_finite += is_not_finite
        bucket = latency_bucket(nanoseconds)
        self.latency[bucket] = self.latency.get(bucket, 0) + 1
