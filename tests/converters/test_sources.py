"""Opening a source: every kind, and every way in which one can be wrong."""

import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeops.errors import ExportError, RecipeError
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.sessions import run_rows
from edgeops_converters.sources import open_model
from edgeops_converters.weights import check_finite

ROWS = {"x": np.random.default_rng(0).random((5, 6), np.float32)}


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 3)).eval()


def script(tmp_path, text):
    path = tmp_path / "my_model.py"
    path.write_text(f"import torch\nfrom torch import nn\n{text}\n")
    return path


def test_a_module_learns_its_names_from_the_data(linear):
    model = open_model(linear, {"features": ROWS["x"]})
    assert [(spec.name, spec.dtype, spec.shape) for spec in model.inputs] == [("features", "FP32", ("batch", 6))]
    assert [(spec.name, spec.dtype, spec.shape) for spec in model.outputs] == [("output", "FP32", ("batch", 3))]


def test_a_function_in_a_file_may_import_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_my_model.py").write_text("SIZE = 6\n")
    path = script(
        tmp_path, "def make():\n    import neighbour_of_my_model as n\n    return nn.Linear(n.SIZE, 3).eval()"
    )
    model = open_model(f"{path}:make", ROWS)
    assert model.label == f"{path}:make"
    assert model.outputs[0].shape == ("batch", 3)


@pytest.mark.parametrize("rows", [None, 4])
def test_an_exported_program_answers_as_its_module(linear, tmp_path, rows):
    path = tmp_path / "model.pt2"
    shapes = ({0: torch.export.Dim("batch")},) if rows is None else None
    arguments = (torch.from_numpy(np.resize(ROWS["x"], (rows or 2, 6))),)
    torch.export.save(torch.export.export(linear, arguments, dynamic_shapes=shapes), path)

    model = open_model(path, ROWS)

    assert model.batch == rows
    expected = linear(torch.from_numpy(ROWS["x"])).detach().numpy()
    np.testing.assert_allclose(run_rows(model.answer, ROWS, batch=model.batch)["output"], expected, rtol=1e-5)


def test_the_digest_tells_weights_apart(linear):
    before = open_model(linear, ROWS).digest
    assert open_model(linear, ROWS).digest == before
    with torch.no_grad():
        linear[0].bias[1] += 1e-3
    assert open_model(linear, ROWS).digest != before


@pytest.mark.parametrize(
    ("text", "function", "said"),
    [
        ("def make():\n    return nn.Linear(6, 3)", "make", r"training mode; call \.eval\(\)"),
        ("def make():\n    return 7", "make", r"expected a torch\.nn\.Module, got int"),
        ("def make():\n    return nn.Linear(6, 3).eval()", "build", "no function 'build'; it has make"),
        ("def make():\n    raise OSError('weights.bin')", "make", "OSError: weights.bin"),
        ("import sys\nsys.exit(3)", "make", "cannot be imported: SystemExit: 3"),
        ("def make():\n    raise SystemExit('usage')", "make", "make failed: SystemExit: usage"),
        ("import no_such_library_anywhere", "make", "cannot be imported.*no_such_library_anywhere"),
        ("def make(:", "make", "cannot be imported.*SyntaxError"),
        ("def make():\n    return nn.Linear(7, 3).eval()", "make", r"fails on rows.*float32 \[1, 6\].*shape"),
    ],
)
def test_a_file_that_gives_no_usable_module_is_explained(tmp_path, text, function, said):
    with pytest.raises(ExportError, match=said):
        open_model(f"{script(tmp_path, text)}:{function}", ROWS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.pt", "a pickle can run any code"),
        ("gone.tflite", "no such file"),
        ("model.h5", "expected file.py:function"),
        ("model.py", "with a function that returns the model"),
        ("gone.onnx", "no such file"),
        ("gone.py:make", "no such file"),
    ],
)
def test_other_files_are_refused_with_what_to_give(tmp_path, name, said):
    with pytest.raises(ExportError, match=said):
        open_model(str(tmp_path / name), ROWS)


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "model.tflite"])
@pytest.mark.parametrize("content", [b"", b"\x08\x07garbage", b"PK\x03\x04"])
def test_a_corrupt_file_is_named(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ExportError, match=f"{name}: not a readable"):
        open_model(path, ROWS)


def test_data_with_other_names_than_the_parameters_is_refused(linear):
    with pytest.raises(RecipeError, match=r"expected data with the keys \['input'\].*got \['a', 'b'\]"):
        open_model(linear, {"a": ROWS["x"], "b": ROWS["x"]})


def test_an_output_without_rows_is_refused():
    class Total(nn.Module):
        def forward(self, x):
            return x.sum()

    with pytest.raises(ExportError, match="output 'output': expected one row for each"):
        open_model(Total().eval(), ROWS)


