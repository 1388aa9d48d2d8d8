"""Whether a compressed variant may ship: it must be faithful, and what it is made for: fast, or small. Pure."""

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from edgeops_converters.audit import Audit

SLOWER = 1.05
"""A variant counts as slower above this ratio; less is within the noise of a median on a shared machine."""

LEAST_SQNR_DB = 15.0
"""Where outputs are no classes, this is asked of their signal-to-noise ratio."""


class Purpose(StrEnum):
    """What a compressed variant is made for, which is what the gate asks of it."""

    SPEED = "speed"
    """It must not be slower than float in its format."""
    SIZE = "size"
    """Its file must be smaller than float's. Who asks for small weights has a link or a disk to save; that it is slower than
    float is told, and puts it behind float in the bundle, so that a device that has float prefers float."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate says of one variant.

    Attributes:
        passed: Whether nothing speaks against it.
        reasons: What does, with figures; recorded also when it was forced.
        forced: Whether it ships although it did not pass.
        measure: What was held against the limit, in words.
    """

    passed: bool
    reasons: tuple[str, ...] = ()
    forced: bool = False
    measure: str = ""


@dataclass(frozen=True)
class Evidence:
    """What is known of one variant.

    Attributes:
        latency_ms: Median of one row; ``None`` when this machine cannot tell (another target CPU).
        float_latency_ms: The same of the float variant of the same format.
        drop_points: Loss of accuracy against the source, in percentage points; ``None`` without labels.
        disagreement_points: Share of rows with another class than the source's, in percentage points; ``None`` when the
            outputs are no classes.
        sqnr_db: Of the raw outputs; ``None`` when they are the same.
        is_finite: Whether all outputs are finite.
        audit: What the engine runs in integers; ``None`` when this machine cannot tell, and for what is made for its size.
        purpose: What it is made for.
        size_ratio: Size of its file over that of the float variant of the same format.
        size_bytes: Of its file.
        refusal: What a search that it came from says against it; empty when it found it within the limits.
    """

    latency_ms: float | None
    float_latency_ms: float
    drop_points: float | None
    disagreement_points: float | None
    sqnr_db: float | None
    is_finite: bool = True
    audit: Audit | None = None
    purpose: Purpose = Purpose.SPEED
    size_ratio: float = 0.0
    size_bytes: int = 0
    refusal: str = ""


def is_slower(latency_ms: float, float_latency_ms: float) -> bool:
    """Whether a variant is slower than float in the same format, beyond the noise."""
    return latency_ms > SLOWER * float_latency_ms


def is_faithful(evidence: Evidence, max_drop: float) -> bool:
    """Whether a variant still is the model, whatever its speed and size."""
    return evidence.is_finite and not _faithfulness(evidence, max_drop)[1]


def judge(
    evidence: Evidence,
    *,
    max_drop: float,
    min_int8: float = 0.0,
    max_latency_ms: float | None = None,
    max_bytes: int | None = None,
) -> Verdict:
    """Decide about one compressed variant.

    Args:
        evidence: Its figures.
        max_drop: The largest loss that is accepted, in percentage points.
        min_int8: The least share of convolutions and matrix products in integers, in per cent.
        max_latency_ms: The longest that one row may take; ``None`` for any.
        max_bytes: The largest file; ``None`` for any.
    """
    reasons = []
    if not evidence.is_finite:
        reasons.append("it answers NaN or Inf where the source does not")
    latency_ms, float_ms = evidence.latency_ms, evidence.float_latency_ms
    is_for_speed = evidence.purpose is Purpose.SPEED
    if is_for_speed and latency_ms is not None and is_slower(latency_ms, float_ms):
        reasons.append(f"it takes {latency_ms:.3f} ms where float in the same format takes {float_ms:.3f} ms")
    if not is_for_speed and evidence.size_ratio >= 1:
        reasons.append(f"its file has {evidence.size_ratio:.2f} of the size of float, and it is made to be smaller")
    if max_latency_ms is not None and latency_ms is not None and latency_ms > max_latency_ms:
        reasons.append(f"it takes {latency_ms:.3f} ms where at most {max_latency_ms:g} ms are accepted")
    if max_bytes is not None and evidence.size_bytes > max_bytes:
        reasons.append(f"its file has {evidence.size_bytes:,} bytes where at most {max_bytes:,} are accepted")
    if evidence.audit is not None and evidence.audit.percent < min_int8:
        reasons.append(f"{evidence.audit.text}, where {min_int8:g} % are asked")
    measure, reason = _faithfulness(evidence, max_drop)
    reasons += [said for said in (reason, evidence.refusal) if said]
    return Verdict(passed=not reasons, reasons=tuple(reasons), measure=measure)


def _faithfulness(evidence: Evidence, max_drop: float) -> tuple[str, str]:
    """What was held against the limit, and what speaks against the variant (empty: nothing)."""
    if evidence.drop_points is not None:
        lost, said = evidence.drop_points, f"it loses {evidence.drop_points:.2f} points of accuracy"
        measure = f"{0.0 - lost:+.2f} points of accuracy against the source, on the same rows"
    elif evidence.disagreement_points is not None:
        lost, said = (
            evidence.disagreement_points,
            f"it disagrees with the source on {evidence.disagreement_points:.2f} %",
        )
        measure = f"{lost:.2f} points of disagreement with the source (there are no labels)"
    else:
        is_low = evidence.sqnr_db is not None and evidence.sqnr_db < LEAST_SQNR_DB
        found = "the same outputs" if evidence.sqnr_db is None else f"{evidence.sqnr_db:.1f} dB signal to noise"
        reason = f"{found} where at least {LEAST_SQNR_DB:g} dB are asked" if is_low else ""
        return f"{found} (the outputs are no classes)", reason
    return measure, f"{said} where at most {max_drop:g} are accepted" if lost > max_drop + 1e-9 else ""
