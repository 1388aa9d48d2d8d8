"""What the probe of an engine says, what is to be thought of it, and the memory of that on disk.

Judging is pure: lines and the end of the process in, a verdict out. It holds for one engine version with one numpy on one CPU.
"""

import logging
import signal
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import msgspec

from edgeops.files import write_durably

logger = logging.getLogger(__name__)

MOST_KIB_PER_RUN = 16.0
"""An engine whose memory grows faster leaks. The tiny model's whole memory is less, so what is kept is kept on every run."""

_MAX_REASON = 300


class _Line(msgspec.Struct, frozen=True, kw_only=True, tag_field="probe"):
    """One line of the probe's output; lines that are none are the engine's own chatter."""


class Imported(_Line, frozen=True, kw_only=True, tag="imported"):
    """The engine can be imported."""

    version: str
    numpy: str


class Loaded(_Line, frozen=True, kw_only=True, tag="loaded"):
    """The tiny model is built, and has answered once."""


class Refused(_Line, frozen=True, kw_only=True, tag="refused"):
    """An exception ended the probe.

    Attributes:
        kind: Class of the exception that was at the bottom of it.
    """

    stage: str
    kind: str
    reason: str


class Finished(_Line, frozen=True, kw_only=True, tag="finished"):
    """All runs are over, or enough of them to know.

    Attributes:
        wrong: Golden rows that were answered wrongly; ``checked`` were compared.
        difference: The largest, as an absolute value.
        kib_per_run: Slope of the resident memory.
        median_us: Of one run.
    """

    runs: int
    checked: int
    wrong: int
    difference: float
    kib_per_run: float
    median_us: float


ProbeLine = Imported | Loaded | Refused | Finished
_DECODER: msgspec.json.Decoder[ProbeLine] = msgspec.json.Decoder(ProbeLine)


class Outcome(StrEnum):
    """How an engine came out."""

    OK = "ok"
    NOT_INSTALLED = "not installed"
    DENIED = "denied"
    DIED = "died"
    NUMPY_MISMATCH = "numpy mismatch"
    REFUSED = "refused"
    LEAKS = "leaks"
    WRONG = "wrong answers"
    HANGS = "hangs"
    UNKNOWN = "unknown"
    """It could not be tried, which says nothing of the engine."""


_FAULTS = frozenset({signal.SIGILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE})


class EngineVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What is thought of an engine here.

    Attributes:
        is_lasting: Whether another try would come out the same, so that it is remembered.
        figures: What was measured.
    """

    engine: str
    version: str
    outcome: Outcome
    reason: str
    numpy: str = ""
    cpu: str = ""
    is_lasting: bool = True
    figures: dict[str, float] = {}

    @property
    def may_serve(self) -> bool:
        """Whether the engine is offered to models; one that could not be tried is, since a worker that dies is survived."""
        return self.outcome in {Outcome.OK, Outcome.UNKNOWN}


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How the probe's process ended.

    Attributes:
        code: As ``subprocess`` has it, negative for a signal; ``None``: it was ended after ``limit_s``.
        errors: The end of what it wrote to stderr.
    """

    code: int | None
    limit_s: float = 0.0
    errors: str = ""


