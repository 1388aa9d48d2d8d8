"""What the monitor says: one verdict for each scope and reference, with what a person needs to believe it."""

from dataclasses import dataclass
from enum import StrEnum


class DriftState(StrEnum):
    """The three answers."""

    OK = "ok"
    """Enough rows have passed to have shown a change of the stated size, and none was found."""
    DRIFT = "drift"
    NOT_ENOUGH_DATA = "not_enough_data"


class Level(StrEnum):
    """What a scope is."""

    FLEET = "fleet"
    COHORT = "cohort"
    DEVICE = "device"


@dataclass(frozen=True, kw_only=True, order=True)
class Scope:
    """Whose rows are added up.

    Attributes:
        attribute: Of a cohort: the device attribute; empty otherwise.
        name: The attribute's value, or the device's id; empty for the fleet.
    """

    level: Level
    attribute: str = ""
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """How far one score has moved, over the recent windows.

    Attributes:
        signal: Of the reference.
        score: What of it moved, in words: ``mean rank``, ``spread``, ``share of class 3``.
        shift: Mean minus the reference's mean; scores are between 0 and 1, so a mean rank can move by a half at most.
        low: Lower end of the interval; valid at every look, the reference's sampling error included.
        high: Upper end.
        evidence: Decimal logarithm of the evidence of this score's bets alone: now, and in drift over all alarms since the onset.
    """

    signal: str
    score: str
    shift: float
    low: float
    high: float
    evidence: float


@dataclass(frozen=True, kw_only=True)
class SignalView:
    """One signal, for showing: its strongest score, and the usual descriptions, which never alarm.

    Attributes:
        psi: Population stability index; ``psi_critical`` is what it exceeds in 5 % of windows of this size without any change.
        js: Jensen–Shannon divergence, in nats.
        ks: Kolmogorov–Smirnov distance over the bins; 0 for classes.
    """

    effect: Effect
    psi: float
    psi_critical: float
    js: float
    js_critical: float
    ks: float
    ks_critical: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer for one scope and one version of one model.

    Attributes:
        reference: Id of the reference.
        effect: What explains the verdict. In drift: of the scores that would have fired by themselves the one with most evidence,
            those of the inputs before those of the answers, which follow from them. Otherwise the score that moved most against
            its interval; ``None`` before the first window.
        evidence: Decimal logarithm of the detector's evidence after the last window; ``None`` before the first.
        threshold: Decimal logarithm of what alarms.
        history: ``evidence`` after each of the last windows, oldest first.
        rows: Counted since the first window.
        windows: That had rows, since the first one.
        rows_needed: For a verdict of OK; ``None`` when the reference is too small for that size, or nothing came.
        since: When the state began: Unix time in seconds, the end of the window that decided.
        onset: When the change seems to have begun, Unix time in seconds: the start of that window; ``None`` without drift.
        windows_to_detect: Windows with rows from the onset to the alarm, both included; ``None`` without drift.
        rows_to_detect: Rows in those windows, as far as they are remembered.
        alarms: How often the detector has fired since the first window; it starts again after each time.
        signals: All signals, that of ``effect`` first.
        reason: All of this in a sentence.
    """

    scope: Scope
    model: str
    version: str
    digest: str
    reference: str
    state: DriftState
    effect: Effect | None
    evidence: float | None
    threshold: float
    history: tuple[float, ...]
    rows: int
    windows: int
    rows_needed: int | None
    since: float
    onset: float | None
    windows_to_detect: int | None
    rows_to_detect: int | None
    alarms: int
    signals: tuple[SignalView, ...]
    reason: str

    @property
    def signal(self) -> str | None:
        """The signal that drifted; ``None`` without drift."""
        return self.effect.signal if self.effect and self.state is DriftState.DRIFT else None
