"""ONNX to TFLite by a program of its own: the seam with a program that speaks its command line, and the real one where it is."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeops.errors import ExportError
from edgeops_converters.exporters import EXPORTERS, onnx2tf
from edgeops_converters.litert_file import packed, parse_litert
from edgeops_converters.quantization import quantize
from edgeops_converters.sessions import run_rows
from edgeops_converters.sources import open_model
from edgeops_converters.targets import Target

ROOT = Path(__file__).parents[2]
# What stands in for the program: it takes the same arguments, and gives a file that was made before.
PROGRAM = """#!{python}
import json, pathlib, shutil, sys
arguments = sys.argv[1:]
pathlib.Path({log!r}).write_text(json.dumps(arguments))
folder = pathlib.Path(arguments[arguments.index("-o") + 1])
{body}
"""


@pytest.fixture(scope="module")
def rows(evaluation):
    return {"image": evaluation["image"][:16]}


@pytest.fixture
def model(onnx_source, rows):
    return open_model(onnx_source, rows)


@pytest.fixture
def made(network, rows, tmp_path):
    """The network as TFLite, with the names that the program is asked to keep."""
    exported = EXPORTERS["tflite"].export(open_model(network, rows), rows, tmp_path / "made.tflite")
    _, graph = parse_litert(exported.path)
    graph.signatureDefs[0].inputs[0].name = b"edgeops_input_0"
    graph.signatureDefs[0].outputs[0].name = b"edgeops_output_0"
    exported.path.write_bytes(packed(graph))
    return exported.path


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Sets up a program that does ``body``, and returns the file with the arguments that it got."""

    def program(body):
        path, log = tmp_path / "onnx2tf", tmp_path / "arguments.json"
        path.write_text(PROGRAM.format(python=sys.executable, log=str(log), body=body))
        path.chmod(0o755)
        monkeypatch.setenv(onnx2tf.VARIABLE, str(path))
        return log

    return program


def test_the_program_is_asked_to_keep_shapes_and_names_and_its_file_is_taken(model, rows, made, program, tmp_path):
    log = program(f"shutil.copy({str(made)!r}, folder / 'model_float32.tflite')")
    assert EXPORTERS["tflite"].refusal(model) == ""
    exported = EXPORTERS["tflite"].export(model, rows, tmp_path / "model.tflite")
    assert '"edgeops_input_0:1,1,16,16", "-kat", "edgeops_input_0"' in log.read_text()
    assert (exported.batch, set(exported.inputs), set(exported.outputs)) == (1, {"image"}, {"output"})
    given = run_rows(exported.open().run, rows, batch=1)["output"]
    np.testing.assert_allclose(given, run_rows(model.answer, rows, batch=None)["output"], rtol=1e-3, atol=1e-4)
    assert "made from ONNX by onnx2tf; its answers are the source's to" in exported.notes[0]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("sys.exit('ERROR: operator Bessel is not supported')", "cannot convert it: ERROR: operator Bessel is not"),
        ("pass", r"gave no \*_float32\.tflite"),
        ("(folder / 'model_float32.tflite').write_bytes(b'junk')", "cannot be used.*not a readable .tflite"),
    ],
)
def test_a_program_that_fails_is_told_with_its_reason(model, rows, program, body, said):
    target = program(body).with_name("model.tflite")
    with pytest.raises(ExportError, match=said):
        EXPORTERS["tflite"].export(model, rows, target)


def test_a_file_with_other_answers_is_not_believed(model, rows, made, program, tmp_path):
    _, graph = parse_litert(made)
    biases = min(
        (one for one in graph.buffers if one.data is not None and len(one.data) == 16), key=lambda one: len(one.data)
    )
    biases.data = np.frombuffer(np.full(4, 3, "<f4").tobytes(), np.uint8)
    made.write_bytes(packed(graph))
    program(f"shutil.copy({str(made)!r}, folder / 'model_float32.tflite')")
    with pytest.raises(ExportError, match=r"answers with -?[\d.]+ dB signal to noise of the source, where 60"):
        EXPORTERS["tflite"].export(model, rows, tmp_path / "model.tflite")


def test_a_variable_that_names_no_program_is_an_error(model, monkeypatch, tmp_path):
    monkeypatch.setenv(onnx2tf.VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(ExportError, match=r"EDGEOPS_ONNX2TF=.*nothing: no program that can be run"):
        EXPORTERS["tflite"].refusal(model)


@pytest.fixture
def real_program(monkeypatch):
    """The real onnx2tf: where the variable says, or where scripts/onnx2tf puts it."""
    found = os.environ.get(onnx2tf.VARIABLE) or shutil.which(ROOT / ".venv-onnx2tf" / "bin" / "onnx2tf")
    if found is None:
        if os.environ.get("EDGEOPS_REQUIRE_ONNX2TF"):
            pytest.fail("onnx2tf is not installed, and EDGEOPS_REQUIRE_ONNX2TF asks for it")
        pytest.skip("onnx2tf is not installed; scripts/onnx2tf makes its environment")
    monkeypatch.setenv(onnx2tf.VARIABLE, found)


@pytest.mark.slow
@pytest.mark.usefixtures("real_program")
@pytest.mark.parametrize("case", ["convolution", "two inputs", "series", "integers"])
def test_the_real_program_gives_the_same_model_and_it_can_be_quantised(case, network, models, tmp_path):
    random = np.random.default_rng(0)
    module, rows = {
        "convolution": (network, {"image": random.normal(size=(13, 1, 16, 16)).astype(np.float32)}),
        "two inputs": (
            models.seeded(models.TwoInputs),
            {"image": random.random((13, 1, 8, 8), np.float32), "features": random.random((13, 3), np.float32)},
        ),
        "series": (models.seeded(models.Series), {"x": random.normal(size=(13, 3, 32)).astype(np.float32)}),
        "integers": (models.seeded(models.Tokens), {"tokens": random.integers(0, 20, (13, 7))}),
    }[case]
    source = EXPORTERS["onnx"].export(open_model(module, rows), rows, tmp_path / "model.onnx")
    model = open_model(source.path, rows)
    exported = EXPORTERS["tflite"].export(model, rows, tmp_path / "model.tflite")
    expected = run_rows(model.answer, rows, batch=None)
    for name, array in run_rows(exported.open().run, rows, batch=exported.batch).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)
    quantize(exported, rows, tmp_path / "int8.tflite", cpu=Target.X86)
