"""Quantizers: what carries a plan out in a format. One module a format, with a float graph, a writer and the integers it wrote.

A new format is one new module with a :class:`Quantizer` and a line in :data:`QUANTIZERS`.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.layers import FloatArray
from edgeops_converters.quantizers.litert import LitertQuantizer
from edgeops_converters.quantizers.onnx import OnnxQuantizer
from edgeops_converters.ranges import Range
from edgeops_converters.rounding import Grid
from edgeops_converters.targets import Target


class Integers(Protocol):
    """A quantised model in memory, whose weights and biases can still be set; layers go by their node in the float graph."""

    @property
    def nodes(self) -> frozenset[str]:
        """The layers with data, weights and bias in integers."""

    def weights(self, node: str) -> FloatArray:
        """What the integer weights of a layer stand for; shape ``(out, in / groups, *kernel)``."""

    def set_weights(self, grids: Mapping[str, Grid]) -> None:
        """Write integer weights and their scales, bit for bit; biases are to be set anew."""

    def set_biases(self, biases: Mapping[str, FloatArray]) -> None:
        """Write biases (shape ``(out,)``), rounded to the grid of the accumulator."""

    def mean_inputs(self, nodes: Sequence[str], rows: Tensors) -> dict[str, FloatArray]:
        """Run rows through the engine's own kernels, as far as these layers; node → mean input, shape ``(in, *space)``."""

    def noise(self, expected: Tensors, rows: Tensors) -> float:
        """Run rows; mean squared error of the outputs (by the float file's names), each in units of its own power."""

    def save(self, target: Path, *, precision: str) -> Artifact:
        """Write the file."""


class Quantizer(Protocol):
    """Writes one format in integers."""

    def read(self, source: Artifact) -> Any:  # noqa: ANN401 - the format's own FloatGraph, which write takes
        """Open a float32 file as a :class:`edgeops_converters.graph.FloatGraph`.

        Raises:
            RecipeError: The quantizer cannot work on this model.
            MissingExtraError: A library of the ``convert`` extra is not installed.
        """

    def write(self, graph: Any, ranges: Mapping[str, Range], *, left_out: Collection[str], target: Target) -> Integers:  # noqa: ANN401 - likewise
        """Quantise with int8 weights (one scale a channel) and 8-bit activations.

        Args:
            graph: As :meth:`read` gave it, with the parameters it has now.
            ranges: Tensor → what eight bits cover.
            left_out: Nodes that stay in float.
            target: The CPU that it is to be fast and right on.

        Raises:
            RecipeError: The quantizer cannot work on this model.
        """


QUANTIZERS: dict[str, Quantizer] = {"onnx": OnnxQuantizer(), "tflite": LitertQuantizer()}
"""Format → what quantises it."""
