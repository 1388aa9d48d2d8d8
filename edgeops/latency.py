"""A latency histogram that merges by adding: logarithmic buckets, eight to an octave, so at most 12.5 % wide.

The idea is HdrHistogram's (Tene); the bucket is a few integer operations on nanoseconds, cheap enough for every request.
"""

from collections.abc import Iterable

from edgeops.errors import MessageError

SUB_BITS = 3
"""An octave has two to the power of this buckets."""

_LAST_BUCKET = (64 - SUB_BITS) << SUB_BITS
BUCKETS = _LAST_BUCKET + 1
"""How many there are for 64 bits of nanoseconds."""


def latency_bucket(nanoseconds: int) -> int:
    """The bucket of a duration.

    >>> latency_bucket(7), latency_bucket(8), latency_bucket(15), latency_bucket(16), latency_bucket(1_000_000)
    (7, 8, 15, 16, 143)
    """
    shift = max(nanoseconds.bit_length() - SUB_BITS - 1, 0)
    return (shift << SUB_BITS) + (nanoseconds >> shift)


def bucket_bounds(bucket: int) -> tuple[int, int]:
    """The lowest duration in a bucket and the lowest above it, in nanoseconds.

    >>> bucket_bounds(latency_bucket(1_000_000))
    (983040, 1048576)
    """
    shift = max((bucket >> SUB_BITS) - 1, 0)
    low = (bucket - (shift << SUB_BITS)) << shift
    return low, low + (1 << shift)


Buckets = dict[int, int]
"""Bucket → count; sparse."""


def check_buckets(histogram: Buckets) -> None:
    """Refuse a histogram that no device can have counted.

    Raises:
        MessageError: A bucket is beyond 64 bits of nanoseconds, or a count is negative.
    """
    for bucket, count in histogram.items():
        if not 0 <= bucket <= _LAST_BUCKET or count < 0:
            raise MessageError(
                f"latency: expected buckets 0 to {_LAST_BUCKET} with counts from 0, got {bucket}: {count}"
            )


def merge_buckets(histograms: Iterable[Buckets]) -> Buckets:
    """Add histograms; exact, in any order.

    >>> merge_buckets([{1: 2}, {1: 1, 5: 1}])
    {1: 3, 5: 1}
    """
    total: Buckets = {}
    for histogram in histograms:
        for bucket, count in histogram.items():
            total[bucket] = total.get(bucket, 0) + count
    return total


def quantile_ms(histogram: Buckets, share: float) -> float | None:
    """The duration in milliseconds below which a share of the requests lies; ``None`` when nothing was counted.

    >>> quantile_ms({latency_bucket(1_000_000): 99, latency_bucket(9_000_000): 1}, 0.5)
    1.015808
    """
    total = sum(histogram.values())
    seen = 0
    for bucket in sorted(histogram):
        seen += histogram[bucket]
        if total and seen >= share * total:
            low, high = bucket_bounds(bucket)
            return (low + high) / 2 / 1e6
    return None
