"""A model file on its way into a bundle."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeops_converters.sessions import SESSIONS, Session
from edgeops_converters.targets import Target

ENGINES: dict[str, dict[str, str]] = {
    "onnx": {"onnxruntime": "1.18"},
    "tflite": {"litert": "1.2", "tflite": "2.14"},
}
"""Format → engine name and the lowest version that runs what is written here."""


@dataclass(frozen=True)
class Artifact:
    """A model file and how to speak to it.

    Attributes:
        path: The file.
        format: ``onnx`` or ``tflite``.
        precision: ``float32``, or what it is compressed to, as people ask for it: ``int8``, ``float16``, ….
        batch: The number of rows it takes at once; ``None`` when any.
        inputs: Manifest name → the file's tensor name; likewise ``outputs``.
        notes: What a person should know, for example why the batch is fixed.
        target: The CPUs that it is made for; ``None`` when it is the same for all.
        qualifier: Tells it from another file of its format and precision; empty where there is only one.
    """

    path: Path
    format: str
    precision: str
    batch: int | None
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    notes: tuple[str, ...] = ()
    target: Target | None = None
    qualifier: str = ""

    @property
    def label(self) -> str:
        """The precision as people ask for it: ``float``, ``int8``, …."""
        return "float" if self.precision == "float32" else self.precision

    @property
    def name(self) -> str:
        """The variant's name in the bundle, for example ``onnx-int8``."""
        return "-".join(filter(None, (self.format, self.label, self.qualifier)))

    @property
    def file(self) -> str:
        """The name of its file in the bundle, for example ``model.int8.onnx``."""
        return ".".join(filter(None, ("model", self.label, self.qualifier, self.format)))

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    def open(self, *, threads: int = 1, is_plain: bool = False) -> Session:
        """Load it in its engine.

        Raises:
            EngineError: The engine refuses the file.
        """
        return SESSIONS[self.format](self.path, self.inputs, self.outputs, threads=threads, is_plain=is_plain)
