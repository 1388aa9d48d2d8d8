"""Has settings measured one after the other, within a bounded time, and remembers what was chosen on this device.

Which settings, and which of them is taken, is decided in :mod:`edgeops_runtime.tuning.choice`. No engine and no numpy is loaded
here.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec

from edgeops.bundle import Bundle
from edgeops.files import write_durably
from edgeops_runtime import host
from edgeops_runtime.engines.options import SessionOptions
from edgeops_runtime.slots import Slot
from edgeops_runtime.tuning.choice import Choice, Measured, Setting, choose, next_setting, option_flips, thread_counts
from edgeops_runtime.worker_process import ENVIRONMENT

logger = logging.getLogger(__name__)

MEASUREMENT_COMMAND = (sys.executable, "-m", "edgeops_runtime.tuning.measurement")

LIMIT_S = 20.0
"""Of all measurements of one model together; what was not tried by then is not tried."""

_CALLS_S = 0.5
_KEPT = 8
_TAIL = 300


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a measuring process is to try.

    Attributes:
        bundle: The directory.
        seconds: To spend on the calls of one kind.
        is_idle_only: Take only the CPU that nobody else wants.
    """

    bundle: str
    setting: Setting
    seconds: float = _CALLS_S
    is_idle_only: bool = False


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """What a choice holds for, beside the model and the engine.

    Attributes:
        cpu: Its model.
        cores: That this process may use; ``big_cores`` those of them that are fast, where they differ.
    """

    cpu: str
    cores: int
    big_cores: int | None = None

    @classmethod
    def here(cls) -> "Board":
        """This machine."""
        return cls(
            cpu=f"{os.uname().machine} {host.cpu_name() or 'unknown'}",
            cores=len(os.sched_getaffinity(0)),
            big_cores=host.big_cores(),
        )


