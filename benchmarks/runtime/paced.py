"""Ask a model so many times a second and say what CPU that took: ``python -m benchmarks.runtime.paced BUNDLE WHO HZ SECONDS``.

A process of its own, so that nothing else is in its CPU time. ``WHO`` is ``ours`` or ``stock``: onnxruntime as it comes, with two
threads. Prints JSON: ``cpu`` (CPU seconds a second), ``p50_ms``, ``calls``.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeops.bundle import open_bundle

THREADS = 2
_WARM_UP = 20


def main(bundle_dir: Path, who: str, hz: float, seconds: float) -> None:
    """Load, warm up, ask at an even pace, print."""
    ask = _ours(bundle_dir) if who == "ours" else _stock(bundle_dir)
    for _ in range(_WARM_UP):
        ask()
    taken = []
    cpu, begun = time.process_time(), time.perf_counter()
    for number in range(int(hz * seconds)):
        wait_s = begun + number / hz - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
        start = time.perf_counter()
        ask()
        taken.append(time.perf_counter() - start)
    share = (time.process_time() - cpu) / (time.perf_counter() - begun)
    print(json.dumps({"cpu": share, "p50_ms": 1000 * statistics.median(taken), "calls": len(taken)}))


def _ours(bundle_dir: Path) -> Callable[[], object]:
    from edgeops_runtime import load  # noqa: PLC0415 - each of the two imports its own

    model = load(bundle_dir, threads=THREADS)
    feeds = {"input": _row(bundle_dir)}
    return lambda: model.infer(feeds)


def _stock(bundle_dir: Path) -> Callable[[], object]:
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(bundle_dir / "model.onnx"), options, providers=["CPUExecutionProvider"])
    row = _row(bundle_dir)
    return lambda: session.run(None, {"x": row})


def _row(bundle_dir: Path) -> np.ndarray:
    shape = open_bundle(bundle_dir).manifest.inputs[0].shape[1:]
    return np.random.default_rng(1).random((1, *shape)).astype(np.float32)  # type: ignore[arg-type] # no names but the batch's


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
