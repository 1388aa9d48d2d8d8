"""Reading ONNX files: what is taken in, and what is refused by name."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeops.errors import ExportError
from edgeops_converters.onnx_file import read_onnx
from edgeops_converters.sessions import run_rows
from edgeops_converters.sources import open_model

_SPEC = importlib.util.spec_from_file_location("converter_model_files", Path(__file__).with_name("model_files.py"))
files = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(files)


def saved(tmp_path, model, **external):
    path = tmp_path / "model.onnx"
    onnx.save(model, path, **external)
    return path


def answers(file):
    return run_rows(file.open().run, files.ROWS, batch=file.batch)["y"]


@pytest.fixture
def expected(tmp_path):
    return answers(read_onnx(saved(tmp_path, files.onnx_model())))


def apart(tmp_path, location="weights.bin"):
    """A model whose weights are in another file."""
    settings = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    path = saved(tmp_path, files.onnx_model(), **settings)
    if location != "weights.bin":
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            next(entry for entry in tensor.external_data if entry.key == "location").value = location
        path.write_bytes(model.SerializeToString())
    return path


def test_external_data_in_the_folder_of_the_model_are_taken_in(tmp_path, expected):
    path = apart(tmp_path)
    file = read_onnx(path)
    (tmp_path / "weights.bin").unlink()
    np.testing.assert_array_equal(answers(file), expected)
    assert "weights.bin" in file.notes[0]


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "link.bin", ""])
def test_external_data_outside_of_the_folder_are_refused_by_name(tmp_path, location):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(1000))
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    path = apart(folder, location)
    said = "outside the folder" if location else "is not there"
    with pytest.raises(ExportError, match=rf"tensor '[wb]': external data '{location}'.*{said}"):
        read_onnx(path)


def test_external_data_that_are_gone_or_too_short_are_refused(tmp_path):
    path = apart(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"short")
    with pytest.raises(ExportError, match=r"expected \d+ bytes at \d+, the file has 5"):
        read_onnx(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ExportError, match="is not there; it belongs beside"):
        read_onnx(path)


def test_more_than_one_file_can_hold_is_refused_before_it_is_read(tmp_path):
    path = apart(tmp_path)
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value="weights.bin")
    path.write_bytes(model.SerializeToString())
    with (tmp_path / "weights.bin").open("r+b") as stream:
        stream.truncate(3 << 30)  # a hole, which takes no room
    with pytest.raises(ExportError, match=r"3\.2 GB with its external data, where one file holds at most 2\.1 GB"):
        read_onnx(path)


def test_a_constant_that_is_listed_as_an_input_is_no_input(tmp_path, expected):
    model = files.onnx_model(ir=3)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [3]))
    file = read_onnx(saved(tmp_path, model))
    assert [spec.name for spec in file.inputs] == ["x"]
    np.testing.assert_array_equal(answers(file), expected)


@pytest.mark.parametrize("name", ["N", "unk__123", "sequence length", ""])
def test_a_dynamic_batch_may_have_any_name(tmp_path, name):
    model = open_model(saved(tmp_path, files.onnx_model(batch=name)), files.ROWS)
    assert model.batch is None
    assert model.inputs[0].shape == ("batch", 4)


def test_old_operators_are_written_as_newer_ones(tmp_path, expected):
    file = read_onnx(saved(tmp_path, files.onnx_model(opset=9)))
    assert onnx.load_model_from_string(file.content).opset_import[0].version == 13
    np.testing.assert_allclose(answers(file), expected, rtol=1e-6)
    assert "opset 9" in file.notes[0]


def sequence():
    inner = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    return helper.make_value_info("s", helper.make_sequence_type_proto(inner))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: files.onnx_model(opset=23), "opset 23 is newer than devices have; export it with opset 21"),
        (lambda: files.onnx_model(ir=99), "ONNX version 99 is newer than"),
        (lambda: files.onnx_model(operator="Reulu"), "not a readable .onnx file.*Reulu"),
        (
            lambda: files.onnx_model(
                extra_nodes=[helper.make_node("SequenceConstruct", ["y"], ["s"])], outputs=[sequence()]
            ),
            "'s' is a sequence_type, no tensor",
        ),
        (
            lambda: files.onnx_model(
                extra_nodes=[helper.make_node("DynamicQuantizeLinear", ["y"], ["q", "scale", "zero"])]
            ),
            "quantised with the operators DynamicQuantizeLinear, which have no float form",
        ),
    ],
)
def test_what_no_bundle_can_hold_is_refused_by_name(tmp_path, model, said):
    with pytest.raises(ExportError, match=said):
        read_onnx(saved(tmp_path, model()))


def test_an_operator_that_the_engine_does_not_know_is_refused_by_name(tmp_path):
    model = files.onnx_model()
    model.graph.node[1].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(ExportError, match=r"onnxruntime does not load it.*com\.example"):
        open_model(saved(tmp_path, model), files.ROWS)


def test_damage_at_any_place_is_an_error_of_ours_or_none(tmp_path):
    """Truncations, flipped bits and wild bytes; the engine is not asked here."""
    content, random, refused = files.onnx_model().SerializeToString(), np.random.default_rng(0), 0
    path = tmp_path / "model.onnx"
    for attempt in range(150):
        damaged, place = bytearray(content), int(random.integers(len(content)))
        if attempt % 3 == 0:
            damaged = damaged[:place]
        else:
            damaged[place] = damaged[place] ^ 1 << int(random.integers(8)) if attempt % 3 == 1 else 255
        path.write_bytes(bytes(damaged))
        try:
            read_onnx(path)
        except ExportError:
            refused += 1
    assert refused > 50, "every truncation at least"
