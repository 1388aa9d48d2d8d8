"""Keep the current version serving: start its worker, start it again when it dies, pause it while its successor is on probation.

Requests that come while no worker accepts wait in the listening socket, which the agent holds open. Which version is current is
decided by :mod:`edgeops_runtime.deployer` and kept in :mod:`edgeops_runtime.slots`.
"""

import logging
from collections.abc import Callable

from edgeops.errors import EngineError
from edgeops_runtime.control import Failed, FromWorker, Pause, Ready, RecentResult, Serve
from edgeops_runtime.control import Serving as NowServing
from edgeops_runtime.crew import Crew
from edgeops_runtime.loop import Loop, Timer
from edgeops_runtime.slots import Slot
from edgeops_runtime.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

QUICK_DEATH_S = 5.0
"""A worker that dies before it is ready, however long that took, or sooner than this afterwards, died quickly."""

QUICK_DEATHS = 3
"""So many quick deaths in a row are the version's fault."""

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


class Incumbent:
    """The worker of the current version.

    Args:
        loop: For pauses between restarts.
        crew: Starts and ends workers.
        uptime: Monotonic time in seconds.
        notice: Takes ``(kind, text)`` for the log.
        on_crash_loop: Asked after :data:`QUICK_DEATHS` and after each that follows, with the reason; returns whether it put
            another version in place, or stopped this one.
        on_change: Told when it begins or ceases to serve.
    """

    def __init__(
        self,
        *,
        loop: Loop,
        crew: Crew,
        uptime: Callable[[], float],
        notice: Callable[[str, str], None],
        on_crash_loop: Callable[[str], bool],
        on_change: Callable[[], None],
    ) -> None:
        self._loop, self._crew, self._uptime = loop, crew, uptime
        self._notice, self._on_crash_loop, self._on_change = notice, on_crash_loop, on_change
        self.on_recent: Callable[[int], None] | None = None
        """Told how many requests were written after a :class:`~edgeops_runtime.control.Recent`."""
        self.slot: Slot | None = None
        self.process: WorkerProcess | None = None
        self.is_serving = False
        self.is_away = False
        """It made way for its successor, and has not been started again."""
        self._is_paused = False
        self._is_ready = False
        self._began = 0.0
        self._ready = 0.0
        self._quick_deaths = 0
        self._restart: Timer | None = None
        self._last_words = ""

    @property
    def has_died(self) -> bool:
        """Whether it died quickly, the last time that it died."""
        return self._quick_deaths > 0

    @property
    def is_given_up(self) -> bool:
        """Whether it dies again and again, which is the version's fault."""
        return self._quick_deaths >= QUICK_DEATHS

    def run(self, slot: Slot) -> None:
        """Serve a version; another one that ran is let go."""
        self.stop()
        self.slot, self._quick_deaths, self._is_paused = slot, 0, False
        self._start()

    def pause(self) -> None:
        """Accept no more, and stay warm."""
        self._is_paused, self.is_serving = True, False
        if self.process is not None and self._is_ready:
            self.process.send(Pause())

    def stand_down(self, then: Callable[[], None], *, idle_s: float) -> None:
        """Make way where two copies do not fit in memory: finish what is there and go, until :meth:`resume`.

        Args:
            then: Called when the memory is free.
            idle_s: When connections without a request are closed.
        """
        if self._restart is not None:
            self._restart.cancel()
        self._is_paused, self.is_away = True, True
        process, self.process = self.process, None
        self.is_serving = self._is_ready = False
        self._on_change()
        if process is None:
            then()
        else:
            self._crew.drain(process, idle_s=idle_s, then=then)

    def resume(self) -> None:
        """Serve again; at once where the worker is warm."""
        if self.slot is None or not self._is_paused:
            return
        self._is_paused = False
        if self.process is None:
            self._start()
        elif self._is_ready:
            self.process.send(Serve())

    def replace(self, process: WorkerProcess, slot: Slot) -> None:
        """The successor, which serves already, takes the place; the worker of the version before is let go."""
        self.stop()
        self._crew.hand_over(process, self)
        self.process, self.slot = process, slot
        self._is_paused, self._is_ready, self.is_serving = False, True, True
        self.is_away = False
        self._began = self._ready = self._uptime()
        self._quick_deaths = 0
        self._on_change()

    def stop(self) -> None:
        """Serve nothing."""
        if self._restart is not None:
            self._restart.cancel()
        if self.process is not None:
            self._crew.drain(self.process)
        self.process, self.slot = None, None
        self.is_serving = self._is_ready = self.is_away = False

    def on_line(self, process: WorkerProcess, line: FromWorker) -> None:
        """The worker said something."""
        match line:
            case Ready():
                self._is_ready, self._ready = True, self._uptime()
                if not self._is_paused:
                    process.send(Serve())
            case NowServing() if not self._is_paused:
                self.is_serving = True
                self._on_change()
            case RecentResult() if self.on_recent is not None:
                self.on_recent(line.count)
            case Failed(what="recent") if self.on_recent is not None:
                self.on_recent(0)
            case Failed():
                self._last_words = f"{line.what}: {line.reason}"
            case _:
                pass

    def on_gone(self, process: WorkerProcess, reason: str) -> None:
        """The worker has ended, and nobody asked it to."""
        if process is not self.process or self.slot is None:
            return
        now = self._uptime()
        is_quick = not self._is_ready or now - self._ready < QUICK_DEATH_S
        self.process, self.is_serving, self._is_ready = None, False, False
        lived_s = now - self._began
        text = f"{self.slot.version}: {self._last_words or reason}, {lived_s:.1f} s after its start"
        self._last_words = ""
        self._notice("worker-died", text)
        if self._is_paused:
            return  # It is started when it is wanted again.
        self._quick_deaths = self._quick_deaths + 1 if is_quick else 0
        if self._quick_deaths >= QUICK_DEATHS and self._on_crash_loop(text):
            return
        if self._quick_deaths <= 1:
            self._start()
        else:
            self._start_later()

    def _start(self) -> None:
        if self.slot is None or self.process is not None:
            return
        self.is_away = False
        self._began = self._uptime()
        try:
            self.process = self._crew.spawn(self.slot, self)
        except EngineError as error:
            self._notice("worker-not-started", str(error))
            self._quick_deaths += 1
            self._start_later()

    def _start_later(self) -> None:
        pause_s = min(_FIRST_PAUSE_S * 2 ** max(self._quick_deaths - 2, 0), _LONGEST_PAUSE_S)
        self._restart = self._loop.call_later(pause_s, self._start)
