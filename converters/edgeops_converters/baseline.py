"""The drift reference: which signals to watch, where their bins lie, and what held-out data counts into them.

The meaning of a signal and the counting are the contract's (:mod:`edgeops.signals`, :mod:`edgeops.binning`), so that the
device counts exactly as here.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edgeops.binning import FloatArray, count_rows, statistic_values
from edgeops.signals import EVERYTHING, Reference, Signal, Statistic
from edgeops_converters.exam import Answers, Exam
from edgeops_converters.samples import Samples

BINS = 10
_FEW_FEATURES = 16
_PROJECTIONS = 2
_MOST_CLASS_BINS = 64
_IMAGE_RANKS = (3, 4)
_SAME = 1e-5
"""Values closer than this share of the range count as one: engines and CPUs differ by rounding."""


def make_reference(exam: Exam, answers: Answers, *, stratum_attribute: str) -> Reference:
    """Choose signals and count the held-out rows.

    Args:
        exam: The rows, with labels and strata.
        answers: What the converted model said.
        stratum_attribute: Device attribute that the strata are values of; empty when there are none.
    """
    samples, output = exam.samples, exam.class_output
    tensors = {**exam.inputs, **answers.raw}
    drafts = [signal for name, rows in exam.inputs.items() for signal in _input_signals(name, rows)]
    drafts += _output_signals(output, answers.raw[output]) if output is not None else []
    placed = [_with_bins(draft, tensors[draft.tensor]) for draft in drafts]
    strata = _strata(samples)
    counted = {
        stratum: count_rows(placed, {name: rows[mask] for name, rows in tensors.items()})
        for stratum, mask in strata.items()
    }
    return Reference(
        rows=samples.rows,
        signals=tuple(
            _signal(draft, draft.edges, {s: _as_tuple(counts[draft.name]) for s, counts in counted.items()})
            for draft in placed
        ),
        stratum_attribute=stratum_attribute if samples.strata is not None else "",
        accuracy=_accuracy(samples, answers, strata),
    )


def bin_edges(values: FloatArray, *, bins: int = BINS) -> tuple[float, ...]:
    """Edges that split values into about equal parts.

    An edge lies half-way between two values that were seen, never on one, so that a rounding difference on another CPU does
    not carry a whole pile of equal values into the next bin; values that repeat get a bin of their own.

    >>> bin_edges(np.float32([0, 0, 0, 0, 1, 2, 3, 4]), bins=4)
    (0.5, 2.5)
    """
    finite = np.sort(values[np.isfinite(values)].astype(np.float64))
    if not len(finite):
        return ()
    span = finite[-1] - finite[0]
    if span <= max(abs(finite[0]), abs(finite[-1])) * _SAME:
        margin = max(abs(finite[0]) * 1e-3, 1e-6)
        return _as_float32((finite[0] - margin, finite[-1] + margin))
    gaps = np.flatnonzero(np.diff(finite) > span * _SAME) + 1
    targets = np.arange(1, bins) * len(finite) / bins
    nearest = {int(gaps[np.abs(gaps - target).argmin()]) for target in targets}
    return _as_float32((finite[cut - 1] + finite[cut]) / 2 for cut in sorted(nearest))


def _as_float32(edges: Iterable[float]) -> tuple[float, ...]:
    """Increasing edges as the device will compare them."""
    return tuple(sorted({float(np.float32(edge)) for edge in edges}))


def _input_signals(name: str, rows: NDArray[np.generic]) -> list[Signal]:
    """An image gets light, contrast and sharpness, a short vector each element, everything else mean and spread."""
    size = math.prod(rows.shape[1:])
    if rows.ndim not in _IMAGE_RANKS and size <= _FEW_FEATURES:
        return [_draft(f"{name}.{index}", name, Statistic.VALUE, index=index) for index in range(size)]
    statistics = [Statistic.MEAN, Statistic.STD]
    if rows.ndim in _IMAGE_RANKS and rows.shape[-1] > 1:
        statistics.append(Statistic.GRADIENT)
    chosen = [_draft(f"{name}.{statistic}", name, statistic) for statistic in statistics]
    return chosen + [
        _draft(f"{name}.{Statistic.PROJECTION}{seed}", name, Statistic.PROJECTION, index=seed)
        for seed in range(_PROJECTIONS)
    ]


def _output_signals(name: str, scores: NDArray[np.generic]) -> list[Signal]:
    is_distribution = bool((scores >= 0).all()) and bool(np.allclose(scores.sum(axis=1), 1, atol=0.02))  # type: ignore[operator] # any numeric dtype
    return [
        _draft(f"{name}.{statistic}", name, statistic, softmax=not is_distribution)
        for statistic in (Statistic.CONFIDENCE, Statistic.ENTROPY, Statistic.CLASS)
    ]


def _with_bins(draft: Signal, rows: NDArray[np.generic]) -> Signal:
    classes = rows.shape[-1]
    if draft.statistic is Statistic.CLASS and classes <= _MOST_CLASS_BINS:
        edges = tuple(index + 0.5 for index in range(classes - 1))
    else:
        edges = bin_edges(statistic_values(draft, rows))
    return _signal(draft, edges, {EVERYTHING: (0,) * (len(edges) + 2)})


def _draft(name: str, tensor: str, statistic: Statistic, *, index: int = 0, softmax: bool = False) -> Signal:
    return Signal(
        name=name,
        tensor=tensor,
        statistic=statistic,
        index=index,
        softmax=softmax,
        edges=(),
        counts={EVERYTHING: (0, 0)},
    )


def _signal(draft: Signal, edges: tuple[float, ...], counts: dict[str, tuple[int, ...]]) -> Signal:
    return Signal(
        name=draft.name,
        tensor=draft.tensor,
        statistic=draft.statistic,
        index=draft.index,
        softmax=draft.softmax,
        edges=edges,
        counts=counts,
    )


def _strata(samples: Samples) -> dict[str, NDArray[np.bool_]]:
    strata = {EVERYTHING: np.ones(samples.rows, dtype=np.bool_)}
    if samples.strata is not None:
        strata |= {str(value): samples.strata == value for value in np.unique(samples.strata)}
    return strata


def _accuracy(samples: Samples, answers: Answers, strata: dict[str, NDArray[np.bool_]]) -> dict[str, tuple[int, int]]:
    if samples.labels is None or answers.classes is None:
        return {}
    right = answers.classes == samples.labels
    return {stratum: (int(right[mask].sum()), int(mask.sum())) for stratum, mask in strata.items()}


def _as_tuple(counts: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(count) for count in counts)
