"""The training loop of recovery and of the rehearsal: the user's step, distillation, AdamW under a cosine."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgeops.errors import RecipeError
from edgeops_converters.extras import load
from edgeops_converters.training.distillation import Teacher
from edgeops_converters.training.step import TrainingStep

if TYPE_CHECKING:
    from torch import nn

_WEIGHT_DECAY = 1e-4
_LINES = 10  # of progress
_ENDS = 0.05  # of the steps: over so many at both ends the loss is averaged


@dataclass(frozen=True)
class Training:
    """What a training run came to.

    Attributes:
        name: Of the run.
        steps: How many.
        first: Loss over its first twentieth, distillation included.
        last: Loss over its last twentieth.
    """

    name: str
    steps: int
    first: float
    last: float


def train(
    module: "nn.Module",
    step: TrainingStep,
    teacher: Teacher,
    *,
    name: str,
    steps: int,
    learning_rate: float,
    seed: int,
    before_step: Callable[[int], None] | None = None,
    plain: Callable[..., Any] | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Training:
    """Train a module in place; the same seed gives the same weights where the step itself draws from torch alone.

    Args:
        module: In the mode in which it is to be trained.
        step: Of the user.
        teacher: To distil from.
        name: For progress and errors.
        steps: At least one.
        learning_rate: At the beginning; it falls to zero along half a cosine.
        seed: Of torch's generator, which is left as it was.
        before_step: Told the index of each step before it runs.
        plain: What the module answers without rounding, where it is trained with it: half of the loss is then that this, too,
            stays the teacher's answer.
        on_step: Told the progress, about ten times.

    Raises:
        RecipeError: The step fails, its loss is not finite, or no gradient reaches the module.
    """
    torch = load("torch")
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise RecipeError(f"{name}: the module has no parameter with requires_grad, so that nothing can be trained")
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for index in range(steps):
            if before_step is not None:
                before_step(index)
            batch = step.run(module, index)
            loss = teacher.loss(batch.loss, batch.calls)
            if plain is not None:
                unrounded = [replace(call, answer=plain(*call.arguments, **call.keywords)) for call in batch.calls]
                distance = teacher.distance(unrounded)
                loss = loss if distance is None else (loss + distance) / 2
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            if all(parameter.grad is None for parameter in parameters):
                raise RecipeError(
                    f"{step.label}: no gradient reaches the module; the loss must come from the answers of the module "
                    "that the step is given"
                )
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            if on_step is not None and (index + 1) % max(steps // _LINES, 1) == 0:
                recent = losses[-max(steps // _LINES, 1) :]
                on_step(f"{name}: step {index + 1} of {steps}, loss {sum(recent) / len(recent):.4f}")
    module.zero_grad(set_to_none=True)
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise RecipeError(f"{name}: weights are NaN or Inf after {steps} steps; train more gently (--learning-rate)")
    ends = max(int(steps * _ENDS), 1)
    return Training(name, steps, sum(losses[:ends]) / ends, sum(losses[-ends:]) / ends)
