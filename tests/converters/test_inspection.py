"""What ``edgeops inspect`` says of model files."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from edgeops.errors import ExportError
from edgeops.inspection import inspect_command
from edgeops_converters.inspection import decode_inspection, encode_inspection, inspect_file

EDGEOPS = Path(sys.executable).with_name("edgeops")


@pytest.fixture
def file(conversion):
    return lambda name: conversion.bundle.file(f"model.{name}")


@pytest.mark.parametrize("form", ["onnx", "tflite"])
def test_a_model_file_is_described(form, file):
    found, small = inspect_file(file(f"float.{form}")), inspect_file(file(f"int8.{form}"))
    assert decode_inspection(encode_inspection(small)) == small
    assert [(end.dtype, end.shape[1:]) for end in found.inputs] == [("uint8", (1, 16, 16))]
    assert [(end.dtype in {"float", "float32"}, end.shape[1:]) for end in found.outputs] == [(True, (4,))]
    assert (found.engine, found.audit.integer, found.audit.total) == ("loads", 0, 3)
    assert (small.engine, small.audit.integer) == ("loads", 3)
    sizes = found.sizes_bytes
    assert sizes.weights + sizes.biases + sizes.constants + sizes.rest == found.size_bytes
    assert small.sizes_bytes.weights * 3.5 < sizes.weights
    assert sum(found.operators.values()) > 4


def test_a_file_that_the_engine_does_not_load_is_described_all_the_same(file, tmp_path):
    model = onnx.load(file("float.onnx"))
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    onnx.save(model, tmp_path / "model.onnx")
    found = inspect_file(tmp_path / "model.onnx")
    assert "com.example" in found.engine
    assert (found.audit, found.versions["opset com.example"]) == (None, "1")


def test_external_data_are_listed_and_what_lies_outside_is_a_remark(file, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(onnx.load(file("float.onnx")), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    found = inspect_file(path)
    assert found.external_data["w.bin"] > 40_000
    assert found.sizes_bytes.weights > 40_000
    (tmp_path / "w.bin").unlink()
    assert "is not there" in inspect_file(path).remarks[0]


def test_another_file_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"expected one of \.onnx, \.tflite"):
        inspect_file(tmp_path / "model.h5")


def test_the_command_shows_a_model_file_for_people_and_for_machines(file, tmp_path):
    done = subprocess.run(
        [EDGEOPS, "inspect", file("int8.tflite"), "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["audit"] == {"integer": 3, "total": 3, "in_float": []}
    shown = CliRunner().invoke(inspect_command, [str(file("float.onnx"))])
    assert "all 3 convolutions and matrix products in float" in shown.output
    assert "weights" in shown.output
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(file("float.tflite").read_bytes()[:5000])
    failed = subprocess.run([EDGEOPS, "inspect", damaged], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("edgeops: ")
    assert "not a readable .tflite file" in failed.stderr


def test_a_key_makes_no_sense_for_a_model_file(file):
    wrong = CliRunner().invoke(inspect_command, [str(file("int8.onnx")), "--key", "x"])
    assert wrong.exit_code == 2
    assert "no signature" in wrong.output
