"""A trained model that is a file already: what it takes and gives, and its bytes in the form in which they are used.

Reading one is left to the modules of its format: :mod:`edgeops_converters.onnx_file` and :mod:`edgeops_converters.litert_file`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeops.tensors import TensorSpec
from edgeops_converters.artifact import Artifact
from edgeops_converters.sessions import SESSIONS, Session

LARGEST_BYTES = (1 << 31) - 1
"""Neither protobuf nor a flatbuffer holds more in one file."""


@dataclass(frozen=True)
class ModelFile:
    """A model file that was read and found sound.

    Attributes:
        format: ``onnx`` or ``tflite``.
        precision: ``float32``; ``int8`` where its weights or activations are integers already; ``float16`` for weights only.
        content: One self-contained file; the very bytes that were read where nothing had to be changed.
        batch: The number of rows it takes at once; ``None`` when any.
        inputs: What it takes; the first dimension counts rows.
        outputs: What it gives, likewise.
        input_tensors: Name in ``inputs`` → the file's tensor name; likewise ``output_tensors``.
        notes: What a person should know, for example what was changed.
    """

    format: str
    precision: str
    content: bytes
    batch: int | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_tensors: Mapping[str, str]
    output_tensors: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def is_quantized(self) -> bool:
        """Whether it has integers in the place of numbers."""
        return self.precision == "int8"

    def open(self, *, threads: int = 1) -> Session:
        """Load it in its engine.

        Raises:
            EngineError: The engine refuses it.
        """
        return SESSIONS[self.format](self.content, self.input_tensors, self.output_tensors, threads=threads)

    def write(self, target: Path) -> Artifact:
        """Write it as it is."""
        target.write_bytes(self.content)
        return Artifact(
            path=target,
            format=self.format,
            precision=self.precision,
            batch=self.batch,
            inputs=dict(self.input_tensors),
            outputs=dict(self.output_tensors),
            notes=self.notes,
        )
