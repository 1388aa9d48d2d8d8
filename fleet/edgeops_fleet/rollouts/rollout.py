"""What a rollout does next: its states, what is known of its devices, the time → decisions.

Pure; reading devices, writing and publishing is :mod:`edgeops_fleet.rollouts.controller`'s, the tests are
:mod:`edgeops_fleet.rollouts.gates`'s.

::

    draft → planned → running{wave: dispatch → soak → gate} → completed
                        ↕ paused(auto | person)
                      rolling_back → rolled_back              aborted
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from edgeops.manifest import parse_version
from edgeops.messages import DeploymentState, ReasonClass, Trial
from edgeops.selection import check_where
from edgeops.topics import check_name
from edgeops_fleet.rollouts.gates import (
    Check,
    Figures,
    GatePolicy,
    GateResult,
    Outcomes,
    WhenUnproven,
    metric_checks,
    overall,
    pass_check,
    stop_checks,
)

ACTIVE_STATES = ("planned", "running", "paused", "rolling_back")
"""Values of :class:`RolloutState` of which a group has at most one for each model."""


class RolloutState(StrEnum):
    """Where a rollout stands."""

    DRAFT = "draft"
    PLANNED = "planned"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens by itself."""
        return self in {RolloutState.COMPLETED, RolloutState.ROLLED_BACK, RolloutState.ABORTED}


class Phase(StrEnum):
    """Where the current wave stands."""

    DISPATCH = "dispatch"
    """Devices take the version up."""
    SOAK = "soak"
    """Those that could have it; live figures gather."""
    GATE = "gate"
    """The question is open, and a person is asked."""


class PausedBy(StrEnum):
    """Who paused a rollout."""

    AUTO = "auto"
    PERSON = "person"


class WaveSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far one wave goes, counted from the beginning: a share of the selection, or a number of devices."""

    percent: float | None = None
    devices: int | None = None

    def __post_init__(self) -> None:
        if (self.percent is None) == (self.devices is None):
            raise ValueError("wave: expected either percent or devices")
        if self.percent is not None and not 0 < self.percent <= 100:  # noqa: PLR2004 - percent
            raise ValueError(f"wave: percent lies above 0 and at most at 100, got {self.percent}")
        if self.devices is not None and self.devices < 1:
            raise ValueError(f"wave: at least one device, got {self.devices}")


class RolloutSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a person orders.

    Attributes:
        where: Predicate on attributes (:mod:`edgeops.selection`); empty for the whole group. Completion makes the version that of
            the whole group, so where devices are left out, a person is asked after the last wave.
        waves: Each counts from the beginning; the last one is everybody.
        soak_s: Shortest time of a wave after its devices have finished, in seconds.
        extensions: How often the soak is repeated while the gate is inconclusive and more data can come.
        offer_timeout_s: Devices that are online and have not begun after this many seconds are left out of the wave's account.
        silence_s: A device that began and reports nothing for this long counts as failed; ``None``: its trial's deadline and
            a minute.
        rollback_timeout_s: Longest wait for devices to confirm that they are back, in seconds.
        spread_s: Starts of a wave are spread over this many seconds.
        not_before: Unix time in seconds; no device starts earlier.
        draft: Create, and do not start.
    """

    group: str
    model: str
    version: str
    where: str = ""
    waves: tuple[WaveSpec, ...] = (WaveSpec(percent=5), WaveSpec(percent=25), WaveSpec(percent=100))
    trial: Trial = Trial()
    gate: GatePolicy = GatePolicy()
    soak_s: float = 60.0
    extensions: int = 2
    offer_timeout_s: float = 300.0
    silence_s: float | None = None
    rollback_timeout_s: float = 900.0
    spread_s: float = 0.0
    not_before: float = 0.0
    draft: bool = False

    def __post_init__(self) -> None:
        check_name("group", self.group)
        check_name("model", self.model)
        parse_version(self.version)
        check_where(self.where)
        if not self.waves or self.waves[-1].percent != 100:  # noqa: PLR2004 - percent
            raise ValueError('waves: the last one is {"percent": 100}')
        if min(self.soak_s, self.offer_timeout_s, self.rollback_timeout_s, self.spread_s, self.extensions) < 0:
            raise ValueError("rollout: durations and extensions are not negative")

    @property
    def silence_limit_s(self) -> float:
        """How long a device that has begun may say nothing, in seconds."""
        return self.silence_s if self.silence_s is not None else self.trial.deadline_s + 60.0


