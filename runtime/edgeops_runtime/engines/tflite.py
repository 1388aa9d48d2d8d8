"""tflite-runtime behind the :class:`~edgeops_runtime.engines.engine.Engine` seam.

The smallest engine, and the only one with wheels for 32-bit ARM. It was built against numpy 1: with numpy 2 the import succeeds
and the first interpreter raises ``SystemError``, which comes out as an :class:`~edgeops.errors.EngineError` at load.
"""

from importlib.metadata import version
from pathlib import Path

from tflite_runtime.interpreter import Interpreter

from edgeops.manifest import Variant
from edgeops_runtime.engines.engine import Session
from edgeops_runtime.engines.interpreter import load_interpreter
from edgeops_runtime.engines.options import SessionOptions


class TFLiteEngine:
    """Runs ``.tflite`` files, with numpy below 2."""

    name = "tflite"

    def __init__(self) -> None:
        self.version = version("tflite-runtime")

    def load(
        self,
        model_path: Path,
        variant: Variant,
        threads: int,
        options: SessionOptions = SessionOptions(),  # noqa: ARG002, B008 - it has none of them; immutable
    ) -> Session:
        """Load a model; see :meth:`edgeops_runtime.engines.engine.Engine.load`.

        Raises:
            EngineError: tflite-runtime refuses it, or it lacks one of the variant's tensors.
        """
        return load_interpreter(Interpreter, model_path, variant, threads, engine=f"{self.name} {self.version}")
