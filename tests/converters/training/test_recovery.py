"""Training goes down, the same way each time, and says what keeps it from going."""

import copy

import pytest
import torch
from torch import nn

from edgeops.errors import RecipeError
from edgeops_converters.training.distillation import Teacher
from edgeops_converters.training.recovery import train
from edgeops_converters.training.step import open_step


def step(module, index):
    rows = torch.randn(16, 3)  # drawn from torch's generator, which is seeded
    return (module(rows) - rows.sum(1, keepdim=True)).square().mean()


def run(module, function=step, **changes):
    settings = {"name": "recover", "steps": 40, "learning_rate": 0.1, "seed": 3}
    return train(module, open_step(function), Teacher(copy.deepcopy(module), 0.0), **settings | changes)


def test_the_loss_goes_down_and_is_told_ten_times():
    torch.manual_seed(0)
    told = []
    result = run(nn.Linear(3, 1), on_step=told.append)
    assert result.last < 0.05 * result.first
    assert len(told) == 10
    assert told[-1].startswith("recover: step 40 of 40, loss 0.")


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator():
    torch.manual_seed(0)
    first = nn.Linear(3, 1)
    second, third = copy.deepcopy(first), copy.deepcopy(first)
    state = torch.get_rng_state()
    run(first)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    run(second)
    run(third, seed=4)
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, third.weight)


def test_gradients_that_go_elsewhere_are_refused():
    own = nn.Linear(3, 1)

    def beside(module, index):
        module(torch.ones(1, 3))
        return own(torch.ones(1, 3)).sum()

    with pytest.raises(RecipeError, match="no gradient reaches the module"):
        run(nn.Linear(3, 1), beside)


def test_a_loss_that_grows_beyond_all_numbers_is_refused_with_what_to_do():
    with pytest.raises(RecipeError, match=r"the loss of step \d+ is (nan|inf).*--learning-rate"):
        run(nn.Linear(3, 1), learning_rate=1e30)


def test_weights_that_are_no_numbers_after_the_last_step_are_refused():
    def steep(module, index):
        return torch.sqrt(module(torch.zeros(1, 3)).sum() - module.bias.sum())

    with pytest.raises(RecipeError, match="weights are NaN or Inf after 1 steps"):
        run(nn.Linear(3, 1), steep, steps=1)


def test_a_module_without_anything_to_train_is_refused():
    with pytest.raises(RecipeError, match="no parameter with requires_grad"):
        run(nn.Linear(3, 1).requires_grad_(False))
