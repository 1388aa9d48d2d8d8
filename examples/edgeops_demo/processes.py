"""The demo's processes: the server and the devices, each a real program with its log, and all of them ended by their ids."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from edgeops.errors import EdgeOpsError

_LAUNCHER = Path(__file__).with_name("launch.py")


class Program:
    """One running process.

    Args:
        name: For people, and of the log file.
        command: Program, with its path, and arguments.
        log: Where its output goes.
    """

    def __init__(self, name: str, command: Sequence[str], *, log: Path) -> None:
        self.name, self.log = name, log
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - commands of this module's callers, no input from outside
                [sys.executable, "-S", str(_LAUNCHER), str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def children(self) -> list[int]:
        """The ids of the processes that it started."""
        lists = Path(f"/proc/{self.pid}/task").glob("*/children")
        return [int(child) for children in lists for child in children.read_text().split()]

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def wait_for(self, path: Path, *, timeout_s: float) -> str:
        """Wait until the process has written a file, and return its content.

        Raises:
            EdgeOpsError: The process ended, or the time was over; with the last lines of its log.
        """
        deadline = time.monotonic() + timeout_s
        while not path.exists():
            if not self.is_running or time.monotonic() > deadline:
                state = "runs" if self.is_running else f"ended with exit code {self._process.returncode}"
                raise EdgeOpsError(f"{self.name}: expected it to write {path}; it {state}; {self.log}:\n{self.tail()}")
            time.sleep(0.05)
        return path.read_text()

    def tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        if self.is_running:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL and wait: the process gets no chance to put anything in order."""
        self._process.kill()
        self._process.wait()

    def end(self, *, timeout_s: float = 10.0) -> int:
        """Wait for the end, and enforce it; returns the exit code."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


class Programs:
    """All processes of the demo; leaving the ``with`` block ends them, the last started first to be asked."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._programs: list[Program] = []
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, *command: str) -> Program:
        """Start a program of this environment."""
        program = Program(name, command, log=self._logs / f"{name}.log")
        self._programs.append(program)
        return program

    def stop(self) -> dict[str, int]:
        """End every process; returns name → exit code."""
        programs, self._programs = self._programs, []
        for program in reversed(programs):
            with contextlib.suppress(ProcessLookupError):
                program.ask_to_stop()
        return {program.name: program.end() for program in reversed(programs)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()


def console_script(name: str) -> str:
    """The path of a console script of this environment."""
    return str(Path(sys.executable).with_name(name))
