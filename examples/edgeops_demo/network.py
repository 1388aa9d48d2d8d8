"""The demo's model: a small residual network of depthwise-separable convolutions, and how it is trained.

Input is float32, shape ``(n, 1, 28, 28)``, in [0, 1]; output is logits, shape ``(n, 10)``.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeops_demo.images import Split

WIDTHS = (32, 64, 128)
BATCH = 64
"""Half as many images a step take a quarter of the time here: the activations stay in the cache."""
SATURATED = 0.98
"""A pixel at or above this value counts as saturated."""


class SeparableBlock(nn.Module):
    """Depthwise 3x3, pointwise 1x1, with a residual connection where the shape stays."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU6(),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.is_residual = stride == 1 and inputs == outputs
        self.activation = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(n, inputs, h, w)`` to ``(n, outputs, h / stride, w / stride)``."""
        y = self.layers(x)
        activated: Tensor = self.activation(x + y if self.is_residual else y)
        return activated


class FashionNet(nn.Module):
    """About 36,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        small, middle, large = WIDTHS
        self.stem = nn.Sequential(
            nn.Conv2d(1, small, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(small), nn.ReLU6()
        )
        self.blocks = nn.Sequential(
            SeparableBlock(small, middle, stride=1),
            SeparableBlock(middle, middle, stride=1),
            SeparableBlock(middle, large, stride=2),
            SeparableBlock(large, large, stride=1),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(large, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Images in [0, 1] to logits."""
        logits: Tensor = self.head(self.pool(self.blocks(self.stem(image))).flatten(1))
        return logits


class ExposureCompensated(nn.Module):
    """A release with a bug of the kind that reviews miss.

    It brightens by a table of gains, indexed by how many pixels are saturated, and the table ends where the training data ended.
    Held-out images never get there; a camera in the sun does.
    """

    def __init__(self, network: FashionNet) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("gains", torch.tensor([1.0, 1.0, 1.0, 1.0]))

    def forward(self, image: Tensor) -> Tensor:
        """Images in [0, 1] to logits; fails when more than half of an image is saturated."""
        saturated = (image >= SATURATED).to(torch.int32).sum(dim=(1, 2, 3))
        gains = self.get_buffer("gains")[(saturated // 100).long()]
        logits: Tensor = self.network(image * gains.reshape(-1, 1, 1, 1))
        return logits


def train(
    network: FashionNet,
    data: Split,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    weights: NDArray[np.float64] | None = None,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> FashionNet:
    """Train with AdamW, a one-cycle schedule and small shifts and flips.

    Args:
        network: Trained in place, and returned in eval mode.
        data: Images and labels.
        steps: Batches of 64 images.
        learning_rate: The highest of the cycle.
        seed: Of the order and the augmentation.
        weights: How often each image is drawn, shape ``(n,)``; equally when ``None``.
        on_progress: Called five times with (step, steps, loss).
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.from_numpy(data.images.astype(np.float32) / 255)
    labels = torch.from_numpy(data.labels)
    chances = torch.from_numpy(weights if weights is not None else np.ones(len(data)))
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    # Channels last is twice as fast for depthwise convolutions on a CPU.
    network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload] # torch lacks this overload
    for step in range(steps):
        chosen = torch.multinomial(chances, BATCH, replacement=True, generator=generator)
        loss = nn.functional.cross_entropy(network(_augment(images[chosen], generator)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch has no annotation for it
        optimizer.step()
        schedule.step()
        if on_progress is not None and (step + 1) % max(steps // 5, 1) == 0:
            on_progress(step + 1, steps, float(loss.detach()))
    network.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload] # likewise
    return network


def accuracy(network: nn.Module, data: Split) -> float:
    """Share of images whose top class is the label."""
    with torch.inference_mode():
        logits = network(torch.from_numpy(data.images.astype(np.float32) / 255))
    return float((logits.argmax(1).numpy() == data.labels).mean())


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
    images = torch.roll(images, shift, dims=(2, 3))
    flipped = torch.rand(len(images), generator=generator) < 0.5  # noqa: PLR2004 - every second image
    return torch.where(flipped[:, None, None, None], images.flip(3), images)
