"""What to run, by table."""

import pytest

from edgeops.messages import ReasonClass, RolloutOrder, Target
from edgeops.selection import position
from edgeops_runtime.admission import Situation, Verdict, decide, start_time, takes_part
from edgeops_runtime.slots import Slot, Slots

DEVICE = "camera-1"


def digest(version: str) -> str:
    return f"sha256:{version}"


def slot(version: str) -> Slot:
    return Slot(version=version, digest=digest(version), variant="onnx", engine="onnxruntime")


def order(version: str, **fields) -> RolloutOrder:
    return RolloutOrder(
        **({"id": f"r{version}", "version": version, "digest": digest(version), "percent": 100} | fields)
    )


def target(base: str | None = None, rollout: RolloutOrder | None = None, **fields) -> Target:
    return Target(
        model="m", version=base, digest=digest(base) if base else None, url="/blobs", rollout=rollout, **fields
    )


def situation(current: str | None = None, previous: str | None = None, **fields) -> Situation:
    slots = Slots(
        model="m",
        current=slot(current) if current else None,
        previous=slot(previous) if previous else None,
        quarantine=fields.pop("quarantine", {}),
    )
    usual = {"device": DEVICE, "attributes": {"site": "north"}, "now": 1000.0, "clock_trusted": True, "expires": 2000.0}
    return Situation(slots=slots, **(usual | fields))


@pytest.mark.parametrize(
    ("wanted", "here", "verdict", "version"),
    [
        (target("1.0.0"), situation(), Verdict.DEPLOY, "1.0.0"),
        (target("1.0.0"), situation("1.0.0"), Verdict.KEEP, "1.0.0"),
        (target(), situation("1.0.0"), Verdict.KEEP, ""),
        (target("1.0.0", order("1.1.0")), situation("1.0.0"), Verdict.DEPLOY, "1.1.0"),
        (target("1.0.0", order("1.1.0")), situation("1.1.0"), Verdict.KEEP, "1.1.0"),
        # Not in the wave, by percent, by predicate, by a predicate of a later release.
        (target("1.0.0", order("1.1.0", percent=0)), situation("1.0.0"), Verdict.KEEP, "1.0.0"),
        (target("1.0.0", order("1.1.0", where="site == 'south'")), situation("1.0.0"), Verdict.KEEP, "1.0.0"),
        (target("1.0.0", order("1.1.0", where="site.startswith('n')")), situation("1.0.0"), Verdict.KEEP, "1.0.0"),
        # The wave shrank, or the rollout was taken back: to the version for everybody.
        (target("1.0.0", order("1.1.0", percent=0)), situation("1.1.0", "1.0.0"), Verdict.DEPLOY, "1.0.0"),
        (target("1.0.0"), situation("1.1.0"), Verdict.DEPLOY, "1.0.0"),
        (target(None, None), situation("1.1.0"), Verdict.KEEP, ""),
        # Later: a device without any version takes the one for everybody first.
        (target("1.0.0", order("1.1.0", not_before=5000)), situation("1.0.0"), Verdict.HOLD, "1.1.0"),
        (target("1.0.0", order("1.1.0", not_before=5000)), situation(), Verdict.DEPLOY, "1.0.0"),
        (target(None, order("1.1.0", not_before=5000)), situation(), Verdict.HOLD, "1.1.0"),
        (target("1.0.0", order("1.1.0", not_before=5000)), situation("1.1.0"), Verdict.KEEP, "1.1.0"),
        # Below the floor.
        (target("1.0.0", floor="1.0.1"), situation("1.1.0"), Verdict.REJECT, "1.0.0"),
        (target("1.0.0", order("1.1.0"), floor="2.0.0"), situation("1.0.0"), Verdict.REJECT, "1.1.0"),
        # Quarantined here, or forbidden from above.
        (target(None, order("1.1.0")), situation("1.0.0", quarantine={digest("1.1.0"): "x"}), Verdict.REJECT, "1.1.0"),
        (target("1.0.0", order("1.1.0")), situation("1.0.0", quarantine={digest("1.1.0"): "x"}), Verdict.KEEP, "1.0.0"),
        (target("1.0.0", order("1.1.0"), quarantine=(digest("1.1.0"),)), situation("1.1.0"), Verdict.DEPLOY, "1.0.0"),
        (target(None, quarantine=(digest("1.1.0"),)), situation("1.1.0", "1.0.0"), Verdict.DEPLOY, "1.0.0"),
        (target("1.1.0", quarantine=(digest("1.1.0"),)), situation("1.1.0", "1.0.0"), Verdict.DEPLOY, "1.0.0"),
        (target(None, quarantine=(digest("1.1.0"),)), situation("1.1.0"), Verdict.STOP, "1.1.0"),
        (target("1.0.0"), situation("1.1.0", quarantine={digest("1.0.0"): "x"}), Verdict.REJECT, "1.0.0"),
        # No trust in the clock or the document: nothing new, and back is not new.
        (target("1.0.0"), situation(clock_trusted=False), Verdict.HOLD, "1.0.0"),
        (target("1.1.0"), situation("1.0.0", now=3000.0), Verdict.HOLD, "1.1.0"),
        (target("1.0.0"), situation("1.1.0", "1.0.0", clock_trusted=False), Verdict.DEPLOY, "1.0.0"),
    ],
)
def test_decision(wanted, here, verdict, version):
    decision = decide(wanted, here)
    assert (decision.verdict, decision.version) == (verdict, version), decision.reason
    assert decision.reason


def test_rejection_says_its_class():
    assert decide(target("1.0.0", floor="2.0.0"), situation()).reason_class is ReasonClass.SECURITY
    barred = situation(quarantine={digest("1.0.0"): "crashed"})
    decision = decide(target("1.0.0"), barred)
    assert decision.reason_class is ReasonClass.DEFECT
    assert "crashed" in decision.reason


def test_decision_carries_the_rollout_and_its_trial():
    decision = decide(target("1.0.0", order("1.1.0")), situation("1.0.0"))
    assert (decision.rollout, decision.trial) == ("r1.1.0", order("1.1.0").trial)
    assert decide(target("1.0.0"), situation()).rollout is None


def test_start_is_spread_over_the_wave_in_the_order_of_the_positions():
    devices = [f"camera-{number}" for number in range(500)]
    spread = order("1.1.0", percent=20, rotation=17, not_before=100.0, spread_s=60.0)
    starts = sorted(
        (position(device, rotation=17), start_time(spread, device))
        for device in devices
        if takes_part(spread, device, {})
    )
    times = [time for _, time in starts]
    assert times == sorted(times)
    assert 100.0 <= times[0] < 103.0
    assert 157.0 < times[-1] <= 160.0
