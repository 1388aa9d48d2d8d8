"""The CPUs that a bundle is made for."""

import platform
from enum import StrEnum
from pathlib import Path

from edgeops.errors import RecipeError


class Target(StrEnum):
    """A family of CPUs; it decides what an int8 file for onnxruntime looks like. A ``.tflite`` is the same for all."""

    X86 = "x86"
    """Any x86-64. Unsigned activations, for which onnxruntime has integer kernels; no two weights that meet in a 16-bit sum are
    large, since without VNNI that sum saturates."""
    X86_VNNI = "x86-vnni"
    """x86-64 with AVX512-VNNI, whose dot product has 32 bits, so that weights may be anything."""
    ARM = "arm"
    """Signed activations: both operands of the dot-product instruction have one sign."""

    @property
    def is_signed(self) -> bool:
        """Whether activations are int8 rather than uint8."""
        return self is Target.ARM

    @property
    def saturates(self) -> bool:
        """Whether sums of two products must fit 16 bits."""
        return self is Target.X86

    @property
    def cpu_flags(self) -> tuple[str, ...]:
        """What a device must have, as Linux names it, for the int8 file to be right there."""
        return ("avx512_vnni",) if self is Target.X86_VNNI else ()

    @property
    def family_flags(self) -> tuple[str, ...]:
        """What tells its CPUs from those of other targets, where a bundle has a file for each."""
        return self.cpu_flags or (("asimd",) if self is Target.ARM else ("sse2",))

    @property
    def runs_here(self) -> bool:
        """Whether this machine runs what is made for the target as its CPUs do."""
        if this_machine() is Target.ARM or self is Target.ARM:
            return self is this_machine()
        return set(self.cpu_flags) <= _flags()


def this_machine() -> Target:
    """What is right on the CPU that this runs on, and on others of its kind."""
    return Target.ARM if platform.machine().lower().startswith(("arm", "aarch")) else Target.X86


def parse_targets(text: str | None) -> tuple[Target, ...]:
    """Read targets, separated by commas; ``None`` means this machine.

    >>> parse_targets("x86,arm")
    (<Target.X86: 'x86'>, <Target.ARM: 'arm'>)

    Raises:
        RecipeError: One is unknown, or comes twice.
    """
    if text is None:
        return (this_machine(),)
    names = [name.strip() for name in text.split(",")]
    if len(set(names)) != len(names) or not set(names) <= set(Target):
        raise RecipeError(f"target {text!r}: expected one or more of {', '.join(Target)}, separated by commas")
    return tuple(Target(name) for name in names)


def has_dot_product() -> bool:
    """Whether this CPU multiplies and adds eight bits in one instruction, as the boards that a ``.tflite`` is made for do."""
    return bool(_flags() & {"avx512_vnni", "avx_vnni", "asimddp"})


def _flags() -> frozenset[str]:
    """Of the CPU, as Linux names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    told = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(told, ()))
