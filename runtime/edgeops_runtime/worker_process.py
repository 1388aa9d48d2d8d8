"""Start, converse with and end a worker process; the only module that knows it is a process.

What to say to it, and what its answers mean, is left to :mod:`edgeops_runtime.agent`.
"""

import contextlib
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edgeops.errors import EdgeOpsError, EngineError
from edgeops_runtime.control import MQTT_VARIABLE, ControlSocket, FromAgent, FromWorker, Launch
from edgeops_runtime.engines.options import SessionOptions

logger = logging.getLogger(__name__)

WORKER_COMMAND = (sys.executable, "-m", "edgeops_runtime.serving")

ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "2",  # glibc's arenas, one for each thread of a connection, keep what they were once given.
    "OPENBLAS_NUM_THREADS": "1",  # numpy's threads for matrices, which a worker leaves to its engine.
}
"""Of a worker, where the agent's own environment says nothing else."""


class WorkerOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is to run.

    Attributes:
        memory_bytes: Limit of its data segment; ``None``: no limit.
        mqtt_url: Broker and prefix of MQTT 5 requests; empty: none.
    """

    bundle: Path
    digest: str
    version: str
    variant: str
    engine: str
    threads: int = 1
    options: SessionOptions = SessionOptions()
    memory_bytes: int | None = None
    mqtt_url: str = ""


class Gone(msgspec.Struct, frozen=True):
    """The process has ended."""

    reason: str


Listener = Callable[["WorkerProcess", FromWorker | Gone], None]
"""Called on the worker's reader thread: hands over and returns."""


class WorkerProcess:
    """A worker: one process, one control socket, one thread that reads it.

    Args:
        order: What it runs.
        listen_fd: The serving socket that it inherits.
        listener: Told of every line, and once of the end.
        command: How to start one; its argument follows.

    Raises:
        EngineError: The process cannot be started.
    """

    def __init__(
        self, order: WorkerOrder, *, listen_fd: int, listener: Listener, command: Sequence[str] = WORKER_COMMAND
    ) -> None:
        self.order = order
        self._listener = listener
        ours, theirs = socket.socketpair()
        with theirs:
            launch = Launch(
                bundle=order.bundle,
                variant=order.variant,
                engine=order.engine,
                listen_fd=listen_fd,
                control_fd=theirs.fileno(),
                threads=order.threads,
                options=order.options,
            )
            # Not as an argument, which every user of the machine can read: it may hold a password.
            more = {MQTT_VARIABLE: order.mqtt_url} if order.mqtt_url else {}
            try:
                # A process group of its own: Ctrl-C in a terminal is for the agent, which drains the worker.
                self._process = subprocess.Popen(  # noqa: S603 - our own module with our own arguments
                    [*command, launch.argument],
                    pass_fds=(listen_fd, theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    process_group=0,
                    env={**ENVIRONMENT, **os.environ, **more},
                )
            except OSError as error:
                ours.close()
                raise EngineError(f"cannot start a worker: {error}") from error
        self._limit_memory()
        self._control = ControlSocket(ours)
        self._thread = threading.Thread(target=self._read, name=f"worker {self.pid}", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def send(self, line: FromAgent) -> bool:
        """Say something; ``False`` when nobody listens any more."""
        return self._control.send(line)

    def kill(self) -> None:
        """End it now; :class:`Gone` follows."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def join(self, timeout_s: float) -> None:
        """Wait until the end was told."""
        self._thread.join(timeout_s)

    def _limit_memory(self) -> None:
        if self.order.memory_bytes is None:
            return
        limit = (self.order.memory_bytes, self.order.memory_bytes)
        with contextlib.suppress(OSError, ValueError):  # It has ended already.
            resource.prlimit(self.pid, resource.RLIMIT_DATA, limit)

    def _read(self) -> None:
        try:
            while (line := self._control.receive_from_worker()) is not None:
                self._listener(self, line)
        except EdgeOpsError as error:
            logger.warning("worker %s: %s", self.pid, error)
            self.kill()
        # The socket has ended: it exits by itself, and if it cannot, it is made to.
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self._process.wait()
        self._control.close()
        self._listener(self, Gone(_ending(code)))


def _ending(code: int) -> str:
    if code >= 0:
        return f"the worker exited with code {code}"
    try:
        return f"the worker was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"the worker was ended by signal {-code}"
