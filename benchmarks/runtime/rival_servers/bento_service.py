"""An ONNX file behind BentoML 1.4, as its guide to services has it; runs in BentoML's environment."""

import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1)
class Linear:
    """One input, one output, one thread."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    @bentoml.api
    def infer(self, rows: np.ndarray) -> np.ndarray:
        """Answer."""
        return self._session.run(None, {"x": np.asarray(rows, np.float32)})[0]