def test_an_output_that_is_no_tensor_is_refused():
    class Talk(nn.Module):
        def forward(self, x):
            return {"text": "hello", "y": x}

    with pytest.raises(ExportError, match="output 'text' of forward is str"):
        open_model(Talk().eval(), ROWS)


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda x: (), "forward returns nothing"),
        (torch.fft.fft, r"output 'output': torch\.complex64 does not go to a device"),
        (
            lambda x: {"logits": x.bfloat16()},
            r"output 'logits': torch\.bfloat16 does not go to a device; return \.float",
        ),
    ],
)
def test_an_output_that_no_device_can_give_is_refused(forward, said):
    class Odd(nn.Module):
        def forward(self, x):
            return forward(x)

    with pytest.raises(ExportError, match=said):
        open_model(Odd().eval(), ROWS)


def test_a_failure_in_the_outermost_layer_has_the_name_of_its_class(tmp_path):
    class Picky(nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                return x
            return -x

    model = open_model(Picky().eval(), ROWS)
    with pytest.raises(ExportError, match=r"does not export to ONNX: Picky: .*depends on the values of the input"):
        EXPORTERS["onnx"].export(model, ROWS, tmp_path / "model.onnx")


def test_a_pickled_module_is_loaded_when_that_is_allowed(linear, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(linear, path)
    with pytest.raises(ExportError, match=r"a pickle can run any code.*--allow-pickle"):
        open_model(path, ROWS)
    expected = linear(torch.from_numpy(ROWS["x"])).detach().numpy()
    np.testing.assert_array_equal(open_model(path, ROWS, allow_pickle=True).answer(ROWS)["output"], expected)


def test_a_pickle_that_is_not_allowed_runs_nothing(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "it-ran",))

    torch.save(Bomb(), tmp_path / "model.pt")
    with pytest.raises(ExportError, match="--allow-pickle"):
        open_model(tmp_path / "model.pt", ROWS)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {}, "epoch": 3}, "got dict with the keys state_dict, epoch; give file.py:function"),
        (torch.zeros(3), "got Tensor"),
        (b"no pickle", "cannot be unpickled"),
    ],
)
def test_a_pickle_that_holds_no_module_is_explained(tmp_path, content, said):
    path = tmp_path / "model.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ExportError, match=said):
        open_model(path, ROWS, allow_pickle=True)


@pytest.fixture
def stored_apart(onnx_source, tmp_path):
    """An ``.onnx`` whose weights lie in a file beside it."""
    path = tmp_path / "folder" / "model.onnx"
    path.parent.mkdir()
    onnx.save(onnx.load(onnx_source), path, save_as_external_data=True, location="weights.bin", size_threshold=500)
    return path


def test_weights_beside_an_onnx_file_are_read(stored_apart, onnx_source, evaluation):
    rows = {"image": evaluation["image"][:4]}
    answered, expected = (open_model(path, rows).answer(rows)["output"] for path in (stored_apart, onnx_source))
    np.testing.assert_array_equal(answered, expected)


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("../weights.bin", "lies outside the folder of the model"),
        ("{folder}/weights.bin", "lies outside the folder of the model"),
        ("link.bin", "lies outside the folder of the model"),
        ("gone.bin", "is not there; it belongs beside the .onnx file"),
    ],
)
def test_weights_outside_the_folder_of_an_onnx_file_are_refused(stored_apart, location, said, evaluation):
    folder = stored_apart.parent
    shutil.copy(folder / "weights.bin", folder.parent)
    (folder / "link.bin").symlink_to(folder.parent / "weights.bin")
    model = onnx.load(stored_apart, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location.format(folder=folder)
    stored_apart.write_bytes(model.SerializeToString())
    given = re.escape(location.format(folder=folder))
    with pytest.raises(
        ExportError, match=rf"model\.onnx: tensor '.*weight': external data '{given}' {re.escape(said)}"
    ):
        open_model(stored_apart, {"image": evaluation["image"][:4]})


def test_rows_of_another_dtype_than_the_weights_are_explained_with_the_layer(linear):
    with pytest.raises(ExportError, match=r"layer '0' \(Linear\).*the weights are float64, and what comes in is not"):
        open_model(linear.double(), ROWS)


def test_a_weight_that_is_no_number_is_named(linear):
    check_finite(open_model(linear, ROWS))
    with torch.no_grad():
        linear[0].weight[1, 2] = float("nan")
    with pytest.raises(ExportError, match=r"weight '0\.weight': 1 of 18 values are NaN or Inf"):
        check_finite(open_model(linear, ROWS))
