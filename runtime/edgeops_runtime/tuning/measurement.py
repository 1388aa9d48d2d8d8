"""The throw-away process that measures one setting: load as a worker does, answer the golden inputs, time calls, read the memory.

Started as ``python -m edgeops_runtime.tuning.measurement`` with an :class:`Order` in JSON; writes one
:class:`~edgeops_runtime.tuning.choice.Measured`. Whatever kills it is seen by :mod:`edgeops_runtime.tuning.tuner`.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from edgeops.bundle import open_bundle
from edgeops.errors import EdgeOpsError, ManifestError
from edgeops_runtime.engines.engine import Tensors
from edgeops_runtime.serving.comparison import compare_golden
from edgeops_runtime.serving.model import LoadedModel, give_memory_back, load_variant, resident_bytes
from edgeops_runtime.serving.pipeline import take_row
from edgeops_runtime.serving.priority import yield_to_others
from edgeops_runtime.serving.vectors import read_golden
from edgeops_runtime.tuning.choice import BATCH_ROWS, Measured
from edgeops_runtime.tuning.tuner import Order

_LEAST_RUNS, _MOST_RUNS = 5, 300


def measure(order: Order) -> Measured:
    """Try one setting; what keeps it from being taken is an objection."""
    try:
        bundle = open_bundle(Path(order.bundle), partial=True)
        start = time.perf_counter()
        setting = order.setting
        variant = bundle.manifest.variant(setting.variant)
        model = load_variant(bundle, variant, setting.engine, threads=setting.threads, options=setting.options)
        load_ms = (time.perf_counter() - start) * 1000
        golden = compare_golden(model)
        if not golden.passed:
            return Measured(setting=setting, load_ms=load_ms, objection=golden.reason)
        return _timed(model, order, load_ms)
    except EdgeOpsError as error:
        return Measured(setting=order.setting, objection=str(error))


def _timed(model: LoadedModel, order: Order, load_ms: float) -> Measured:
    one = _first_row(model)
    many = None
    if model.variant.batch is None and all(spec.is_batched for spec in model.manifest.inputs):
        many = {name: np.repeat(array, BATCH_ROWS, axis=0) for name, array in one.items()}
    latency_ms, cpu_ms = _median_ms(lambda: model.pipeline.answer(one), order.seconds)
    batch_ms = _median_ms(lambda: model.pipeline.answer(many), order.seconds)[0] if many is not None else None
    give_memory_back()
    return Measured(
        setting=order.setting,
        latency_ms=latency_ms,
        batch_ms=batch_ms,
        cpu_ms=cpu_ms,
        rss_bytes=resident_bytes(),
        load_ms=load_ms,
    )


def _first_row(model: LoadedModel) -> Tensors:
    golden = read_golden(model.bundle)
    if golden is None:
        raise ManifestError(f"{model.bundle.path}: expected golden vectors")
    return {spec.name: take_row(golden[f"input/{spec.name}"], spec, 0) for spec in model.manifest.inputs}


def _median_ms(call: Callable[[], object], seconds: float) -> tuple[float, float]:
    """The median of one call, and the CPU time of all threads for one on average, in milliseconds."""
    took_ms: list[float] = []
    end = time.perf_counter() + seconds
    cpu = time.process_time()
    while len(took_ms) < _LEAST_RUNS or (time.perf_counter() < end and len(took_ms) < _MOST_RUNS):
        start = time.perf_counter_ns()
        call()
        took_ms.append((time.perf_counter_ns() - start) / 1e6)
    return statistics.median(took_ms), (time.process_time() - cpu) * 1000 / len(took_ms)


def main(argument: str) -> None:
    """Measure, say so, and end without a teardown, as a worker does."""
    order = msgspec.json.decode(argument.encode(), type=Order)
    if order.is_idle_only:
        yield_to_others()  # Before the engine starts its threads, which are like this one then.
    sys.stdout.buffer.write(msgspec.json.encode(measure(order)) + b"\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
