"""Engine versions that are known to be bad on some CPUs, with the reason and where it is written. A table; pure."""

from collections.abc import Iterable
from typing import NamedTuple

from edgeops_runtime.engines import is_at_least

_ARM = frozenset({"aarch64", "arm64"})


class Advisory(NamedTuple):
    """One line of the table.

    Attributes:
        engine: As in :data:`edgeops_runtime.engines.ENGINES`.
        first: The first bad version.
        fixed: The first good version after it.
        machines: As ``platform.machine()`` names them.
        cpu_has: Only CPUs with this flag; empty: any.
        cpu_lacks: Only CPUs without this flag; empty: any.
        reason: What happens.
        source: Where it is written.
    """

    engine: str
    first: str
    fixed: str
    machines: frozenset[str]
    reason: str
    source: str
    cpu_has: str = ""
    cpu_lacks: str = ""


ADVISORIES = (
    # The wheel holds instructions of ARMv8.2; the boards in the threads (Cortex-A72, A73) are ARMv8.0, without these atomics.
    Advisory(
        engine="onnxruntime",
        first="1.21.0",
        fixed="1.21.1",
        machines=_ARM,
        cpu_lacks="atomics",
        reason="illegal instruction at import on ARMv8.0 (Raspberry Pi 4)",
        source="https://github.com/microsoft/onnxruntime/issues/23957",
    ),
    # The kernels are only chosen where there is SME: a Mac with it leaked, one without did not.
    Advisory(
        engine="onnxruntime",
        first="1.24",
        fixed="1.27",
        machines=_ARM,
        cpu_has="sme",
        reason="convolutions with KleidiAI leak some MB with every new input",
        source="https://github.com/microsoft/onnxruntime/issues/28231",
    ),
)


def advisory_for(
    engine: str,
    version: str,
    *,
    machine: str,
    flags: Iterable[str],
    table: Iterable[Advisory] = ADVISORIES,
) -> Advisory | None:
    """The line that speaks against an engine on this CPU, if there is one.

    Args:
        engine: Its name.
        version: Its version.
        machine: As ``platform.machine()`` has it.
        flags: Of the CPU, as Linux names them; none: unknown, and then no line that depends on them holds.
        table: Where to look.

    >>> pi4 = ("fp", "asimd", "crc32")
    >>> advisory_for("onnxruntime", "1.21.0", machine="aarch64", flags=pi4).cpu_lacks
    'atomics'
    >>> advisory_for("onnxruntime", "1.21.1", machine="aarch64", flags=pi4)
    >>> advisory_for("onnxruntime", "1.21.0", machine="aarch64", flags=(*pi4, "atomics"))
    >>> advisory_for("onnxruntime", "1.21.0", machine="x86_64", flags=("avx2",))
    """
    known = frozenset(flags)
    for line in table:
        if line.engine == engine and machine in line.machines and _concerns(line, version, known):
            return line
    return None


def _concerns(line: Advisory, version: str, flags: frozenset[str]) -> bool:
    if not is_at_least(version, line.first) or is_at_least(version, line.fixed):
        return False
    if line.cpu_lacks:
        return bool(flags) and line.cpu_lacks not in flags
    return not line.cpu_has or line.cpu_has in flags
