"""What a candidate has to pass before it serves: its golden vectors, and a shadow run beside the incumbent's answers."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeops.errors import EdgeOpsError, ManifestError, NotFiniteError, TransientError
from edgeops_runtime.control import GoldenResult, ShadowResult
from edgeops_runtime.engines.engine import Tensors
from edgeops_runtime.serving.pipeline import take_row
from edgeops_runtime.serving.vectors import read_arrays, read_golden

if TYPE_CHECKING:
    from edgeops_runtime.serving.model import LoadedModel


def first_golden_row(model: "LoadedModel") -> Tensors | None:
    """One row of the golden vectors, to be kept; ``None`` when they are missing.

    Raises:
        ManifestError: The file is no ``.npz``.
    """
    golden = read_golden(model.bundle)
    return {name: array[:1].copy() for name, array in golden.items()} if golden is not None else None


def compare_golden(
    model: "LoadedModel",
    golden: Tensors | None = None,
    *,
    answer: Callable[[Tensors], Tensors] | None = None,
) -> GoldenResult:
    """Run the golden inputs and hold the answers against those that the converter recorded for this variant.

    Args:
        model: Answers.
        golden: Of :func:`first_golden_row`; ``None``: the bundle's, all of them.
        answer: Answers in place of the model itself.

    A model that fails, or answers something that is not finite, has not passed, with the reason.

    Raises:
        ManifestError: The golden vectors are missing or do not hold this variant.
        TransientError: There is too much to do, which says nothing of the model.
    """
    answer = answer or model.quietly
    golden = golden if golden is not None else read_golden(model.bundle)
    where = model.bundle.file(model.manifest.golden)
    if golden is None:
        raise ManifestError(f"{where}: expected the golden vectors; the file is not there")
    expected = {spec.name: golden.get(f"output/{model.variant.name}/{spec.name}") for spec in model.manifest.outputs}
    missing = [name for name, array in expected.items() if array is None]
    if missing:
        raise ManifestError(f"{where}: no output/{model.variant.name}/<name> for {missing}")
    tolerance = model.variant.tolerance
    rows, largest = 0, 0.0
    for row, feeds in _requests(model, golden):
        reason = ""
        try:
            answers = answer(feeds)
            difference = max(
                _difference(answers[spec.name], take_row(golden[f"output/{model.variant.name}/{spec.name}"], spec, row))
                for spec in model.manifest.outputs
            )
            largest = max(largest, difference)
            if difference > tolerance:
                reason = f"differs by {difference:.4g} from the golden answer; the tolerance is {tolerance:g}"
        except TransientError:
            raise
        except EdgeOpsError as error:
            reason = str(error)
        if reason:
            return _golden_result(rows, largest, tolerance, f"golden row {row}: {reason}")
        rows += 1
    return _golden_result(rows, largest, tolerance, "" if rows else f"{where}: has no rows")


def run_shadow(model: "LoadedModel", path: Path, *, budget_s: float = math.inf) -> ShadowResult:
    """Answer the inputs in an ``.npz``, and compare with the answers in it.

    Agreement is the share of rows whose top class, in the first output, is the same as in the file. Latency is the thread's CPU
    time, since the shadow only gets what others leave; what the engine's own threads do beside this one is not in it.

    Args:
        model: Answers.
        path: The ``.npz``.
        budget_s: No row is begun after it, but the first.

    Raises:
        ManifestError: The file is no ``.npz``, or lacks an input of this model.
    """
    arrays = read_arrays(path)
    if not arrays:
        return ShadowResult(answered=0, failed=0, not_finite=0, reason="there were no recent requests")
    missing = [spec.name for spec in model.manifest.inputs if f"input/{spec.name}" not in arrays]
    if missing:
        raise ManifestError(f"{path}: no input/<name> for {missing}")
    first = model.manifest.outputs[0]
    incumbent = arrays.get(f"output/{first.name}")
    answered = failed = not_finite = agreed = compared = 0
    took_ms, reason = [], ""
    end = time.monotonic() + budget_s
    for row, feeds in _requests(model, arrays):
        if row and time.monotonic() >= end:
            reason = reason or f"{row} requests within {budget_s:g} s: others needed the CPU"
            break
        start = time.thread_time_ns()
        try:
            answers = model.quietly(feeds)
        except NotFiniteError as error:
            not_finite, reason = not_finite + 1, reason or str(error)
        except EdgeOpsError as error:
            failed, reason = failed + 1, reason or str(error)
        else:
            answered += 1
            took_ms.append((time.thread_time_ns() - start) / 1e6)
            if incumbent is not None and answers[first.name].size > 1:
                compared += 1
                agreed += int(answers[first.name].argmax() == incumbent[row].argmax())
    return ShadowResult(
        answered=answered,
        failed=failed,
        not_finite=not_finite,
        agreement=agreed / compared if compared else None,
        latency_ms=float(np.median(took_ms)) if took_ms else None,
        reason=reason,
    )


def _requests(model: "LoadedModel", arrays: Tensors) -> Iterator[tuple[int, Tensors]]:
    """One request for each row of the arrays ``input/<name>``."""
    rows = min(len(arrays[f"input/{spec.name}"]) for spec in model.manifest.inputs)
    for row in range(rows):
        yield row, {spec.name: take_row(arrays[f"input/{spec.name}"], spec, row) for spec in model.manifest.inputs}


def _difference(answer: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest absolute difference; infinite where the shapes differ."""
    if answer.shape != expected.shape:
        raise ManifestError(f"expected the shape {list(expected.shape)}, got {list(answer.shape)}")
    if not answer.size:
        return 0.0
    return float(np.abs(answer.astype(np.float64) - expected.astype(np.float64)).max())


def _golden_result(rows: int, largest: float, tolerance: float, reason: str) -> GoldenResult:
    return GoldenResult(passed=not reason, rows=rows, largest_difference=largest, tolerance=tolerance, reason=reason)
