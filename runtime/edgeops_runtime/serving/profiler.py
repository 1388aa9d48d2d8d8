"""Counting what passes a model into the bins of its drift reference, cheaply and exactly.

Answers are kept by reference and binned many rows at a time, off the reply path, so that the cost of numpy's calls is shared. Who
fills which buffer is :mod:`edgeops_runtime.serving.recorder`'s matter, what the bins are :mod:`edgeops.signals`', how a row finds
its bin :mod:`edgeops.binning`'s.
"""

import math
from typing import Any

import numpy as np

from edgeops.binning import count_rows
from edgeops.manifest import Manifest
from edgeops.signals import Profile, Reference
from edgeops.tensors import TensorSpec
from edgeops_runtime.engines.engine import Tensors

BUFFERED_ROWS = 64
_BUFFER_BYTES = 4 << 20


class RowBuffer:
    """The answers whose rows wait to be binned, by reference: who keeps an array must not write to it any more.

    Args:
        capacity: From so many rows on it is full.
    """

    __slots__ = ("_capacity", "parts", "rows")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.parts: list[tuple[Tensors, Tensors]] = []
        """What entered the engine and what left it, for each answer."""
        self.rows = 0
        """How many rows they have together."""

    def add(self, entered: Tensors, left: Tensors, rows: int) -> bool:
        """Keep an answer; returns whether the buffer is full now.

        Args:
            entered: What entered the engine, ``(rows, …)`` each.
            left: What left it.
            rows: How many; a tensor without a batch dimension is one row.
        """
        self.parts.append((entered, left))
        self.rows += rows
        return self.rows >= self._capacity


class Profiler:
    """Counts rows into the signals of a reference.

    Buffers are made from any thread; :meth:`count` and :meth:`close` must not run beside themselves or each other.
    """

    def __init__(self, manifest: Manifest, reference: Reference) -> None:
        """Prepare the buffers.

        Args:
            manifest: Shapes and dtypes of the tensors.
            reference: The signals; those on tensors that do not count rows are left out.
        """
        inputs = {spec.name: spec for spec in manifest.inputs}
        specs = {spec.name: spec for spec in (*manifest.inputs, *manifest.outputs)}
        batch = next((spec.shape[0] for spec in manifest.inputs if spec.is_batched), None)
        self._signals = tuple(
            signal
            for signal in reference.signals
            if signal.tensor in specs and _counts_rows(specs[signal.tensor], batch)
        )
        used = {signal.tensor: specs[signal.tensor] for signal in self._signals}
        self._entered = tuple(name for name in used if name in inputs)
        self._left = tuple(name for name in used if name not in inputs)
        made_here = {operator.tensor for operator in (*manifest.preprocess, *manifest.postprocess)}
        self._lent = used.keys() - made_here
        self._is_whole = {name for name, spec in used.items() if spec.shape[:1] != (batch,)}
        self._reference_id = reference.id
        self._counts = {signal.name: np.zeros(signal.bins, dtype=np.int64) for signal in self._signals}
        self._counted = 0
        # By all tensors, looked at or not: an answer is kept as a whole, and an input may hold the request that it came in.
        self._capacity = _capacity([_row_shape(spec, batch) for spec in specs.values()])

    def buffer(self) -> RowBuffer:
        """An empty buffer."""
        return RowBuffer(self._capacity)

    def keep(self, entered: Tensors, left: Tensors) -> Tensors:
        """What signals look at, with copies of what is in the caller's hands: its inputs, and outputs that it was given."""
        kept, lent = {}, self._lent
        for name in self._entered:
            kept[name] = entered[name].copy() if name in lent else entered[name]
        for name in self._left:
            kept[name] = left[name].copy() if name in lent else left[name]
        return kept

    def count(self, buffer: RowBuffer) -> None:
        """Bin the rows of a buffer, which is not to be used afterwards."""
        columns = {name: [entered[name] for entered, _ in buffer.parts] for name in self._entered}
        columns |= {name: [left[name] for _, left in buffer.parts] for name in self._left}
        for name in self._is_whole & columns.keys():
            columns[name] = [array[None] for array in columns[name]]
        if all(len({array.shape[1:] for array in arrays}) == 1 for arrays in columns.values()):
            self._count({name: np.concatenate(arrays) for name, arrays in columns.items()})
        else:
            for index in range(len(buffer.parts)):
                self._count({name: arrays[index] for name, arrays in columns.items()})
        self._counted += buffer.rows

    def _count(self, rows: Tensors) -> None:
        for name, counts in count_rows(self._signals, rows).items():
            self._counts[name] += counts

    def close(self) -> Profile:
        """The profile of everything that was binned since the last time; begins a new one."""
        profile = Profile(
            reference=self._reference_id,
            rows=self._counted,
            counts={name: tuple(counts.tolist()) for name, counts in self._counts.items()},
        )
        for counts in self._counts.values():
            counts.fill(0)
        self._counted = 0
        return profile


def _capacity(shapes: list[tuple[Any, ...]]) -> int:
    """How many rows to keep before they are binned: one where their size is not known beforehand."""
    if any(isinstance(size, str) for shape in shapes for size in shape):
        return 1
    row_bytes = sum(8 * math.prod(int(size) for size in shape) for shape in shapes)
    return max(1, min(BUFFERED_ROWS, _BUFFER_BYTES // max(row_bytes, 1)))


def _counts_rows(spec: TensorSpec, batch: int | str | None) -> bool:
    """Whether the tensor has one row for each row of the request."""
    return spec.shape[:1] == (batch,) if batch is not None else not spec.is_batched


def _row_shape(spec: TensorSpec, batch: int | str | None) -> tuple[Any, ...]:
    return spec.shape[1:] if spec.shape[:1] == (batch,) else spec.shape
