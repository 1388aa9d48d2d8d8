"""The throw-away process that tries one engine: import it, build a tiny model, run it some 300 times, watch answers and memory.

Started as ``python -m edgeops_runtime.doctor.probe --engine NAME``; writes the lines of :mod:`edgeops_runtime.doctor.verdicts`.
Whatever kills it is seen by :mod:`edgeops_runtime.doctor.examiner`.
"""

import json
import os
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.manifest import Variant
from edgeops_runtime.doctor.verdicts import Finished, Imported, Loaded, ProbeLine, Refused
from edgeops_runtime.engines import ENGINES, load_engine
from edgeops_runtime.engines.engine import Engine, Session
from edgeops_runtime.host import rss_bytes

MODELS = Path(__file__).with_name("models")
RUNS = 300
_WARM_UP = 60
_LOOK_EVERY = 10
_LIFE_S = 120
"""More than the examiner waits."""
_ENOUGH_KIB = 64 << 10
"""Memory that has grown by so much is proof enough: a leak of megabytes a run must not take the board with it."""

Say = Callable[[ProbeLine], None]


def examine(make: Callable[[], Engine], model_format: str, say: Say, *, runs: int = RUNS) -> None:
    """Try an engine, and say how far it got.

    Args:
        make: Imports the engine.
        model_format: ``onnx`` or ``tflite``.
        say: Takes each line as soon as it is known.
        runs: How many, beside the warm-up.
    """
    stage = "import"
    try:
        engine = make()
        say(Imported(version=engine.version, numpy=np.__version__))
        stage = "load"
        session = engine.load(MODELS / f"tiny.{model_format}", _variant(engine.name, model_format), 1)
        golden = Golden()
        session.run({"x": golden.inputs[:1]})
        say(Loaded())
        stage = "run"
        say(_run(session, golden, runs))
    except Exception as error:  # noqa: BLE001 - an engine may raise anything, and each is a finding
        root = error
        while root.__cause__ is not None:
            root = root.__cause__  # type: ignore[assignment]  # the engine's own error below ours
        say(Refused(stage=stage, kind=type(root).__name__, reason=str(root)[:500]))


class Golden:
    """Inputs of shape ``(rows, 36)`` with the answers of shape ``(rows, 3)`` that they must get."""

    def __init__(self) -> None:
        read: dict[str, Any] = json.loads((MODELS / "golden.json").read_text())
        self.inputs = np.array(read["inputs"], np.float32)
        self.outputs = np.array(read["outputs"], np.float32)
        self.tolerance = float(read["tolerance"])

    def difference(self, row: int, answer: NDArray[Any]) -> float:
        """The largest absolute difference; infinite where it is no number, or of another shape."""
        expected = self.outputs[row : row + 1]
        if answer.shape != expected.shape or not np.isfinite(answer).all():
            return float("inf")
        return float(np.abs(answer - expected).max())


def _run(session: Session, golden: Golden, runs: int) -> Finished:
    random = np.random.default_rng(11)
    rows, took_us, memory = len(golden.inputs), [], []
    checked = wrong = done = 0
    largest = 0.0
    for index in range(_WARM_UP + runs):
        row = index % (rows + 4)
        # An engine may keep something by content or by shape, so both change.
        feed = golden.inputs[row : row + 1] if row < rows else _noise(random, 1 + index % 3)
        start = time.perf_counter_ns()
        answer = session.run({"x": feed})["y"]
        took_us.append((time.perf_counter_ns() - start) / 1000)
        done = index + 1
        if row < rows:
            difference = golden.difference(row, answer)
            checked, wrong, largest = checked + 1, wrong + (difference > golden.tolerance), max(largest, difference)
        if index >= _WARM_UP and index % _LOOK_EVERY == 0:
            memory.append((rss_bytes() or 0) / 1024)
            if memory[-1] - memory[0] > _ENOUGH_KIB:
                break
    return Finished(
        runs=done,
        checked=checked,
        wrong=wrong,
        difference=min(largest, sys.float_info.max),
        kib_per_run=slope(memory) / _LOOK_EVERY,
        median_us=statistics.median(took_us),
    )


def slope(values: list[float]) -> float:
    """The median of the slopes between all pairs of equidistant values (Theil, 1950): single jumps do not count.

    >>> slope([10, 12, 14, 99, 18, 20, 22]), slope([7.0]), slope([5, 9, 9, 9, 9, 9])
    (2.0, 0.0, 0.0)
    """
    slopes = [
        (values[later] - values[earlier]) / (later - earlier)
        for earlier in range(len(values))
        for later in range(earlier + 1, len(values))
    ]
    return float(statistics.median(slopes)) if slopes else 0.0


def _noise(random: np.random.Generator, rows: int) -> NDArray[np.float32]:
    return random.uniform(-1, 1, (rows, 36)).astype(np.float32)


def _variant(engine: str, model_format: str) -> Variant:
    return Variant(
        name="tiny",
        file=f"tiny.{model_format}",
        format=model_format,
        engines={engine: "0"},
        precision="int8",
        inputs={"x": "x"},
        outputs={"y": "y"},
        tolerance=0.0,
    )


def say(line: ProbeLine) -> None:
    """Write a line at once: the next moment may be the last."""
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


def leave() -> None:
    """End without a teardown, as a worker does: engines are known to crash in theirs."""
    sys.stdout.flush()
    os._exit(0)


def limit_itself() -> None:
    """A crash that is looked for must not fill the disk, nor a hang outlive an agent that was killed meanwhile."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(_LIFE_S)


@click.command()
@click.option("--engine", type=click.Choice(list(ENGINES)), required=True, help="Which one.")
def main(engine: str) -> None:
    """Try one engine; started by the agent and by its doctor."""
    limit_itself()
    examine(lambda: load_engine(engine), ENGINES[engine].model_format, say)
    leave()


if __name__ == "__main__":
    main()
