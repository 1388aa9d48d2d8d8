"""Exporters: a model that answers rows in, a float32 model file out.

A new format is one new module with an :class:`Exporter` and a line in :data:`EXPORTERS`; the conformance tests find it.
"""

from pathlib import Path
from typing import Protocol

from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.exporters.litert import LitertExporter
from edgeops_converters.exporters.onnx import OnnxExporter
from edgeops_converters.sources import Model


class Exporter(Protocol):
    """Writes one format: a file of it as it is, and what else it knows a way from."""

    def refusal(self, model: Model) -> str:
        """Why there is no way from this model to the format, and what to give instead; empty when there is one.

        Raises:
            ExportError: A plug-in is set up wrongly.
        """

    def export(self, model: Model, example: Tensors, target: Path) -> Artifact:
        """Write a model file that gives the model's answers in float32.

        Args:
            model: What to export.
            example: At least two rows of every input, as the model itself takes them.
            target: The file to write.

        Raises:
            ExportError: The format cannot hold this model; the message says what to change.
            MissingExtraError: A library of the ``convert`` extra is not installed.
        """


EXPORTERS: dict[str, Exporter] = {"onnx": OnnxExporter(), "tflite": LitertExporter()}
"""Format → what writes it."""
