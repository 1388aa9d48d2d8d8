"""Reading TFLite files: structure first, then what a bundle can carry."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from edgeops.errors import ExportError
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.litert_file import parse_litert, read_litert, schema, unpacked
from edgeops_converters.sessions import run_rows
from edgeops_converters.sources import open_model

_SPEC = importlib.util.spec_from_file_location("converter_model_files", Path(__file__).with_name("model_files.py"))
files = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(files)


@pytest.fixture(scope="module")
def rows(evaluation):
    return {"image": evaluation["image"][:16]}


@pytest.fixture(scope="module")
def exported(network, rows, tmp_path_factory):
    target = tmp_path_factory.mktemp("litert") / "quarters.tflite"
    return EXPORTERS["tflite"].export(open_model(network, rows), rows, target)


@pytest.fixture(scope="module")
def content(exported):
    return exported.path.read_bytes()


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "model.tflite"
        path.write_bytes(content)
        return path

    return write


def test_a_sound_file_is_taken_byte_for_byte(exported, content, rows):
    file = read_litert(exported.path)
    assert (file.content, file.batch, file.precision, file.notes) == (content, 1, "float32", ())
    model = open_model(exported.path, rows)
    assert [spec.name for spec in model.inputs] == ["image"], "one input has the name that the data give it"
    expected = run_rows(exported.open().run, rows, batch=1)["output"]
    np.testing.assert_array_equal(run_rows(model.answer, rows, batch=1)["output_0"], expected)


def test_a_file_without_signature_gets_one(content, write, rows):
    path = write(files.litert_edited(content, lambda model: setattr(model, "signatureDefs", None)))
    model = open_model(path, rows)
    assert unpacked(model.file.content).signatureDefs[0].signatureKey == b"serving_default"
    assert len(run_rows(model.answer, rows, batch=1)[model.outputs[0].name]) == 16


def test_integers_at_the_ends_are_put_behind_a_float_interface(exported, rows, tmp_path):
    path = files.with_integer_interface(exported.path, tmp_path / "full.tflite", rows["image"])
    model = open_model(path, rows)
    assert [spec.dtype for spec in (*model.inputs, *model.outputs)] == ["FP32", "FP32"]
    given = run_rows(model.answer, rows, batch=1)["output_0"]
    expected = run_rows(exported.open().run, rows, batch=1)["output"]
    assert (given.argmax(1) == expected.argmax(1)).mean() > 0.9
    assert "float32 interface" in model.file.notes[0]


def change(**where):
    """An edit of the first tensor of the first subgraph, or of what ``where`` says."""

    def edit(model):
        graph = model.subgraphs[0]
        constant = next(one for one in graph.tensors if model.buffers[one.buffer].data is not None)
        for name, value in where.items():
            if name == "operator_input":
                graph.operators[0].inputs = [value]
            elif name == "opcode":
                graph.operators[0].opcodeIndex = value
            elif name == "custom":
                model.operatorCodes[graph.operators[1].opcodeIndex].builtinCode = schema().BuiltinOperator.CUSTOM
                model.operatorCodes[graph.operators[1].opcodeIndex].deprecatedBuiltinCode = 32
                model.operatorCodes[graph.operators[1].opcodeIndex].customCode = value
            elif name == "subgraphs":
                model.subgraphs = [graph] * value
            elif name == "scales":
                constant.quantization = schema().QuantizationParametersT()
                constant.quantization.scale, constant.quantization.zeroPoint = value, [0] * len(value)
            elif name == "input_signature":
                graph.tensors[graph.inputs[0]].shapeSignature = value
            elif name == "state":
                graph.tensors[graph.operators[0].outputs[0]].isVariable = value
            else:
                setattr(constant, name, value)

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (change(operator_input=999), "an operator points to number 999 of"),
        (change(opcode=77), "an operator code points to number 77 of"),
        (change(buffer=1 << 20), "points to number 1048576 of"),
        (change(shape=[1000, 1000]), r"has \d+ bytes where its shape \[1000, 1000\] takes"),
        (change(shape=[-5]), r"has the shape \[-5\]"),
        (change(type=99), "unknown type 99"),
        (change(scales=[0.1] * 7), "has 7 scales along dimension 0"),
        (change(scales=[float("nan")]), "negative or not finite"),
        (change(subgraphs=2), "has 2 subgraphs"),
        (change(state=True), "keeps state between calls"),
        (change(input_signature=[-1, 1, -1, 16]), "the size of dimension 2 is known at run time only"),
    ],
)
def test_damage_and_what_no_bundle_can_carry_are_refused_by_name(content, write, edit, said):
    with pytest.raises(ExportError, match=rf"model\.tflite.*{said}"):
        read_litert(write(files.litert_edited(content, edit)))


def test_a_batch_that_is_left_open_is_taken_as_the_file_allocates_it(content, write, rows):
    model = open_model(write(files.litert_edited(content, change(input_signature=[-1, 1, 16, 16]))), rows)
    assert model.batch == 1


def test_an_operator_that_the_engine_does_not_know_is_named(content, write, rows):
    path = write(files.litert_edited(content, change(custom=b"MyOwnOperator")))
    with pytest.raises(ExportError, match=r"LiteRT does not load it.*MyOwnOperator"):
        open_model(path, rows)


def test_something_else_is_no_tflite_file(write):
    with pytest.raises(ExportError, match=r"not a readable \.tflite file: bytes 4 to 8"):
        read_litert(write(b"PK\x03\x04 or anything"))


def test_damage_at_any_place_is_an_error_of_ours_or_none(content, write):
    """Truncations, flipped bits and wild offsets; the engine is not asked here."""
    random = np.random.default_rng(0)
    refused = 0
    for attempt in range(150):
        damaged = bytearray(content)
        place = int(random.integers(min(len(content), 4000))) if attempt % 2 else int(random.integers(len(content)))
        if attempt % 3 == 0:
            damaged = damaged[:place]
        elif attempt % 3 == 1:
            damaged[place] ^= 1 << int(random.integers(8))
        else:
            damaged[place & ~3 : (place & ~3) + 4] = b"\xff\xff\xff\x7f"
        try:
            parse_litert(write(bytes(damaged)))
        except ExportError:
            refused += 1
    assert refused > 50, "every truncation at least"
