"""The whole demo, as a newcomer runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_comes_out_as_told_and_leaves_no_process(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "edgeops", "demo", "--directory", str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((directory / "report.json").read_text())
    assert report["outcome"] == "as told"
    assert report["failed_requests"] == 0
    assert report["requests"] > 1000
    assert all(report["checks"].values())
    assert {version: rollout["state"] for version, rollout in report["rollouts"].items()} == {
        "1.0.0": "completed",
        "1.1.0": "rolled_back",
        "1.2.0": "completed",
    }
    assert report["drift"]["south"]["verdict"] == "drift"
    assert report["drift"]["north"]["verdict"] == "ok"
    assert report["retrain"]["events"] == 1
    before, after = report["accuracy"]["before"], report["accuracy"]["after"]
    assert all(after["drifted"][variant] > before["drifted"][variant] for variant in before["drifted"])
    left = [
        process.name
        for process in Path("/proc").iterdir()
        if process.name.isdigit() and str(directory).encode() in read(process / "cmdline")
    ]
    assert left == []


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
