"""Windows that add up."""

from edgeops.latency import latency_bucket
from edgeops.signals import Profile
from edgeops_runtime.control import WindowClosed
from edgeops_runtime.slots import Slot
from edgeops_runtime.telemetry import LiveFigures, Windows

FIRST = Slot(version="1.0.0", digest="a", variant="onnx", engine="onnxruntime")
SECOND = Slot(version="1.1.0", digest="b", variant="onnx", engine="onnxruntime")


def closed(start: float, requests: int, *, milliseconds: float = 1.0, **fields) -> WindowClosed:
    usual = {"rows": requests, "errors": 0, "not_finite": 0, "rss_bytes": 5}
    profile = Profile(reference="r", rows=requests, counts={"s": (requests, 0)}) if requests else None
    return WindowClosed(
        start=start,
        end=start + 1,
        requests=requests,
        latency={latency_bucket(int(milliseconds * 1e6)): requests} if requests else {},
        profile=profile,
        **(usual | fields),
    )


def test_windows_of_a_version_add_up_and_close_once():
    windows = Windows()
    windows.add(FIRST, closed(10.0, 3, errors=1))
    windows.add(SECOND, closed(11.0, 5))
    windows.add(FIRST, closed(12.0, 4, not_finite=2))
    first, second = windows.close()
    assert (first.requests, first.rows, first.errors, first.not_finite) == (7, 7, 1, 2)
    assert (first.start, first.end) == (10.0, 13.0)
    assert first.profile.counts == {"s": (7, 0)}
    assert sum(first.latency.values()) == 7
    assert second.requests == 5
    assert windows.close() == []


def test_window_without_requests_is_told_all_the_same():
    windows = Windows()
    windows.add(FIRST, closed(10.0, 0))
    (window,) = windows.close()
    assert (window.requests, window.profile, window.rss_bytes) == (0, None, 5)


def test_usual_latency_outlives_the_window():
    windows = Windows()
    windows.add(FIRST, closed(10.0, 90, milliseconds=1.0))
    windows.add(FIRST, closed(11.0, 10, milliseconds=20.0))
    windows.close()
    median, p95 = windows.usual_latency_ms("a")
    assert 0.9 < median < 1.2
    assert 18 < p95 < 23
    assert windows.usual_latency_ms("b") == (None, None)
    windows.forget_all_but(frozenset({"b"}))
    assert windows.usual_latency_ms("a") == (None, None)


def test_live_figures_add_up():
    figures = LiveFigures()
    assert figures.p95_ms is None
    figures.add(closed(1.0, 2, errors=1))
    figures.add(closed(2.0, 3, not_finite=1))
    assert (figures.requests, figures.errors, figures.not_finite) == (5, 1, 1)
    assert 0.9 < figures.p95_ms < 1.2
