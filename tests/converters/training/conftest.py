"""Networks with channels tied together, a small set of rows for them, and a training step on Fashion-MNIST."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.quantization import carry_out, plan_for
from edgeops_converters.rewrites import rewrite
from edgeops_converters.sources import open_model
from edgeops_converters.targets import this_machine
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


@pytest.fixture(scope="session")
def trained(nets, step):
    """A network by name, trained for so many steps."""

    def train(name, steps):
        torch.manual_seed(0)
        module = getattr(nets, name)().train()
        optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for index in range(steps):
            optimizer.zero_grad()
            step(module, index).backward()
            optimizer.step()
            schedule.step()
        return module.eval()

    return train


@pytest.fixture
def integers(tmp_path):
    """Int8 files of a module as the converter makes them: format → artifact."""

    def make(module, rows, forms):
        few = {name: array[:4] for name, array in rows.items()}
        model = rewrite(open_model(module, few), few).integers
        files = [EXPORTERS[form].export(model, few, tmp_path / f"float.{form}") for form in forms]
        planned, subjects = plan_for(files, rows, target=this_machine())
        return {
            form: carry_out(planned.plan, subject, tmp_path / f"int8.{form}", cpu=this_machine())
            for form, subject in subjects.items()
        }

    return make
