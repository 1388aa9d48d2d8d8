"""The user's training step is checked where it goes wrong, with what to change."""

import functools

import pytest
import torch
from torch import nn

from edgeops.errors import ExportError, RecipeError
from edgeops_converters.training.step import open_step

DATA = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def good(module, index):
    return module(DATA * index).square().mean()


def parameterless(module):
    return module(DATA).mean()


def three(module, index, epoch):
    return module(DATA).mean()


def detached(module, index):
    with torch.no_grad():
        return module(DATA).mean()


@pytest.mark.parametrize(
    "step", [good, functools.partial(good), lambda module, index, scale=2: scale * good(module, index)]
)
def test_a_step_runs_and_shows_what_the_module_was_given_and_answered(step):
    module = nn.Linear(3, 2)
    batch = open_step(step).run(module, 3)
    assert batch.loss.shape == ()
    (call,) = batch.calls
    assert torch.equal(call.arguments[0], DATA * 3)
    assert torch.equal(call.answer, module(DATA * 3))
    open_step(step).run(module, 0)
    assert not module._forward_hooks, "the hook stays"


@pytest.mark.parametrize("step", [parameterless, three])
def test_another_signature_is_refused_and_shown(step):
    with pytest.raises(RecipeError, match=rf"expected step\(module, index\) -> loss.*got {step.__name__}\(module"):
        open_step(step)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (detached, r"no gradient comes from the loss of step 2; leave out no_grad"),
        (lambda module, index: module(DATA).mean().item(), r"got float"),
        (lambda module, index: module(DATA), r"got a tensor of shape \[4, 2\]"),
        (lambda module, index: None, r"got NoneType"),
        (lambda module, index: nn.Linear(3, 2)(DATA).mean(), r"does not call the module that it is given"),
        (lambda module, index: module.forward(DATA).mean(), r"does not call the module that it is given"),
        (lambda module, index: (module(DATA) * float("nan")).mean(), r"the loss of step 2 is nan; look at its data"),
        (lambda module, index: module(DATA).mean() / 0, r"the loss of step 2 is -?inf"),
        (lambda module, index: module(DATA.T).mean(), r"step 2 failed: .*mat1 and mat2"),
        (lambda module, index: DATA[index + 9], r"step 2 failed: IndexError"),
    ],
)
def test_a_step_that_cannot_train_says_why(step, said):
    with pytest.raises(RecipeError, match=said):
        open_step(step).run(nn.Linear(3, 2), 2)


def test_a_step_comes_from_a_file(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("import torch\ndef step(module, index):\n    return module(torch.ones(1, 3)).sum()\n")
    assert open_step(f"{path}:step").run(nn.Linear(3, 2), 0).loss.requires_grad


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("train.py:gone", r"no function 'gone'; it has step"),
        ("train.py", r"with a function that trains one batch: step\(module, index\) -> loss"),
        ("gone.py:step", r"no such file"),
        ("train.pt:step", r"expected file\.py:function, the training step"),
    ],
)
def test_a_file_without_a_step_is_explained(tmp_path, name, said):
    (tmp_path / "train.py").write_text("def step(module, index):\n    return 0\n")
    with pytest.raises((ExportError, RecipeError), match=said):
        open_step(f"{tmp_path}/{name}")
