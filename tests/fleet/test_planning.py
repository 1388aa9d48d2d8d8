from edgeops.selection import in_wave
from edgeops_fleet.devices import DeviceView, ModelOnDevice, PinView
from edgeops_fleet.rollouts.gates import GatePolicy, WhenUnproven
from edgeops_fleet.rollouts.planning import plan_rollout, ranked_positions, wave_percent
from edgeops_fleet.rollouts.rollout import RolloutSpec, WaveSpec


def device(name, **more):
    values = {
        "id": name,
        "group": "g",
        "attributes": {"site": "north"},
        "bucket": 0,
        "enrolled": 0.0,
        "online": True,
        "last_seen": None,
        "boot": 1,
        "session": 1,
        "generation": 0,
        "address": "",
        "agent_version": "",
        "engines": {"onnxruntime": "1.20"},
        "clock_trusted": True,
    }
    return DeviceView(**{**values, **more})


def plan(bundle, devices, **order):
    spec = RolloutSpec(group="g", model="digits", version=bundle.manifest.version, **order)
    return plan_rollout(spec, manifest=bundle.manifest, digest=bundle.digest, devices=devices, rotation=77)


def test_a_plan_says_who_takes_part_and_why_others_do_not(make_bundle):
    bundle = make_bundle("1.0.0")
    pin = PinView(device="pinned", model="digits", version="0.9.0", digest="x", reason="", created=0)
    made = plan(
        bundle,
        [
            device("takes-part"),
            device("elsewhere", group="other"),
            device("south", attributes={"site": "south"}),
            device("pinned", pins=(pin,)),
            device("has-it", models=(ModelOnDevice(model="digits", version="1.0.0", digest=bundle.digest),)),
            device("burnt", models=(ModelOnDevice(model="digits", quarantined={bundle.digest: "golden failed"}),)),
            device("other-engine", engines={"litert": "1.2"}),
        ],
        where="site == 'north'",
    )
    assert made.matched == 1
    assert made.excluded == {
        "elsewhere": "in group other",
        "south": "where: site == 'north' does not hold",
        "pinned": "pinned",
        "has-it": "runs 1.0.0 already",
        "burnt": "quarantined there: golden failed",
        "other-engine": "no engine for any variant: needs onnxruntime, has litert",
    }


def test_a_plan_sizes_waves_and_says_what_the_gate_can_prove(make_bundle):
    bundle = make_bundle("1.0.0")
    devices = [device(f"d{number}") for number in range(200)]
    made = plan(bundle, devices, waves=(WaveSpec(devices=3), WaveSpec(percent=40), WaveSpec(percent=100)))
    assert [(wave.devices, wave.added) for wave in made.waves] == [(3, 3), (80, 77), (200, 120)]
    assert [wave.can_prove for wave in made.waves] == [False, True, True]
    assert "pauses and asks a person" in made.waves[0].gate
    files = bundle.manifest.files
    expected = sum(
        files[name].size_bytes for name in (bundle.manifest.variants[0].file, "golden.npz", "reference.json")
    )
    assert made.bytes_total == 200 * expected
    unanimous = plan(bundle, devices[:4], gate=GatePolicy(when_unproven=WhenUnproven.UNANIMOUS))
    assert "goes on when all 1 commit" in unanimous.waves[0].gate


def test_devices_and_server_agree_on_who_is_in_a_wave():
    devices = [device(f"d{number}") for number in range(500)]
    for rotation in (0, 4321, 9999):
        ranked = ranked_positions(devices, rotation=rotation)
        positions = [place for place, _ in ranked]
        for count in (1, 2, 10, 57, 333, 499):
            percent = wave_percent(WaveSpec(devices=count), positions)
            inside = {each.id for each in devices if in_wave(each.id, percent=percent, rotation=rotation)}
            # Devices that share the last bucket come along.
            assert inside == {name for place, name in ranked if place <= positions[count - 1]}
