"""Counting requests without a lock: whoever has an answer takes an idle recorder, writes into it, and puts it back.

Taking from and appending to a deque are atomic, so a recorder belongs to one thread at a time, and there are never more of them
than answers were being counted at one moment. A window adds them up. What is counted is :mod:`edgeops_runtime.serving.counters`,
what rows of answers are kept for is :mod:`edgeops_runtime.serving.profiler`.
"""

import threading
import time
from collections import deque

from edgeops.latency import BUCKETS, SUB_BITS, latency_bucket
from edgeops.manifest import Manifest
from edgeops.signals import Profile, Reference
from edgeops_runtime.serving.counters import Counters
from edgeops_runtime.serving.pipeline import Answer
from edgeops_runtime.serving.profiler import Profiler, RowBuffer

_KEPT = 4
"""Idle recorders that outlive a window."""


class _Recorder:
    """What one thread at a time counts into; fields as in :class:`~edgeops_runtime.serving.counters.Counters`."""

    __slots__ = ("buffer", "errors", "latency", "not_finite", "requests", "rows")

    def __init__(self, buffer: RowBuffer | None) -> None:
        self.requests = self.rows = self.errors = self.not_finite = 0
        self.latency = [0] * BUCKETS
        self.buffer = buffer

    def counters(self) -> Counters:
        """What was counted, in the form in which it adds up."""
        latency = {bucket: count for bucket, count in enumerate(self.latency) if count}
        return Counters(self.requests, self.rows, self.errors, self.not_finite, latency)


class Recorders:
    """Everything that is counted about one loaded model; may be used from several threads.

    Args:
        manifest: Of the model.
        reference: Signals to count rows into; ``None``: only requests are counted.
    """

    def __init__(self, manifest: Manifest, reference: Reference | None) -> None:
        self._profiler = Profiler(manifest, reference) if reference is not None else None
        self._idle: deque[_Recorder] = deque()
        self.full: deque[RowBuffer] = deque()
        """Rows that wait for :meth:`settle`."""
        self._closed = Counters()  # Of all windows that were handed over.
        self._began = time.time()
        self._binning = (
            threading.Lock()
        )  # Held while rows are binned and windows are closed; never while an answer is counted.

    def answered(self, answer: Answer, nanoseconds: int, *, is_lent: bool = False) -> None:
        """Count an answer.

        Args:
            answer: The answer.
            nanoseconds: How long it took.
            is_lent: Inputs and outputs are in the caller's hands, who may write to them afterwards.
        """
        try:
            recorder = self._idle.pop()
        except IndexError:
            recorder = self._new_recorder()
        recorder.requests += 1
        recorder.rows += answer.rows
        # edgeops.latency.latency_bucket, without the call.
        shift = nanoseconds.bit_length() - SUB_BITS - 1
        recorder.latency[(shift << SUB_BITS) + (nanoseconds >> shift) if shift > 0 else nanoseconds] += 1
        buffer = recorder.buffer
        if buffer is not None:
            entered, left = answer.entered, answer.left
            if is_lent and self._profiler is not None:
                entered = left = self._profiler.keep(entered, left)
            if buffer.add(entered, left, answer.rows):
                self.full.append(buffer)
                recorder.buffer = self._new_buffer()
        self._idle.append(recorder)

    def failed(self, nanoseconds: int, *, is_not_finite: bool = False) -> None:
        """Count a request that could not be answered, on the device's account."""
        try:
            recorder = self._idle.pop()
        except IndexError:
            recorder = self._new_recorder()
        recorder.requests += 1
        recorder.errors += 1
        recorder.not_finite += is_not_finite
        recorder.latency[latency_bucket(nanoseconds)] += 1
        self._idle.append(recorder)

    def settle(self) -> None:
        """Bin the rows of full buffers; a server does that after the reply is out."""
        profiler = self._profiler
        if profiler is None or not self.full:
            return
        with self._binning:
            self._bin(profiler)

    def counters(self) -> Counters:
        """A copy of what was counted since the last window; what is being counted at this moment may be left out."""
        return Counters.total(recorder.counters() for recorder in tuple(self._idle))

    def totals(self) -> Counters:
        """A copy of what was counted since the model was loaded, windows that were handed over included."""
        with self._binning:
            return Counters.total([self._closed, self.counters()])

    def close(self) -> tuple[Counters, Profile | None, float, float]:
        """Hand over what was counted since the last time, with when that began and ended (Unix time), and begin anew."""
        with self._binning:
            taken = self._take_idle()
            total = Counters.total(recorder.counters() for recorder in taken)
            self._closed = Counters.total([self._closed, total])
            profile = None
            if self._profiler is not None:
                self.full += [recorder.buffer for recorder in taken if recorder.buffer and recorder.buffer.rows]
                self._bin(self._profiler)
                profile = self._profiler.close()
            # Their buffers were handed over; a few new ones are made when the next answers come.
            self._idle += [self._new_recorder() for _ in taken[:_KEPT]]
            start, self._began = self._began, time.time()
            return total, profile, start, max(start, self._began)

    def _take_idle(self) -> list[_Recorder]:
        taken = []
        try:
            while True:
                taken.append(self._idle.pop())
        except IndexError:
            return taken

    def _bin(self, profiler: Profiler) -> None:
        try:
            while True:
                profiler.count(self.full.popleft())
        except IndexError:
            return

    def _new_buffer(self) -> RowBuffer | None:
        return self._profiler.buffer() if self._profiler is not None else None

    def _new_recorder(self) -> _Recorder:
        return _Recorder(self._new_buffer())