def read_lines(output: bytes) -> list[ProbeLine]:
    """The probe's lines among whatever else was printed."""
    found = []
    for line in output.splitlines():
        try:
            found.append(_DECODER.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return found


def judge(engine: str, version: str, lines: Sequence[ProbeLine], ending: Ending) -> EngineVerdict:
    """What to think of an engine after its probe.

    >>> judge("tflite", "2.14.0", [Imported(version="2.14.0", numpy="2.1.0")], Ending(code=-4)).reason
    'killed by SIGILL after its import'
    """
    numpy = next((line.numpy for line in lines if isinstance(line, Imported)), "")
    last = lines[-1] if lines else None
    outcome, reason, is_lasting = _judge(last, ending, numpy)
    figures = {}
    if isinstance(last, Finished):
        figures = {"runs": float(last.runs), "kib_per_run": last.kib_per_run, "median_us": last.median_us}
    return EngineVerdict(
        engine=engine,
        version=version,
        outcome=outcome,
        reason=reason[:_MAX_REASON],
        numpy=numpy,
        is_lasting=is_lasting,
        figures=figures,
    )


def _judge(last: ProbeLine | None, ending: Ending, numpy: str) -> tuple[Outcome, str, bool]:
    """The outcome, the reason, and whether it lasts."""
    when = _when(last)
    if isinstance(last, Refused):
        return _refused(last, numpy)
    if isinstance(last, Finished):
        # Whatever happens in the teardown after it: workers leave without one.
        return _finished(last)
    if ending.code is None:
        return Outcome.HANGS, f"no end within {ending.limit_s:g} s {when}", False
    if ending.code < 0:
        number = -ending.code
        # SIGKILL is the kernel's when memory is short, and a person's: neither says anything of the engine.
        outcome = Outcome.DIED if number in _FAULTS else Outcome.UNKNOWN
        return outcome, f"killed by {_signal_name(number)} {when}", outcome is Outcome.DIED
    words = ending.errors.strip().splitlines()
    return Outcome.UNKNOWN, f"the probe ended with {ending.code} {when}: {words[-1] if words else 'no word'}", False


def _refused(line: Refused, numpy: str) -> tuple[Outcome, str, bool]:
    text = f"{line.stage}: {line.kind}: {line.reason}"
    # Built for numpy 1, run with 2: the import succeeds, the first interpreter raises SystemError (_ARRAY_API not found).
    if line.kind == "SystemError" or "_ARRAY_API" in line.reason or "numpy.core.multiarray" in line.reason:
        return Outcome.NUMPY_MISMATCH, f"does not fit numpy {numpy or 'as installed'} ({text}); install 'numpy<2'", True
    if line.kind == "MemoryError":
        return Outcome.UNKNOWN, text, False
    return Outcome.REFUSED, text, True


def _finished(line: Finished) -> tuple[Outcome, str, bool]:
    if line.wrong or not line.checked:
        text = f"{line.wrong} of {line.checked} golden rows wrong, by up to {line.difference:.4g}"
        return Outcome.WRONG, text, True
    if line.kib_per_run > MOST_KIB_PER_RUN:
        return Outcome.LEAKS, f"{line.kib_per_run:.0f} kB per run, over {line.runs} runs", True
    text = f"{line.runs} runs, {line.median_us:.0f} µs each, {line.kib_per_run:.1f} kB per run"
    return Outcome.OK, text, True


def _when(last: ProbeLine | None) -> str:
    match last:
        case Imported():
            return "after its import"
        case Loaded():
            return "while it ran"
        case _:
            return "at its import"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class VerdictStore:
    """The verdicts of a device, in a file; one that cannot be read or written costs another try.

    Args:
        path: The file; delete it to have every engine tried anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = self._read()

    def find(self, engine: str, version: str, *, numpy: str, cpu: str) -> EngineVerdict | None:
        """What was found before with the same engine, numpy and CPU."""
        for verdict in self._known:
            if (verdict.engine, verdict.version, verdict.numpy, verdict.cpu) == (engine, version, numpy, cpu):
                return verdict
        return None

    def add(self, verdict: EngineVerdict) -> None:
        """Remember a verdict, in place of the one of the same engine; one that may come out otherwise is not kept."""
        if not verdict.is_lasting:
            return
        self._known = [known for known in self._known if known.engine != verdict.engine]
        self._known.append(verdict)
        try:
            write_durably(self._path, msgspec.json.encode(self._known) + b"\n")
        except OSError as error:
            logger.warning("%s: not written: %s", self._path, error)

    def _read(self) -> list[EngineVerdict]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[EngineVerdict])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            logger.warning("%s: cannot be read, engines are tried anew: %s", self._path, error)
            return []
