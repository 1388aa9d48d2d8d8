"""The noise of layers, on real files and engines."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgeops.errors import EngineError
from edgeops_converters.artifact import Artifact
from edgeops_converters.calibration import spread
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.fidelity import sqnr_db
from edgeops_converters.layer_noise import ROWS, layer_noise
from edgeops_converters.quantization import quantize
from edgeops_converters.sources import open_model
from edgeops_converters.targets import this_machine


def artifacts(bundle):
    return {
        one.name: Artifact(bundle.file(one.file), one.format, one.precision, one.batch, one.inputs, one.outputs)
        for one in bundle.manifest.variants
    }


@pytest.fixture
def rows(byte_evaluation):
    return {"image": byte_evaluation["image"]}


@pytest.mark.parametrize(
    ("form", "kinds"),
    [
        ("onnx", ["Conv", "Conv", "AveragePool", "Conv"]),
        # The first takes the zero point off the bytes.
        ("tflite", ["SUB", "DEPTHWISE_CONV_2D", "CONV_2D", "AVERAGE_POOL_2D", "CONV_2D"]),
    ],
)
def test_layers_come_in_the_order_of_the_graph_and_end_with_the_noise_of_the_answer(conversion, rows, form, kinds):
    files = artifacts(conversion.bundle)
    layers = layer_noise(files[f"{form}-float"], files[f"{form}-int8"], rows)

    assert [layer.kind for layer in layers] == kinds
    assert {layer.precision for layer in layers} == {"int8"}
    images = spread(rows, ROWS)["image"]
    expected, given = (
        np.concatenate([session.run({"image": image[None]})["output"] for image in images])
        for session in (files[f"{form}-float"].open(), files[f"{form}-int8"].open())
    )
    assert layers[-1].sqnr_db == pytest.approx(sqnr_db({"y": expected}, {"y": given}), abs=0.05)
    first, second = (layer for layer in layers[:-1] if "CONV" in layer.kind.upper())
    assert second.input_sqnr_db == first.sqnr_db


def test_the_report_of_a_conversion_has_the_layers_of_every_compressed_file(conversion):
    for variant in conversion.report.variants:
        assert bool(variant.layers) == (variant.precision != "float32"), variant.name
        assert not any("cannot be looked at" in note for note in variant.notes)


def test_a_file_has_no_noise_against_itself(conversion, rows):
    for name, one in artifacts(conversion.bundle).items():
        if one.precision == "float32":
            layers = layer_noise(one, one, rows)
            assert layers, name
            assert {layer.precision for layer in layers} == {"float32"}
            if one.format == "tflite":
                assert {layer.sqnr_db for layer in layers} == {None}
            else:  # one side runs without fusing anything
                assert min(layer.sqnr_db or 200 for layer in layers) > 100


@pytest.fixture(scope="module")
def lopsided():
    """Channels of very different size between two layers, which the quantizers equalise."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    net = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(288, 3))
    scale = 2.0 ** torch.tensor([-6.0, -3, 0, 0, 1, 3, 5, 7])
    with torch.no_grad():
        net[0].weight *= scale.reshape(-1, 1, 1, 1)
        net[0].bias *= scale
        net[2].weight /= scale.reshape(1, -1, 1, 1)
    return net.eval()


@pytest.mark.parametrize("form", ["onnx", "tflite"])
def test_equalised_channels_are_no_noise(lopsided, tmp_path, form):
    rows = {"x": np.random.default_rng(0).normal(0, 0.5, (40, 2, 6, 6)).astype(np.float32)}
    few = {"x": rows["x"][:4]}
    original = EXPORTERS[form].export(open_model(lopsided, few), few, tmp_path / f"float.{form}")
    compressed = quantize(original, rows, tmp_path / f"int8.{form}", cpu=this_machine())

    first = layer_noise(original, compressed, rows)[0]

    assert first.sqnr_db > 15, "a channel that was divided by a power of two counts as noise: about 0 dB"


def test_a_file_that_does_not_run_is_an_error_of_the_engine(conversion, rows, tmp_path):
    one = artifacts(conversion.bundle)["onnx-float"]
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(one.path.read_bytes()[:-200])
    with pytest.raises(EngineError, match="its layers cannot be looked at"):
        layer_noise(one, replace(one, path=broken), rows)
