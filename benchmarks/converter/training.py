"""Short training on one core, with the weights kept for the next run."""

import hashlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.converter.data import Part

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Answers, rows, labels → what to make small."""


@dataclass(frozen=True)
class Course:
    """How long and how fast.

    Attributes:
        steps: Of ``batch`` rows each.
        rate: The highest learning rate, of a cosine with warm-up.
    """

    steps: int
    rate: float
    batch: int = 64
    weight_decay: float = 1e-2


def trained(
    name: str, make: Callable[[], nn.Module], part: Part, course: Course, loss: Loss, *, cache: Path
) -> nn.Module:
    """The network in eval mode, with the weights of an earlier run where nothing has changed since.

    Args:
        name: Of the file with the weights, which carries a digest of the network's structure, the course and the rows.
        make: Gives the network.
        part: To train on.
        course: How.
        loss: What to make small.
        cache: Where weights are kept.
    """
    torch.manual_seed(1)
    network = make()
    digest = hashlib.sha256(f"{network}{course}".encode() + part.rows.tobytes() + part.labels.tobytes()).hexdigest()[
        :12
    ]
    kept = cache / f"{name}-{digest}.pt"
    if kept.exists():
        network.load_state_dict(torch.load(kept, weights_only=True))
        return network.eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _train(name, network, part, course, loss)
    torch.set_num_threads(threads)
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), kept)
    return network.eval()


def class_loss(answers: Tensor, rows: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG001 - one signature for all
    """Cross entropy with a little label smoothing."""
    return nn.functional.cross_entropy(answers, labels, label_smoothing=0.05)


def copy_loss(answers: Tensor, rows: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG001 - one signature for all
    """Mean squared error to the input."""
    return nn.functional.mse_loss(answers, rows)


def _train(name: str, network: nn.Module, part: Part, course: Course, loss: Loss) -> None:
    random = np.random.default_rng(1)
    rows, labels = torch.from_numpy(part.rows), torch.from_numpy(part.labels)
    decayed = [value for value in network.parameters() if value.ndim > 1]
    others = [value for value in network.parameters() if value.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": course.weight_decay}, {"params": others, "weight_decay": 0.0}], lr=course.rate
    )  # fmt: skip
    warm_up = max(course.steps // 20, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / course.steps))),
    )
    network.train()
    order = np.concatenate(
        [random.permutation(len(part)) for _ in range(course.steps * course.batch // len(part) + 1)]
    )  # fmt: skip
    for step in range(course.steps):
        chosen = torch.from_numpy(order[step * course.batch : (step + 1) * course.batch])
        given = rows[chosen]
        optimizer.zero_grad()
        value = loss(network(given), given, labels[chosen])
        value.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == course.steps - 1:
            print(f"train {name}: step {step + 1} of {course.steps}, loss {value.item():.3f}", file=sys.stderr)
