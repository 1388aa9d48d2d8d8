"""Real workers for the tests of the device, each ended with its test."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeops.bundle import Bundle
from edgeops_runtime.control import ControlSocket, FromAgent, FromWorker, Launch

sys.path.insert(0, str(Path(__file__).parent))  # The folder is no package.

from agent_parts import PATIENCE

_MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where that is possible: these tests write durably some ten thousand times, and none of them cuts the power."""
    if not os.access(_MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=_MEMORY, prefix="edgeops-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


class RunningWorker:
    """A worker process and the agent's end of its control socket."""

    def __init__(self, bundle: Path, variant: str, engine: str, listening: socket.socket, python: str) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(30 * PATIENCE)
        with theirs:
            launch = Launch(
                bundle=bundle,
                variant=variant,
                engine=engine,
                listen_fd=listening.fileno(),
                control_fd=theirs.fileno(),
            )
            self.process = subprocess.Popen(
                [python, "-m", "edgeops_runtime.serving", launch.argument],
                pass_fds=(listening.fileno(), theirs.fileno()),
                stdin=subprocess.DEVNULL,
            )
        self.control = ControlSocket(ours)
        self.first = self.control.receive_from_worker()

    def ask(self, order: FromAgent) -> FromWorker | None:
        """Say something and take the next line."""
        assert self.control.send(order)
        return self.control.receive_from_worker()

    def end(self) -> None:
        """End it, whatever it does."""
        self.control.close()
        self.process.kill()
        self.process.wait()


StartWorker = Callable[..., RunningWorker]


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A listening socket on a free port of the loopback interface."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:
        yield server


@pytest.fixture
def start_worker(listening: socket.socket) -> Iterator[StartWorker]:
    """A factory: ``start_worker(bundle, variant="onnx", engine="onnxruntime", python=sys.executable)``."""
    workers: list[RunningWorker] = []

    def start(
        bundle: Bundle, variant: str = "onnx", engine: str = "onnxruntime", *, python: str = sys.executable
    ) -> RunningWorker:
        workers.append(RunningWorker(bundle.path, variant, engine, listening, python))
        return workers[-1]

    yield start
    for worker in workers:
        worker.end()
