"""The smallest model that is worth converting, with its data: which quarter of a noisy 16x16 image is bright?

``python tiny.py`` writes ``calib.npz`` and ``eval.npz`` next to where it is called; ``edgeops convert tiny.py:tiny …`` trains
the model (two seconds) and converts it; ``edgeops compress tiny.py:tiny --train tiny.py:step …`` makes it smaller before.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

SIZE = 16
CLASSES = 4


def quarters(rows: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images of shape ``(rows, 1, 16, 16)`` in about [-1, 2], and which quarter of each is bright."""
    generator = np.random.default_rng(seed)
    images = generator.normal(0, 0.3, (rows, 1, SIZE, SIZE)).astype(np.float32)
    labels = generator.integers(0, CLASSES, rows)
    half = SIZE // 2
    for image, label in zip(images, labels, strict=True):
        top, left = half * (label // 2), half * (label % 2)
        image[0, top : top + half, left : left + half] += generator.uniform(0.15, 1)
    return images, labels


def tiny() -> nn.Module:
    """The trained model in eval mode: images to logits of shape ``(n, 4)``."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU6(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, CLASSES),
    )
    images, labels = quarters(1024, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(48):
        rows = slice(64 * step % 1024, 64 * step % 1024 + 64)
        loss = nn.functional.cross_entropy(model(torch.from_numpy(images[rows])), torch.from_numpy(labels[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def step(module: nn.Module, index: int) -> torch.Tensor:
    """The loss of one batch, for ``edgeops compress --train tiny.py:step``: 64 images that were not seen before."""
    images, labels = quarters(64, seed=1000 + index)
    return nn.functional.cross_entropy(module(torch.from_numpy(images)), torch.from_numpy(labels))


if __name__ == "__main__":
    calibration, _ = quarters(200, seed=1)
    held_out, answers = quarters(1000, seed=2)
    np.savez_compressed("calib.npz", image=calibration)
    np.savez_compressed("eval.npz", image=held_out, labels=answers)
