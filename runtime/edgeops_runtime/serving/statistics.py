"""What was counted about the models that are served, for those who ask: Triton's statistics extension, and Prometheus.

Pure but for the two clocks. Counting itself is :mod:`edgeops_runtime.serving.model`'s matter.
The formats: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md and
https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from edgeops.latency import Buckets, bucket_bounds
from edgeops_runtime.serving.model import resident_bytes
from edgeops_runtime.serving.repository import Served

PROMETHEUS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Powers of two are edges of the histogram's own buckets, so that these counts are exact: 16 µs to 8.6 s.
_EDGES_NS = tuple(1 << power for power in range(14, 34))


class Metric(NamedTuple):
    """A number about the process as a whole; ``kind`` is ``gauge`` or ``counter``."""

    name: str
    kind: str
    text: str
    value: int


Metrics = Callable[[], Iterable[Metric]]


def model_statistics(served: Iterable[Served]) -> dict[str, Any]:
    """As the statistics extension has it; times are from the latency histogram, so within 7 %."""
    return {"model_stats": [_one_model(one) for one in served]}


def metrics_text(served: Iterable[Served], more: Iterable[Metric] = ()) -> str:
    """In Prometheus' text format.

    Args:
        served: The models.
        more: What else there is to tell.
    """
    models = list(served)
    totals = [
        (f'model="{_escaped(one.name)}",version="{_escaped(one.version)}"', one.model.recorders.totals())
        for one in models
    ]
    lines: list[str] = []
    for name, text, value in (
        ("edgeops_requests_total", "Requests that were answered or failed; refused ones are not counted.", "requests"),
        ("edgeops_rows_total", "Rows that were answered.", "rows"),
        ("edgeops_request_errors_total", "Requests that the device could not answer.", "errors"),
        ("edgeops_not_finite_total", "Answers with NaN or infinity; they are among the errors.", "not_finite"),
    ):
        lines += [f"# HELP {name} {text}", f"# TYPE {name} counter"]
        lines += [f"{name}{{{labels}}} {getattr(counters, value)}" for labels, counters in totals]
    name = "edgeops_requests_waiting"
    lines += [f"# HELP {name} Requests that wait for their turn.", f"# TYPE {name} gauge"]
    lines += [
        f"{name}{{{labels}}} {len(one.batcher.queue.tickets)}" for one, (labels, _) in zip(models, totals, strict=True)
    ]
    name = "edgeops_request_duration_seconds"
    lines += [f"# HELP {name} From the whole request to the answer; the sum is within 7 %.", f"# TYPE {name} histogram"]
    for labels, counters in totals:
        lines += _histogram(name, labels, counters.latency)
    for metric in (Metric("edgeops_resident_bytes", "gauge", "Memory of this process.", resident_bytes()), *more):
        lines += [f"# HELP {metric.name} {metric.text}", f"# TYPE {metric.name} {metric.kind}"]
        lines.append(f"{metric.name} {metric.value}")
    return "\n".join(lines) + "\n"


def _one_model(served: Served) -> dict[str, Any]:
    counters = served.model.recorders.totals()
    answered = counters.requests - counters.errors
    total_ns = _total_ns(counters.latency)
    # One histogram holds both, so the time of each kind is its share of all requests.
    fail_ns = total_ns * counters.errors // counters.requests if counters.requests else 0
    return {
        "name": served.name,
        "version": served.version,
        "last_inference": _wall_ms(served.last_start) if served.last_start else 0,
        "inference_count": counters.rows,
        "execution_count": answered,
        "inference_stats": {
            "success": {"count": answered, "ns": total_ns - fail_ns},
            "fail": {"count": counters.errors, "ns": fail_ns},
        },
        "batch_stats": [],
    }


def _histogram(name: str, labels: str, latency: Buckets) -> Iterable[str]:
    for edge in _EDGES_NS:
        below = sum(count for bucket, count in latency.items() if bucket_bounds(bucket)[1] <= edge)
        yield f'{name}_bucket{{{labels},le="{edge / 1e9!r}"}} {below}'
    total = sum(latency.values())
    yield f'{name}_bucket{{{labels},le="+Inf"}} {total}'
    yield f"{name}_sum{{{labels}}} {_total_ns(latency) / 1e9:g}"
    yield f"{name}_count{{{labels}}} {total}"


def _total_ns(latency: Buckets) -> int:
    """The time of all requests together, each taken as the middle of its bucket."""
    return sum(sum(bucket_bounds(bucket)) * count for bucket, count in latency.items()) // 2


def _wall_ms(perf_counter_ns: int) -> int:
    """A moment of the monotonic clock as milliseconds since 1970, by the clock as it is now."""
    return int(time.time() * 1000) - (time.perf_counter_ns() - perf_counter_ns) // 1_000_000


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
