"""A pupil is asked for its teacher's answers, whatever form they have."""

import pytest
import torch
from torch import nn

from edgeops_converters.training.distillation import Teacher
from edgeops_converters.training.step import Call

INPUT = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


class Giver(nn.Module):
    """Answers what it was made with, for any input."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer


def distance(wanted, given, *, weight=1.0):
    teacher = Teacher(Giver(wanted), weight)
    return float(teacher.loss(torch.tensor(7.0), (Call((INPUT,), {}, given),)))


def test_the_teachers_answer_costs_nothing():
    logits = torch.randn(5, 4)
    assert distance(logits, logits) == pytest.approx(0, abs=1e-6)
    assert distance({"image": INPUT}, {"image": INPUT}) == 0


def test_classes_are_compared_softened_by_two_and_scaled_back():
    wanted, given = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    p, q = torch.softmax(wanted / 2, 1), torch.tensor([[0.5, 0.5]])
    assert distance(wanted, given) == pytest.approx(4 * float((p * (p / q).log()).sum()), rel=1e-5)
    assert distance(wanted, wanted + 3) == pytest.approx(0, abs=1e-6), "a shift of all logits is no other answer"


def test_a_reconstruction_is_compared_in_units_of_its_power():
    assert distance(INPUT, 2 * INPUT) == pytest.approx(1.0)
    assert distance(100 * INPUT[..., None], 200 * INPUT[..., None]) == pytest.approx(1.0)


def test_the_weight_is_the_share_of_the_loss():
    logits = torch.randn(5, 4)
    assert distance(logits, logits, weight=0.25) == pytest.approx(0.75 * 7)
    assert distance(logits, -logits, weight=0) == 7


def test_answers_that_are_no_numbers_with_gradients_leave_the_steps_own_loss():
    assert distance(torch.arange(5), torch.arange(5)) == 7
