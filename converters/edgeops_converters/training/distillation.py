"""Distillation: the module is also asked to answer as the one that it was made from."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeops_converters.extras import load
from edgeops_converters.training.step import Call

if TYPE_CHECKING:
    import torch
    from torch import nn

_TEMPERATURE = 2.0
_CLASS_RANK = 2


@dataclass(frozen=True)
class Teacher:
    """The module as it was.

    Attributes:
        module: In eval mode; it is not changed.
        weight: Share of the loss that is distillation, from 0 (none) to 1 (the step's own loss has no say).
    """

    module: "nn.Module"
    weight: float

    def loss(self, own: "torch.Tensor", calls: tuple[Call, ...]) -> "torch.Tensor":
        """The step's own loss, and how far the answers are from the teacher's.

        Args:
            own: The step's loss.
            calls: Of the pupil, with the inputs that the teacher is asked too.
        """
        if self.weight == 0:
            return own
        distance = self.distance(calls)
        return own if distance is None else (1 - self.weight) * own + self.weight * distance

    def distance(self, calls: "Iterable[Call]") -> "torch.Tensor | None":
        """How far answers are from the teacher's, on average; ``None`` when there is nothing to compare."""
        torch = load("torch")
        found: list[Any] = []
        for call in calls:
            with torch.no_grad():
                wanted = self.module(*call.arguments, **call.keywords)
            found += _distances(call, wanted)
        return torch.stack(found).mean() if found else None


def _distances(call: Call, wanted: Any) -> "list[torch.Tensor]":  # noqa: ANN401 - whatever the user's forward returns
    torch, pytree = load("torch"), load("torch.utils._pytree")
    shapes = [
        value.shape for value in pytree.tree_leaves((call.arguments, call.keywords)) if isinstance(value, torch.Tensor)
    ]
    return [
        _divergence(given, target) if _is_classes(given, shapes) else _error(given, target)
        for given, target in zip(pytree.tree_leaves(call.answer), pytree.tree_leaves(wanted), strict=True)
        if isinstance(given, torch.Tensor) and given.is_floating_point()
    ]


def _is_classes(answer: "torch.Tensor", inputs: "list[torch.Size]") -> bool:
    """One score for each class, as the exam decides it; a reconstruction has the shape of an input."""
    return answer.ndim == _CLASS_RANK and answer.shape[1] > 1 and all(answer.shape != shape for shape in inputs)


def _divergence(given: "torch.Tensor", wanted: "torch.Tensor") -> "torch.Tensor":
    """Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015): softened, and scaled back by T²."""
    functional = load("torch").nn.functional
    soft = functional.log_softmax(given / _TEMPERATURE, dim=1)
    target = functional.log_softmax(wanted / _TEMPERATURE, dim=1)
    divergence: torch.Tensor = functional.kl_div(soft, target, reduction="batchmean", log_target=True)
    return divergence * _TEMPERATURE**2


def _error(given: "torch.Tensor", wanted: "torch.Tensor") -> "torch.Tensor":
    """Mean squared error in units of the answer's own power, so that it weighs alike for any scale."""
    error: torch.Tensor = (given - wanted).square().mean()
    return error / wanted.square().mean().clamp_min(1e-12)
