"""A program that asks a model from two threads while it exchanges its version.

    python -m benchmarks.runtime.swapping BUNDLE_A BUNDLE_B SWAPS

A process of its own, so that its memory is the model's and ours. Prints JSON, as :class:`Found` has it.
"""

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.runtime.phases import Phases, take_turns
from edgeops.errors import EdgeOpsError
from edgeops_runtime import Model, load
from edgeops_runtime.serving.model import resident_bytes

_CALLERS = 2
_PAUSE_S = 0.001


class Found(msgspec.Struct, frozen=True):
    """What came of it.

    Attributes:
        failed: What calls that failed said.
        quiet: Nanoseconds of the calls that began while nothing was exchanged; ``busy`` of the others.
        swaps_ms: How long each swap took.
        before_mb: Resident memory after both versions were there once; ``after_mb`` at the end.
    """

    failed: list[str]
    quiet: list[int]
    busy: list[int]
    swaps_ms: list[float]
    before_mb: float
    after_mb: float


class _Caller(threading.Thread):
    def __init__(self, model: Model) -> None:
        super().__init__(daemon=True)
        self._model = model
        self._over = threading.Event()
        self.taken: list[tuple[int, int]] = []
        self.failures: list[str] = []

    def run(self) -> None:
        feeds = {"input": np.random.default_rng(0).random((1, *self._model.manifest.inputs[0].shape[1:])).astype("f4")}
        while not self._over.wait(_PAUSE_S):
            begun = time.perf_counter_ns()
            try:
                self._model.infer(feeds)
            except EdgeOpsError as error:
                self.failures.append(repr(error))
            else:
                self.taken.append((begun, time.perf_counter_ns() - begun))

    def stop(self) -> None:
        self._over.set()
        self.join()


def main(versions: tuple[Path, Path], swaps: int) -> None:
    """Swap, and print what was found."""
    swaps_ms: list[float] = []
    with load(versions[0]) as model:
        callers = [_Caller(model) for _ in range(_CALLERS)]
        for caller in callers:
            caller.start()
        swap = _swapper(model, versions, swaps_ms)
        for number in (0, 1):
            swap(number)
        swaps_ms.clear()
        before = resident_bytes()
        phases: Phases = take_turns(swap, swaps)
        for caller in callers:
            caller.stop()
        after = resident_bytes()
    quiet, busy = phases.split(pair for caller in callers for pair in caller.taken)
    found = Found(
        [each for caller in callers for each in caller.failures], quiet, busy, swaps_ms, before / 1e6, after / 1e6
    )
    sys.stdout.buffer.write(msgspec.json.encode(found))


def _swapper(model: Model, versions: tuple[Path, Path], swaps_ms: list[float]) -> Callable[[int], None]:
    def swap(number: int) -> None:
        begun = time.perf_counter()
        model.swap(versions[(number + 1) % 2])
        swaps_ms.append(1000 * (time.perf_counter() - begun))

    return swap


if __name__ == "__main__":
    main((Path(sys.argv[1]), Path(sys.argv[2])), int(sys.argv[3]))
