"""LiteRT (``ai-edge-litert``) behind the :class:`~edgeops_runtime.engines.engine.Engine` seam."""

from importlib.metadata import version
from pathlib import Path

from ai_edge_litert.interpreter import Interpreter

from edgeops.manifest import Variant
from edgeops_runtime.engines.engine import Session
from edgeops_runtime.engines.interpreter import load_interpreter
from edgeops_runtime.engines.options import SessionOptions


class LiteRTEngine:
    """Runs ``.tflite`` files; the successor of tflite-runtime, for numpy 2."""

    name = "litert"

    def __init__(self) -> None:
        self.version = version("ai-edge-litert")

    def load(
        self,
        model_path: Path,
        variant: Variant,
        threads: int,
        options: SessionOptions = SessionOptions(),  # noqa: ARG002, B008 - it has none of them; immutable
    ) -> Session:
        """Load a model; see :meth:`edgeops_runtime.engines.engine.Engine.load`.

        Raises:
            EngineError: LiteRT refuses it, or it lacks one of the variant's tensors.
        """
        return load_interpreter(Interpreter, model_path, variant, threads, engine=f"{self.name} {self.version}")
