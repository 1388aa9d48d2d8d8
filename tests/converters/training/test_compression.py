"""From a module and a training step to an exported program that the converter takes."""

import numpy as np
import pytest
import torch
from torch import nn

from edgeops.errors import ConflictError, InputError, TransientError
from edgeops_converters import convert
from edgeops_converters.training import compress


@pytest.fixture(scope="module")
def compressed(tiny, network, calibration, tmp_path_factory):
    """The example's model at half its cost, and where it was written."""
    output = tmp_path_factory.mktemp("programs") / "small.pt2"
    told = []
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    result = compress(
        network, step=tiny.step, data=calibration, output=output, prune=50, steps=20, qat_steps=8, on_step=told.append
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items()), (
        "the original changed"
    )
    return result, output, told


@pytest.mark.slow
def test_the_program_converts_to_both_formats_smaller_and_as_good(
    compressed, conversion, calibration, evaluation, tmp_path
):
    _, output, _ = compressed
    small = convert(
        str(output),
        data=calibration,
        evaluation=evaluation,
        name="small",
        version="1.0.0",
        output=tmp_path / "bundle",
        force=True,  # a busy machine is not what these tests are about
    )
    for variant in small.report.variants:
        assert variant.accuracy.value > 0.98
        assert variant.size_bytes < conversion.report.variant(variant.name).size_bytes
    assert {variant.format for variant in small.report.variants} == {"onnx", "tflite"}


def test_what_was_done_is_told(compressed):
    result, _, told = compressed
    assert result.macs[1] <= result.macs[0] / 2
    assert result.parameters[1] == sum(parameter.numel() for parameter in result.module.parameters())
    assert [layer.name for layer in result.layers] == ["0", "3", "7"]
    assert [(training.name, training.steps) for training in result.trainings] == [("recover", 20), ("rehearse int8", 8)]
    assert told[:4] == [
        "open the source",
        "read the channels",
        "try which channels can go",
        "measure which channels matter",
    ]
    assert told[-1] == "write the exported program"


def test_the_original_stays_and_the_result_is_a_plain_module(compressed, network, evaluation):
    result, _, _ = compressed
    assert type(result.module) is type(network)
    assert not result.module.training
    assert network[0].out_channels == 32
    assert all(parameter.grad is None for parameter in result.module.parameters())
    with torch.no_grad():
        answers = result.module(torch.from_numpy(evaluation["image"])).argmax(1).numpy()
    assert (answers == evaluation["labels"]).mean() > 0.98


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_of_weights(compressed, tiny, network, calibration):
    result, _, _ = compressed
    again = compress(network, step=tiny.step, data=calibration, prune=50, steps=20, qat_steps=8)
    for name, tensor in result.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name]), name


def test_an_existing_output_is_kept(tiny, network, calibration, tmp_path):
    output = tmp_path / "small.pt2"
    output.write_text("precious")
    with pytest.raises(ConflictError, match=r"small\.pt2: exists already"):
        compress(network, step=tiny.step, data=calibration, output=output, prune=30)
    assert output.read_text() == "precious"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"distill": 1.5}, "distill: expected a share from 0 to 1, got 1.5"),
        ({"steps": -1}, "expected 0 or more steps, got -1"),
        ({"learning_rate": float("nan")}, "learning rate: expected a positive number, got nan"),
        ({"prune": float("nan")}, "prune: expected per cent"),
        ({"prune": 99}, "99% of the multiply-accumulates cannot go; .* would"),
        ({"data": {"image": np.full((3, 1, 16, 16), np.nan, np.float32)}}, "NaN or Inf"),
        ({"source": "small.pt2"}, r"small\.pt2: expected file\.py:function; training needs the module itself"),
        ({"source": nn.Linear(3, 2)}, r"training mode; call \.eval\(\)"),
        ({"step": lambda module: 0}, r"expected step\(module, index\) -> loss"),
    ],
)
def test_what_cannot_work_is_refused_before_any_training(tiny, network, calibration, changes, said):
    given = {"source": network, "step": tiny.step, "data": calibration, "prune": 30.0}
    with pytest.raises(InputError, match=said):
        compress(**given | changes)


def test_a_directory_that_is_not_there_is_said_at_once(tiny, network, calibration, tmp_path):
    with pytest.raises(TransientError, match="gone is no directory"):
        compress(network, step=tiny.step, data=calibration, output=tmp_path / "gone" / "small.pt2", prune=30)
