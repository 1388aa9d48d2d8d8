"""The slots on disk: in turn, whole or not at all."""

import msgspec
import pytest

from edgeops.messages import DeploymentState
from edgeops_runtime.slots import Candidate, Slot, Slots, SlotStore


def slot(version: str) -> Slot:
    return Slot(version=version, digest=f"sha256:{version}", variant="onnx", engine="onnxruntime")


def candidate(version: str, **fields) -> Candidate:
    return Candidate(version=version, digest=f"sha256:{version}", variant="onnx", engine="onnxruntime", **fields)


def test_state_survives_a_restart(tmp_path):
    store = SlotStore(tmp_path)
    slots = Slots(
        model="digits",
        current=slot("1.1.0"),
        previous=slot("1.0.0"),
        candidate=candidate("1.2.0", attempts=2, phase=DeploymentState.TRIAL, elapsed_s=3.5),
        quarantine={"sha256:bad": "crashed"},
        generations={"group": 7},
    )
    store.save(slots)
    assert SlotStore(tmp_path).slots == slots


@pytest.mark.parametrize("damage", ["torn", "flipped"])
def test_any_damage_to_the_newer_file_leaves_the_older_state(tmp_path, damage):
    store = SlotStore(tmp_path)
    older, newer = Slots(model="digits", current=slot("1.0.0")), Slots(model="digits", current=slot("1.1.0"))
    store.save(older)
    store.save(newer)
    path = tmp_path / "slots.0"
    whole = path.read_bytes()
    assert SlotStore(tmp_path).slots == newer
    for place in range(len(whole)):
        data = bytearray(whole[:place] if damage == "torn" else whole)
        if damage == "flipped":
            data[place] ^= 0x41
        path.write_bytes(bytes(data))
        again = SlotStore(tmp_path)
        assert again.slots == older, place
        assert again.damaged == 1
    again.save(newer)
    assert SlotStore(tmp_path).slots == newer
    assert SlotStore(tmp_path).damaged == 0


def test_both_files_damaged_is_a_new_device(tmp_path):
    store = SlotStore(tmp_path)
    store.save(Slots(model="digits"))
    store.save(Slots(model="digits", current=slot("1.0.0")))
    for path in tmp_path.iterdir():
        path.write_bytes(b"\0" * 100)
    again = SlotStore(tmp_path)
    assert (again.slots, again.damaged) == (Slots(), 2)


def test_disk_that_refuses_leaves_the_state_as_it_was(tmp_path, monkeypatch):
    store = SlotStore(tmp_path)
    store.save(Slots(model="digits"))

    def full(*_args, **_named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeops_runtime.slots.write_durably", full)
    with pytest.raises(OSError, match="No space"):
        store.change(candidate=candidate("1.0.0", attempts=1))
    assert store.slots.candidate is None


def test_commit_moves_the_current_version_to_the_previous_place():
    slots = Slots(current=slot("1.0.0"), candidate=candidate("1.1.0")).committed()
    assert (slots.current, slots.previous, slots.candidate) == (slot("1.1.0"), slot("1.0.0"), None)


def test_what_was_quarantined_stays_so(tmp_path):
    slots = Slots(current=slot("1.0.0"), candidate=candidate("1.1.0")).without_candidate(quarantine="crashed")
    assert slots.quarantine == {"sha256:1.1.0": "crashed"}
    assert msgspec.structs.replace(slots, candidate=candidate("1.2.0")).committed().quarantine == slots.quarantine


def test_falling_back_needs_a_previous_version():
    alone = Slots(current=slot("1.0.0"))
    assert alone.fallen_back("crashes") == alone
    back = msgspec.structs.replace(alone, previous=slot("0.9.0")).fallen_back("crashes")
    assert (back.current, back.previous, back.quarantine) == (slot("0.9.0"), None, {"sha256:1.0.0": "crashes"})
