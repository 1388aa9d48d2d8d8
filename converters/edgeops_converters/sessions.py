"""Running model files on the real engines, for evaluation on the workstation; thin on purpose.

The device has its own, in the runtime; the parts never import each other.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgeops.errors import EngineError, InputError
from edgeops.processing import Tensors
from edgeops_converters.extras import load, quiet

_CHUNK_ROWS = 64


class Session(Protocol):
    """A loaded model file that speaks the manifest's tensor names."""

    def run(self, tensors: Tensors) -> Tensors:
        """Answer the rows of one batch.

        Raises:
            EngineError: The engine failed.
        """


class OnnxSession:
    """onnxruntime on the CPU.

    Args:
        file: The ``.onnx`` file, or its content.
        inputs: Manifest name → the file's tensor name; likewise ``outputs``.
        threads: Within one operator.
        is_plain: Without graph optimisation, which gives the answers of other kernels.

    Raises:
        EngineError: The file does not load.
    """

    def __init__(
        self,
        file: Path | bytes,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        *,
        threads: int = 1,
        is_plain: bool = False,
    ) -> None:
        ort = load("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # failures are raised; no need to see them on standard error as well
        if is_plain:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            with quiet():
                content = str(file) if isinstance(file, Path) else file
                self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise EngineError(f"{_named(file)}onnxruntime does not load it: {error}") from error
        self._inputs, self._outputs = dict(inputs), dict(outputs)

    def run(self, tensors: Tensors) -> Tensors:
        """Answer the rows of one batch."""
        feed = {wire: tensors[name] for name, wire in self._inputs.items()}
        try:
            values = self._session.run(list(self._outputs.values()), feed)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise EngineError(f"onnxruntime: {error}") from error
        return dict(zip(self._outputs, values, strict=True))


class LitertSession:
    """LiteRT's interpreter on the CPU, with XNNPACK unless ``is_plain``; arguments as in :class:`OnnxSession`."""

    def __init__(
        self,
        file: Path | bytes,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        *,
        threads: int = 1,
        is_plain: bool = False,
    ) -> None:
        litert = load("ai_edge_litert.interpreter")
        resolver = litert.OpResolverType
        kind = resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES if is_plain else resolver.AUTO
        try:
            with quiet():
                where = {"model_path": str(file)} if isinstance(file, Path) else {"model_content": file}
                self._interpreter = litert.Interpreter(**where, num_threads=threads, experimental_op_resolver_type=kind)
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"{_named(file)}LiteRT does not load it: {error}") from error
        self._inputs = _indices(inputs, self._interpreter.get_input_details())
        self._outputs = _indices(outputs, self._interpreter.get_output_details())

    def run(self, tensors: Tensors) -> Tensors:
        """Answer the rows of one batch."""
        try:
            for name, index in self._inputs.items():
                self._interpreter.set_tensor(index, tensors[name])
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"LiteRT: {error}") from error
        return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}


SESSIONS: dict[str, Callable[..., Session]] = {"onnx": OnnxSession, "tflite": LitertSession}
"""Format of a model file → what runs it."""


def run_rows(run: Callable[[Tensors], Tensors], tensors: Tensors, *, batch: int | None) -> Tensors:
    """Answer any number of rows with something that takes one batch.

    Args:
        run: Takes and gives arrays of shape ``(batch, …)``.
        tensors: Input name → rows.
        batch: What ``run`` takes at once; ``None`` when any. The last batch is filled up with copies of its last row.

    Raises:
        EngineError: An output does not have one row for each input row.
    """
    rows, size = len(next(iter(tensors.values()))), batch or _CHUNK_ROWS
    parts: list[Tensors] = []
    for start in range(0, rows, size):
        chunk = {name: array[start : start + size] for name, array in tensors.items()}
        count = min(size, rows - start)
        if batch is not None and count < batch:
            chunk = {name: np.concatenate([part, part[-1:].repeat(batch - count, 0)]) for name, part in chunk.items()}
        answered = run(chunk)
        for name, array in answered.items():
            if array.ndim == 0 or len(array) != (batch or count):
                raise EngineError(f"output {name!r}: expected {batch or count} rows, got shape {list(array.shape)}")
        parts.append({name: array[:count] for name, array in answered.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _named(file: Path | bytes) -> str:
    return f"{file}: " if isinstance(file, Path) else ""


def _indices(wanted: Mapping[str, str], details: list[dict[str, Any]]) -> dict[str, int]:
    found = {detail["name"]: int(detail["index"]) for detail in details}
    missing = set(wanted.values()) - set(found)
    if missing:
        raise InputError(f"the .tflite has no tensors {sorted(missing)}; it has {sorted(found)}")
    return {name: found[wire] for name, wire in wanted.items()}
