"""Dequantizers: an int8 model file in, the same model in float32 out, to measure against and to quantise anew.

Weights become what their integers stand for, and what quantises activations goes. Rounding and clipping of activations are all
that differs from the file, so its answers are near, not the same. A new format is one new module and a line in
:data:`DEQUANTIZERS`.
"""

from collections.abc import Callable

from edgeops_converters.dequantizers.litert import dequantize_litert
from edgeops_converters.dequantizers.onnx import dequantize_onnx
from edgeops_converters.model_file import ModelFile

DEQUANTIZERS: dict[str, Callable[[ModelFile], ModelFile]] = {"onnx": dequantize_onnx, "tflite": dequantize_litert}
"""Format → what takes the integers out; raises ``ExportError`` where that cannot be done."""
