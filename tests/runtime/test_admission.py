"""What to run, by table."""

import pytest

from edgeops.manifest import FileEntry, Lineage, Manifest, Requires, Variant
from edgeops.messages import ReasonClass, RolloutOrder, Target
from edgeops.selection import position
from edgeops.tensors import TensorSpec
from edgeops_runtime.admission import Situation, Verdict, choose_variant, decide, start_time, takes_part
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


def variant(name: str, engines: dict[str, str], **requires) -> Variant:
    return Variant(
        name=name,
        file="f",
        format="onnx",
        engines=engines,
        precision="int8",
        inputs={"x": "x"},
        outputs={"y": "y"},
        tolerance=0.1,
        requires=Requires(**requires),
    )


def manifest(*variants: Variant) -> Manifest:
    tensor = ("FP32", ("batch", 1))
    return Manifest(
        name="m",
        version="1.0.0",
        created="",
        inputs=(TensorSpec("x", *tensor),),
        outputs=(TensorSpec("y", *tensor),),
        variants=variants,
        files={"f": FileEntry(digest="sha256:" + "0" * 64, size_bytes=1)},
        golden="f",
        lineage=Lineage(source="", source_digest="", data_digest=""),
    )


ORT, LITERT = {"onnxruntime": "1.18"}, {"litert": "1.2", "tflite": "2.14"}


@pytest.mark.parametrize(
    ("variants", "engines", "preference", "chosen"),
    [
        (
            (variant("a", ORT), variant("b", LITERT)),
            {"onnxruntime": "1.32.0", "litert": "2.3.0"},
            (),
            ("a", "onnxruntime"),
        ),
        ((variant("a", ORT), variant("b", LITERT)), {"litert": "2.3.0"}, (), ("b", "litert")),
        ((variant("b", LITERT),), {"tflite": "2.14.0"}, (), ("b", "tflite")),
        (
            (variant("a", ORT), variant("b", LITERT)),
            {"onnxruntime": "1.32.0", "litert": "2.3.0"},
            ("litert", "onnxruntime"),
            ("b", "litert"),
        ),
        (
            (variant("a", ORT, cpu=("avx512_vnni",)), variant("b", ORT)),
            {"onnxruntime": "1.32"},
            (),
            ("b", "onnxruntime"),
        ),
        ((variant("a", ORT, memory_mb=4096), variant("b", ORT)), {"onnxruntime": "1.32"}, (), ("b", "onnxruntime")),
        ((variant("a", {"onnxruntime": "1.9"}),), {"onnxruntime": "1.10.0rc1"}, (), ("a", "onnxruntime")),
    ],
)
def test_first_variant_that_the_device_can_run_is_chosen(variants, engines, preference, chosen):
    found = choose_variant(
        manifest(*variants), engines=engines, preference=preference, cpu=frozenset({"avx2"}), memory_bytes=1 << 30
    )
    assert not isinstance(found, str)
    assert (found[0].name, found[1]) == chosen


@pytest.mark.parametrize(
    ("made", "engines", "words"),
    [
        (variant("a", ORT), {"onnxruntime": "1.17.3"}, "needs onnxruntime 1.18"),
        (variant("a", ORT), {}, "no engine"),
        (variant("a", ORT, cpu=("neon",)), {"onnxruntime": "1.32"}, "lacks neon"),
        (variant("a", ORT, memory_mb=4096), {"onnxruntime": "1.32"}, "4096 MB"),
    ],
)
def test_where_no_variant_will_do_the_reasons_are_named(made, engines, words):
    found = choose_variant(manifest(made), engines=engines, cpu=frozenset({"avx2"}), memory_bytes=1 << 30)
    assert isinstance(found, str)
    assert words in found
