"""Fuzz one target for a while: ``python tests/fuzz/run.py TARGET --seconds N``; started by ``scripts/fuzz``.

With atheris the way is led by coverage, and what reaches new code is kept below ``build/fuzz``; without it inputs are only drawn.
An input that breaks a promise ends the run with an exit code other than 0, and is written to ``build/fuzz/TARGET-crash-…``.
"""

import argparse
import importlib.util
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
FOUND = Path("build/fuzz")
_MAX_BYTES = 8000
_SLOW_S = 10


def with_coverage(target: str, seconds: int) -> None:
    """Let libFuzzer lead; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["edgeops", "edgeops_runtime"]):
        from targets import CORPUS, TARGETS

    kept = FOUND / target
    kept.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-max_len={_MAX_BYTES}", f"-timeout={_SLOW_S}", "-rss_limit_mb=2048"]
    files = [f"-artifact_prefix={FOUND / target}-crash-", str(kept), str(CORPUS / target)]
    atheris.Setup([sys.argv[0], *options, *files], TARGETS[target])
    atheris.Fuzz()


def without(target: str, seconds: int) -> None:
    """Draw mutations of the corpus; the input that ended the run is in ``build/fuzz/TARGET-last``."""
    FOUND.mkdir(parents=True, exist_ok=True)
    from mutation import mutations
    from targets import TARGETS, corpus

    begun = started = time.monotonic()
    for data in mutations(corpus(target), random.Random()):
        started = time.monotonic()
        if started - begun > seconds:
            return
        signal.alarm(_SLOW_S)  # What hangs is ended, and its input is known all the same.
        (FOUND / f"{target}-last").write_bytes(data)
        TARGETS[target](data)
        signal.alarm(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    arguments = parser.parse_args()
    has_atheris = importlib.util.find_spec("atheris") is not None
    (with_coverage if has_atheris else without)(arguments.target, arguments.seconds)
