"""Turns at the engines of one process: so many inferences at a time as its threads allow, shared fairly by its models.

Whoever finds a lane free takes it, without a lock. Otherwise requests wait in a bounded queue for each model, and the lane that
becomes free goes to the model that has had the least of the engines, for its weight (start-time fair queuing, Goyal et al. 1996).
What is done in a turn is :mod:`edgeops_runtime.serving.batcher`'s matter.
"""

import os
import threading
from collections import deque
from typing import Any

from edgeops.errors import OverloadedError
from edgeops_runtime.engines.engine import Tensors
from edgeops_runtime.serving.pipeline import Answer

QUEUE_LENGTH = 64
"""Requests of one model that may wait; more are told to come again."""

_LONGEST_RETRY_S = 30.0


class Ticket:
    """A request that waits for its turn, or for somebody to answer it with theirs.

    Attributes:
        feeds: What is asked; ``rows`` how many rows of it.
        kind: Requests of equal kind can be answered together; ``None``: this one can not.
        has_turn: Set when it was given a lane of its own.
        answer: Set when somebody else has answered it; or else ``error``.
    """

    __slots__ = ("_bell", "answer", "error", "feeds", "has_turn", "kind", "rows")

    def __init__(self, feeds: Tensors, rows: int, kind: tuple[Any, ...] | None) -> None:
        self.feeds, self.rows, self.kind = feeds, rows, kind
        self.has_turn = False
        self.answer: Answer | None = None
        self.error: Exception | None = None
        self._bell = threading.Lock()
        self._bell.acquire()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until it has its turn or is answered; ``False`` when the time is over."""
        return self._bell.acquire(timeout=-1 if timeout_s is None else max(timeout_s, 0.0))

    def ring(self) -> None:
        """Let it go on."""
        self._bell.release()


class Queue:
    """The requests for one model that wait.

    Args:
        name: Of the model, for errors.
        weight: Its share of the engines, in relation to other models'.
        length: Most requests that may wait.
    """

    def __init__(self, name: str, *, weight: float = 1.0, length: int = QUEUE_LENGTH) -> None:
        self.name, self.weight, self.length = name, weight, length
        self.tickets: deque[Ticket] = deque()
        self.used = 0.0
        """Nanoseconds of lanes, divided by the weight; caught up with the others' after a silence."""
        self.turn_ns = 0.0
        """How long a turn takes, smoothed."""

    def spent(self, nanoseconds: int) -> None:
        """A turn took so long."""
        self.used += nanoseconds / self.weight
        self.turn_ns += (nanoseconds - self.turn_ns) / 8


class ThreadBudget:
    """The lanes of one process.

    Args:
        lanes: Inferences at a time.
    """

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self._free: deque[None] = deque([None] * lanes)
        self._queues: set[Queue] = set()
        self._lock = threading.Lock()

    @classmethod
    def for_machine(cls, threads: int) -> "ThreadBudget":
        """As many lanes as this process has CPUs for, where one inference takes so many threads."""
        return cls(max(1, len(os.sched_getaffinity(0)) // threads))

    def enter(self) -> bool:
        """Take a lane if one is free; :meth:`leave` gives it back."""
        try:
            self._free.pop()
        except IndexError:
            return False
        return True

    def leave(self) -> None:
        """Give a lane back, to whom it is due."""
        # Freed first and looked afterwards, while who waits queues first and looks afterwards: one of the two sees the other.
        self._free.append(None)
        if self._queues:
            with self._lock:
                self._hand_on()

    def queue_up(self, queue: Queue, ticket: Ticket) -> None:
        """Wait for a turn; the ticket rings.

        Raises:
            OverloadedError: Too many requests for this model wait already.
        """
        with self._lock:
            if len(queue.tickets) >= queue.length:
                wait_s = queue.turn_ns * len(queue.tickets) / self.lanes / 1e9
                raise OverloadedError(
                    f"{queue.name}: {queue.length} requests wait already; try again",
                    retry_after_s=min(max(wait_s, 1.0), _LONGEST_RETRY_S),
                )
            if queue not in self._queues:
                # A model that was silent has not saved up turns.
                queue.used = max(queue.used, min((other.used for other in self._queues), default=queue.used))
                self._queues.add(queue)
            queue.tickets.append(ticket)
            self._hand_on()

    def give_up(self, queue: Queue, ticket: Ticket) -> bool:
        """Wait no longer; ``False`` when it is too late for that, and the ticket rings at any moment."""
        with self._lock:
            try:
                queue.tickets.remove(ticket)
            except ValueError:
                return False
            self._forget_empty(queue)
            return True

    def take_along(self, queue: Queue, leader: Ticket, rows: int) -> list[Ticket]:
        """The waiting requests that can be answered together with one that has its turn, the leader first.

        Args:
            queue: Of the model.
            leader: Whose turn it is.
            rows: Most rows in all.
        """
        taken, total = [leader], leader.rows
        if leader.kind is None or not queue.tickets:
            return taken
        with self._lock:
            left = deque[Ticket]()
            for ticket in queue.tickets:
                if ticket.kind == leader.kind and total + ticket.rows <= rows:
                    taken.append(ticket)
                    total += ticket.rows
                else:
                    left.append(ticket)
            queue.tickets = left
            self._forget_empty(queue)
        return taken

    def _hand_on(self) -> None:
        while self._queues and self.enter():
            queue = min(self._queues, key=lambda waiting: waiting.used)
            ticket = queue.tickets.popleft()
            self._forget_empty(queue)
            ticket.has_turn = True
            ticket.ring()

    def _forget_empty(self, queue: Queue) -> None:
        if not queue.tickets:
            self._queues.discard(queue)
