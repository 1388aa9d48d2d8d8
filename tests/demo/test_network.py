"""The demo's networks: what the bad release does, and that training is repeatable."""

import numpy as np
import pytest
import torch

from edgeops_demo.images import Split
from edgeops_demo.network import ExposureCompensated, FashionNet, accuracy, train


def toy() -> Split:
    """Bright images are class 1, dark ones class 0."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 512)
    images = (rng.random((512, 1, 28, 28)) * 60 + 150 * labels[:, None, None, None]).astype(np.uint8)
    return Split(images, labels.astype(np.int64))


def test_bad_release_answers_like_the_good_one_until_the_sun_shines() -> None:
    torch.manual_seed(0)
    good = FashionNet().eval()
    bad = ExposureCompensated(good).eval()
    image = torch.rand(3, 1, 28, 28) * 0.9
    assert torch.equal(good(image), bad(image))
    with pytest.raises(IndexError):
        bad(torch.ones(1, 1, 28, 28))


def test_training_learns_and_the_same_seed_gives_the_same_network() -> None:
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(train(FashionNet(), toy(), steps=60, learning_rate=5e-3, seed=3))
        assert not networks[-1].training
    assert accuracy(networks[0], toy()) > 0.9
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_training_tells_its_progress() -> None:
    told: list[tuple[int, int]] = []
    train(
        FashionNet(),
        toy(),
        steps=5,
        learning_rate=1e-3,
        seed=0,
        on_progress=lambda step, steps, _: told.append((step, steps)),
    )
    assert told == [(step, 5) for step in range(1, 6)]
