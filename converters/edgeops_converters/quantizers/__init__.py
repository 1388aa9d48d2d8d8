"""Quantizers: a float32 model file and calibration rows in, an int8 model file with the same interface out.

A new format is one new module with a :class:`Quantizer` and a line in :data:`QUANTIZERS`.
"""

from pathlib import Path
from typing import Protocol

from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.quantizers.litert import LitertQuantizer
from edgeops_converters.quantizers.onnx import OnnxQuantizer
from edgeops_converters.targets import Target


class Quantizer(Protocol):
    """Makes one format smaller and faster."""

    def quantize(self, source: Artifact, calibration: Tensors, target: Path, *, cpu: Target) -> Artifact:
        """Write the model with int8 weights (one scale a channel) and 8-bit activations.

        Args:
            source: A float32 model file.
            calibration: Rows of every input, as the model itself takes them; read in constant memory.
            target: The file to write.
            cpu: The CPU that it is to be fast on.

        Raises:
            RecipeError: The quantizer cannot work on this model or data.
            MissingExtraError: A library of the ``convert`` extra is not installed.
        """


QUANTIZERS: dict[str, Quantizer] = {"onnx": OnnxQuantizer(), "tflite": LitertQuantizer()}
"""Format → what quantises it."""
