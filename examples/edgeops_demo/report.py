"""The figures of a demo run: ``report.json`` for scripts, and the table for people."""

import msgspec

Figures = dict[str, float]


class Accuracy(msgspec.Struct, kw_only=True):
    """Share of exam images that are right; by variant, ``float`` is the trained network in torch."""

    clean: Figures = {}
    drifted: Figures = {}


class RolloutFigures(msgspec.Struct, kw_only=True):
    """How one version went out."""

    state: str
    waves: list[dict[str, object]]
    devices_committed: int
    devices_rolled_back: int
    devices_that_served_it: int
    why: str
    seconds: float


class DriftFigures(msgspec.Struct, kw_only=True):
    """What the detector said of one site."""

    before: str
    verdict: str
    signal: str | None
    windows_to_detect: int | None
    rows_to_detect: int | None
    after: str = ""


class RetrainFigures(msgspec.Struct, kw_only=True):
    """What came of the drift."""

    events: int
    samples: int
    labels: int
    error_rate: float | None
    lineage: dict[str, str | None]


class Report(msgspec.Struct, kw_only=True):
    """Everything that a run found.

    Attributes:
        accuracy: ``before`` (1.0.0) and ``after`` (1.2.0) retraining, on clean and drifted exam images, by variant.
        size_bytes: Variant of 1.0.0 → size of its file.
        latency_ms: Variant of 1.0.0 → median of one call, one row, one thread.
        seconds: Step → duration.
    """

    outcome: str = "incomplete"
    data: str = ""
    accuracy: dict[str, Accuracy] = {}
    size_bytes: Figures = {}
    latency_ms: Figures = {}
    rollouts: dict[str, RolloutFigures] = {}
    requests: int = 0
    failed_requests: int = 0
    drift: dict[str, DriftFigures] = {}
    retrain: RetrainFigures | None = None
    seconds: Figures = {}
    checks: dict[str, bool] = {}
    dashboard: str = ""
