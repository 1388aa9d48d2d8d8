"""The user's training step: ``step(module, index) -> loss`` of one batch, checked each time that it runs.

What the module was given and answered in it is seen by a hook, so that a step that knows nothing of distillation can be
distilled.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeops.errors import RecipeError
from edgeops_converters.extras import load
from edgeops_converters.failures import explain
from edgeops_converters.sources import load_function

if TYPE_CHECKING:
    import torch
    from torch import nn

StepFunction = Callable[["nn.Module", int], "torch.Tensor"]
_EXPECTED = (
    "expected step(module, index) -> loss: run the module on batch number index, and return the loss as a tensor"
)


@dataclass(frozen=True)
class Call:
    """One call of the module within a step: its arguments, and what it answered."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    answer: Any


@dataclass(frozen=True)
class Batch:
    """A step that ran.

    Attributes:
        loss: A scalar from which gradients flow.
        calls: Of the module, in order.
    """

    loss: "torch.Tensor"
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class TrainingStep:
    """A function ``(module, index) → loss``, and how to name it in messages."""

    function: StepFunction
    label: str

    def run(self, module: "nn.Module", index: int) -> Batch:
        """Run one step.

        Raises:
            RecipeError: It fails, gives no finite scalar, or one that does not come from the module.
        """
        torch = load("torch")
        calls: list[Call] = []
        hook = module.register_forward_hook(
            lambda _module, arguments, keywords, answer: calls.append(Call(arguments, keywords, answer)),
            with_kwargs=True,
        )
        try:
            loss = self.function(module, index)
        except Exception as error:  # whatever the user's code raises
            raise RecipeError(f"{self.label}: step {index} failed: {explain(error, module)}") from error
        finally:
            hook.remove()
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            given = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise RecipeError(f"{self.label}: {_EXPECTED}; got {given}")
        if not calls:
            raise RecipeError(
                f"{self.label}: step {index} does not call the module that it is given; {_EXPECTED}, and not parts of it "
                "or a model of its own"
            )
        if not loss.requires_grad:
            raise RecipeError(
                f"{self.label}: no gradient comes from the loss of step {index}; leave out no_grad, detach and item, and "
                "do not freeze every parameter"
            )
        if not bool(torch.isfinite(loss)):
            raise RecipeError(
                f"{self.label}: the loss of step {index} is {float(loss.detach())}; look at its data, or train more gently "
                "(--learning-rate)"
            )
        return Batch(loss.reshape(()), tuple(calls))


def open_step(step: StepFunction | str | Path) -> TrainingStep:
    """A step from a function, or from ``file.py:function``.

    Raises:
        ExportError: There is no such file or function.
        RecipeError: It does not take a module and an index.
    """
    if callable(step):
        function, label = step, getattr(step, "__qualname__", type(step).__name__)
    else:
        path, _, name = str(step).partition(":")
        if Path(path).suffix != ".py":
            raise RecipeError(f"{step}: expected file.py:function, the training step")
        function, label = (
            load_function(Path(path), name, purpose="trains one batch: step(module, index) -> loss"),
            str(step),
        )
    try:
        signature = inspect.signature(function)
        signature.bind(None, 0)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{label}: {_EXPECTED}; got {_shown(function)}: {error}") from error
    return TrainingStep(function, label)


def _shown(function: Callable[..., Any]) -> str:
    try:
        return f"{getattr(function, '__name__', 'a callable')}{inspect.signature(function)}"
    except (TypeError, ValueError):
        return type(function).__name__
