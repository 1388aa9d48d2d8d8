"""What a search tried on the way to a variant: settings, figures, and what came of it. Pure."""

from enum import StrEnum

import msgspec

from edgeops_converters.fidelity import Drop


class Outcome(StrEnum):
    """What became of a trial."""

    CHOSEN = "chosen"
    PASSED = "passed"  # within the limits, and another was preferred
    REFUSED = "refused"


class Trial(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to compress the model that was tried.

    Attributes:
        name: Short, unique in the report, for example ``onnx-mixed-3``.
        settings: In words, for example ``int8, with head and stem in float``.
        size_bytes: Of the file.
        latency_ms: Median of one row, one thread; ``None`` when it was not timed.
        drop: Loss of accuracy against the source, on the rows of the search; ``None`` without labels.
        agreement: Share of rows with the source's class; ``None`` when the outputs are no classes.
        sqnr_db: Of the raw outputs; ``None`` when they are the same.
        outcome: What became of it.
        reason: Why, with figures.
        is_pareto: Whether no other trial is better in one figure and as good in the others.
        is_probe: Whether it was only made to learn what a part of the model is worth, and was none to choose from.
    """

    name: str
    settings: str
    size_bytes: int
    latency_ms: float | None
    drop: Drop | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    outcome: Outcome
    reason: str = ""
    is_pareto: bool = False
    is_probe: bool = False
