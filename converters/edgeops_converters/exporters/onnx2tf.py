"""ONNX to TFLite through onnx2tf, a program in an environment of its own.

Its pins (numpy, onnx, onnxruntime, Python 3.12) agree with nobody else's, so it is never imported: it is started, from
:data:`VARIABLE` or from the ``PATH``, and gives a file. What comes back is believed only when it answers as the source does.
"""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeops.errors import EngineError, ExportError
from edgeops.processing import Tensors
from edgeops_converters.extras import load
from edgeops_converters.fidelity import sqnr_db
from edgeops_converters.litert_file import read_litert
from edgeops_converters.model_file import ModelFile
from edgeops_converters.sessions import run_rows
from edgeops_converters.sources import Model

VARIABLE = "EDGEOPS_ONNX2TF"
"""Environment variable with the path of the program."""
INSTALL = f"scripts/onnx2tf makes its environment and says what to set {VARIABLE} to"
_PROGRAM = "onnx2tf"
_TIMEOUT_S = 1800.0
_LEAST_DB = 60.0  # float32 summed in another order differs by 100 dB or less
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_TOLD = 300


def find_program() -> str | None:
    """Where onnx2tf is; ``None`` when it is not installed.

    Raises:
        ExportError: The variable names something that cannot be run.
    """
    named = os.environ.get(VARIABLE, "")
    if not named:
        return shutil.which(_PROGRAM)
    found = shutil.which(named)
    if found is None:
        raise ExportError(f"{VARIABLE}={named}: no program that can be run; {INSTALL}")
    return found


def convert_onnx(model: Model, example: Tensors) -> ModelFile:
    """The model's ONNX file as a TFLite file with the same inputs and outputs.

    Args:
        model: With a float ONNX file.
        example: At least two rows of every input.

    Raises:
        ExportError: The program is not installed or fails, or what it gives is not the same model.
    """
    program = find_program()
    if program is None or model.file is None:
        raise ExportError(f"{model.label}: for TFLite onnx2tf is needed, which is not installed; {INSTALL}")
    batch = model.batch or 1
    with tempfile.TemporaryDirectory(prefix="edgeops-onnx2tf-") as directory:
        source = Path(directory) / "model.onnx"
        inputs, outputs = _write_plain(model.file, source)
        shapes = [
            f"{inputs[name]}:{','.join(str(size) for size in (batch, *array.shape[1:]))}"
            for name, array in example.items()
            if name in inputs
        ]
        _run(
            [program, "-i", str(source), "-o", directory, "-tb", "flatbuffer_direct", "-coion", "-osd", "-v", "error",
             "-ois", *shapes, "-kat", *inputs.values()],
            model.label,
        )  # fmt: skip
        made = _result(Path(directory), model.label)
    return _checked(_named(made, inputs, outputs, model), model, example)


def _write_plain(file: ModelFile, target: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Write the graph with ends that are called so that no tool renames them; gives our names → those."""
    onnx = load("onnx")
    model = onnx.load_model_from_string(file.content)
    names = {tensor: f"edgeops_input_{index}" for index, tensor in enumerate(file.input_tensors.values())}
    for index, tensor in enumerate(file.output_tensors.values()):
        names.setdefault(tensor, f"edgeops_output_{index}")
    for value in (*model.graph.input, *model.graph.output):
        value.name = names[value.name]
    _rename(model.graph, names)
    onnx.save(model, str(target))
    inputs = {name: names[tensor] for name, tensor in file.input_tensors.items()}
    return inputs, {name: names[tensor] for name, tensor in file.output_tensors.items()}


def _rename(graph: Any, names: dict[str, str]) -> None:  # noqa: ANN401 - onnx has no types
    """Rename tensors wherever nodes read and give them, also in the bodies of branches and loops."""
    del graph.value_info[:]  # what is noted of tensors has their old names
    for node in graph.node:
        for ends in (node.input, node.output):
            for position, name in enumerate(ends):
                ends[position] = names.get(name, name)
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename(inner, names)


def _run(command: list[str], label: str) -> None:
    # It has an environment of its own; ours must not leak into it.
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    try:
        done = subprocess.run(  # noqa: S603 - the program that the user named
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExportError(f"{label}: {command[0]} does not run: {error}") from error
    if done.returncode:
        raise ExportError(f"{label}: onnx2tf cannot convert it: {_told(done.stdout, done.stderr)}")


def _told(*streams: str) -> str:
    """The most telling line of what a program said."""
    text = "\n".join(_COLOURS.sub("", stream).replace("\r", "\n") for stream in streams)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"error|not supported|unsupported", line, re.IGNORECASE)]
    return (telling or lines or ["it does not say why"])[-1][:_TOLD]


def _result(directory: Path, label: str) -> ModelFile:
    made = sorted(directory.glob("*_float32.tflite"))
    if not made:
        raise ExportError(f"{label}: onnx2tf ended without an error and gave no *_float32.tflite")
    try:
        return read_litert(made[0])
    except ExportError as error:
        raise ExportError(
            f"{label}: what onnx2tf gives cannot be used: {error}".replace(str(made[0]), "model")
        ) from error


def _named(made: ModelFile, inputs: dict[str, str], outputs: dict[str, str], model: Model) -> ModelFile:
    """The file under the names of the model."""
    lost = {*inputs.values()} - set(made.input_tensors) | {*outputs.values()} - set(made.output_tensors)
    if lost:
        raise ExportError(f"{model.label}: onnx2tf loses {len(lost)} of the model's inputs and outputs")
    return replace(
        made,
        inputs=model.inputs,
        outputs=model.outputs,
        input_tensors={spec.name: made.input_tensors[inputs[spec.name]] for spec in model.inputs},
        output_tensors={spec.name: made.output_tensors[outputs[spec.name]] for spec in model.outputs},
    )


def _checked(made: ModelFile, model: Model, example: Tensors) -> ModelFile:
    """Hold shapes, types and answers of what came back against the source."""
    expected = run_rows(model.answer, example, batch=model.batch)
    try:
        given = run_rows(made.open().run, example, batch=made.batch)
    except EngineError as error:
        raise ExportError(f"{model.label}: what onnx2tf gives takes other inputs, or does not run: {error}") from error
    for name, array in expected.items():
        if (given[name].shape, given[name].dtype) != (array.shape, array.dtype):
            raise ExportError(
                f"{model.label}: output {name!r}: expected {array.dtype} {list(array.shape)}, onnx2tf gives "
                f"{given[name].dtype} {list(given[name].shape)}"
            )
    if not all(np.isfinite(array).all() for array in (*expected.values(), *given.values())):
        raise ExportError(f"{model.label}: answers NaN or Inf on rows of the data, or what onnx2tf gives does")
    noise = sqnr_db(expected, given)
    if noise is not None and not noise >= _LEAST_DB:
        raise ExportError(
            f"{model.label}: what onnx2tf gives answers with {noise:.1f} dB signal to noise of the source, where "
            f"{_LEAST_DB:g} are expected of the same numbers; for TFLite give the torch model"
        )
    return replace(made, notes=(*made.notes, _note(noise)))


def _note(noise: float | None) -> str:
    said = "the same" if noise is None else f"the source's to {noise:.0f} dB"
    return f"made from ONNX by onnx2tf; its answers are {said}"
