"""From a snapshot to what the page says: words, tones and positions of bars. Pure; the layout is the template's."""

import math
import time
from collections.abc import Sequence

from edgeops.errors import ManifestError
from edgeops.manifest import parse_version
from edgeops.messages import DeploymentState
from edgeops.selection import BUCKETS, position
from edgeops_fleet.dashboard.page import (
    Badge,
    DeviceRow,
    DriftCard,
    LabelledRow,
    LogRow,
    Page,
    RolloutCard,
    Segment,
    SignalBar,
    Tile,
    Tone,
    VersionOnDevice,
    WaveRow,
)
from edgeops_fleet.dashboard.snapshot import Labelled, Snapshot
from edgeops_fleet.devices import DeviceView
from edgeops_fleet.drift import DriftState, Level, SignalView, Verdict
from edgeops_fleet.rollouts.records import DeploymentView, RolloutView, WaveView
from edgeops_fleet.rollouts.rollout import RolloutState
from edgeops_fleet.store import LogEntry

HUES = 6
"""How many colours tell versions apart; their names stand beside them."""
SIGNALS_SHOWN = 3
SIGNALS_SHOWN_IN_DRIFT = 6
_RANGE = 0.5
"""The shift that fills half of a signal's bar."""


def build_view(snapshot: Snapshot) -> Page:
    """What the page says."""
    hues = version_hues(snapshot)
    cards = [verdict for verdict in snapshot.verdicts if verdict.scope.level is not Level.DEVICE]
    return Page(
        fleet=snapshot.fleet,
        broker=snapshot.broker,
        connection=Badge("connected", Tone.GOOD) if snapshot.connected else Badge("broker away", Tone.BAD),
        time=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(snapshot.now)),
        cohort_attribute=snapshot.cohort_attribute,
        tiles=_tiles(snapshot),
        devices=tuple(_device_row(device, snapshot, hues) for device in snapshot.devices),
        rollouts=tuple(_rollout_card(rollout, hues, now=snapshot.now) for rollout in snapshot.rollouts),
        drift=tuple(_drift_card(verdict, hues, now=snapshot.now) for verdict in cards),
        drifting_devices=tuple(
            f"{verdict.scope.name} ({verdict.version})"
            for verdict in snapshot.verdicts
            if verdict.scope.level is Level.DEVICE and verdict.state is DriftState.DRIFT
        ),
        labelled=tuple(_labelled_row(row, hues) for row in snapshot.labelled if row.labelled or row.waiting),
        retrainings=tuple(
            (
                Badge(row.state.replace("_", " "), _RETRAIN_TONES.get(row.state, Tone.BUSY)),
                f"{row.model} {row.version}, {row.cohort}, {row.signal}",
                f"{row.reason or 'opened'} · {ago(snapshot.now - row.opened)}",
            )
            for row in snapshot.retrainings
        ),
        log=tuple(_log_row(entry) for entry in snapshot.log),
    )


def version_hues(snapshot: Snapshot) -> dict[str, int]:
    """A colour's number for each version; neighbours in order of version differ."""
    known = {model.version for device in snapshot.devices for model in device.models if model.version}
    known |= {rollout.version for rollout in snapshot.rollouts} | {verdict.version for verdict in snapshot.verdicts}
    known |= {row.version for row in snapshot.labelled}
    return {version: index % HUES for index, version in enumerate(sorted(known, key=_version_order))}


def ago(seconds: float | None) -> str:
    """A duration in words.

    >>> ago(3.2), ago(130), ago(7300), ago(200_000), ago(None)
    ('3 s ago', '2 min ago', '2 h ago', '2 d ago', 'never')
    """
    if seconds is None:
        return "never"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return f"{max(int(seconds), 0)} s ago"


def signed(value: float) -> str:
    """A number with its sign, and zero without one.

    >>> signed(0.123), signed(-0.5), signed(-0.001)
    ('+0.12', '−0.50', '0.00')
    """
    rounded = round(value, 2)
    return f"{rounded:+.2f}".replace("-", "−") if rounded else "0.00"


