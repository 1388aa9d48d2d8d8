"""The doctor as a whole, and as a command."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from edgeops.errors import ExportError, RecipeError
from edgeops_converters.cli.doctor import doctor_command
from edgeops_converters.doctor import Level, examine
from edgeops_converters.doctor.examples import example_rows

ROWS = {"x": np.random.default_rng(0).random((4, 6), np.float32)}


@pytest.mark.parametrize(("inner", "said"), [("Bessel", "bessel_j0"), ("Branch", "data-dependent")])
def test_what_no_exporter_takes_blocks_with_its_layer_and_what_to_change(models, inner, said):
    model = models.Wrapped(getattr(models, inner)()).eval()
    diagnosis = examine(model, data=ROWS, formats=("onnx",))
    (finding,) = [one for one in diagnosis.findings if one.level is Level.BLOCKS]
    assert (finding.rule, finding.layer, finding.kind) == ("does-not-export", "inner", inner)
    assert said in finding.what
    assert finding.change
    assert diagnosis.is_blocked


def test_a_program_keeps_the_names_of_its_layers(models, tmp_path):
    path = tmp_path / "model.pt2"
    model = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 3)).eval()
    torch.export.save(torch.export.export(model, (torch.zeros(3, 6),)), path)
    found = {(one.rule, one.layer, one.kind) for one in examine(path, formats=("onnx",)).findings}
    assert {("falls-back-to-float", "1", "GELU"), ("fixed-batch", "", "")} <= found
    assert not any(one.where.startswith("LiteRT") for one in examine(path, formats=("onnx",)).findings)


SOURCE = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 3)).eval()

def broken():
    model = make()
    model[2].weight.data[0, 0] = float("nan")
    return model
"""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(SOURCE + "\ndef example_inputs():\n    return {'x': torch.zeros(1, 6)}\n")
    return path


def test_the_command_says_what_costs_and_ends_well(source):
    done = CliRunner().invoke(doctor_command, [f"{source}:make", "--formats", "onnx"], standalone_mode=False)
    assert done.return_value == 0, done.output
    assert "costs   1 (GELU)" in done.stdout
    assert "3 operators" in done.stdout
    assert "0 blocks, 1 costs" in done.stdout


def test_the_command_gives_json_and_exit_code_1_when_something_blocks(source):
    arguments = [f"{source}:broken", "--formats", "onnx", "--target", "arm", "--json"]
    done = CliRunner().invoke(doctor_command, arguments, standalone_mode=False)
    assert done.return_value == 1, done.output
    diagnosis = json.loads(done.stdout)
    assert diagnosis["target"] == "arm"
    first = diagnosis["findings"][0]
    assert (first["level"], first["rule"], first["layer"]) == ("blocks", "not-finite", "2.weight")


def test_an_example_in_the_file_takes_the_place_of_data(source):
    assert example_rows(f"{source}:make")["x"].shape == (2, 6)
    source.write_text(f"{SOURCE}\nexample_inputs = torch.ones(3, 6)\n")
    assert example_rows(source)["input"].shape == (3, 6)


@pytest.mark.parametrize("text", ["", "example_inputs = 7", "example_inputs = {}", "example_inputs = {'x': 'rows'}"])
def test_a_file_without_an_example_asks_for_data(source, text):
    source.write_text(f"{SOURCE}\n{text}\n")
    with pytest.raises(RecipeError, match=r"give them \(--data FILE.npz\), or define in the file example_inputs"):
        example_rows(f"{source}:make")


def test_a_pickle_needs_permission_and_data(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(6, 3).eval(), path)
    with pytest.raises(RecipeError, match="--data"):
        examine(path, allow_pickle=True)
    with pytest.raises(ExportError, match="--allow-pickle"):
        examine(path, data=ROWS)
    assert examine(path, data=ROWS, formats=("onnx",), allow_pickle=True).operators == 1


def test_a_module_needs_data():
    with pytest.raises(ExportError, match="give data"):
        examine(nn.Linear(6, 3).eval())
