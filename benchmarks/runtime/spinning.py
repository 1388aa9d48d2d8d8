"""CPU that a model takes at a modest rate with two threads: ours against onnxruntime's defaults, whose threads spin."""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.runtime import models

_HZ = 50
_TURNS = 3


def measure(seconds: int = 5) -> list[Figure]:
    """Processes take turns, each for so many seconds."""
    taken: dict[str, list[dict[str, float]]] = {"ours": [], "stock": []}
    with tempfile.TemporaryDirectory() as name:
        bundle = models.perceptron(Path(name))
        for _ in range(_TURNS):
            for who, found in taken.items():
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.runtime.paced",
                    str(bundle.path),
                    who,
                    str(_HZ),
                    str(seconds),
                ]
                found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    ours, stock = (
        {key: statistics.median(each[key] for each in found) for key in ("cpu", "p50_ms")} for found in taken.values()
    )
    return [
        Figure(f"CPU of {_HZ} inferences a second, 2 threads", 100 * ours["cpu"], "%",
               "onnxruntime's defaults", 100 * stock["cpu"]),
        Figure("the same: one call", ours["p50_ms"], "ms", "onnxruntime's defaults", stock["p50_ms"]),
    ]  # fmt: skip
