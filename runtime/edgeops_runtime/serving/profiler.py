"""Counting what passes a model into the bins of its drift reference, cheaply and exactly.

Rows are copied into a preallocated buffer and binned many at a time, off the reply path, so that the cost of numpy's calls is
shared. Who fills which buffer is :mod:`edgeops_runtime.serving.recorder`'s matter, what the bins are :mod:`edgeops.signals`', how
a row finds its bin :mod:`edgeops.binning`'s.
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


class RowBuffer:
    """Some rows of every tensor that a signal looks at.

    Args:
        entered: Names of tensors that enter the engine; ``left`` likewise of those that leave it.
        shapes: Of one row of each tensor.
        capacity: Most rows; 0 where the shape of a row is not known beforehand, and then nothing fits.
    """

    __slots__ = ("_capacity", "_entered", "_left", "_shapes", "arrays", "rows")

    def __init__(
        self, entered: tuple[str, ...], left: tuple[str, ...], shapes: dict[str, tuple[Any, ...]], capacity: int
    ) -> None:
        self._entered, self._left, self._shapes, self._capacity = entered, left, shapes, capacity
        self.arrays: Tensors = {}
        """Name → room for ``capacity`` rows; made at the first answer, whose dtypes it takes."""
        self.rows = 0
        """How many of them are filled."""

    def add(self, entered: Tensors, left: Tensors, rows: int) -> bool:
        """Copy the rows of an answer; ``False`` when they do not fit, and then none was taken.

        Args:
            entered: What entered the engine, ``(rows, …)`` each.
            left: What left it.
            rows: How many; a tensor without a batch dimension is one row.
        """
        start, end = self.rows, self.rows + rows
        if end > self._capacity:
            return False
        arrays = self.arrays or self._make_room(entered, left)
        for name in self._entered:
            arrays[name][start:end] = entered[name]
        for name in self._left:
            arrays[name][start:end] = left[name]
        self.rows = end
        return True

    @property
    def is_reusable(self) -> bool:
        """Whether it has room for as many rows as a new one."""
        return self._capacity > 0

    def _make_room(self, entered: Tensors, left: Tensors) -> Tensors:
        dtypes = {name: entered[name].dtype for name in self._entered} | {name: left[name].dtype for name in self._left}
        self.arrays = {
            name: np.empty((self._capacity, *self._shapes[name]), dtype=dtype) for name, dtype in dtypes.items()
        }
        return self.arrays


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
        self._rows_of = {name: _row_shape(spec, batch) for name, spec in used.items()}
        self._is_whole = {name for name, spec in used.items() if spec.shape[:1] != (batch,)}
        self._reference_id = reference.id
        self._counts = {signal.name: np.zeros(signal.bins, dtype=np.int64) for signal in self._signals}
        self._counted = 0
        self._capacity = self._find_capacity()
        self._spare: list[RowBuffer] = []

    def buffer(self) -> RowBuffer:
        """An empty buffer for :meth:`count`."""
        try:
            return self._spare.pop()
        except IndexError:
            return RowBuffer(self._entered, self._left, self._rows_of, self._capacity)

    def buffer_of(self, entered: Tensors, left: Tensors, rows: int) -> RowBuffer:
        """A buffer of exactly these rows, for answers that no buffer has room for."""
        arrays = {name: entered[name] for name in self._entered} | {name: left[name] for name in self._left}
        made = RowBuffer(self._entered, self._left, self._rows_of, 0)
        made.arrays = {
            name: (array[None] if name in self._is_whole else array).copy() for name, array in arrays.items()
        }
        made.rows = rows
        return made

    def count(self, buffer: RowBuffer) -> None:
        """Bin the rows of a buffer, which is not to be used afterwards."""
        rows = {name: array[: buffer.rows] for name, array in buffer.arrays.items()}
        for name, counts in count_rows(self._signals, rows).items():
            self._counts[name] += counts
        self._counted += buffer.rows
        if not self._spare and buffer.rows and buffer.is_reusable:
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
