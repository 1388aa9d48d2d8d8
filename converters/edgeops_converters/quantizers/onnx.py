"""ONNX: onnxruntime's static quantisation to QDQ, per channel, with activations in the type that the CPU has kernels for."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgeops.errors import RecipeError
from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.exporters.onnx import strip
from edgeops_converters.extras import load, quiet
from edgeops_converters.targets import Target

_CHUNK_ROWS = 32


class OnnxQuantizer:
    """Writes a QDQ ``.onnx``; onnxruntime fuses it into integer kernels when it loads the file."""

    def quantize(self, source: Artifact, calibration: Tensors, target: Path, *, cpu: Target) -> Artifact:
        """See :class:`edgeops_converters.quantizers.Quantizer`."""
        onnx, quantization = load("onnx"), load("onnxruntime.quantization")
        activations = quantization.QuantType.QUInt8 if cpu is Target.X86 else quantization.QuantType.QInt8
        # onnxruntime's defaults (S8S8, one scale a tensor) leave a third of EfficientNet's convolutions in float on x86
        # and more than half of its answers changed.
        try:
            with quiet(), tempfile.TemporaryDirectory() as scratch:
                prepared = Path(scratch) / "prepared.onnx"
                load("onnxruntime.quantization.shape_inference").quant_pre_process(
                    str(source.path), str(prepared), skip_symbolic_shape=True
                )
                quantization.quantize_static(
                    str(prepared),
                    str(target),
                    RowReader(source, calibration),
                    quant_format=quantization.QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=activations,
                    weight_type=quantization.QuantType.QInt8,
                    calibrate_method=quantization.CalibrationMethod.MinMax,
                )
        except Exception as error:  # onnxruntime's quantiser raises plain exceptions of many kinds
            raise RecipeError(f"{source.file}: onnxruntime cannot quantise it: {error}") from error
        graph = onnx.load(str(target))
        strip(graph)
        onnx.save(graph, str(target))
        return Artifact(
            path=target,
            format=source.format,
            precision="int8",
            batch=source.batch,
            inputs=source.inputs,
            outputs=source.outputs,
        )


class RowReader:
    """Hands calibration rows to onnxruntime a few at a time, so that memory does not grow with their number.

    Has the methods of onnxruntime's ``CalibrationDataReader``; the base class is left out so that it is not imported here.
    """

    def __init__(self, source: Artifact, rows: Tensors) -> None:
        self._source, self._rows = source, rows
        self._size = source.batch or _CHUNK_ROWS
        self._start = 0

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, or ``None`` at the end."""
        count = len(next(iter(self._rows.values())))
        if self._start >= count:
            return None
        indices = np.arange(self._start, self._start + self._size)
        # A fixed batch is filled up with copies of the last row, which do not change any range.
        indices = np.minimum(indices, count - 1) if self._source.batch else indices[indices < count]
        self._start += self._size
        return {wire: self._rows[name][indices] for name, wire in self._source.inputs.items()}

    def set_range(self, start_index: int, end_index: int) -> None:
        """Asked by onnxruntime for strided calibration only, which is not used."""
        raise NotImplementedError(f"strided calibration ({start_index}, {end_index})")

    def __iter__(self) -> "RowReader":
        return self

    def __next__(self) -> dict[str, Any]:
        batch = self.get_next()
        if batch is None:
            raise StopIteration
        return batch
