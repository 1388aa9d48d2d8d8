"""What a rollout would do, before it does it: who matches and why others do not, wave sizes, bytes, and what the gate can prove.

Pure; the same arithmetic sizes the waves when they start.
"""

import math
from collections.abc import Sequence

import msgspec

from edgeops.manifest import Manifest, Variant
from edgeops.selection import BUCKETS, matches, position
from edgeops_fleet.devices import DeviceView
from edgeops_fleet.rollouts.gates import GatePolicy, WhenUnproven, devices_to_prove
from edgeops_fleet.rollouts.rollout import RolloutSpec, WaveSpec

_EVERYBODY = 100.0


class PlannedWave(msgspec.Struct, frozen=True, kw_only=True):
    """One wave.

    Attributes:
        devices: How many have the version when it is over; ``added`` of them are new in this wave.
        names: The first of those that are new.
        percent: Share of hash space, as it stands in the desired document.
    """

    index: int
    devices: int
    added: int
    percent: float
    names: tuple[str, ...]
    can_prove: bool
    gate: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A dry run.

    Attributes:
        matched: Devices that would take part.
        excluded: Device → why not.
        bytes_total: What all matched devices would download, at most.
        conflict: What is in the way of starting; empty: nothing.
    """

    group: str
    model: str
    version: str
    digest: str
    matched: int
    excluded: dict[str, str]
    waves: tuple[PlannedWave, ...]
    bytes_total: int
    notes: tuple[str, ...]
    conflict: str = ""


def plan_rollout(
    spec: RolloutSpec,
    *,
    manifest: Manifest,
    digest: str,
    devices: Sequence[DeviceView],
    rotation: int,
    conflict: str = "",
) -> Plan:
    """Work out what a rollout would do.

    Args:
        spec: The order.
        manifest: Of the bundle that would go out.
        digest: Its digest.
        devices: All devices of the fleet.
        rotation: Where in hash space the first wave begins.
        conflict: What is in the way, if anything.
    """
    reasons = {device.id: why_not(spec, device, manifest=manifest, digest=digest) for device in devices}
    matched = [device for device in devices if not reasons[device.id]]
    ranked = ranked_positions(matched, rotation=rotation)
    waves = []
    before = 0
    for index, wave in enumerate(spec.waves):
        percent = wave_percent(wave, [place for place, _ in ranked])
        names = [name for place, name in ranked if place < percent * (BUCKETS / _EVERYBODY)]
        waves.append(
            PlannedWave(
                index=index,
                devices=len(names),
                added=len(names) - before,
                percent=percent,
                names=tuple(names[before : before + 20]),
                can_prove=len(names) >= devices_to_prove(spec.gate.max_failure_rate, confidence=spec.gate.confidence),
                gate=gate_outlook(len(names), spec.gate),
            )
        )
        before = len(names)
    return Plan(
        group=spec.group,
        model=spec.model,
        version=spec.version,
        digest=digest,
        matched=len(matched),
        excluded={name: reason for name, reason in reasons.items() if reason},
        waves=tuple(waves),
        bytes_total=sum(download_bytes(manifest, device) for device in matched),
        notes=_notes(spec, matched=matched, devices=devices),
        conflict=conflict,
    )


def why_not(spec: RolloutSpec, device: DeviceView, *, manifest: Manifest, digest: str) -> str:
    """Why a device would not take part; empty when it would."""
    if device.group != spec.group:
        return f"in group {device.group}"
    if not matches(spec.where, device.attributes):
        return f"where: {spec.where} does not hold"
    if device.is_pinned(spec.model):
        return "pinned"
    if device.holds(spec.model) == digest:
        return f"runs {spec.version} already"
    for model in device.models:
        if digest in model.quarantined:
            return f"quarantined there: {model.quarantined[digest]}"
    if device.engines and not any(_fits(variant, device) for variant in manifest.variants):
        needed = sorted({engine for variant in manifest.variants for engine in variant.engines})
        return f"no engine for any variant: needs {' or '.join(needed)}, has {', '.join(device.engines)}"
    return ""


def ranked_positions(devices: Sequence[DeviceView], *, rotation: int) -> list[tuple[int, str]]:
    """Devices in the order of a rollout: position and id."""
    return sorted((position(device.id, rotation=rotation), device.id) for device in devices)


def wave_percent(wave: WaveSpec, positions: Sequence[int]) -> float:
    """The share of hash space that a wave reaches to, so that it has exactly the devices that it should.

    Args:
        wave: A share of the selection, rounded up to whole devices, or a number of devices.
        positions: Of the selection, ascending.

    >>> wave_percent(WaveSpec(devices=2), [10, 700, 9000])
    7.005
    >>> wave_percent(WaveSpec(percent=100), [10])
    100.0
    """
    if wave.percent is not None:
        if wave.percent >= _EVERYBODY or not positions:
            return float(wave.percent)
        count = math.ceil(wave.percent / _EVERYBODY * len(positions) - 1e-9)
    else:
        count = wave.devices or 1
    if count >= len(positions):
        return _EVERYBODY
    # Half a bucket past the last device, so that no rounding of the quotient lets a neighbour in.
    return (positions[max(count, 1) - 1] + 0.5) * (_EVERYBODY / BUCKETS)


def download_bytes(manifest: Manifest, device: DeviceView) -> int:
    """What a device downloads: the variant that it would choose, golden vectors and reference; an unknown device the largest."""
    shared = [manifest.golden] + ([manifest.reference] if manifest.reference else [])
    sizes = {variant.name: manifest.files[variant.file].size_bytes for variant in manifest.variants}
    fitting = [sizes[variant.name] for variant in manifest.variants if _fits(variant, device)]
    model = fitting[0] if fitting else max(sizes.values())
    return model + sum(manifest.files[name].size_bytes for name in shared)


def gate_outlook(devices: int, policy: GatePolicy) -> str:
    """What the gate will be able to say of so many devices."""
    needed = devices_to_prove(policy.max_failure_rate, confidence=policy.confidence)
    limit = f"a failure rate below {policy.max_failure_rate:.1%} at {policy.confidence:.0%} confidence"
    if devices >= needed:
        return f"{devices} devices without a failure prove {limit} ({needed} are needed)"
    if policy.when_unproven is WhenUnproven.UNANIMOUS:
        return f"too few to prove {limit} ({needed} are needed): goes on when all {devices} commit, and says so"
    return f"too few to prove {limit} ({needed} are needed): pauses and asks a person"


def _fits(variant: Variant, device: DeviceView) -> bool:
    return any(engine in device.engines for engine in variant.engines)


def _notes(spec: RolloutSpec, *, matched: Sequence[DeviceView], devices: Sequence[DeviceView]) -> tuple[str, ...]:
    notes = []
    offline = [device.id for device in matched if not device.online]
    if offline:
        notes.append(f"{len(offline)} of the matched devices are offline now: {', '.join(offline[:5])}")
    group = [device for device in devices if device.group == spec.group]
    left_out = sum(not matches(spec.where, device.attributes) for device in group)
    if left_out:
        notes.append(
            f"completing makes this the version of the whole group; {left_out} left-out devices follow, on request"
        )
    if not matched:
        notes.append("no device matches: nothing would happen")
    return tuple(notes)
