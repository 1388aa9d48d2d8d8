"""Networks with channels tied together, a small set of rows for them, and a training step on Fashion-MNIST."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from edgeops_demo.images import load_dataset

_BATCH = 64


@pytest.fixture(scope="session")
def nets():
    """The networks of ``nets.py``."""
    spec = importlib.util.spec_from_file_location("converters_training_nets", Path(__file__).with_name("nets.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def rows():
    """Images of shape ``(4, 1, 28, 28)`` of noise."""
    return {"image": np.random.default_rng(0).normal(size=(4, 1, 28, 28)).astype(np.float32)}


@pytest.fixture(scope="session")
def fashion():
    """Training images and labels, and held-out ones, as tensors of about zero mean."""
    dataset = load_dataset()

    def tensors(split):
        return (torch.tensor(split.images) / 255 - 0.286) / 0.353, torch.tensor(split.labels)

    held_out = [torch.cat(pair) for pair in zip(tensors(dataset.field), tensors(dataset.exam), strict=True)]
    return tensors(dataset.train), (held_out[0][:2000], held_out[1][:2000])


@pytest.fixture(scope="session")
def step(fashion):
    """Cross-entropy on a batch of Fashion-MNIST; images go in as they are, so rows of noise are of the same shape."""
    images, labels = fashion[0]

    def one(module, index):
        places = torch.arange(index * _BATCH, (index + 1) * _BATCH) % len(labels)
        return functional.cross_entropy(module(images[places]), labels[places])

    return one
