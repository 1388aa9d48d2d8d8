"""The rehearsal rounds where the converter rounds, and training through it leaves a module that int8 hurts less."""

import copy
import sys

import numpy as np
import pytest
import torch
from torch import nn

from edgeops.errors import RecipeError
from edgeops_converters import convert
from edgeops_converters.ranges import Range
from edgeops_converters.training import compress
from edgeops_converters.training.distillation import Teacher
from edgeops_converters.training.recovery import train
from edgeops_converters.training.rehearsal import Rehearsal, rounded, rounded_weight
from edgeops_converters.training.step import open_step
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


def test_values_are_rounded_behind_the_rectifier_and_not_between_a_layer_and_its_norm(nets, rows):
    rehearsal = rehearsal_of(nets.seeded(nets.Residual), rows)
    assert [node.name for node in rehearsal.points] == [
        "image", "relu_", "relu__1", "relu__2", "batch_norm_3", "add", "relu__3", "conv2d_5", "relu", "mean", "linear"
    ]  # fmt: skip


def test_the_noise_is_that_of_the_converters_int8(nets, fashion, tmp_path):
    module = nets.seeded(nets.Residual)
    images = fashion[1][0].numpy()
    data, held_out = {"image": images[:64]}, {"image": images[64:164]}
    conversion = convert(
        module,
        data=data,
        evaluation=held_out,
        name="net",
        version="1.0.0",
        output=tmp_path / "bundle",
        formats=["onnx"],
        force=True,  # a busy machine is not what these tests are about
    )
    rehearsal = rehearsal_of(module, data)
    rehearsal.calibrate(data)
    image = torch.from_numpy(held_out["image"])
    with torch.no_grad():
        expected = module(image)
        with rehearsal.on_stage():
            played = module(image)
    sqnr_db = 10 * np.log10(float(expected.square().mean() / (played - expected).square().mean()))
    assert sqnr_db == pytest.approx(conversion.report.variant("onnx-int8").sqnr_db, abs=4)


def trained(nets, step, *, steps):
    torch.manual_seed(0)
    module = nets.Residual(16)
    train(module, open_step(step), Teacher(module, 0.0), name="train", steps=steps, learning_rate=4e-3, seed=0)
    return module.eval()


def trained_on(module, step, *, steps, learning_rate, rehearsal=None, rows=None):
    """The module after more steps in eval mode, through a rehearsal or without one: the same in all else."""
    return train(
        module,
        open_step(step),
        Teacher(copy.deepcopy(module), 0.5),
        name="rehearse",
        steps=steps,
        learning_rate=learning_rate,
        seed=0,
        before_step=lambda index: rehearsal.calibrate(rows) if rehearsal is not None and index % 15 == 0 else None,
        plain=rehearsal.plain if rehearsal is not None else None,
    )


def test_training_through_rounding_to_three_bits_wins_back_what_rounding_loses(nets, fashion, step):
    (images, _), (held_out, labels) = fashion
    calibration = {"image": images[:128].numpy()}
    module = trained(nets, step, steps=120)
    usual, rehearsed = copy.deepcopy(module), copy.deepcopy(module)
    trained_on(usual, step, steps=60, learning_rate=1e-3)
    rehearsal = rehearsal_of(rehearsed, calibration, weight_bits=3)
    with rehearsal.on_stage():
        trained_on(rehearsed, step, steps=60, learning_rate=1e-3, rehearsal=rehearsal, rows=calibration)

    def accuracy(of):
        stage = rehearsal_of(of, calibration, weight_bits=3)
        stage.calibrate(calibration)
        with torch.no_grad(), stage.on_stage():
            return float((of(held_out).argmax(1) == labels).float().mean())

    found = {"as it was": accuracy(module), "more float steps": accuracy(usual), "rehearsed": accuracy(rehearsed)}
    # Four standard errors of a difference between two answers to the same 2000 rows are at most 0.06.
    assert found["rehearsed"] > max(found["as it was"], found["more float steps"]) + 0.06, found


@pytest.mark.slow
def test_the_converters_int8_loses_less_after_the_rehearsal_where_channels_differ_grossly(
    nets, fashion, step, tmp_path, capsys
):
    (images, _), (held_out, labels) = fashion
    data = {"image": images[:256].numpy()}
    module = nets.rescaled(trained(nets, step, steps=400))
    usual = copy.deepcopy(module)
    trained_on(usual, step, steps=160, learning_rate=1e-3)
    rehearsed = compress(module, step=step, data=data, qat_steps=160, learning_rate=1e-2).module

    accuracy = {}
    for name, subject in {"as it was": module, "more float steps": usual, "rehearsed": rehearsed}.items():
        report = convert(
            subject,
            data=data,
            evaluation={"image": held_out.numpy(), "labels": labels.numpy()},
            name="net",
            version="1.0.0",
            output=tmp_path / name.replace(" ", "-"),
            force=True,
        ).report
        for one in report.variants:
            accuracy[name, one.name] = one.accuracy.value
        with capsys.disabled():
            sys.stdout.write(
                f"\n{name}: " + ", ".join(f"{one.name} {one.accuracy.value:.2%}" for one in report.variants)
            )
    # As above: four standard errors of a difference are at most 0.06.
    for variant in ("onnx-int8", "tflite-int8"):
        others = max(accuracy["as it was", variant], accuracy["more float steps", variant])
        assert accuracy["rehearsed", variant] > others + 0.06, variant


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
