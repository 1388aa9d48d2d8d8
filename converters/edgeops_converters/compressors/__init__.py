"""Compressors: a float32 model file in, a smaller one with the same interface out.

They need no plan; static int8 does, and is a quantizer (:mod:`edgeops_converters.quantizers`). What each is good for, and what
runs it, is one table, :data:`COMPRESSIONS`; a new one is a function and a line in it, and the conformance tests find it.

There is no ``int16`` for ONNX: onnxruntime has no 16-bit kernels on a CPU, so every layer stays in float between
``QuantizeLinear`` and ``DequantizeLinear``, and the file is slower than float and no smaller than int8.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeops.processing import Tensors
from edgeops_converters.artifact import ENGINES, Artifact
from edgeops_converters.compressors import litert, onnx
from edgeops_converters.gate import Purpose

Compressor = Callable[[Artifact, Tensors, Path], Artifact]
"""Float32 model file, calibration rows as the model takes them, and the file to write → the compressed model file.

Raises:
    RecipeError: It cannot work on this model; the message says what can.
    MissingExtraError: A library of the ``convert`` extra is not installed.
"""


@dataclass(frozen=True)
class Compression:
    """One line of the table.

    Attributes:
        compress: Makes the file.
        purpose: What it is made for, which is what the gate asks of it.
        good_for: When to take it, for people.
        engines: Engine name → lowest version that gives the right answers; tried with these very versions.
    """

    compress: Compressor
    purpose: Purpose
    good_for: str
    engines: Mapping[str, str]


def _of_weights(compress: Callable[[Artifact, Path], Artifact]) -> Compressor:
    """A compressor that looks at no data."""
    return lambda source, _rows, target: compress(source, target)


COMPRESSIONS: dict[tuple[str, str], Compression] = {
    ("onnx", "float16"): Compression(
        _of_weights(onnx.float16), Purpose.SIZE, "half the file, float's answers and speed", ENGINES["onnx"]
    ),
    ("onnx", "int8-weights"): Compression(
        _of_weights(onnx.int8_weights), Purpose.SIZE, "a quarter of the file at float's speed", ENGINES["onnx"]
    ),
    ("onnx", "int4-weights"): Compression(
        _of_weights(onnx.int4_weights), Purpose.SIZE, "large matrix products: a sixth of the file", ENGINES["onnx"]
    ),
    ("onnx", "dynamic"): Compression(
        _of_weights(onnx.dynamic), Purpose.SPEED, "matrix products and LSTM, without calibration", ENGINES["onnx"]
    ),
    # LiteRT before 1.4 does not load depthwise convolutions with halves.
    ("tflite", "float16"): Compression(
        _of_weights(litert.float16),
        Purpose.SIZE,
        "half the file, float's answers and speed",
        {"litert": "1.4", "tflite": "2.14"},
    ),
    ("tflite", "int8-weights"): Compression(
        _of_weights(litert.int8_weights), Purpose.SIZE, "a quarter of the file at float's speed", ENGINES["tflite"]
    ),
    ("tflite", "int4-weights"): Compression(
        _of_weights(litert.int4_weights),
        Purpose.SIZE,
        "large matrix products: a seventh of the file",
        ENGINES["tflite"],
    ),
    # tflite-runtime 2.14 loads it, and answers wrongly: of a scale for each channel it takes the first for all.
    ("tflite", "dynamic"): Compression(
        _of_weights(litert.dynamic), Purpose.SPEED, "matrix products, without calibration", {"litert": "1.2"}
    ),
    # GELU in 16 bits came with LiteRT 1.3; tflite-runtime 2.14 lacks more, and answers wrongly where a cell is unrolled.
    ("tflite", "int16"): Compression(
        litert.int16, Purpose.SPEED, "accelerators with 16-bit activations; slow on a CPU", {"litert": "1.3"}
    ),
}
"""Format and precision → how it is made, what for, and on what it runs."""

PRECISIONS = ("float", "int8", "mixed", *dict.fromkeys(precision for _, precision in COMPRESSIONS))
"""What people may ask for, of one format at least."""


def is_made(form: str, precision: str) -> bool:
    """Whether a format has this precision."""
    return precision in {"float", "int8", "mixed"} or (form, precision) in COMPRESSIONS


def purpose_of(artifact: Artifact) -> Purpose:
    """What a compressed file is made for."""
    line = COMPRESSIONS.get((artifact.format, artifact.precision))
    return line.purpose if line is not None else Purpose.SPEED


def engines_of(artifact: Artifact) -> dict[str, str]:
    """Engine name → lowest version that runs a file."""
    line = COMPRESSIONS.get((artifact.format, artifact.precision))
    return dict(line.engines if line is not None else ENGINES[artifact.format])