def wilson(successes: int, rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate.

    >>> tuple(round(bound, 3) for bound in wilson(8, 10))
    (0.49, 0.943)
    """
    if not rows:
        return 0.0, 1.0
    z, rate = 1.96, successes / rows
    centre, denominator = rate + z * z / (2 * rows), 1 + z * z / rows
    width = z * math.sqrt(rate * (1 - rate) / rows + z * z / (4 * rows * rows))
    return max((centre - width) / denominator, 0.0), min((centre + width) / denominator, 1.0)


def _version_order(version: str) -> tuple[bool, object, str]:
    """By meaning, and what is no version at the end, by text."""
    try:
        return False, parse_version(version), version
    except ManifestError:
        return True, (), version


def _tiles(snapshot: Snapshot) -> tuple[Tile, ...]:
    online = sum(device.online for device in snapshot.devices)
    away = len(snapshot.devices) - online
    requests = sum(device.requests for device in snapshot.devices)
    errors = sum(device.errors for device in snapshot.devices)
    cohorts = [verdict for verdict in snapshot.verdicts if verdict.scope.level is Level.COHORT]
    drifting = sorted({verdict.scope.name for verdict in cohorts if verdict.state is DriftState.DRIFT})
    open_ones = [verdict for verdict in cohorts if verdict.state is DriftState.NOT_ENOUGH_DATA]
    latest = snapshot.rollouts[0] if snapshot.rollouts else None
    rollout = _ROLLOUT_BADGES[latest.state] if latest else Badge("none", Tone.IDLE)
    drift_note = (
        "not enough data in " + ", ".join(sorted({v.scope.name for v in open_ones})) if open_ones else "all quiet"
    )
    return (
        Tile(
            label="Devices online",
            value=f"{online} / {len(snapshot.devices)}",
            note=f"{away} away" if away else "everyone is there" if snapshot.devices else "none is enrolled",
            tone=Tone.WARN if away else Tone.GOOD if snapshot.devices else Tone.IDLE,
        ),
        Tile(
            label="Requests answered",
            value=f"{requests:,}",
            note=f"{errors:,} failed" if errors else "none failed" if requests else "none has come",
            tone=Tone.BAD if errors else Tone.GOOD if requests else Tone.IDLE,
        ),
        Tile(
            label="Latest rollout",
            value=rollout.text,
            note=f"{latest.model} {latest.version}" if latest else "nothing was rolled out yet",
            tone=rollout.tone,
        ),
        Tile(
            label="Drift",
            value=", ".join(drifting) if drifting else ("quiet" if cohorts else "no data"),
            note="drifting" if drifting else (drift_note if cohorts else "no profile has come yet"),
            tone=Tone.BAD if drifting else (Tone.IDLE if open_ones or not cohorts else Tone.GOOD),
        ),
    )


def _device_row(device: DeviceView, snapshot: Snapshot, hues: dict[str, int]) -> DeviceRow:
    attribute = snapshot.cohort_attribute
    seen = None if device.last_seen is None else snapshot.now - device.last_seen
    latency = snapshot.latency_p95_ms.get(device.id)
    others = [f"{name} {value}" for name, value in sorted(device.attributes.items()) if name != attribute]
    return DeviceRow(
        id=device.id,
        group=device.group,
        attributes=", ".join(others),
        cohort=str(device.attributes.get(attribute, "–")),
        engines=", ".join(f"{name} {version}" for name, version in sorted(device.engines.items())),
        online=Badge("online", Tone.GOOD) if device.online else Badge("offline", Tone.WARN),
        last_seen=ago(seen),
        models=tuple(
            VersionOnDevice(
                model=model.model,
                version=model.version or "nothing yet",
                hue=hues.get(model.version or "", -1),
                variant=model.variant or "",
                state=_deployment_badge(model.state),
                quarantined=len(model.quarantined),
            )
            for model in device.models
        ),
        pinned=", ".join(f"pinned to {pin.model} {pin.version}" for pin in device.pins),
        requests=f"{device.requests:,}",
        errors=f"{device.errors:,}",
        has_errors=device.errors > 0,
        latency="–" if latency is None else f"{latency:.2f} ms" if latency >= 1 else f"{latency * 1000:.0f} µs",
    )


def _rollout_card(rollout: RolloutView, hues: dict[str, int], *, now: float) -> RolloutCard:
    by_wave = _deployments_by_wave(rollout)
    waves = [_wave_row(rollout, wave, by_wave.get(wave.index, ())) for wave in rollout.waves]
    if rollout.spec is not None and not rollout.state.is_final:
        for index, planned in enumerate(rollout.spec.waves[len(rollout.waves) :], start=len(rollout.waves)):
            reach = f"{planned.percent:g} %" if planned.percent is not None else _count(planned.devices or 0, "device")
            waves.append(
                WaveRow(
                    title=f"Wave {index + 1}",
                    reach=reach,
                    segments=(),
                    counts="not started",
                    result=Badge("waiting", Tone.IDLE),
                    reason="",
                    checks=(),
                    troubles=(),
                )
            )
    return RolloutCard(
        id=rollout.id,
        title=f"{rollout.model}, group {rollout.group}",
        version=rollout.version,
        hue=hues.get(rollout.version, -1),
        origin=f"from {rollout.from_version}" if rollout.from_version else "first version",
        state=_ROLLOUT_BADGES[rollout.state],
        reason=rollout.reason,
        when=f"{ago(now - rollout.updated)}",
        where=rollout.spec.where if rollout.spec else "",
        waves=tuple(waves),
    )


def _deployments_by_wave(rollout: RolloutView) -> dict[int, list[DeploymentView]]:
    """Each device under the first wave that reached it, by the same order as the device's own."""
    found: dict[int, list[DeploymentView]] = {}
    for deployment in rollout.deployments:
        place = position(deployment.device, rotation=rollout.rotation)
        reached = [wave.index for wave in rollout.waves if place < wave.percent * (BUCKETS / 100)]
        if reached:
            found.setdefault(min(reached), []).append(deployment)
    return found


def _wave_row(rollout: RolloutView, wave: WaveView, deployments: Sequence[DeploymentView]) -> WaveRow:
    earlier = max((before.selected for before in rollout.waves if before.index < wave.index), default=0)
    size = max(wave.selected - earlier, len(deployments), 0)
    counts = dict.fromkeys((Tone.GOOD, Tone.BAD, Tone.WARN, Tone.BUSY), 0)
    words: dict[str, int] = {}
    for deployment in deployments:
        badge = _deployment_badge(deployment.state)
        counts[badge.tone] = counts.get(badge.tone, 0) + 1
        words[badge.text] = words.get(badge.text, 0) + 1
    silent = size - len(deployments)
    parts = [f"{count} {word}" for word, count in sorted(words.items())] + ([f"{silent} waiting"] if silent > 0 else [])
    return WaveRow(
        title=f"Wave {wave.index + 1}",
        reach=_count(size, "device"),
        segments=_segments(counts, size),
        counts=", ".join(parts) if parts else "no device had anything to do",
        result=_wave_badge(rollout, wave),
        reason=wave.reason,
        checks=tuple(
            (_CHECK_BADGES.get(check.result, Badge(str(check.result), Tone.IDLE)), check.name, check.text)
            for check in wave.checks
        ),
        troubles=tuple(
            f"{deployment.device} {_deployment_badge(deployment.state).text}: "
            + ", ".join(word for word in (deployment.reason_class, deployment.reason) if word)
            for deployment in deployments
            if _deployment_badge(deployment.state).tone is Tone.BAD
        ),
    )


def _segments(counts: dict[Tone, int], size: int) -> tuple[Segment, ...]:
    start, segments = 0.0, []
    for tone, count in counts.items():
        if count and size:
            width = 100 * count / size
            segments.append(Segment(start=start, width=width, tone=tone, text=f"{count}"))
            start += width
    return tuple(segments)


def _wave_badge(rollout: RolloutView, wave: WaveView) -> Badge:
    if wave.result:
        return _CHECK_BADGES.get(wave.result, Badge(wave.result, Tone.IDLE))
    if rollout.state is RolloutState.RUNNING and wave.index == rollout.wave:
        return Badge(str(rollout.phase), Tone.BUSY)
    return Badge(rollout.state.replace("_", " "), _ROLLOUT_BADGES[rollout.state].tone)


def _drift_card(verdict: Verdict, hues: dict[str, int], *, now: float) -> DriftCard:
    scope = "Whole fleet" if verdict.scope.level is Level.FLEET else f"{verdict.scope.attribute} {verdict.scope.name}"
    top = max(verdict.threshold * 1.25, 1.0)
    is_drift = verdict.state is DriftState.DRIFT
    shown = SIGNALS_SHOWN_IN_DRIFT if is_drift and verdict.scope.level is Level.COHORT else SIGNALS_SHOWN
    return DriftCard(
        title=scope,
        version=f"{verdict.model} {verdict.version}",
        hue=hues.get(verdict.version, -1),
        state=_DRIFT_BADGES[verdict.state],
        reason=verdict.reason,
        since=f"{time.strftime('%H:%M:%S', time.gmtime(verdict.since))}, {ago(now - verdict.since)}"
        if verdict.windows
        else "",
        sparkline=_sparkline(verdict.history, top=top),
        limit_y=_y(verdict.threshold, top=top),
        evidence=f"evidence after each window, as a power of ten; the dashed line is the alarm at {verdict.threshold:.1f}",
        signals=tuple(
            _signal_bar(signal, is_leading=is_drift and index == 0)
            for index, signal in enumerate(verdict.signals[:shown])
        ),
        more_signals=max(len(verdict.signals) - shown, 0),
    )


def _sparkline(history: Sequence[float], *, top: float) -> str:
    """Points of a polyline in a box of 100 by 30; the newest value is at the right."""
    step = 100 / max(len(history) - 1, 1)
    return " ".join(f"{index * step:.1f},{_y(value, top=top):.1f}" for index, value in enumerate(history))


def _y(value: float, *, top: float) -> float:
    return 29 - 28 * min(max(value, 0.0), top) / top


def _signal_bar(signal: SignalView, *, is_leading: bool) -> SignalBar:
    effect = signal.effect
    return SignalBar(
        name=effect.signal,
        score=effect.score,
        low=_place(effect.low),
        middle=_place(effect.shift),
        high=_place(effect.high),
        text=signed(effect.shift),
        evidence=f"{max(effect.evidence, 0.0):.1f}",
        descriptions=(
            f"PSI {signal.psi:.3f} (critical {signal.psi_critical:.3f}), JS {signal.js:.3f} "
            f"({signal.js_critical:.3f}), KS {signal.ks:.3f} ({signal.ks_critical:.3f}); "
            f"interval {signed(effect.low)} to {signed(effect.high)}"
        ),
        is_leading=is_leading,
    )


def _place(shift: float) -> float:
    return 50 + 50 * min(max(shift / _RANGE, -1.0), 1.0)


def _labelled_row(row: Labelled, hues: dict[str, int]) -> LabelledRow:
    low, high = wilson(row.correct, row.labelled)
    rate = row.correct / row.labelled if row.labelled else 0.0
    known = f"{rate:.1%} of {row.labelled:,} labelled" if row.labelled else "no labels yet"
    waiting = f", {row.waiting:,} wait for a label" if row.waiting else ""
    return LabelledRow(
        cohort=row.cohort,
        version=f"{row.model} {row.version}",
        hue=hues.get(row.version, -1),
        text=known + waiting,
        low=100 * low,
        middle=100 * rate,
        high=100 * high if row.labelled else 0.0,
    )


def _log_row(entry: LogEntry) -> LogRow:
    tone = next((tone for ending, tone in _LOG_TONES if entry.kind.endswith(ending)), Tone.IDLE)
    return LogRow(
        time=time.strftime("%H:%M:%S", time.gmtime(entry.time)),
        kind=entry.kind,
        tone=tone,
        text=entry.text,
        actor=entry.actor,
    )


def _deployment_badge(state: str | None) -> Badge:
    if state is None:
        return Badge("–", Tone.IDLE)
    words = state.replace("_", " ")
    if state == DeploymentState.COMMITTED:
        return Badge(words, Tone.GOOD)
    if state in {DeploymentState.FAILED, DeploymentState.ROLLED_BACK, DeploymentState.REJECTED}:
        return Badge(words, Tone.BAD)
    if state in {DeploymentState.SUPERSEDED, DeploymentState.EXPIRED}:
        return Badge(words, Tone.WARN)
    return Badge(words, Tone.BUSY)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


_ROLLOUT_BADGES = {
    RolloutState.DRAFT: Badge("draft", Tone.IDLE),
    RolloutState.PLANNED: Badge("planned", Tone.IDLE),
    RolloutState.RUNNING: Badge("running", Tone.BUSY),
    RolloutState.PAUSED: Badge("paused", Tone.WARN),
    RolloutState.COMPLETED: Badge("completed", Tone.GOOD),
    RolloutState.ROLLING_BACK: Badge("rolling back", Tone.BAD),
    RolloutState.ROLLED_BACK: Badge("rolled back", Tone.BAD),
    RolloutState.ABORTED: Badge("aborted", Tone.WARN),
}
_DRIFT_BADGES = {
    DriftState.OK: Badge("OK", Tone.GOOD),
    DriftState.DRIFT: Badge("DRIFT", Tone.BAD),
    DriftState.NOT_ENOUGH_DATA: Badge("not enough data", Tone.IDLE),
}
_CHECK_BADGES = {
    "pass": Badge("pass", Tone.GOOD),
    "fail": Badge("fail", Tone.BAD),
    "inconclusive": Badge("inconclusive", Tone.WARN),
    "aborted": Badge("aborted", Tone.WARN),
}
_RETRAIN_TONES = {"done": Tone.GOOD, "benign": Tone.GOOD, "failed": Tone.BAD, "interrupted": Tone.WARN}
_LOG_TONES = (
    ("drift.detected", Tone.BAD),
    ("drift.cleared", Tone.GOOD),
    ("drift.benign", Tone.GOOD),
    ("retrain.done", Tone.GOOD),
    ("rolled_back", Tone.BAD),
    ("rolling_back", Tone.BAD),
    ("failed", Tone.BAD),
    ("rejected", Tone.BAD),
    ("paused", Tone.WARN),
    ("offline", Tone.WARN),
    ("gap", Tone.WARN),
    ("aborted", Tone.WARN),
    ("committed", Tone.GOOD),
    ("completed", Tone.GOOD),
    ("online", Tone.GOOD),
    ("running", Tone.BUSY),
    ("requested", Tone.BUSY),
)
