"""The workers that are alive: starting them, hearing them, asking for their counters, letting them go.

Which of them serves is :mod:`edgeops_runtime.incumbent`'s matter, which is on trial :mod:`edgeops_runtime.deployer`'s.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from edgeops_runtime.control import CaptureEnded, Drain, Drained, Ease, FromWorker, Sampled, WindowClosed
from edgeops_runtime.control import Window as AskWindow
from edgeops_runtime.loop import Loop
from edgeops_runtime.slots import Slot
from edgeops_runtime.telemetry import Windows
from edgeops_runtime.tuning.choice import Setting
from edgeops_runtime.worker_process import WORKER_COMMAND, Gone, WorkerOrder, WorkerProcess

logger = logging.getLogger(__name__)

IDLE_S = 10.0
"""How long a client with an open connection may take to ask once more, and to learn that it must connect anew."""

_BUSY_S = 20.0
_HANG_S = 60.0
_GRACE_S = 2.0


class Owner(Protocol):
    """Who is told what a worker says."""

    def on_line(self, process: WorkerProcess, line: FromWorker) -> None:
        """It said something."""

    def on_gone(self, process: WorkerProcess, reason: str) -> None:
        """It has ended."""


class _Member(msgspec.Struct):
    slot: Slot
    owner: Owner | None
    then: Callable[[], None] | None = None
    asked_at: float | None = None


class Crew:
    """All workers of one agent.

    Args:
        loop: Where everything is heard.
        uptime: Monotonic time in seconds.
        listen_fd: The serving socket that every worker inherits.
        bundle_path: Where the bundle of a digest lies.
        windows: Counters go here.
        on_sample: Told of captured rows, and when no more come.
        tuned: The setting that was chosen for a slot; ``None``: there is none.
        threads: Of one inference, where there is none.
        mqtt_url: Broker and prefix of MQTT 5 requests; empty: none.
        memory_bytes: Limit of each worker; ``None``: none.
        command: How to start a worker.
    """

    def __init__(
        self,
        *,
        loop: Loop,
        uptime: Callable[[], float],
        listen_fd: int,
        bundle_path: Callable[[str], Path],
        windows: Windows,
        on_sample: Callable[[WorkerProcess, Slot, Sampled | CaptureEnded], None],
        tuned: Callable[[Slot], Setting | None] = lambda _: None,
        threads: int = 1,
        mqtt_url: str = "",
        memory_bytes: int | None = None,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        self._loop, self._uptime = loop, uptime
        self._listen_fd = listen_fd
        self._bundle_path = bundle_path
        self._windows = windows
        self._on_sample = on_sample
        self._tuned = tuned
        self._threads, self._memory_bytes, self._mqtt_url = threads, memory_bytes, mqtt_url
        self._command = command
        self._ease = Ease()
        self._members: dict[WorkerProcess, _Member] = {}
        self._on_empty: list[Callable[[], None]] = []
        self._on_windows: Callable[[], None] | None = None

    @property
    def size(self) -> int:
        """How many workers are alive."""
        return len(self._members)

    def spawn(self, slot: Slot, owner: Owner) -> WorkerProcess:
        """Start a worker; it loads, and says so.

        Raises:
            EngineError: The process cannot be started.
        """
        setting = self._tuned(slot) or Setting(variant=slot.variant, engine=slot.engine, threads=self._threads)
        order = WorkerOrder(
            bundle=self._bundle_path(slot.digest),
            digest=slot.digest,
            version=slot.version,
            variant=slot.variant,
            engine=slot.engine,
            threads=setting.threads,
            options=setting.options,
            mqtt_url=self._mqtt_url,
            memory_bytes=self._memory_bytes,
        )
        process = WorkerProcess(order, listen_fd=self._listen_fd, listener=self._listen, command=self._command)
        self._members[process] = _Member(slot=slot, owner=owner)
        if self._ease != Ease():
            process.send(self._ease)  # It reads that once it has loaded.
        logger.info("worker %s: %s, %s", process.pid, slot.version, setting.words)
        return process

    def ease(self, order: Ease) -> None:
        """Have every worker, also those to come, take so much of the board."""
        self._ease = order
        for process in list(self._members):
            process.send(order)

    def hand_over(self, process: WorkerProcess, owner: Owner) -> None:
        """Somebody else is told from now on."""
        if process in self._members:
            self._members[process].owner = owner

    def ask_window(self, process: WorkerProcess) -> None:
        """Ask for the counters; a worker that has not answered the last question for a minute hangs, and is ended."""
        member = self._members.get(process)
        if member is None:
            return
        now = self._uptime()
        if member.asked_at is None:
            member.asked_at = now
            process.send(AskWindow())
        elif now - member.asked_at > _HANG_S:
            logger.warning("worker %s has not answered for %.0f s", process.pid, now - member.asked_at)
            process.kill()

    def ask_windows(self, then: Callable[[], None], *, within_s: float = _GRACE_S) -> None:
        """Ask every worker, and go on when all have answered, or after a while."""
        if self._on_windows is not None:
            return
        for process in list(self._members):
            self.ask_window(process)

        def finish() -> None:
            if self._on_windows is finish:
                self._on_windows = None
                timer.cancel()
                then()

        self._on_windows = finish
        timer = self._loop.call_later(within_s, finish)
        self._check_windows()

    def drain(self, process: WorkerProcess, *, idle_s: float = IDLE_S, then: Callable[[], None] | None = None) -> None:
        """Let a worker finish what it has and go; one that does not go is ended.

        Args:
            process: The worker.
            idle_s: When connections without a request are closed; one that has a request gets its answer.
            then: Called when it is gone.
        """
        member = self._members.get(process)
        if member is None:
            if then is not None:
                then()
            return
        member.owner, member.then = None, then
        process.send(Drain(timeout_s=idle_s))
        self._loop.call_later(idle_s + _BUSY_S, process.kill)

    def kill(self, process: WorkerProcess) -> None:
        """End a worker that has no requests; nobody is told."""
        if process in self._members:
            self._members[process].owner = None
        process.kill()

    def drain_all(self, then: Callable[[], None], *, idle_s: float = IDLE_S) -> None:
        """Let everybody go, and go on when they are gone; whoever waited for that before waits for nothing."""
        self._on_empty.clear()
        for process in list(self._members):
            self.drain(process, idle_s=idle_s)
        self.when_empty(then)

    def when_empty(self, then: Callable[[], None]) -> None:
        """Go on when no worker is alive, so that the memory of all is free."""
        self._on_empty.append(then)
        self._check_empty()

    def kill_all(self) -> None:
        """End every worker now; nobody is told."""
        for process in list(self._members):
            self.kill(process)

    def _listen(self, process: WorkerProcess, line: FromWorker | Gone) -> None:
        self._loop.post(lambda: self._heard(process, line))

    def _heard(self, process: WorkerProcess, line: FromWorker | Gone) -> None:
        member = self._members.get(process)
        if member is None:
            return
        match line:
            case Gone():
                del self._members[process]
                logger.info("worker %s: %s", process.pid, line.reason)
                self._check_windows()
                if member.owner is not None:
                    member.owner.on_gone(process, line.reason)
                if member.then is not None:
                    member.then()
                self._check_empty()
                return
            case WindowClosed():
                member.asked_at = None
                self._windows.add(member.slot, line)
                self._check_windows()
            case Drained():
                self._windows.add(member.slot, line.window)
            case Sampled() | CaptureEnded():
                self._on_sample(process, member.slot, line)
            case _:
                pass
        if member.owner is not None:
            member.owner.on_line(process, line)

    def _check_windows(self) -> None:
        if self._on_windows is not None and all(member.asked_at is None for member in self._members.values()):
            self._on_windows()

    def _check_empty(self) -> None:
        if not self._members:
            waiting, self._on_empty = self._on_empty, []
            for then in waiting:
                then()
