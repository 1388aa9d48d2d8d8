"""Counting what passes a model into the bins of its drift reference, cheaply and exactly.

Rows are copied into a preallocated buffer and binned many at a time, so that the cost of numpy's calls is shared. Every row is
counted once: :meth:`Profiler.take` and :meth:`Profiler.count` are the two halves, the first under the caller's short lock, the
second outside of it. What the bins are is :mod:`edgeops.signals`, how a row finds its bin :mod:`edgeops.binning`.
"""

from typing import Any

import numpy as np

from edgeops.binning import count_rows
from edgeops.manifest import Manifest
from edgeops.signals import Profile, Reference
from edgeops.tensors import TensorSpec
from edgeops_runtime.engines.engine import Tensors

BUFFERED_ROWS = 64
_BUFFER_BYTES = 4 << 20


class _Buffer:
    """Some rows of every tensor that a signal looks at."""

    __slots__ = ("arrays", "rows")

    def __init__(self, arrays: Tensors, rows: int = 0) -> None:
        self.arrays = arrays
        self.rows = rows


class Profiler:
    """Counts rows into the signals of a reference.

    :meth:`add` and :meth:`take` share state and need the caller's lock; :meth:`count` and :meth:`close` need that they are not
    run beside themselves or each other.
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
        self._rows_of = {name: _row_shape(spec, batch) for name, spec in used.items()}
        self._is_whole = {name for name, spec in used.items() if spec.shape[:1] != (batch,)}
        self._reference_id = reference.id
        self._counts = {signal.name: np.zeros(signal.bins, dtype=np.int64) for signal in self._signals}
        self._counted = 0
        self._capacity = self._find_capacity()
        self._spare: list[_Buffer] = []
        self._sealed: list[_Buffer] = []
        self._current: _Buffer | None = None

    @property
    def is_due(self) -> bool:
        """Whether a buffer is full and waits for :meth:`take`."""
        return bool(self._sealed)

    def add(self, entered: Tensors, left: Tensors, rows: int) -> None:
        """Remember the rows of one answer.

        Args:
            entered: What entered the engine, ``(rows, …)`` each.
            left: What left it.
            rows: How many; a tensor without a batch dimension is one row.
        """
        buffer = self._current
        if rows > self._capacity:
            self._put_aside(entered, left, rows)
            return
        if buffer is None:
            buffer = self._current = self._first_buffer(entered, left)
        if buffer.rows + rows > self._capacity:
            buffer = self._seal(buffer)
        start, end = buffer.rows, buffer.rows + rows
        arrays = buffer.arrays
        for name in self._entered:
            arrays[name][start:end] = entered[name]
        for name in self._left:
            arrays[name][start:end] = left[name]
        buffer.rows = end
        if end == self._capacity:
            self._seal(buffer)

    def take(self, *, everything: bool = False) -> list[_Buffer]:
        """Take what waits to be binned: the full buffers, or also the one that is being filled."""
        if everything and self._current is not None and self._current.rows:
            self._seal(self._current)
        taken, self._sealed = self._sealed, []
        return taken

    def count(self, taken: list[_Buffer]) -> None:
        """Bin what was taken; the buffers may be used again afterwards."""
        for buffer in taken:
            rows = {name: array[: buffer.rows] for name, array in buffer.arrays.items()}
            for name, counts in count_rows(self._signals, rows).items():
                self._counts[name] += counts
            self._counted += buffer.rows
            if not self._spare and all(len(array) == self._capacity for array in buffer.arrays.values()):
                buffer.rows = 0
                self._spare.append(buffer)

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

    def _seal(self, buffer: _Buffer) -> _Buffer:
        """Leave a buffer to be binned and go on with another."""
        self._sealed.append(buffer)
        following = self._spare.pop() if self._spare else _empty_like(buffer)
        self._current = following
        return following

    def _put_aside(self, entered: Tensors, left: Tensors, rows: int) -> None:
        """Leave rows that no buffer holds to be binned by themselves."""
        arrays = {name: entered[name] for name in self._entered} | {name: left[name] for name in self._left}
        whole = {name: array[None] if name in self._is_whole else array for name, array in arrays.items()}
        self._sealed.append(_Buffer({name: array.copy() for name, array in whole.items()}, rows))

    def _first_buffer(self, entered: Tensors, left: Tensors) -> _Buffer:
        dtypes = {name: entered[name].dtype for name in self._entered} | {name: left[name].dtype for name in self._left}
        return _Buffer(
            {name: np.empty((self._capacity, *self._rows_of[name]), dtype=dtype) for name, dtype in dtypes.items()}
        )

    def _find_capacity(self) -> int:
        """How many rows to buffer: 0 when their shape is not known beforehand."""
        if any(isinstance(size, str) for shape in self._rows_of.values() for size in shape):
            return 0
        row_bytes = sum(8 * int(np.prod(shape)) for shape in self._rows_of.values())
        return max(1, min(BUFFERED_ROWS, _BUFFER_BYTES // max(row_bytes, 1)))


def _counts_rows(spec: TensorSpec, batch: int | str | None) -> bool:
    """Whether the tensor has one row for each row of the request."""
    return spec.shape[:1] == (batch,) if batch is not None else not spec.is_batched


def _row_shape(spec: TensorSpec, batch: int | str | None) -> tuple[Any, ...]:
    return spec.shape[1:] if spec.shape[:1] == (batch,) else spec.shape


def _empty_like(buffer: _Buffer) -> _Buffer:
    return _Buffer({name: np.empty_like(array) for name, array in buffer.arrays.items()})
