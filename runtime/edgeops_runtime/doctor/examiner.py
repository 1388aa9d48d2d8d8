"""Tries engines in throw-away processes before they are used, and knows which of them may serve on this device.

What the process does is :mod:`edgeops_runtime.doctor.probe`'s, what is thought of it :mod:`edgeops_runtime.doctor.verdicts`'.
"""

import logging
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import msgspec

from edgeops_runtime import host
from edgeops_runtime.doctor.advisories import advisory_for
from edgeops_runtime.doctor.verdicts import Ending, EngineVerdict, Outcome, VerdictStore, judge, read_lines

logger = logging.getLogger(__name__)

PROBE_COMMAND = (sys.executable, "-m", "edgeops_runtime.doctor.probe")

LIMIT_S = 90.0
"""A probe that has not ended by then hangs; it takes about a second here, and ten times that on a small board."""


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """The CPU that a verdict holds for.

    Attributes:
        machine: As ``platform.machine()`` has it.
        name: Its model.
        flags: What it can do, as Linux names it.
    """

    machine: str
    name: str
    flags: frozenset[str]

    @classmethod
    def here(cls) -> "Cpu":
        """Of this machine."""
        return cls(machine=platform.machine(), name=host.cpu_name() or "unknown", flags=host.cpu_flags())


class Examiner:
    """Tries each engine once on a device, and remembers.

    Args:
        store: Verdicts from before; ``None``: nothing is remembered.
        command: How to start a probe; ``--engine NAME`` follows.
        cpu: Of this machine, where it is not to be read.
        limit_s: When a probe hangs, in seconds.
    """

    def __init__(
        self,
        store: VerdictStore | None = None,
        *,
        command: Sequence[str] = PROBE_COMMAND,
        cpu: Cpu | None = None,
        limit_s: float = LIMIT_S,
    ) -> None:
        self._store = store
        self._command = tuple(command)
        self._cpu = cpu or Cpu.here()
        self._limit_s = limit_s
        self._found: dict[tuple[str, str], EngineVerdict] = {}
        self._turn = threading.Lock()

    def examine(self, engine: str, engine_version: str) -> EngineVerdict:
        """The verdict on an engine: of the table, from memory, or by trying it, which takes seconds; from any thread."""
        with self._turn:
            found = self._found.get((engine, engine_version))
            if found is None:
                found = self._look_up(engine, engine_version) or self._try(engine, engine_version)
                self._found[engine, engine_version] = found
            return found

    def usable(self, engines: Mapping[str, str], tell: Callable[[EngineVerdict], object]) -> dict[str, str]:
        """Those engines that may serve.

        Args:
            engines: Name → version.
            tell: Told of each that may not.
        """
        usable = {}
        for engine, engine_version in engines.items():
            verdict = self.examine(engine, engine_version)
            if verdict.may_serve:
                usable[engine] = engine_version
            else:
                tell(verdict)
        return usable

    def _look_up(self, engine: str, engine_version: str) -> EngineVerdict | None:
        line = advisory_for(engine, engine_version, machine=self._cpu.machine, flags=self._cpu.flags)
        if line is not None:
            reason = f"{line.reason}; {line.first} to before {line.fixed}, see {line.source}"
            return self._verdict(engine, engine_version, Outcome.DENIED, reason)
        if self._store is None:
            return None
        return self._store.find(engine, engine_version, numpy=_numpy_version(), cpu=self._cpu_key)

    @property
    def _cpu_key(self) -> str:
        return f"{self._cpu.machine} {self._cpu.name}"

    def _try(self, engine: str, engine_version: str) -> EngineVerdict:
        logger.info("engine %s %s: not tried on this CPU yet", engine, engine_version)
        try:
            done = subprocess.run(  # noqa: S603 - our own module with our own arguments
                [*self._command, "--engine", engine],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._limit_s,
                check=False,
            )
            output, ending = done.stdout, Ending(code=done.returncode, errors=_tail(done.stderr))
        except subprocess.TimeoutExpired as late:
            output, ending = late.stdout or b"", Ending(code=None, limit_s=self._limit_s, errors=_tail(late.stderr))
        except OSError as error:
            return self._verdict(
                engine, engine_version, Outcome.UNKNOWN, f"the probe cannot be started: {error}", is_lasting=False
            )
        judged = judge(engine, engine_version, read_lines(output), ending)
        # By the versions that the metadata names, so that it is found again without an import.
        verdict = msgspec.structs.replace(judged, numpy=_numpy_version(), cpu=self._cpu_key)
        logger.info("engine %s %s: %s: %s", engine, engine_version, verdict.outcome, verdict.reason)
        if self._store is not None:
            self._store.add(verdict)
        return verdict

    def _verdict(
        self, engine: str, engine_version: str, outcome: Outcome, reason: str, *, is_lasting: bool = True
    ) -> EngineVerdict:
        return EngineVerdict(
            engine=engine,
            version=engine_version,
            outcome=outcome,
            reason=reason,
            numpy=_numpy_version(),
            cpu=self._cpu_key,
            is_lasting=is_lasting,
        )


def _numpy_version() -> str:
    try:
        return version("numpy")
    except PackageNotFoundError:
        return ""


def _tail(errors: bytes | None) -> str:
    return (errors or b"")[-2000:].decode(errors="replace")
