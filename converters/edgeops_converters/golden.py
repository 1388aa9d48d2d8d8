"""Golden vectors: a few rows, the answers that each variant must give, and how far another CPU may differ.

The tolerance comes from two measurements. The same file answers through other kernels (onnxruntime one row at a time and without
its graph optimisation, LiteRT without XNNPACK): :data:`KERNEL_MARGIN` times the largest difference is allowed. And where layers
round to 8 bits (:data:`EIGHT_BIT`), :data:`INT8_STEPS` steps of a 255th of the outputs' range are allowed, since a value that
rounds the other way in one layer moves the answer by a few steps. Weights that are only stored small are decoded to the same
numbers on every CPU, and 16 bits have steps as fine as what float kernels differ by. The larger of both, carried through
``postprocess``, is the tolerance. A model with wrong weights is off by a good part of the range; :func:`has_power` checks that
rows are told apart.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops import processing
from edgeops.manifest import Operator
from edgeops.processing import Tensors
from edgeops_converters.fidelity import ClassArray

ROWS = 8
KERNEL_MARGIN = 3.0
INT8_STEPS = 4.0
EIGHT_BIT = frozenset({"int8", "mixed", "dynamic", "int4-weights"})
"""Precisions whose activations are rounded to 8 bits: beforehand, or at each call."""

_FLOAT_STEPS = 0.02  # of the same 255th: float kernels differ in the last bits only
_SMALLEST = 1e-5
_DRAWS = 16


def choose_rows(classes: ClassArray | None, rows: int) -> NDArray[np.int64]:
    """Indices of a few rows, of as many classes as possible; the first of each class."""
    if classes is None:
        return np.unique(np.linspace(0, rows - 1, min(ROWS, rows)).astype(np.int64))
    rank = np.zeros(rows, dtype=np.int64)
    for value in np.unique(classes):
        members = np.flatnonzero(classes == value)
        rank[members] = np.arange(len(members))
    return np.sort(np.argsort(rank, kind="stable")[:ROWS]).astype(np.int64)


def tolerance(raw: Tensors, other_kernels: Tensors, *, precision: str, postprocess: Iterable[Operator]) -> float:
    """How far another CPU's answers may lie from these.

    Args:
        raw: What the engine gave, rows of every output.
        other_kernels: The same rows of the same file through other kernels.
        precision: ``float32``, ``int8``, ….
        postprocess: Carries a difference of raw outputs to one of the caller's outputs.
    """
    steps = INT8_STEPS if precision in EIGHT_BIT else _FLOAT_STEPS
    allowed = {}
    for name, array in raw.items():
        values = array.astype(np.float64)
        difference = float(np.abs(values - other_kernels[name]).max())
        allowed[name] = max(KERNEL_MARGIN * difference, steps * float(np.ptp(values)) / 255)
    return max(_SMALLEST, _carried(raw, allowed, tuple(postprocess)))


def largest_difference(expected: Tensors, given: Tensors) -> float:
    """The largest absolute difference over all outputs; infinite when one has NaN."""
    differences = [np.abs(array.astype(np.float64) - given[name]).max() for name, array in expected.items()]
    return float(max(differences)) if np.isfinite(differences).all() else float("inf")


def has_power(given: Tensors, allowed: float) -> bool:
    """Whether the answers to different rows differ by more than the tolerance, so that a wrong answer is noticed."""
    shifted = {name: np.roll(array, 1, axis=0) for name, array in given.items()}
    return largest_difference(given, shifted) > 2 * allowed


def write_golden(target: Path, inputs: Tensors, outputs: dict[str, Tensors]) -> None:
    """Write ``golden.npz``.

    Args:
        target: The file.
        inputs: Rows of every input as the caller gives them.
        outputs: Variant → rows of every output as the caller gets them.
    """
    arrays: dict[str, Any] = {f"input/{name}": array for name, array in inputs.items()}
    arrays |= {f"output/{variant}/{name}": array for variant, given in outputs.items() for name, array in given.items()}
    np.savez_compressed(target, **arrays)


def _carried(raw: Tensors, allowed: dict[str, float], postprocess: tuple[Operator, ...]) -> float:
    """The largest change behind ``postprocess`` when raw outputs change by what is allowed, over random signs."""
    if not postprocess:
        return max(allowed.values())
    before = processing.apply(postprocess, raw)
    generator = np.random.Generator(np.random.PCG64(0))
    worst = 0.0
    for _ in range(_DRAWS):
        moved = {name: _moved(array, allowed[name], generator.choice) for name, array in raw.items()}
        worst = max(worst, largest_difference(before, processing.apply(postprocess, moved)))
    return worst


def _moved(array: NDArray[Any], by: float, choice: Callable[..., Any]) -> NDArray[Any]:
    moved: NDArray[Any] = (array + by * choice((-1.0, 1.0), size=array.shape)).astype(np.float32)
    return moved
