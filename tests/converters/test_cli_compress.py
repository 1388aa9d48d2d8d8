"""``edgeops compress`` as a user types it, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

EDGEOPS = Path(sys.executable).with_name("edgeops")
TINY = Path(__file__).parents[2] / "examples" / "convert" / "tiny.py"
SOURCE = (f"{TINY}:tiny", "--train", f"{TINY}:step")


def run(folder, *arguments):
    return subprocess.run([EDGEOPS, "compress", *arguments], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path, calibration):
    np.savez(tmp_path / "calib.npz", **calibration)
    return tmp_path


def usual(**changes):
    options = {"--data": "calib.npz", "-o": "small.pt2", "--prune": "50"}
    return [part for option in (options | changes).items() for part in option]


def test_a_model_becomes_a_smaller_program_with_figures_on_standard_output(folder, evaluation):
    done = run(folder, *SOURCE, *usual(), "--steps", "20", "--qat-steps", "10", "--json")

    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["macs"]["after"] <= figures["macs"]["before"] / 2
    assert {layer["name"] for layer in figures["layers"]} == {"0", "3", "7"}
    assert [(one["name"], one["steps"]) for one in figures["trainings"]] == [("recover", 20), ("rehearse int8", 10)]
    lines = done.stderr.splitlines()
    assert all(" s  " in line for line in lines), "nothing but the steps on standard error"
    assert any("recover: step 20 of 20, loss 0." in line for line in lines)
    module = torch.export.load(folder / "small.pt2").module()
    answers = module(torch.from_numpy(evaluation["image"])).argmax(1).numpy()
    assert (answers == evaluation["labels"]).mean() > 0.97
    assert str(TINY.parent).encode() not in (folder / "small.pt2").read_bytes(), "a path of this machine"


@pytest.mark.slow
def test_the_table_names_every_layer_that_is_smaller(folder):
    done = run(folder, *SOURCE, *usual(), "--steps", "0")
    assert done.returncode == 0, done.stderr
    assert "multiply-accumulates" in done.stdout
    assert "7                           4×128 → 4×" in done.stdout
    assert done.stdout.endswith("small.pt2\n")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([*SOURCE, *usual(**{"--prune": "0"})], 1, "nothing to do; give --prune PERCENT, --qat-steps N, or both"),
        ([*SOURCE, *usual(**{"--prune": "100"})], 1, "0 to below 100, got 100"),
        ([*SOURCE, *usual(**{"-o": "calib.npz"})], 1, "expected a name that ends in .pt2"),
        ([*SOURCE, *usual(**{"-o": "gone/small.pt2"})], 1, "gone is no directory"),
        ([*SOURCE, *usual(**{"--data": "gone.npz"})], 1, "gone.npz"),
        (["model.onnx", *SOURCE[1:], *usual()], 1, "model.onnx: expected file.py:function; training needs the module"),
        pytest.param(
            [SOURCE[0], "--train", f"{TINY}:quarters", *usual(), "--steps", "1"],
            1,
            "tiny.py:quarters: step 0 failed",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [SOURCE[0], "--train", f"{TINY}:tiny", *usual()],
            1,
            "expected step(module, index) -> loss",
            marks=pytest.mark.slow,
        ),
        ([*SOURCE, "--data", "calib.npz"], 2, "--output"),
    ],
)
def test_wrong_input_is_one_clear_line_and_an_exit_code(folder, arguments, code, said):
    done = run(folder, *arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "small.pt2").exists()
