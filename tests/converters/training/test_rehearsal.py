"""The rehearsal answers through rounding at the right places, as the converter's files do, and leaves nothing behind."""

import numpy as np
import pytest
import torch
from torch import nn

from edgeops.errors import RecipeError
from edgeops_converters.fidelity import sqnr_db
from edgeops_converters.ranges import Range
from edgeops_converters.sessions import run_rows
from edgeops_converters.training.rehearsal import Rehearsal, rounded, rounded_weight
from edgeops_converters.training.tracing import trace


def rehearsal_of(module, rows, **changes):
    return Rehearsal(trace(module, rows, is_dynamic=True), module, **changes)


def test_values_lie_on_255_steps_with_zero_on_one_and_gradients_stop_outside():
    values = torch.linspace(-2, 3, 1001, requires_grad=True)
    on_grid = rounded(values, Range(-1.0, 2.0))
    assert len(on_grid.unique()) == 256
    assert 0.0 in on_grid
    on_grid.sum().backward()
    inside = (values > -1) & (values < 2)
    assert bool((values.grad[inside] == 1).all())
    assert bool((values.grad[(values < -1.01) | (values > 2.01)] == 0).all())


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (4, 7)])
def test_weights_are_symmetric_for_each_channel_and_keep_their_peak(bits, most):
    weights = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1e-3, 1, 50, 0]
    ).reshape(4, 1, 1, 1)
    found = rounded_weight(weights, 0, bits)
    peaks = weights.abs().amax((1, 2, 3))
    torch.testing.assert_close(found.abs().amax((1, 2, 3)), peaks)
    steps = (found[:3] / (peaks[:3].reshape(-1, 1, 1, 1) / most)).round()
    assert int(steps.abs().max()) == most
    assert not found[3].any()


@pytest.mark.parametrize("name", ["Residual", "Dense", "Excited", "Grouped", "Up"])
def test_the_graph_with_norms_folded_answers_as_the_module_and_rounding_changes_it_a_little(nets, rows, name):
    module = nets.seeded(getattr(nets, name))
    image = torch.from_numpy(rows["image"])
    rehearsal = rehearsal_of(module, rows)
    rehearsal.calibrate(rows)
    with torch.no_grad():
        expected = module(image)
        (plain,) = rehearsal._run([image], None)
        with rehearsal.on_stage():
            played = module(image)
        torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-5)
        noise = float((played - expected).square().mean() / expected.square().mean())
        assert 1e-7 < noise < 1e-2
        assert torch.equal(module(image), expected), "the rounding stays"
    assert "forward" not in module.__dict__


@pytest.mark.parametrize(("name", "forms"), [("Residual", ["onnx"]), ("Excited", ["onnx", "tflite"])])
def test_the_rehearsal_is_as_far_from_float_as_the_converters_files_are(name, forms, trained, fashion, integers):
    module, ((images, _), (held_out, _)) = trained(name, 40), fashion
    rows, exam = {"image": images[:128].numpy()}, held_out[:256]
    rehearsal = rehearsal_of(module, rows)
    rehearsal.calibrate(rows)
    with torch.no_grad():
        expected = {"output": module(exam).numpy()}
        with rehearsal.on_stage():
            rehearsed = sqnr_db(expected, {"output": module(exam).numpy()})
    real = {
        form: sqnr_db(expected, run_rows(file.open().run, {"image": exam.numpy()}, batch=file.batch))
        for form, file in integers(module, rows, forms).items()
    }
    assert real == pytest.approx(dict.fromkeys(real, rehearsed), abs=3)


def test_values_are_rounded_behind_the_rectifier_and_not_between_a_layer_and_its_norm(nets, rows):
    rehearsal = rehearsal_of(nets.seeded(nets.Residual), rows)
    assert [node.name for node in rehearsal.points] == [
        "image", "relu_", "relu__1", "relu__2", "batch_norm_3", "add", "relu__3", "conv2d_5", "relu", "mean", "linear"
    ]  # fmt: skip


def test_a_module_that_fixes_the_number_of_rows_is_refused():
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x):
            return torch.stack([self.linear(row) for row in x])

    with pytest.raises(RecipeError, match=r"Unrolled: .* the module fixes the number of rows; use x\.shape"):
        rehearsal_of(Unrolled().eval(), {"x": np.zeros((2, 6), np.float32)})


def test_a_call_without_an_input_is_named(nets, rows):
    class Two(nn.Module):
        def forward(self, image, scale=None):
            return image if scale is None else image * scale[:, None, None, None]

    data = {**rows, "scale": np.ones(4, np.float32)}
    module = Two().eval()
    rehearsal = rehearsal_of(module, data)
    rehearsal.calibrate(data)
    with rehearsal.on_stage():
        assert module(torch.ones(1, 1, 28, 28), scale=torch.ones(1)).shape == (1, 1, 28, 28)
        with pytest.raises(RecipeError, match=r"calls the module without \['scale'\]"):
            module(torch.ones(1, 1, 28, 28))
