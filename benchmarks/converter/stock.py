"""The stock tools, at their defaults and at their best: onnxruntime's quantizer, ai-edge-quantizer and NNCF.

All start from the float file that EdgeOps exported and calibrate on the same rows.
"""

import contextlib
import functools
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.converter.subjects import LeftOutError
from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.extras import load, quiet
from edgeops_converters.quantizers.litert import renamed

Rival = Callable[[Artifact, Tensors, Path], tuple[Artifact, float | None]]
"""Float file, calibration rows, file to write → what was written, and the seconds where the caller's clock would mislead."""

NNCF_SITE = Path("build/nncf")
NNCF_INSTALL = "pip install --target build/nncf nncf==3.4.0"
NNCF_FULL = "NNCF, full bias correction"
_CHUNK_ROWS = 10


def _onnxruntime(
    source: Artifact,
    rows: Tensors,
    target: Path,
    *,
    is_tuned: bool = False,
    by_entropy: bool = False,
    has_7_bits: bool = False,
) -> tuple[Artifact, None]:
    """``quantize_static`` after the preparation that its documentation asks for; tuned is U8S8, one scale a channel."""
    quantization = load("onnxruntime.quantization")
    options: dict[str, Any] = {}
    if is_tuned:
        options |= {"per_channel": True, "activation_type": quantization.QuantType.QUInt8, "reduce_range": has_7_bits}
    if by_entropy:
        # All tensors of a part are in memory at once; those of the whole set would be gigabytes.
        options |= {
            "calibrate_method": quantization.CalibrationMethod.Entropy,
            "extra_options": {"CalibStridedMinMax": _CHUNK_ROWS},
        }
    with quiet(), tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        prepared = Path(scratch) / "prepared.onnx"
        load("onnxruntime.quantization.shape_inference").quant_pre_process(
            str(source.path), str(prepared), skip_symbolic_shape=True
        )
        quantization.quantize_static(str(prepared), str(target), _reader(source, rows), **options)
    return replace(source, path=target, precision="int8"), None


def _reader(source: Artifact, rows: Tensors) -> Any:  # noqa: ANN401 - onnxruntime has no types
    """One row at a time, in parts when onnxruntime asks for parts."""

    class Reader(load("onnxruntime.quantization").CalibrationDataReader):  # type: ignore[misc] # no types
        def __init__(self) -> None:
            self.set_range(0, len(self))

        def __len__(self) -> int:
            return len(next(iter(rows.values())))

        def set_range(self, start_index: int, end_index: int) -> None:
            self._left = iter(range(start_index, end_index))

        def get_next(self) -> Mapping[str, Any] | None:
            index = next(self._left, None)
            if index is None:
                return None
            return {wire: rows[name][index : index + 1] for name, wire in source.inputs.items()}

    return Reader()


def _ai_edge_quantizer(source: Artifact, rows: Tensors, target: Path, *, recipe_name: str) -> tuple[Artifact, None]:
    """One of its recipes, with the float interface that the other files have."""
    quantizer, recipes = load("ai_edge_quantizer.quantizer"), load("ai_edge_quantizer.recipe")
    operation = load("ai_edge_quantizer.qtyping").TFLOperationName
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        stock = quantizer.Quantizer(str(source.path))
        stock.load_quantization_recipe(getattr(recipes, recipe_name)())
        found = None
        if stock.need_calibration:
            for end in (operation.INPUT, operation.OUTPUT):
                stock.update_quantization_recipe(".*", end, algorithm_key="no_quantize")
            found = stock.calibrate({"serving_default": _requests(source, rows)})
        target.write_bytes(bytes(stock.quantize(calibration_result=found).quantized_model))
    _, outputs = renamed(source.path, target)
    outputs = {name: outputs[wire] for name, wire in source.outputs.items()}
    return replace(source, path=target, precision="int8", outputs=outputs), None


def _requests(source: Artifact, rows: Tensors) -> list[dict[str, Any]]:
    """One row at a time, by litert-torch's names for the arguments."""
    count = len(next(iter(rows.values())))
    return [
        {f"args_{position}": rows[name][index : index + 1] for position, name in enumerate(source.inputs)}
        for index in range(count)
    ]


def _nncf(source: Artifact, rows: Tensors, target: Path, *, best: bool) -> tuple[Artifact, float]:
    """NNCF in a process of its own, with its packages after those of this environment."""
    if not (NNCF_SITE / "nncf").exists():
        raise LeftOutError(f"{NNCF_SITE} has no nncf; {NNCF_INSTALL}")
    with tempfile.TemporaryDirectory() as scratch:
        given = Path(scratch) / "rows.npz"
        np.savez(given, **{wire: rows[name] for name, wire in source.inputs.items()})
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.converter.nncf_process", str(NNCF_SITE), str(source.path), str(given), str(target)]
            + ["--best"] * best,
            capture_output=True, text=True, check=False,
            env={**os.environ, "NNCF_CI": "1"},  # it reports its use to its maker otherwise
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
    seconds = json.loads(done.stdout.splitlines()[-1])["seconds"]
    return replace(source, path=target, precision="int8"), float(seconds)


RIVALS: dict[str, dict[str, Rival]] = {
    "onnx": {
        "onnxruntime, defaults": _onnxruntime,
        "onnxruntime, U8S8 per channel": functools.partial(_onnxruntime, is_tuned=True),
        "onnxruntime, U8S8 per channel, entropy": functools.partial(_onnxruntime, is_tuned=True, by_entropy=True),
        "onnxruntime, U8S8 per channel, 7-bit weights": functools.partial(_onnxruntime, is_tuned=True, has_7_bits=True),
        "NNCF, defaults": functools.partial(_nncf, best=False),
        NNCF_FULL: functools.partial(_nncf, best=True),
    },
    "tflite": {
        "ai-edge-quantizer, static": functools.partial(_ai_edge_quantizer, recipe_name="static_wi8_ai8"),
        "ai-edge-quantizer, static, int16 activations": functools.partial(
            _ai_edge_quantizer, recipe_name="static_wi8_ai16"
        ),
        "ai-edge-quantizer, dynamic": functools.partial(_ai_edge_quantizer, recipe_name="dynamic_wi8_afp32"),
    },
}
"""Format → name → tool, the defaults first. Seven bits are what onnxruntime advises where a CPU without VNNI saturates."""
