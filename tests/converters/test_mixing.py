"""The search for a mixed precision on real files: what int8 cannot carry is found and left in float, in both formats."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeops.errors import GateError
from edgeops_converters import convert
from edgeops_converters.plan import LayerPrecision, decode_plan
from edgeops_converters.trials import Outcome

ROWS = 1400


class Wild(nn.Module):
    """In the middle of it one channel is a thousand times larger than the others, and its weights as much smaller.

    Between the two layers is no rectifier, so that the channels cannot be brought to one range.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 8, 1)
        self.narrow = nn.Conv2d(8, 8, 1)
        self.after = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            self.narrow.weight *= 6
            self.wide.weight[0] *= 3000
            self.narrow.weight[:, 0] /= 3000
            self.head.weight *= 20

    def forward(self, image):
        stem = self.stem(image).relu()
        middle = self.narrow(nn.functional.leaky_relu(self.wide(stem), 0.3)) + stem
        return self.head((self.after(middle).relu() + middle).mean((2, 3)))


@pytest.fixture(scope="module")
def wild():
    torch.manual_seed(3)
    torch.set_num_threads(1)
    return Wild().eval()


@pytest.fixture(scope="module")
def settings(wild):
    """Rows on which the source is sure of its answer, which is the label."""
    random = np.random.default_rng(0)
    images = random.normal(size=(4 * ROWS, 1, 8, 8)).astype(np.float32)
    images *= random.uniform(0.2, 2, (4 * ROWS, 1, 1, 1)).astype(np.float32)
    with torch.no_grad():
        answers = wild(torch.from_numpy(images)).numpy()
        wild.head.bias -= torch.from_numpy(np.median(answers, axis=0))  # so that all classes are met
        answers = wild(torch.from_numpy(images)).numpy()
    ordered = np.sort(answers, axis=1)
    sure = random.permutation(np.argsort(ordered[:, -2] - ordered[:, -1])[:ROWS])
    return {
        "data": {"image": images[:64]},
        "evaluation": {"image": images[sure], "labels": answers[sure].argmax(1)},
        "name": "wild",
        "version": "1.0.0",
        "precisions": ("float", "int8", "mixed"),
        "max_drop": 0.5,
    }
