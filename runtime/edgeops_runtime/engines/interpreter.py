"""What LiteRT and tflite-runtime have in common: the interpreter that runs ``.tflite`` files."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeops.errors import EngineError
from edgeops.manifest import Variant
from edgeops_runtime.engines.engine import Session, Tensors, run_in_batches


def load_interpreter(
    make_interpreter: Callable[..., Any], model_path: Path, variant: Variant, threads: int, *, engine: str
) -> Session:
    """Load a ``.tflite`` file.

    Args:
        make_interpreter: The engine's ``Interpreter`` class.
        model_path: The file.
        variant: Names of its tensors, either the tensors' own or those of its signature.
        threads: How many threads one call may use.
        engine: Name and version, for errors.

    Raises:
        EngineError: The engine refuses it, or it lacks one of the variant's tensors.
    """
    try:
        interpreter = make_interpreter(model_path=str(model_path), num_threads=threads)
        interpreter.allocate_tensors()
        signature = _signature_tensors(interpreter)
        found_inputs = signature[0] | {detail["name"]: detail["index"] for detail in interpreter.get_input_details()}
        found_outputs = signature[1] | {detail["name"]: detail["index"] for detail in interpreter.get_output_details()}
    except Exception as error:
        raise EngineError(f"{model_path.name}: {engine} cannot load it: {error}") from error
    for wanted, found in ((variant.inputs, found_inputs), (variant.outputs, found_outputs)):
        missing = set(wanted.values()) - set(found)
        if missing:
            raise EngineError(f"{model_path.name}: no tensor {sorted(missing)}; it has {sorted(found)}")
    return _InterpreterSession(
        interpreter,
        variant,
        inputs=[(ours, found_inputs[theirs]) for ours, theirs in variant.inputs.items()],
        outputs=[(ours, found_outputs[theirs]) for ours, theirs in variant.outputs.items()],
        engine=engine,
    )


class _InterpreterSession:
    """A loaded ``.tflite`` file. An interpreter serves one thread at a time, so callers take turns."""

    def __init__(
        self,
        interpreter: Any,  # noqa: ANN401 - the interpreters have no types
        variant: Variant,
        *,
        inputs: list[tuple[str, int]],
        outputs: list[tuple[str, int]],
        engine: str,
    ) -> None:
        self._interpreter = interpreter
        self._inputs = inputs
        self._outputs = outputs
        self._batch = variant.batch or _allocated_rows(interpreter)
        self._where = f"{variant.file}: {engine}"
        self._turn = threading.Lock()

    def run(self, feeds: Tensors) -> Tensors:
        """Answer; where the file takes a fixed number of rows, in groups of that size.

        Raises:
            EngineError: The engine cannot.
        """
        if self._batch is not None:
            return run_in_batches(self._run, feeds, self._batch)
        return self._run(feeds)

    def _run(self, feeds: Tensors) -> Tensors:
        interpreter = self._interpreter
        try:
            with self._turn:
                for ours, index in self._inputs:
                    interpreter.set_tensor(index, feeds[ours])
                interpreter.invoke()
                return {ours: interpreter.get_tensor(index) for ours, index in self._outputs}
        except Exception as error:
            raise EngineError(f"{self._where} cannot run it: {error}") from error


def _allocated_rows(interpreter: Any) -> int | None:  # noqa: ANN401 - the interpreters have no types
    """How many rows the file is allocated for; ``None`` when its inputs do not count rows alike."""
    first = {int(detail["shape"][0]) for detail in interpreter.get_input_details() if len(detail["shape"])}
    return first.pop() if len(first) == 1 else None


def _signature_tensors(interpreter: Any) -> tuple[dict[str, int], dict[str, int]]:  # noqa: ANN401 - either engine's
    """Inputs and outputs of the file's only signature, by name; nothing when it has none or several."""
    if len(interpreter.get_signature_list()) != 1:
        return {}, {}
    runner = interpreter.get_signature_runner()
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    return (
        {name: detail["index"] for name, detail in inputs.items()},
        {name: detail["index"] for name, detail in outputs.items()},
    )
