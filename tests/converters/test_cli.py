"""``edgeops convert`` as a user types it, in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeops.bundle import open_bundle
from edgeops.signing import SigningKey

EDGEOPS = Path(sys.executable).with_name("edgeops")
TINY = Path(__file__).parents[2] / "examples" / "convert" / "tiny.py"


def run(folder, *arguments):
    return subprocess.run([EDGEOPS, "convert", *arguments], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path, calibration, evaluation):
    np.savez(tmp_path / "calib.npz", **calibration)
    np.savez(tmp_path / "eval.npz", **evaluation)
    return tmp_path


def usual(**changes):
    options = {"--data": "calib.npz", "--eval": "eval.npz", "--name": "quarters", "--version": "1.0.0", "-o": "bundle"}
    return [part for option in (options | changes).items() for part in option]


def test_a_model_becomes_a_signed_bundle_with_figures_on_standard_output(folder):
    key = SigningKey.generate()
    key.save(folder / "release.key")
    (folder / "labels.txt").write_text("nw\nne\nsw\nse\n")
    (folder / "processing.json").write_text(json.dumps({"postprocess": [{"op": "softmax", "tensor": "output"}]}))

    done = run(
        folder, f"{TINY}:tiny", *usual(), "--key", "release.key", "--labels", "labels.txt", "--formats", "onnx",
        "--processing", "processing.json", "--license", "MIT", "--force", "--json",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    manifest = open_bundle(folder / "bundle", keys=[key.public]).manifest
    assert [variant["name"] for variant in report["variants"]] == [variant.name for variant in manifest.variants]
    assert manifest.labels == ("nw", "ne", "sw", "se")
    assert manifest.postprocess[0].tensor == "output"
    assert report["source"]["label"] == f"{TINY}:tiny"
    lines = done.stderr.splitlines()
    assert all(" s  " in line for line in lines), "nothing but the steps on standard error"
    assert "export onnx" in done.stderr


def test_what_the_users_code_prints_is_no_part_of_the_json(folder):
    (folder / "chatty.py").write_text(
        "import torch\n"
        "print('imported')\n"
        "class Chatty(torch.nn.Flatten):\n"
        "    def forward(self, image):\n"
        "        print('asked')\n"
        "        return super().forward(image)[:, :4]\n"
        "def make():\n"
        "    print('made')\n"
        "    return Chatty().eval()\n"
    )
    done = run(folder, "chatty.py:make", *usual(), "--formats", "onnx", "--precisions", "float", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "quarters"
    assert "imported" in done.stderr


def test_no_library_reports_its_use(folder, onnx_source):
    scratch = folder / "scratch"
    scratch.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run(
        [EDGEOPS, "convert", onnx_source, *usual(), "--precisions", "float"],
        cwd=folder, check=True, capture_output=True, env={**environment, "TMPDIR": str(scratch)},
    )  # fmt: skip
    assert not (scratch / ".ses").exists(), "the session file of onnxruntime's telemetry"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_interrupted_conversion_leaves_nothing(folder, number, code):
    scratch = folder / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        [EDGEOPS, "convert", f"{TINY}:tiny", *usual()],
        cwd=folder, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(scratch)},
    )  # fmt: skip
    with process:
        for line in process.stderr:
            if "export onnx" in line:
                process.send_signal(number)
    assert process.returncode == code
    assert not list(scratch.glob("edgeops-*"))
    assert not (folder / "bundle").exists()


def test_a_file_that_cannot_grow_is_said_as_such_and_leaves_nothing(folder, onnx_source):
    limit = (
        "import os, resource as r, sys; r.setrlimit(r.RLIMIT_FSIZE, (8000, 8000)); os.execv(sys.argv[1], sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", limit, EDGEOPS, "convert", onnx_source, *usual()],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "export onnx: [Errno 27] File too large" in done.stderr
    assert not (folder / "bundle").exists()


def test_the_steps_and_a_table_are_shown_on_a_terminal(folder, onnx_source):
    leader, follower = os.openpty()
    process = subprocess.Popen(
        [EDGEOPS, "convert", onnx_source, *usual(), "--precisions", "float"],
        cwd=folder, stdout=subprocess.PIPE, stderr=follower, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(follower)
    shown = b""
    while True:
        try:
            chunk = os.read(leader, 4096)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    table = process.stdout.read().decode()
    process.stdout.close()
    assert process.wait() == 0
    os.close(leader)
    assert "✓" in shown.decode()
    assert "export onnx" in shown.decode()
    assert "onnx-float" in table
    assert "not signed; give --key" in table


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere.py:make", *usual()], 1, "nowhere.py: no such file"),
        ([f"{TINY}:huge", *usual()], 1, "no function 'huge'; it has quarters, tiny"),
        ([f"{TINY}:tiny", *usual(**{"--data": "gone.npz"})], 1, "gone.npz"),
        ([f"{TINY}:tiny", *usual(), "--key", "gone.key"], 1, "gone.key: expected a private key"),
        ([f"{TINY}:tiny", *usual(), "--processing", "calib.npz"], 1, "calib.npz: expected {"),
        ([f"{TINY}:tiny", *usual(**{"-o": "calib.npz"})], 1, "calib.npz: exists already"),
        ([f"{TINY}:tiny", *usual(**{"-o": "calib.npz/bundle"})], 1, "calib.npz is no directory"),
        ([f"{TINY}:tiny", *usual(), "--target", "mips"], 2, "--target"),
        ([f"{TINY}:tiny", *usual(), "--parent", "1.0.0"], 2, "sha256"),
        ([f"{TINY}:tiny", "--data", "calib.npz"], 2, "--eval"),
    ],
)
def test_wrong_input_is_one_clear_line_and_an_exit_code(folder, arguments, code, said):
    done = run(folder, *arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "bundle").exists()