class Tuner:
    """Tunes one model at a time.

    Args:
        command: How to start a measurement; its argument follows.
        board: What may be tried.
        is_idle_only: Whether the measurements take only the CPU that nobody else wants.
        limit_s: When no other one is begun, and the one under way is ended, in seconds.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        command: Sequence[str] = MEASUREMENT_COMMAND,
        *,
        board: Board | None = None,
        is_idle_only: bool = False,
        limit_s: float = LIMIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command = tuple(command)
        self.board = board or Board.here()
        self._is_idle_only = is_idle_only
        self._limit_s, self._clock = limit_s, clock
        self._child: subprocess.Popen[bytes] | None = None
        self.is_cancelled = False
        """Whether :meth:`cancel` was called."""
        self._lock = threading.Lock()

    def tune(
        self,
        bundle: Bundle,
        usual: Sequence[Setting],
        *,
        threads: Sequence[int] | None = None,
        tell: Callable[[Measured], object] = lambda _: None,
    ) -> Choice | None:
        """Try what is worth a try; takes seconds.

        Args:
            bundle: Has the files of all variants in ``usual``.
            usual: Every variant and engine as it would run untuned, the preferred first.
            threads: Numbers of threads that may be taken; ``None``: what the board suggests.
            tell: Told of each measurement.

        Returns:
            The choice; ``None`` where nothing answered rightly, or :meth:`cancel` was called.
        """
        counts = threads or thread_counts(cores=self.board.cores, big_cores=self.board.big_cores)
        end = self._clock() + self._limit_s
        measured: list[Measured] = []
        following = partial(next_setting, usual, threads=counts, flips=partial(_flips, bundle))
        while (setting := following(measured)) is not None and (left_s := end - self._clock()) > 0:
            found = self._measure(bundle, setting, left_s)
            if self.is_cancelled:
                return None
            measured.append(found)
            tell(found)
        return choose(measured)

    def cancel(self) -> None:
        """End what is under way, and begin nothing more; from any thread."""
        with self._lock:
            self.is_cancelled = True
            if self._child is not None:
                self._child.kill()

    def _measure(self, bundle: Bundle, setting: Setting, limit_s: float) -> Measured:
        order = Order(bundle=str(bundle.path), setting=setting, is_idle_only=self._is_idle_only)
        try:
            with self._lock:
                if self.is_cancelled:
                    return Measured(setting=setting, objection="cancelled")
                child = self._child = subprocess.Popen(  # noqa: S603 - our own module with our own arguments
                    [*self._command, msgspec.json.encode(order).decode()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={**ENVIRONMENT, **os.environ},
                )
        except OSError as error:
            return Measured(setting=setting, objection=f"the measurement cannot be started: {error}")
        with child:
            try:
                output, errors = child.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                child.kill()
                child.communicate()
                return Measured(setting=setting, objection=f"not measured within what was left of {self._limit_s:g} s")
            finally:
                self._child = None
        try:
            found = msgspec.json.decode(output.strip().rpartition(b"\n")[2], type=Measured)
        except (msgspec.DecodeError, UnicodeDecodeError):
            words = errors[-_TAIL:].decode(errors="replace").strip() or "no word"
            return Measured(setting=setting, objection=f"the measurement ended with {child.returncode}: {words}")
        return found if found.setting == setting else Measured(setting=setting, objection="another one was measured")


def _flips(bundle: Bundle, setting: Setting) -> Sequence[SessionOptions]:
    return option_flips(setting, fixed_rows=bundle.manifest.variant(setting.variant).batch is not None)


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to tune.

    Attributes:
        slot: The version that serves.
        bundle: Its directory.
        engine_version: Of its engine.
        threads: Of one inference as usual; ``may_vary``: whether others may be taken.
    """

    slot: Slot
    bundle: Path
    engine_version: str
    threads: int = 1
    may_vary: bool = True

    @property
    def usual(self) -> Setting:
        """As it runs untuned."""
        return Setting(variant=self.slot.variant, engine=self.slot.engine, threads=self.threads)

    def allows(self, setting: Setting) -> bool:
        """Whether the settings of the agent leave room for a choice."""
        return self.may_vary or setting.threads == self.threads


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """A choice, and what it holds for.

    Attributes:
        digest: Of the bundle.
        engine_version: Of the engine in ``setting``.
        at: When it was made, Unix time in seconds.
    """

    digest: str
    engine_version: str
    board: Board
    setting: Setting
    reason: str
    at: float = 0.0


class TuningStore:
    """The choices of a device, in a file; one that cannot be read or written costs another tuning.

    Args:
        path: The file; delete it to have every model tuned anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, subject: Subject, *, board: Board) -> Setting | None:
        """What was chosen for a version on this very engine and board, where its settings still allow it."""
        slot = subject.slot
        for known in self._read():
            key = (known.digest, known.setting.variant, known.setting.engine, known.engine_version, known.board)
            if key == (slot.digest, slot.variant, slot.engine, subject.engine_version, board):
                return known.setting if subject.allows(known.setting) else None
        return None

    def preferred(self, digest: str, *, engines: Mapping[str, str], board: Board) -> Setting | None:
        """What was chosen for a bundle, whichever variant that is, with the engines that there are (name → version)."""
        for known in self._read():
            if (known.digest, known.board) == (digest, board) and known.engine_version == engines.get(
                known.setting.engine
            ):
                return known.setting
        return None

    def add(self, remembered: Remembered) -> None:
        """Remember a choice, in place of an older one for the same bundle; the last few are kept."""
        others = [known for known in self._read() if known.digest != remembered.digest]
        try:
            write_durably(self._path, msgspec.json.encode([*others[-_KEPT + 1 :], remembered]) + b"\n")
        except OSError as error:
            logger.warning("%s: not written: %s", self._path, error)

    def _read(self) -> list[Remembered]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[Remembered])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            logger.warning("%s: cannot be read, models are tuned anew: %s", self._path, error)
            return []
