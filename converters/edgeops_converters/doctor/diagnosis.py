"""What the doctor says: findings, each about one layer, and all of them together."""

from collections.abc import Iterable
from enum import StrEnum

import msgspec


class Level(StrEnum):
    """How much a finding matters."""

    BLOCKS = "blocks"
    """A conversion would fail, or its answers would be worthless."""
    COSTS = "costs"
    """It converts, and is slower or less faithful than it could be."""
    NOTE = "note"
    """Good to know; nothing to do."""


class Where(StrEnum):
    """What a finding is about: every runtime, one of them, or one of them on one kind of CPU."""

    EVERYWHERE = "everywhere"
    ONNXRUNTIME = "onnxruntime"
    LITERT = "LiteRT and tflite-runtime"
    XNNPACK = "LiteRT with XNNPACK"
    X86_WITHOUT_VNNI = "onnxruntime on x86 without VNNI"


FORMATS = {
    Where.ONNXRUNTIME: "onnx",
    Where.X86_WITHOUT_VNNI: "onnx",
    Where.LITERT: "tflite",
    Where.XNNPACK: "tflite",
}
"""What is about a runtime says nothing when its format is not asked for."""


class Finding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that was found.

    Attributes:
        level: How much it matters.
        rule: Name of the rule, for scripts.
        where: The runtime and CPU that it hurts.
        layer: Path of the layer in the user's model, or name of the node in an ONNX file; empty for the model as a whole.
        kind: What the layer is.
        line: The user's own line of code, where the layer is no more than a line in ``forward``.
        what: What is the matter.
        change: What to change; empty when there is nothing to do.
    """

    level: Level
    rule: str
    what: str
    where: Where = Where.EVERYWHERE
    layer: str = ""
    kind: str = ""
    line: str = ""
    change: str = ""

    @property
    def place(self) -> str:
        """The layer in words.

        >>> Finding(level=Level.NOTE, rule="pad", what="", layer="stem.0", kind="Conv2d").place
        'stem.0 (Conv2d)'
        """
        layer = f"{self.layer} ({self.kind})" if self.layer and self.kind else self.layer or self.kind
        return f"{layer}, {self.line}" if self.line else layer


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that was found in a model, the worst first.

    Attributes:
        source: As the user named it.
        formats: What was asked about.
        target: The CPU that it was asked for.
        operators: So many does the model have.
        findings: By level, then in the order of the model.
    """

    source: str
    formats: tuple[str, ...]
    target: str
    operators: int
    findings: tuple[Finding, ...]

    @property
    def is_blocked(self) -> bool:
        """Whether a conversion would fail."""
        return self.count(Level.BLOCKS) > 0

    def count(self, level: Level) -> int:
        """The number of findings of a level."""
        return sum(finding.level is level for finding in self.findings)


def sort(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The worst first; what is equally bad stays in the order of the model."""
    return tuple(sorted(findings, key=lambda finding: list(Level).index(finding.level)))
