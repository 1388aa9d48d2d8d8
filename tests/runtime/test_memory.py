"""Whether a second worker fits beside the first."""

import os
from pathlib import Path

from edgeops_runtime.memory import RESERVE_PERCENT, WORKER_BYTES, Memory, Scales, read_memory, weigh
from edgeops_runtime.slots import Slot

MB = 1 << 20
BOARD = Memory(available=200 * MB, total=400 * MB)


def test_second_worker_takes_what_the_first_does_and_more_for_a_larger_file():
    like = weigh(BOARD, incumbent_bytes=80 * MB, incumbent_file_bytes=5 * MB, candidate_file_bytes=3 * MB)
    assert (like.needed, like.available) == (80 * MB, 200 * MB)
    assert like.reserve == int(400 * MB * RESERVE_PERCENT / 100)
    assert like.is_enough
    larger = weigh(BOARD, incumbent_bytes=80 * MB, incumbent_file_bytes=5 * MB, candidate_file_bytes=50 * MB)
    assert larger.needed == (80 + 2 * 45) * MB
    assert not larger.is_enough


def test_what_the_manifest_asks_for_is_the_least():
    asks = weigh(
        BOARD, incumbent_bytes=80 * MB, incumbent_file_bytes=1, candidate_file_bytes=1, required_bytes=150 * MB
    )
    assert asks.needed == 150 * MB


def test_without_a_worker_to_look_at_the_files_have_to_do():
    assert weigh(BOARD, incumbent_bytes=None, incumbent_file_bytes=0, candidate_file_bytes=10 * MB).needed == (
        WORKER_BYTES + 20 * MB
    )


def test_unknown_memory_holds_two():
    unknown = Memory(available=None, total=None)
    assert weigh(unknown, incumbent_bytes=1 << 40, incumbent_file_bytes=0, candidate_file_bytes=0).is_enough


def machine(root: Path, *, limit: str) -> tuple[Path, Path]:
    proc, group = root / "proc", root / "sys" / "fs" / "cgroup" / "system.slice" / "agent"
    (proc / "self").mkdir(parents=True)
    group.mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 512000 kB\nMemAvailable: 300000 kB\n")
    (proc / "self" / "cgroup").write_text("0::/system.slice/agent\n")
    (group / "memory.max").write_text(limit + "\n")
    (group / "memory.current").write_text(f"{100 * MB}\n")
    (group / "memory.stat").write_text(f"inactive_file {20 * MB}\n")
    return proc, root / "sys"


def test_control_group_counts_where_it_leaves_less_than_the_machine(tmp_path):
    assert read_memory(*machine(tmp_path / "a", limit=str(160 * MB))) == Memory(available=80 * MB, total=160 * MB)
    unlimited = Memory(available=300000 << 10, total=512000 << 10)
    assert read_memory(*machine(tmp_path / "b", limit=str(900 * MB))) == unlimited
    assert read_memory(*machine(tmp_path / "c", limit="max")) == unlimited


def test_scales_read_the_files_and_the_manifest_of_versions_that_are_here(make_bundle):
    bundle = make_bundle("1.0.0")
    scales = Scales(lambda digest: bundle.path if digest == "sha256:a" else Path("/nonexistent"), lambda: BOARD)
    here = Slot(version="1.0.0", digest="sha256:a", variant="onnx", engine="onnxruntime")
    size = (bundle.path / "model.onnx").stat().st_size
    assert scales.weigh(here, None, worker_pid=None).needed == WORKER_BYTES + 2 * size
    beside = scales.weigh(here, here, worker_pid=os.getpid()).needed
    assert beside > 10 * MB
    gone = Slot(version="1.1.0", digest="sha256:b", variant="onnx", engine="onnxruntime")
    assert scales.weigh(gone, None, worker_pid=None).needed == WORKER_BYTES
