"""Bytes on their way into int8 files made by the libraries' own quantisers: what is taken out, and that nothing else changes."""

import numpy as np
import onnx
import pytest
import torch
from ai_edge_quantizer import qtyping, quantizer, recipe
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from edgeops.manifest import Scale
from edgeops_converters.artifact import Artifact
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.exporters.litert import tensor_names
from edgeops_converters.extras import quiet
from edgeops_converters.quantizers.entry import entry_ranges, fuse_entry
from edgeops_converters.quantizers.litert_graph import LitertFile
from edgeops_converters.rewrites import rewrite
from edgeops_converters.sessions import run_rows
from edgeops_converters.sources import open_model

SCALE = Scale(tensor="image", factor=1 / 128, offset=-127 / 128)


@pytest.fixture(scope="module")
def rows():
    """Every row has every byte."""
    images = np.random.default_rng(3).integers(0, 256, (6, 3, 12, 12)).astype(np.uint8)
    images.reshape(6, -1)[:, :256] = np.arange(256)
    return {"image": images}


@pytest.fixture(scope="module")
def exports(rows, tmp_path_factory):
    """A small network that takes bytes, in float files."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    floats = {"image": (rows["image"] * np.float32(SCALE.factor) + np.float32(SCALE.offset))}
    directory = tmp_path_factory.mktemp("entry")
    model = rewrite(open_model(network.eval(), floats), rows, preprocess=(SCALE,)).model
    return {form: one.export(model, rows, directory / f"float.{form}") for form, one in EXPORTERS.items()}


class Reader(CalibrationDataReader):
    """Calibration rows one by one."""

    def __init__(self, images):
        self._rows = iter([{"image": image[None]} for image in images])

    def get_next(self):
        return next(self._rows, None)


def quantized(source, rows, target, *, activations=QuantType.QUInt8):
    """What the format's stock quantiser makes of a float file, with the float interface kept."""
    if source.format == "onnx":
        quantize_static(
            source.path,
            target,
            Reader(rows["image"]),
            quant_format=QuantFormat.QDQ,
            activation_type=activations,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        return Artifact(target, "onnx", "int8", None, source.inputs, source.outputs)
    with quiet():
        stock = quantizer.Quantizer(str(source.path))
        stock.load_quantization_recipe(recipe.static_wi8_ai8())
        for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
            stock.update_quantization_recipe(".*", end, algorithm_key="no_quantize")
        found = stock.calibrate({"serving_default": [{"args_0": image[None]} for image in rows["image"]]})
        content = bytes(stock.quantize(calibration_result=found).quantized_model)
    target.write_bytes(content)
    inputs, outputs = tensor_names(target)
    return Artifact(target, "tflite", "int8", 1, {"image": inputs["args_0"]}, {"output": outputs["output_0"]})


def operators(path):
    return [node.op_type for node in onnx.load(str(path)).graph.node]


def answers(artifact, rows):
    return run_rows(artifact.open(is_plain=True).run, rows, batch=artifact.batch)["output"]


def test_the_ranges_of_an_entry_are_those_of_the_256_bytes(exports):
    for form, artifact in exports.items():
        found = entry_ranges(artifact)
        ends = {(one.low, one.high) for one in found.values()}
        assert {(0.0, 255.0), (-127.0, 128.0)} <= ends, form


@pytest.mark.parametrize("activations", [QuantType.QUInt8, QuantType.QInt8])
def test_onnxruntime_reads_bytes_as_they_are_with_the_same_answers(exports, rows, activations, tmp_path):
    artifact = quantized(exports["onnx"], rows, tmp_path / "int8.onnx", activations=activations)
    before, more = answers(artifact, rows), operators(artifact.path)
    assert {"Cast", "Sub"} <= set(more)

    assert fuse_entry(artifact)

    left = operators(artifact.path)
    assert not {"Cast", "Sub", "Mul"} & set(left)
    gone = more.count("QuantizeLinear") - left.count("QuantizeLinear")
    assert gone == (2 if activations is QuantType.QUInt8 else 1)
    np.testing.assert_array_equal(answers(artifact, rows), before)
    assert not fuse_entry(artifact)


def test_litert_turns_bytes_into_signed_ones_at_once_with_the_same_answers(exports, rows, tmp_path):
    artifact = quantized(exports["tflite"], rows, tmp_path / "int8.tflite")
    before, more = answers(artifact, rows), LitertFile(artifact.path.read_bytes())

    assert fuse_entry(artifact)

    file = LitertFile(artifact.path.read_bytes())
    assert len(file.operators) < len(more.operators)
    parameters = file.details[file.inputs[0]]["quantization_parameters"]
    assert (parameters["scales"].size, parameters["zero_points"].tolist()) == (1, [127])
    np.testing.assert_array_equal(answers(artifact, rows), before)
    assert not fuse_entry(artifact)


def test_an_entry_on_another_grid_than_that_of_the_bytes_is_left_alone(exports, rows, tmp_path):
    dark = {"image": rows["image"] // 3}
    for form, source in exports.items():
        artifact = quantized(source, dark, tmp_path / f"int8.{form}")
        before = artifact.path.read_bytes()
        assert not fuse_entry(artifact)
        assert artifact.path.read_bytes() == before


def test_files_that_take_floats_have_no_entry(onnx_source):
    artifact = Artifact(onnx_source, "onnx", "float32", None, {"image": "image"}, {"output": "output"})
    assert entry_ranges(artifact) == {}
    assert not fuse_entry(artifact)
