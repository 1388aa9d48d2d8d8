"""Answering the requests for one model in turns, and those that queued meanwhile together.

Natural batching: nothing waits for company. Whoever finds the engine free is answered at once and alone; what queued while it was
busy is answered in one go, up to the number of rows from which on a larger batch no longer makes a row cheaper.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.errors import DeadlineError, EdgeOpsError
from edgeops.manifest import Manifest, Variant
from edgeops_runtime.engines.engine import Tensors
from edgeops_runtime.serving.budget import Queue, ThreadBudget, Ticket
from edgeops_runtime.serving.pipeline import Answer, Pipeline

_MAX_ROWS = 64
_WORTH = 0.9
_ENOUGH = 4
_SMOOTH = 4


class Knee:
    """How many rows are worth answering together, learned from the batches that come.

    The limit doubles while twice the rows make a row at least a tenth cheaper, and halves when they make it dearer.

    >>> knee = Knee()
    >>> for rows, microseconds in [(1, 100), (2, 120)] * 4:
    ...     knee.add(rows, microseconds * 1000)
    >>> knee.limit
    4
    """

    def __init__(self, limit: int = 2, *, most: int = _MAX_ROWS) -> None:
        self.limit = min(limit, most)
        self._most = most
        self._cost: dict[int, float] = {}
        """Rows, rounded down to a power of two → nanoseconds for one row, smoothed."""
        self._seen = 0

    def add(self, rows: int, nanoseconds: int) -> None:
        """A batch of so many rows took so long."""
        size = 1 << (rows.bit_length() - 1)
        cost = nanoseconds / rows
        before = self._cost.get(size)
        self._cost[size] = cost if before is None else before + (cost - before) / _SMOOTH
        if size < self.limit:
            return
        self._seen += 1
        half = self._cost.get(size >> 1)
        if self._seen < _ENOUGH or half is None:
            return
        self._seen = 0
        if self._cost[size] <= _WORTH * half:
            self.limit = min(size << 1, self._most)
        elif self._cost[size] > half:
            self.limit = max(size >> 1, 2)


class Batcher:
    """Answers requests for one model; may be used from several threads.

    Args:
        manifest: Of the model.
        variant: Which file of it; one that takes a fixed number of rows gains nothing from company.
        pipeline: Answers.
        budget: Lanes of this process, shared with other models.
        queue: Where requests wait; its weight is this model's share.
    """

    def __init__(
        self,
        manifest: Manifest,
        variant: Variant,
        pipeline: Pipeline,
        *,
        budget: ThreadBudget,
        queue: Queue | None = None,
    ) -> None:
        self._answer: Callable[[Mapping[str, NDArray[Any]]], Answer] = pipeline.fastest()
        self._check = pipeline.check
        self._budget = budget
        self.queue = queue or Queue(manifest.name)
        self.knee = Knee()
        batch = manifest.inputs[0].shape[:1]
        tensors = (*manifest.inputs, *manifest.outputs)
        self._inputs = tuple(spec.name for spec in manifest.inputs)
        self._can_join = variant.batch is None and all(spec.is_batched and spec.shape[:1] == batch for spec in tensors)

    def answer(self, feeds: Mapping[str, NDArray[Any]], *, deadline: int | None = None) -> Answer:
        """Answer, when it is this request's turn.

        Args:
            feeds: Every input by name, rows first.
            deadline: By ``time.perf_counter_ns()``; a request whose turn has not come by then is not asked.

        Raises:
            TensorError: The request is wrong.
            OverloadedError: Too many requests wait already.
            DeadlineError: Its turn did not come in time.
            EngineError: The model failed.
        """
        if self._budget.enter():
            begun = time.perf_counter_ns()
            try:
                return self._answer(feeds)
            finally:
                self.queue.spent(time.perf_counter_ns() - begun)
                self._budget.leave()
        return self._wait_and_answer(feeds, deadline)

    def _wait_and_answer(self, feeds: Mapping[str, NDArray[Any]], deadline: int | None) -> Answer:
        rows = self._check(feeds)  # A wrong request is refused now, and spoils nobody's batch.
        kind = tuple(feeds[name].shape[1:] for name in self._inputs) if self._can_join else None
        ticket = Ticket(dict(feeds), rows, kind)
        self._budget.queue_up(self.queue, ticket)
        timeout_s = None if deadline is None else (deadline - time.perf_counter_ns()) / 1e9
        if not ticket.wait(timeout_s):
            if self._budget.give_up(self.queue, ticket):
                raise DeadlineError(f"{self.queue.name}: its turn did not come before its deadline")
            ticket.wait(None)
        if ticket.has_turn:
            self._lead(ticket)
        if ticket.error is not None:
            raise ticket.error
        if ticket.answer is None:
            raise RuntimeError("a ticket rang without an answer")
        return ticket.answer

    def _lead(self, leader: Ticket) -> None:
        """Answer a request whose turn it is, and what can be answered with it."""
        begun = time.perf_counter_ns()
        company: list[Ticket] = []
        try:
            company = self._budget.take_along(self.queue, leader, self.knee.limit)
            if len(company) == 1 or not self._answer_together(company):
                for ticket in company:
                    self._answer_alone(ticket)
            nanoseconds = time.perf_counter_ns() - begun
            self.queue.spent(nanoseconds)
            if all(ticket.answer is not None for ticket in company):
                self.knee.add(sum(ticket.rows for ticket in company), nanoseconds)
        finally:
            self._budget.leave()
            for ticket in company[1:]:
                ticket.ring()

    def _answer_alone(self, ticket: Ticket) -> None:
        try:
            ticket.answer = self._answer(ticket.feeds)
        except Exception as error:  # noqa: BLE001 - raised again in the thread of the request
            ticket.error = error

    def _answer_together(self, company: list[Ticket]) -> bool:
        """Answer several requests in one go; ``False`` when that failed, which may be the fault of one of them only."""
        feeds: Tensors = {name: np.concatenate([ticket.feeds[name] for ticket in company]) for name in self._inputs}
        try:
            answer = self._answer(feeds)
        except EdgeOpsError:
            return False
        start = 0
        for ticket in company:
            end = start + ticket.rows
            outputs, entered, left = (
                {name: array[start:end] for name, array in part.items()}
                for part in (answer.outputs, answer.entered, answer.left)
            )
            ticket.answer = Answer(outputs, entered, left, ticket.rows)
            start = end
        return True
