"""What tests prove rather than figures: their modules are run, the slow tests included, and what failed is counted."""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure

ROOT = Path(__file__).resolve().parent.parent.parent

PROOFS: dict[str, tuple[str, ...]] = {
    "power cut": ("tests/runtime/test_power_cut.py", "tests/runtime/test_outbox_model.py"),
    "disk faults": ("tests/runtime/test_disk_faults.py",),
    "clock": ("tests/runtime/test_clock.py", "tests/fleet/test_dating.py"),
    "hostile bundles and models": (
        "tests/runtime/test_hostile.py",
        "tests/runtime/test_updater.py",
        "tests/runtime/test_agent.py",
        "tests/edgeops/test_bundle.py",
    ),
    "fuzz over the corpus": ("tests/fuzz/test_fuzz.py",),
}
"""Line of the table → the modules that prove it."""


@dataclass(frozen=True)
class Tally:
    """How tests ended; ``failed`` counts those that could not be set up or collected too."""

    passed: int
    failed: int
    skipped: int


def measure() -> list[Figure]:
    """Run them, one line after the other."""
    return [figure for row, modules in PROOFS.items() for figure in _figures(row, modules)]


def _figures(row: str, modules: Sequence[str]) -> list[Figure]:
    missing = [module for module in modules if not (ROOT / module).exists()]
    if missing:
        return [Figure.without_value(f"{row}: failed", f"there is no {', '.join(missing)}")]
    tally = _run(modules)
    return [
        Figure(f"{row}: passed", tally.passed, ""),
        # Where nothing passed, nothing is proven.
        Figure(f"{row}: failed", max(tally.failed, tally.passed == 0), ""),
        Figure(f"{row}: skipped", tally.skipped, ""),
    ]


def _run(modules: Sequence[str]) -> Tally:
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        command = [sys.executable, "-m", "pytest", "--quiet", "-m", "", f"--junitxml={report}", *modules]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{' '.join(modules)}:\n{done.stdout[-4000:]}{done.stderr[-2000:]}", flush=True)
        if not report.exists():
            raise RuntimeError(f"pytest ended with {done.returncode} and without a report: {done.stderr[-500:]}")
        return count(report.read_text())


def count(report: str) -> Tally:
    """Read a JUnit report as pytest writes it."""
    suites = list(ET.fromstring(report).iter("testsuite"))
    total, failures, errors, skipped = (
        sum(int(suite.attrib[name]) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    )
    return Tally(passed=total - failures - errors - skipped, failed=failures + errors, skipped=skipped)