@dataclass(frozen=True)
class DeviceReport:
    """What is known of one device of the current wave.

    Attributes:
        state: ``None`` when it has reported nothing of this rollout.
        updated: When the server heard of that state, Unix time in seconds; or since when it has been able to hear the next.
        holds: It runs the version already, or still.
        online: The broker has it.
        pinned: An override decides what it runs.
    """

    device: str
    state: DeploymentState | None = None
    reason_class: ReasonClass | None = None
    reason: str = ""
    updated: float = 0.0
    holds: bool = False
    online: bool = False
    pinned: bool = False


class Standing(StrEnum):
    """How a device counts."""

    COMMITTED = "committed"
    FAILED = "failed"
    DEFECT = "defect"
    SILENT = "silent"
    UNDERWAY = "underway"
    WAITING = "waiting"
    OFFLINE = "offline"
    EXCLUDED = "excluded"


@dataclass(frozen=True)
class Progress:
    """The row of a rollout, as far as the decision needs it."""

    state: RolloutState
    spec: RolloutSpec
    wave: int
    phase: Phase
    wave_started: float
    phase_since: float
    extended: int


@dataclass(frozen=True)
class Observation:
    """What the controller sees: the devices of the current wave, earlier waves included, and live figures."""

    devices: Sequence[DeviceReport]
    left_out: int = 0
    """Devices of the group that ``where`` leaves out, and that completion would move."""
    listening_since: float = 0.0
    """From then on the server could hear the devices; their silence before it is not theirs. Unix time in seconds."""
    updated: Figures = field(default_factory=Figures)
    control: Figures = field(default_factory=Figures)


@dataclass(frozen=True)
class StartWave:
    """Raise the share to this wave's."""

    wave: int
    reason: str
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class EnterSoak:
    """The devices that could have finished; wait and watch. ``extended`` counts repetitions."""

    reason: str
    extended: int = 0


@dataclass(frozen=True)
class Complete:
    """The last wave passed."""

    reason: str
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Ask:
    """Pause, and ask a person."""

    reason: str
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class RollBack:
    """Take it back, and never offer that digest again."""

    reason: str
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class FinishRollback:
    """Every device that had moved is back, or did not answer in time."""

    reason: str


Decision = StartWave | EnterSoak | Complete | Ask | RollBack | FinishRollback

_BEGUN = frozenset(
    {DeploymentState.DOWNLOADING, DeploymentState.VERIFIED, DeploymentState.TRIAL, DeploymentState.PROBATION}
)
_NOT_ITS_FAULT = frozenset({ReasonClass.INCOMPATIBLE, ReasonClass.ENVIRONMENT})


def decide(progress: Progress, seen: Observation, *, now: float) -> Decision | None:
    """The next step of a rollout, or ``None`` while there is nothing to do."""
    if progress.state is RolloutState.PLANNED:
        return StartWave(wave=0, reason="started")
    if progress.state is RolloutState.ROLLING_BACK:
        return _decide_rollback(progress, seen, now=now)
    if progress.state not in {RolloutState.RUNNING, RolloutState.PAUSED}:
        return None
    outcomes = count_outcomes(progress.spec, seen.devices, now=now)
    stops = stop_checks(outcomes, progress.spec.gate)
    if overall(stops) is GateResult.FAIL:
        return RollBack(reason=failure_reason(progress.spec, seen.devices, now=now), checks=stops)
    if progress.state is RolloutState.PAUSED:
        return None
    if progress.phase is Phase.DISPATCH:
        return _decide_dispatch(progress, seen, outcomes, now=now)
    soaks_since = progress.phase_since if progress.phase_since <= now else seen.listening_since
    if now - soaks_since < progress.spec.soak_s:
        return None
    return _decide_gate(progress, seen, outcomes, stops=stops)


