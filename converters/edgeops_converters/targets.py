"""The CPUs that a bundle is made for."""

import platform
from enum import StrEnum

from edgeops.errors import RecipeError


class Target(StrEnum):
    """A family of CPUs; it decides the type of 8-bit activations in ONNX."""

    X86 = "x86"
    """Unsigned activations: onnxruntime has integer kernels for U8S8, and leaves many S8S8 convolutions in float."""
    ARM = "arm"
    """Signed activations: both operands of the dot-product instruction have one sign."""


def this_machine() -> Target:
    """The family of the CPU that this runs on."""
    return Target.ARM if platform.machine().lower().startswith(("arm", "aarch")) else Target.X86


def parse_target(text: str | None) -> Target:
    """Read a target; ``None`` means this machine.

    Raises:
        RecipeError: It is neither ``x86`` nor ``arm``.
    """
    try:
        return this_machine() if text is None else Target(text)
    except ValueError as error:
        raise RecipeError(f"target {text!r}: expected one of {', '.join(Target)}") from error
