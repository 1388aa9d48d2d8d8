"""The smallest model that is worth converting: two convolutions on 16x16 images, four classes; weights from a fixed seed."""

import torch
from torch import nn


def tiny() -> nn.Module:
    """The model in eval mode: images of shape ``(n, 1, 16, 16)`` to logits of shape ``(n, 4)``."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    ).eval()
