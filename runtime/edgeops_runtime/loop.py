"""One thread that decides: a queue of things to do, and timers. Other threads only post to it."""

import heapq
import itertools
import logging
import queue
from collections.abc import Callable

logger = logging.getLogger(__name__)

Callback = Callable[[], None]


class Timer:
    """Something that will happen, unless it is cancelled."""

    def __init__(self, callback: Callback) -> None:
        self._callback: Callback | None = callback

    @property
    def is_pending(self) -> bool:
        """Whether it is still to happen."""
        return self._callback is not None

    def cancel(self) -> None:
        """It will not happen."""
        self._callback = None

    def fire(self) -> None:
        """It happens, once."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class Loop:
    """Runs callbacks one after the other, in the thread that called :meth:`run`.

    Args:
        uptime: Monotonic time in seconds.
    """

    def __init__(self, uptime: Callable[[], float]) -> None:
        self._uptime = uptime
        self._queue: queue.SimpleQueue[Callback] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._running = True

    def post(self, callback: Callback) -> None:
        """Have something done soon; from any thread."""
        self._queue.put(callback)

    def call_later(self, delay_s: float, callback: Callback) -> Timer:
        """Have something done after a while; from the loop's own thread, or before it runs."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (self._uptime() + delay_s, next(self._count), timer))
        return timer

    def stop(self) -> None:
        """Let :meth:`run` return after what it does now; from any thread."""

        def end() -> None:
            self._running = False

        self.post(end)

    def run(self) -> None:
        """Do what is posted and what is due, until :meth:`stop`."""
        while self._running:
            callback = self._next()
            if callback is None:
                continue
            try:
                callback()
            except Exception:
                # A supervisor that dies of one event takes the serving worker with it; the event is lost, the rest goes on.
                logger.exception("an event could not be handled")

    def _next(self) -> Callback | None:
        wait_s = None
        if self._timers:
            due, _, timer = self._timers[0]
            wait_s = due - self._uptime()
            if wait_s <= 0:
                heapq.heappop(self._timers)
                return timer.fire
        try:
            return self._queue.get(timeout=wait_s)
        except queue.Empty:
            return None
