"""onnxruntime behind the :class:`~edgeops_runtime.engines.engine.Engine` seam, on the CPU."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before the import: it reads this once. A device speaks to its own server and to nobody else.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

from edgeops.errors import EngineError
from edgeops.manifest import Variant
from edgeops_runtime.engines.engine import Session, Tensors, run_in_batches
from edgeops_runtime.engines.options import SessionOptions

_SILENT = 4  # Errors come as exceptions; a device's log does not need them a second time.


class OnnxRuntimeEngine:
    """Runs ``.onnx`` files."""

    name = "onnxruntime"

    def __init__(self) -> None:
        self.version = str(onnxruntime.__version__)

    def load(
        self,
        model_path: Path,
        variant: Variant,
        threads: int,
        options: SessionOptions = SessionOptions(),  # noqa: B008 - immutable
    ) -> Session:
        """Load a model; see :meth:`edgeops_runtime.engines.engine.Engine.load`.

        Raises:
            EngineError: onnxruntime refuses it, or it lacks one of the variant's tensors.
        """
        try:
            session = onnxruntime.InferenceSession(
                str(model_path), sess_options=_options(variant, threads, options), providers=["CPUExecutionProvider"]
            )
            found_inputs = {tensor.name for tensor in session.get_inputs()}
            found_outputs = {tensor.name for tensor in session.get_outputs()}
        except Exception as error:
            raise EngineError(f"{model_path.name}: onnxruntime {self.version} cannot load it: {error}") from error
        for wanted, found in ((variant.inputs, found_inputs), (variant.outputs, found_outputs)):
            missing = set(wanted.values()) - found
            if missing:
                raise EngineError(f"{model_path.name}: no tensor {sorted(missing)}; it has {sorted(found)}")
        return _OnnxSession(session, variant)


class _OnnxSession:
    """A loaded ``.onnx`` file; onnxruntime's sessions may be used from several threads."""

    def __init__(self, session: Any, variant: Variant) -> None:  # noqa: ANN401 - onnxruntime has no types
        # The wrapper's run() looks up and checks names at every call, which costs more than a small model.
        self._session = getattr(session, "_sess", session)
        self._keep_alive = session
        self._inputs = tuple(variant.inputs.items())
        self._names = list(variant.outputs)
        self._file_outputs = list(variant.outputs.values())
        self._batch = variant.batch
        self._file = variant.file
        self._call = self._session.run
        if self._batch is None and len(self._inputs) == len(self._names) == 1:
            self.run = self._simple_run()  # type: ignore[method-assign,assignment]

    def run(self, feeds: Tensors) -> Tensors:
        """Answer.

        Raises:
            EngineError: onnxruntime cannot.
        """
        if self._batch is not None:
            return run_in_batches(self._run, feeds, self._batch)
        return self._run(feeds)

    def _run(self, feeds: Tensors) -> Tensors:
        try:
            answers = self._call(self._file_outputs, {theirs: feeds[ours] for ours, theirs in self._inputs}, None)
        except Exception as error:
            raise EngineError(f"{self._file}: onnxruntime cannot run it: {error}") from error
        return dict(zip(self._names, answers, strict=True))

    def _simple_run(self) -> Callable[[Tensors], Tensors]:
        """:meth:`run` for one input, one output and any number of rows, which is what most models are: without loops."""
        # Without self: a session that held itself would outlive its model until the garbage collector stops the process for it.
        ((ours, theirs),), (name,), wanted, call = self._inputs, self._names, self._file_outputs, self._call
        file = self._file

        def run(feeds: Tensors) -> Tensors:
            try:
                return {name: call(wanted, {theirs: feeds[ours]}, None)[0]}
            except Exception as error:
                raise EngineError(f"{file}: onnxruntime cannot run it: {error}") from error

        return run


def _options(variant: Variant, threads: int, chosen: SessionOptions) -> Any:  # noqa: ANN401 - onnxruntime has no types
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _SILENT
    # Waiting threads sleep rather than spin: at 50 calls a second the same latency for a third of the CPU, and less heat.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = chosen.arena
    options.enable_mem_pattern = variant.batch is not None if chosen.memory_pattern is None else chosen.memory_pattern
    if not chosen.prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options
