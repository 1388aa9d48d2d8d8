"""The demo leaves nothing behind: its processes end when it does, however it ends."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeops.errors import EdgeOpsError
from edgeops_demo.demo import prepare
from edgeops_demo.processes import Programs

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_leaving_the_block_ends_every_process(tmp_path: Path) -> None:
    with Programs(tmp_path) as programs:
        pids = [programs.start(name, sys.executable, "-c", SLEEPER).pid for name in ("a", "b")]
        assert all(is_alive(pid) for pid in pids)
    assert not any(is_alive(pid) for pid in pids)


def test_processes_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from edgeops_demo.processes import Programs\n"
        f"program = Programs(Path({str(tmp_path)!r})).start('child', sys.executable, '-c', {SLEEPER!r})\n"
        "print(program.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_for(lambda: (tmp_path / "child.log").read_text() == "up\n", "the child is up")
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
    wait_for(lambda: not is_alive(child), "the child has ended")


def test_waiting_for_a_file_of_a_process_that_died_shows_its_log(tmp_path: Path) -> None:
    with Programs(tmp_path) as programs:
        program = programs.start("broken", sys.executable, "-c", "raise SystemExit('no such broker')")
        with pytest.raises(EdgeOpsError, match="no such broker"):
            program.wait_for(tmp_path / "never", timeout_s=20)


def test_directory_with_other_files_is_never_emptied(tmp_path: Path) -> None:
    precious = tmp_path / "thesis.tex"
    precious.write_text("…")
    with pytest.raises(EdgeOpsError, match="found other files"):
        prepare(tmp_path)
    assert precious.exists()
    run = tmp_path / "run"
    prepare(run)
    (run / "old").touch()
    prepare(run)
    assert [path.name for path in run.iterdir()] == [".edgeops-demo"]