def heard(time: float, *, listening_since: float, now: float) -> float:
    """From when silence counts: a time on record, unless the server could not hear then, or its clock was put back since.

    >>> heard(10.0, listening_since=20.0, now=30.0), heard(25.0, listening_since=20.0, now=30.0)
    (20.0, 25.0)
    >>> heard(99.0, listening_since=20.0, now=30.0)
    20.0
    """
    return max(time, listening_since) if time <= now else listening_since


def standing(spec: RolloutSpec, report: DeviceReport, *, now: float) -> Standing:
    """How one device counts: failures are those that finished badly, or fell silent after they had begun."""
    state = report.state
    if state is DeploymentState.COMMITTED:
        return Standing.COMMITTED
    if report.pinned:
        return Standing.EXCLUDED
    if state is None or state is DeploymentState.OFFERED:
        if report.holds and state is None:
            return Standing.EXCLUDED
        return Standing.WAITING if report.online else Standing.OFFLINE
    if state in _BEGUN:
        return Standing.SILENT if now - report.updated > spec.silence_limit_s else Standing.UNDERWAY
    if state in {DeploymentState.SUPERSEDED, DeploymentState.EXPIRED}:
        return Standing.EXCLUDED
    if report.reason_class is ReasonClass.DEFECT:
        return Standing.DEFECT
    if state is not DeploymentState.ROLLED_BACK and report.reason_class in _NOT_ITS_FAULT:
        return Standing.EXCLUDED
    return Standing.FAILED


def count_standings(spec: RolloutSpec, reports: Sequence[DeviceReport], *, now: float) -> dict[Standing, int]:
    """How many devices count as what."""
    counts = dict.fromkeys(Standing, 0)
    for report in reports:
        counts[standing(spec, report, now=now)] += 1
    return counts


def count_outcomes(spec: RolloutSpec, reports: Sequence[DeviceReport], *, now: float) -> Outcomes:
    """The base of the gates; never the size of the group."""
    counts = count_standings(spec, reports, now=now)
    failed = counts[Standing.FAILED] + counts[Standing.DEFECT] + counts[Standing.SILENT]
    return Outcomes(
        committed=counts[Standing.COMMITTED],
        failed=failed,
        defects=counts[Standing.DEFECT],
        open=counts[Standing.UNDERWAY] + counts[Standing.WAITING] + counts[Standing.OFFLINE],
    )


def failure_reason(spec: RolloutSpec, reports: Sequence[DeviceReport], *, now: float) -> str:
    """Why a rollout is stopped, in the words of the devices; defects first."""
    bad = {Standing.DEFECT: 0, Standing.FAILED: 1, Standing.SILENT: 2}
    found = sorted(
        (bad[kind], report.device, report) for report in reports if (kind := standing(spec, report, now=now)) in bad
    )
    texts = [_in_words(spec, report, now=now) for _, _, report in found]
    more = f"; and {len(texts) - 3} more" if len(texts) > 3 else ""  # noqa: PLR2004 - enough to read
    return "; ".join(texts[:3]) + more


def _in_words(spec: RolloutSpec, report: DeviceReport, *, now: float) -> str:
    if standing(spec, report, now=now) is Standing.SILENT:
        return f"{report.device} began {spec.version} and has been silent for {now - report.updated:.0f} s in {report.state}"
    verb = {DeploymentState.ROLLED_BACK: "rolled back", DeploymentState.REJECTED: "rejected"}.get(
        report.state or DeploymentState.FAILED, "failed"
    )
    words = [str(report.reason_class)] if report.reason_class else []
    words += [report.reason] if report.reason else []
    return f"{report.device} {verb} {spec.version}: {': '.join(words) or 'no reason given'}"


def _decide_dispatch(progress: Progress, seen: Observation, outcomes: Outcomes, *, now: float) -> Decision | None:
    counts = count_standings(progress.spec, seen.devices, now=now)
    latest = max(progress.wave_started, progress.phase_since)
    since = max(heard(latest, listening_since=seen.listening_since, now=now), progress.spec.not_before)
    begun = since + progress.spec.spread_s
    timed_out = now - begun >= progress.spec.offer_timeout_s
    if counts[Standing.UNDERWAY] or (counts[Standing.WAITING] and not timed_out):
        return None
    if not outcomes.finished and counts[Standing.EXCLUDED] < len(seen.devices) and not timed_out:
        # Nobody is there yet; a wave of absent devices is no wave.
        return None
    absent = [
        f"{counts[kind]} {kind}" for kind in (Standing.WAITING, Standing.OFFLINE, Standing.EXCLUDED) if counts[kind]
    ]
    coverage = f"; not counted: {', '.join(absent)}" if absent else ""
    return EnterSoak(
        reason=f"{outcomes.finished} of {len(seen.devices)} devices of wave {progress.wave + 1} finished{coverage}"
    )


