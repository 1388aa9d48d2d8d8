"""What is on the page, as data: words, tones and positions of bars. How it is laid out is the template's business."""

from dataclasses import dataclass
from enum import StrEnum


class Tone(StrEnum):
    """How something stands; the page has a colour and a sign for each, and always the word."""

    GOOD = "good"
    BAD = "bad"
    WARN = "warn"
    BUSY = "busy"
    IDLE = "idle"


@dataclass(frozen=True)
class Badge:
    """A word with a tone."""

    text: str
    tone: Tone


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One figure at the top of the page."""

    label: str
    value: str
    note: str
    tone: Tone


@dataclass(frozen=True, kw_only=True)
class VersionOnDevice:
    """What a device runs; ``hue`` numbers the colour of the version."""

    model: str
    version: str
    hue: int
    variant: str
    state: Badge
    quarantined: int


@dataclass(frozen=True, kw_only=True)
class DeviceRow:
    """A line of the table of devices."""

    id: str
    group: str
    attributes: str
    cohort: str
    engines: str
    online: Badge
    last_seen: str
    models: tuple[VersionOnDevice, ...]
    pinned: str
    requests: str
    errors: str
    has_errors: bool
    latency: str


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a bar: from ``start``, ``width`` wide, of 100."""

    start: float
    width: float
    tone: Tone
    text: str


@dataclass(frozen=True, kw_only=True)
class WaveRow:
    """A wave: its bar, its gate, its words."""

    title: str
    reach: str
    segments: tuple[Segment, ...]
    counts: str
    result: Badge
    reason: str
    checks: tuple[tuple[Badge, str, str], ...]
    troubles: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RolloutCard:
    """A rollout."""

    id: str
    title: str
    version: str
    hue: int
    origin: str
    state: Badge
    reason: str
    when: str
    where: str
    waves: tuple[WaveRow, ...]


@dataclass(frozen=True, kw_only=True)
class SignalBar:
    """A signal's shift with its interval, on an axis from 0 to 100 with no change at 50."""

    name: str
    score: str
    low: float
    middle: float
    high: float
    text: str
    evidence: str
    descriptions: str
    is_leading: bool


@dataclass(frozen=True, kw_only=True)
class DriftCard:
    """The verdict on one cohort or the fleet."""

    title: str
    version: str
    hue: int
    state: Badge
    reason: str
    since: str
    sparkline: str
    limit_y: float
    evidence: str
    signals: tuple[SignalBar, ...]
    more_signals: int


@dataclass(frozen=True, kw_only=True)
class LabelledRow:
    """Accuracy on labelled samples, with its interval on an axis from 0 to 100."""

    cohort: str
    version: str
    hue: int
    text: str
    low: float
    middle: float
    high: float


@dataclass(frozen=True, kw_only=True)
class LogRow:
    """A line of the log."""

    time: str
    kind: str
    tone: Tone
    text: str
    actor: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything on the page."""

    fleet: str
    broker: str
    connection: Badge
    time: str
    cohort_attribute: str
    tiles: tuple[Tile, ...]
    devices: tuple[DeviceRow, ...]
    rollouts: tuple[RolloutCard, ...]
    drift: tuple[DriftCard, ...]
    drifting_devices: tuple[str, ...]
    labelled: tuple[LabelledRow, ...]
    retrainings: tuple[tuple[Badge, str, str], ...]
    log: tuple[LogRow, ...]
