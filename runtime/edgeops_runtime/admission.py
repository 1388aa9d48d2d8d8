"""What this device should run, and whether to start on it now. Pure: documents, state, clock in; a decision with its reason out.

Carrying it out is left to :mod:`edgeops_runtime.deployer`.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from edgeops.errors import InputError
from edgeops.manifest import parse_version
from edgeops.messages import ReasonClass, RolloutOrder, Target, Trial
from edgeops.selection import BUCKETS, Attribute, in_wave, matches, position
from edgeops_runtime.slots import Slots

_ENTITLED_PERCENT = 100.0


class Verdict(StrEnum):
    """What to do about a model."""

    KEEP = "keep"
    """Nothing is to change; a deployment that is under way and no longer wanted ends."""
    HOLD = "hold"
    """Nothing new is started; what is under way goes on."""
    DEPLOY = "deploy"
    """Bring this version on, or go on bringing it."""
    REJECT = "reject"
    """This version is wanted, and will not run here."""
    STOP = "stop"
    """The current version must not run, and there is nothing else."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, and why.

    Attributes:
        version: The version that this is about; likewise ``digest``.
        at: When a deployment may start, Unix time in seconds, where it is held for that.
    """

    verdict: Verdict
    reason: str
    version: str = ""
    digest: str = ""
    rollout: str | None = None
    trial: Trial = Trial()
    at: float | None = None
    reason_class: ReasonClass | None = None


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """What the decision depends on, beside the document.

    Attributes:
        device: Id; places the device in the order of a rollout.
        now: Unix time in seconds.
        clock_trusted: Whether to believe it.
        expires: When the document expires, Unix time in seconds.
    """

    device: str
    attributes: Mapping[str, Attribute]
    slots: Slots
    now: float
    clock_trusted: bool
    expires: float


class _Wanted(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    digest: str
    rollout: str | None = None
    trial: Trial = Trial()

    def decision(self, verdict: Verdict, reason: str, reason_class: ReasonClass | None = None) -> Decision:
        return Decision(
            verdict=verdict,
            reason=reason,
            version=self.version,
            digest=self.digest,
            rollout=self.rollout,
            trial=self.trial,
            reason_class=reason_class,
        )


def decide(target: Target, situation: Situation) -> Decision:
    """Which version should run, and what to do about it now."""
    slots = situation.slots
    barred = {**dict.fromkeys(target.quarantine, "the desired state forbids it"), **slots.quarantine}
    wanted, wait = _wanted(target, situation, barred)
    current = slots.current
    if wanted is None:
        return _without_wish(target, situation, barred, wait)
    if current is not None and current.digest == wanted.digest and wanted.digest not in barred:
        return wait or wanted.decision(Verdict.KEEP, "it runs already")
    if wanted.digest in barred:
        if current is not None and current.digest in target.quarantine:
            return _without_wish(target, situation, barred, wait)
        reason = f"{wanted.version} is quarantined: {barred[wanted.digest]}"
        return wanted.decision(Verdict.REJECT, reason, ReasonClass.DEFECT)
    if parse_version(wanted.version) < parse_version(target.floor):
        reason = f"{wanted.version} is below the floor {target.floor}"
        return wanted.decision(Verdict.REJECT, reason, ReasonClass.SECURITY)
    known = slots.previous is not None and slots.previous.digest == wanted.digest
    if not known and (held := _clock_objection(situation)):
        return wanted.decision(Verdict.HOLD, held)
    return wanted.decision(Verdict.DEPLOY, "it is wanted")


def _wanted(target: Target, situation: Situation, barred: Mapping[str, str]) -> tuple[_Wanted | None, Decision | None]:
    """The version to run by now, and a decision to wait when a rollout will want another one later."""
    base = None
    if target.digest is not None and target.version is not None:
        base = _Wanted(version=target.version, digest=target.digest)
    order = target.rollout
    if order is None or not takes_part(order, situation.device, situation.attributes):
        return base, None
    if order.digest in barred and base is not None and base.digest not in barred:
        return base, None
    wanted = _Wanted(version=order.version, digest=order.digest, rollout=order.id, trial=order.trial)
    current = situation.slots.current
    at = start_time(order, situation.device)
    if situation.now >= at or (current is not None and current.digest == order.digest):
        return wanted, None
    wait = Decision(
        verdict=Verdict.HOLD,
        reason=f"{order.version} starts later",
        version=order.version,
        digest=order.digest,
        rollout=order.id,
        trial=order.trial,
        at=at,
    )
    return base, wait


def _without_wish(target: Target, situation: Situation, barred: Mapping[str, str], wait: Decision | None) -> Decision:
    """Nothing (that may run) is wanted: keep what is there, unless that is forbidden."""
    current, previous = situation.slots.current, situation.slots.previous
    if current is None or current.digest not in target.quarantine:
        return wait or Decision(verdict=Verdict.KEEP, reason="no version is wanted")
    if previous is not None and previous.digest not in barred:
        return Decision(
            verdict=Verdict.DEPLOY,
            reason=f"{current.version} is forbidden; back to the version before",
            version=previous.version,
            digest=previous.digest,
        )
    return Decision(
        verdict=Verdict.STOP,
        reason=f"{current.version} is forbidden, and there is no other",
        version=current.version,
        digest=current.digest,
    )


def _clock_objection(situation: Situation) -> str:
    if not situation.clock_trusted:
        return "the clock is not trusted, so nothing new is installed"
    if situation.now >= situation.expires:
        return "the desired state has expired"
    return ""


def takes_part(order: RolloutOrder, device: str, attributes: Mapping[str, Attribute]) -> bool:
    """Whether a device is in the wave; a predicate that this release cannot read is not fulfilled."""
    try:
        return in_wave(device, percent=order.percent, rotation=order.rotation) and matches(order.where, attributes)
    except InputError:
        return False


def start_time(order: RolloutOrder, device: str) -> float:
    """When a device of the wave may start, Unix time in seconds: its place in the wave, spread over ``spread_s``."""
    share = position(device, rotation=order.rotation) / (BUCKETS * max(order.percent, 0.01) / _ENTITLED_PERCENT)
    return order.not_before + order.spread_s * min(share, 1.0)