def _decide_gate(
    progress: Progress, seen: Observation, outcomes: Outcomes, *, stops: tuple[Check, ...]
) -> Decision | None:
    spec = progress.spec
    if not seen.devices or _all_hold(seen):
        checks: tuple[Check, ...] = (
            Check(name="failure rate", result=GateResult.PASS, text="no device of the wave had anything to do"),
        )
    else:
        checks = (pass_check(outcomes, spec.gate), *metric_checks(seen.updated, seen.control, spec.gate))
    result = overall(checks)
    texts = "; ".join(check.text for check in checks if check.result is result)
    if result is GateResult.FAIL:
        return RollBack(reason=texts, checks=(*stops, *checks))
    if result is GateResult.PASS:
        return _next_wave(progress, seen, reason=texts, checks=checks)
    if progress.extended < spec.extensions and _more_can_come(outcomes, checks):
        return EnterSoak(reason=f"inconclusive, soak extended: {texts}", extended=progress.extended + 1)
    return _without_proof(progress, seen, outcomes, checks)


def approve(progress: Progress) -> Decision:
    """What follows when a person answers an inconclusive gate with yes."""
    if progress.wave + 1 < len(progress.spec.waves):
        return StartWave(wave=progress.wave + 1, reason=f"wave {progress.wave + 1} approved by a person")
    return Complete(reason="the last wave was approved by a person", checks=())


def _without_proof(progress: Progress, seen: Observation, outcomes: Outcomes, checks: tuple[Check, ...]) -> Decision:
    texts = "; ".join(check.text for check in checks if check.result is GateResult.INCONCLUSIVE)
    only_figures = all(check.result is GateResult.PASS or check.name == "live figures" for check in checks)
    is_unanimous = outcomes.committed > 0 and not outcomes.failed and not outcomes.open
    if only_figures and is_unanimous and progress.spec.gate.when_unproven is WhenUnproven.UNANIMOUS:
        known = "; ".join(check.text for check in checks if check.result is GateResult.PASS)
        return _next_wave(progress, seen, reason=f"{known}; without live figures: {texts}", checks=checks)
    return Ask(reason=f"inconclusive after wave {progress.wave + 1}: {texts}", checks=checks)


def _next_wave(progress: Progress, seen: Observation, *, reason: str, checks: tuple[Check, ...]) -> Decision:
    if progress.wave + 1 < len(progress.spec.waves):
        return StartWave(wave=progress.wave + 1, reason=reason, checks=checks)
    if seen.left_out:
        text = f"all waves passed; completing moves {seen.left_out} further devices that {progress.spec.where!r} leaves out"
        return Ask(reason=text, checks=checks)
    return Complete(reason=reason, checks=checks)


def _all_hold(seen: Observation) -> bool:
    return all(report.holds and report.state is None for report in seen.devices)


def _more_can_come(outcomes: Outcomes, checks: Sequence[Check]) -> bool:
    is_waiting_for_figures = any(
        check.result is GateResult.INCONCLUSIVE and check.name != "failure rate" for check in checks
    )
    return outcomes.open > 0 or is_waiting_for_figures


def _decide_rollback(progress: Progress, seen: Observation, *, now: float) -> Decision | None:
    moved = [report.device for report in seen.devices if report.holds or report.state in _BEGUN]
    if not moved:
        return FinishRollback(reason="every device that had moved is back")
    since = heard(progress.phase_since, listening_since=seen.listening_since, now=now)
    if now - since >= progress.spec.rollback_timeout_s:
        return FinishRollback(reason=f"not confirmed in time by {', '.join(sorted(moved)[:5])} ({len(moved)} in all)")
    return None
