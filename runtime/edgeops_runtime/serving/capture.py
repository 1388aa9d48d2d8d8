"""Live rows, kept for two purposes: the last few in memory for a shadow run, and drawn samples that were asked for.

Nothing is kept on disk, and nothing leaves the device unless a command asks for it.
"""

import contextlib
import os
import queue
import random
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.binning import softmax
from edgeops.errors import ConfigError, EdgeOpsError
from edgeops.manifest import Manifest
from edgeops.messages import SampleContent, SampledTensor, about_sample
from edgeops.sealing import seal
from edgeops.tensors import PROTOCOL_NAMES, TensorSpec
from edgeops_runtime.control import CaptureEnded, Collect, Sampled
from edgeops_runtime.engines.engine import Tensors
from edgeops_runtime.serving.pipeline import Answer, take_row
from edgeops_runtime.serving.redaction import Hook, load_hook, redact

RECENT_REQUESTS = 64
_RECENT_BYTES = 16 << 20
_PENDING = 64


class RecentRows:
    """The first row of each of the last requests, with its answer."""

    def __init__(self, manifest: Manifest) -> None:
        self._inputs = manifest.inputs
        self._outputs = manifest.outputs
        self._kept: deque[tuple[Tensors, Tensors]] = deque(maxlen=RECENT_REQUESTS)
        self._is_sized = False

    def add(self, feeds: Tensors, outputs: Tensors, rows: int) -> None:
        """Remember a request; of one with several rows, a copy of the first, so that the others are let go."""
        if not self._is_sized:
            self._size(feeds, outputs, rows)
        if rows > 1:
            feeds = {spec.name: take_row(feeds[spec.name], spec, 0).copy() for spec in self._inputs}
            outputs = {spec.name: take_row(outputs[spec.name], spec, 0).copy() for spec in self._outputs}
        self._kept.append((feeds, outputs))

    def write(self, path: Path, count: int) -> int:
        """Write the last requests to an ``.npz``: ``input/<name>`` and ``output/<name>``, one row a request.

        Where shapes vary, only those like the last one are written. Returns how many.

        Raises:
            OSError: The file cannot be written.
        """
        kept = list(self._kept)[-count:] if count > 0 else []
        rows = [
            {f"input/{spec.name}": _row(feeds[spec.name], spec) for spec in self._inputs}
            | {f"output/{spec.name}": _row(outputs[spec.name], spec) for spec in self._outputs}
            for feeds, outputs in kept
        ]
        alike = [row for row in rows if all(row[name].shape == array.shape for name, array in rows[-1].items())]
        arrays: dict[str, Any] = {name: np.stack([row[name] for row in alike]) for name in (alike[0] if alike else ())}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            # Live inputs: nobody else's business, whatever the umask says.
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                np.savez(stream, **arrays)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return len(alike)

    def _size(self, feeds: Tensors, outputs: Tensors, rows: int) -> None:
        """Keep fewer where a row is large, so that this never takes much memory."""
        size = sum(array.nbytes for array in (*feeds.values(), *outputs.values())) // max(rows, 1)
        self._kept = deque(maxlen=max(1, min(RECENT_REQUESTS, _RECENT_BYTES // max(size, 1))))
        self._is_sized = True


class _Drawn(NamedTuple):
    """A row that was drawn, to be sent off the reply path."""

    order: Collect
    request: str
    feeds: Tensors
    answer: Answer
    row: int


class Capture:
    """Draws rows of live requests and sends them, on a thread of its own, until the orders are filled."""

    def __init__(
        self,
        manifest: Manifest,
        send: Callable[[Sampled | CaptureEnded], object],
        *,
        is_classifier: bool,
        rng: random.Random | None = None,
    ) -> None:
        """Prepare.

        Args:
            manifest: Its inputs are what is captured.
            send: Takes each sample; may be slow.
            is_classifier: Whether the first output is one score for each class.
            rng: Draws.
        """
        self._manifest = manifest
        self._send = send
        self._is_classifier = is_classifier
        self._random = rng or random.Random()  # noqa: S311 - a sample, not a secret
        self._orders: dict[str, tuple[Collect, int]] = {}
        self._hooks: dict[str, Hook] = {}
        self._ended: frozenset[str] = frozenset()
        self._lock = threading.Lock()
        self._drawn: queue.Queue[_Drawn | None] = queue.Queue(maxsize=_PENDING)
        self._thread: threading.Thread | None = None
        self.is_paused = False
        """No rows are drawn; orders are kept."""

    def order(self, order: Collect) -> None:
        """Collect rows from now on; a count of 0 ends an order. Where its redaction hook is not there, nothing is collected."""
        try:
            hook = load_hook(order.redact)
        except ConfigError as error:
            self._send(CaptureEnded(command=order.command, reason=str(error)))
            return
        with self._lock:
            self._hooks[order.redact] = hook
            self._orders.pop(order.command, None)
            self._ended -= {order.command}
            if order.count > 0 and order.share > 0:
                self._orders[order.command] = (order, order.count)
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_all, name="capture", daemon=True)
                self._thread.start()

    def offer(self, request: str, feeds: Tensors, answer: Answer) -> None:
        """Draw from the rows of a request; costs next to nothing while there is no order."""
        if not self._orders or self.is_paused:
            return
        with self._lock:
            for command, (order, missing) in list(self._orders.items()):
                put = 0
                for row in range(answer.rows):
                    if put < missing and self._random.random() < order.share:
                        put += self._put(_Drawn(order, request, feeds, answer, row))
                if put < missing:
                    self._orders[command] = (order, missing - put)
                else:
                    del self._orders[command]

    def close(self) -> None:
        """Send what was drawn, and end."""
        with self._lock:
            self._orders.clear()
            thread = self._thread
        if thread is not None:
            self._drawn.put(None)
            thread.join()

    def _put(self, drawn: _Drawn) -> bool:
        """Whether there was room; where the agent is slow, a row is left out rather than a caller kept waiting."""
        with contextlib.suppress(queue.Full):
            self._drawn.put_nowait(drawn)
            return True
        return False

    def _send_all(self) -> None:
        while (drawn := self._drawn.get()) is not None:
            try:
                sampled = self._sample(drawn)
            except EdgeOpsError as error:
                self._end(drawn.order, str(error))
            else:
                if sampled is not None:
                    self._send(sampled)

    def _end(self, order: Collect, reason: str) -> None:
        """No row of this order leaves any more; those that were drawn already would meet the same end."""
        with self._lock:
            self._orders.pop(order.command, None)
            is_told, self._ended = order.command in self._ended, self._ended | {order.command}
        if not is_told:
            self._send(CaptureEnded(command=order.command, reason=reason))

    def _sample(self, drawn: _Drawn) -> Sampled | None:
        """The row as it may leave; ``None`` where the device's owner says that it may not.

        Raises:
            EdgeOpsError: It cannot be redacted or sealed.
        """
        order = drawn.order
        rows = {spec.name: take_row(drawn.feeds[spec.name], spec, drawn.row) for spec in self._manifest.inputs}
        allowed = redact(self._hooks[order.redact], rows)
        if allowed is None:
            return None
        predicted, confidence = self._predicted(drawn)
        inputs = {name: _sampled(array) for name, array in allowed.items()}
        content = SampleContent(inputs=inputs, predicted=predicted, confidence=confidence)
        return Sampled(
            command=order.command,
            request=drawn.request,
            probability=min(order.share, 1.0),
            sealed=seal(msgspec.msgpack.encode(content), to=order.seal_to, about=about_sample(order.command)),
        )

    def _predicted(self, drawn: _Drawn) -> tuple[int | None, float | None]:
        if not self._is_classifier:
            return None, None
        spec = self._manifest.outputs[0]
        scores = _row(take_row(drawn.answer.outputs[spec.name], spec, drawn.row), spec).ravel()
        return top_class(scores)


def top_class(scores: NDArray[Any]) -> tuple[int, float]:
    """The index of the largest score, and its probability; scores that are no probabilities go through a softmax."""
    values = scores.astype(np.float32)
    is_distribution = bool(values.min() >= 0) and abs(float(values.sum()) - 1) < _SUM_TOLERANCE
    probabilities = values if is_distribution else softmax(values)
    index = int(probabilities.argmax())
    return index, float(probabilities[index])


_SUM_TOLERANCE = 1e-2


def _row(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """A request of one row, without its batch dimension."""
    return array[0] if spec.is_batched else array


def _sampled(array: NDArray[Any]) -> SampledTensor:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return SampledTensor(dtype=PROTOCOL_NAMES[array.dtype.name], shape=array.shape, data=little.tobytes())
