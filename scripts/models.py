"""Models for machines that cannot make them: made here once, with torch, and kept in ``build/tests``."""

import hashlib
import shutil
import sys
from pathlib import Path

from userland import ROOT, on_this_machine, say


def make_models() -> Path:
    """Make the small models of the tests, and the bundle ``quarters``: float and int8, both formats, for x86 and ARM.

    Returns:
        The bundle.
    """
    say("models, which are made on this machine")
    on_this_machine([sys.executable, "-c", "import conftest; conftest.small_models()"], ROOT / "tests")
    example = ROOT / "examples" / "convert" / "tiny.py"
    state = hashlib.sha256(example.read_bytes() + (ROOT / "requirements.lock").read_bytes()).hexdigest()[:16]
    directory = ROOT / "build" / "tests" / f"quarters-{state}"
    bundle = directory / "quarters"
    if not bundle.exists():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        edgeops = [sys.executable, "-m", "edgeops"]
        on_this_machine([sys.executable, str(example)], directory)
        on_this_machine([*edgeops, "keys", "generate", "test.key"], directory)
        data = ["--data", "calib.npz", "--eval", "eval.npz", "--target", "x86,arm"]
        identity = ["--name", "quarters", "--version", "1.0.0", "--key", "test.key"]
        on_this_machine([*edgeops, "convert", f"{example}:tiny", *data, *identity, "-o", bundle.name], directory)
    return bundle
