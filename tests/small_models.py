"""Build the small CNN of the fixture ``small_bundle``: ``python small_models.py DIRECTORY``.

A process of its own, so that torch and its warnings stay out of the tests. Writes ``model.onnx``, ``model.int8.onnx``,
``model.tflite``, ``tensors.json`` (tensor names in each file) and ``golden.npz``, which comes last.
"""

import json
import sys
from pathlib import Path

import litert_torch
import numpy as np
import onnxruntime
import torch
from ai_edge_litert.interpreter import Interpreter
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn


class Rows(CalibrationDataReader):
    """Calibration rows one by one."""

    def __init__(self, images: np.ndarray, name: str) -> None:
        self._rows = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next row."""
        return next(self._rows, None)


def main(directory: Path) -> None:
    """Build everything into the directory."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU6(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU6(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).eval()
    with torch.no_grad():
        model[-1].weight.mul_(8)
    images = np.random.default_rng(3).random((264, 1, 28, 28)).astype(np.float32)
    golden, held_out = images[:8], images[8:]

    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 28, 28),),
        dynamo=True,
        input_names=["input_0"],
        output_names=["output_0"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    program.save(str(directory / "model.onnx"))
    quantize_static(
        directory / "model.onnx",
        directory / "model.int8.onnx",
        Rows(held_out[:64], "input_0"),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"ActivationSymmetric": False},
    )
    litert_torch.convert(model, (torch.zeros(1, 1, 28, 28),)).export(str(directory / "model.tflite"))

    interpreter = Interpreter(model_path=str(directory / "model.tflite"))
    interpreter.allocate_tensors()
    names = {
        "model.onnx": {"input": "input_0", "output": "output_0"},
        "model.int8.onnx": {"input": "input_0", "output": "output_0"},
        "model.tflite": {
            "input": interpreter.get_input_details()[0]["name"],
            "output": interpreter.get_output_details()[0]["name"],
        },
    }
    (directory / "tensors.json").write_text(json.dumps(names))
    answers = {f"output/{file}": answer_onnx(directory / file, golden) for file in ("model.onnx", "model.int8.onnx")}
    answers["output/model.tflite"] = answer_tflite(interpreter, golden)
    answers["held-out/output"] = answer_onnx(directory / "model.onnx", held_out)
    partial = directory / "partial.npz"
    np.savez(partial, **{"input": golden, "held-out/input": held_out, **answers})
    partial.replace(directory / "golden.npz")


def answer_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    """The file's answers, by onnxruntime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"input_0": images})[0]


def answer_tflite(interpreter: Interpreter, images: np.ndarray) -> np.ndarray:
    """The file's answers, by LiteRT, row by row."""
    answers = []
    for image in images:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
        interpreter.invoke()
        answers.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    return np.stack(answers)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
