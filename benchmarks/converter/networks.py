"""The networks that the benchmark trains: nothing but their shapes.

Each is small enough to be trained in minutes on one core and has what makes its family hard to quantise. Images are float32,
shape ``(n, 1, 28, 28)``, in [0, 1]; classifiers give logits, shape ``(n, classes)``.
"""

import itertools
import math

import torch
from torch import Tensor, nn

BLOCKS = ((32, 64, 2), (64, 64, 1), (64, 64, 1), (64, 128, 1), (128, 128, 1))
"""Of :class:`DepthwiseNet`: channels in, channels out, stride."""


class DepthwiseNet(nn.Module):
    """Depthwise-separable blocks after a stem, after MobileNet (Howard et al., 2017).

    Args:
        activation: After every normalisation.
        is_residual: Whether blocks that keep the shape add their input. Without it, nothing but a rectifier lies between any
            two convolutions.
    """

    def __init__(self, activation: type[nn.Module], *, is_residual: bool) -> None:
        super().__init__()
        self.stem = _normalised(1, BLOCKS[0][0], 3, stride=2, activation=activation)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                _normalised(inputs, inputs, 3, stride=stride, groups=inputs, activation=activation),
                _normalised(inputs, outputs, 1, activation=activation),
            )
            for inputs, outputs, stride in BLOCKS
        )
        self.adds = [is_residual and inputs == outputs for inputs, outputs, _ in BLOCKS]
        self.head = nn.Linear(BLOCKS[-1][1], 10)

    def forward(self, image: Tensor) -> Tensor:
        """Images to logits."""
        x = self.stem(image)
        for block, adds in zip(self.blocks, self.adds, strict=True):
            x = x + block(x) if adds else block(x)
        return self.head(x.mean((2, 3)))


class MobileNetV3Like(nn.Module):
    """Inverted residuals with HardSwish and squeeze-and-excitation, after MobileNetV3 (Howard et al., 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _normalised(1, 16, 3, stride=2, activation=nn.Hardswish)
        self.blocks = nn.Sequential(
            _InvertedResidual(16, 16, 16, 3, stride=2, activation=nn.ReLU),
            _InvertedResidual(16, 64, 32, 3, stride=1, activation=nn.ReLU),
            _InvertedResidual(32, 96, 32, 5, stride=1, activation=nn.Hardswish),
            _InvertedResidual(32, 128, 48, 5, stride=1, activation=nn.Hardswish),
            _InvertedResidual(48, 192, 64, 5, stride=2, activation=nn.Hardswish),
            _InvertedResidual(64, 288, 64, 5, stride=1, activation=nn.Hardswish),
        )
        self.last = _normalised(64, 256, 1, activation=nn.Hardswish)
        self.head = nn.Sequential(nn.Linear(256, 384), nn.Hardswish(), nn.Dropout(0.1), nn.Linear(384, 10))

    def forward(self, image: Tensor) -> Tensor:
        """Images to logits."""
        return self.head(self.last(self.blocks(self.stem(image))).mean((2, 3)))


class SmallResNet(nn.Module):
    """Basic blocks in three stages, after ResNet for CIFAR (He et al., 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _normalised(1, 16, 3, stride=2)
        self.blocks = nn.Sequential(
            _BasicBlock(16, 32, stride=2), _BasicBlock(32, 64, stride=2), _BasicBlock(64, 128, stride=1)
        )
        self.head = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Images to logits."""
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


class SmallVisionTransformer(nn.Module):
    """16 patches, pre-norm blocks, mean over the tokens, after ViT (Dosovitskiy et al., 2021)."""

    def __init__(self, *, width: int = 64, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 7, stride=7)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(*(_TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Images to logits."""
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class KeywordNet(nn.Module):
    """DS-CNN in MLPerf Tiny's shape: maps of shape ``(n, 1, 49, 10)`` to 12 logits (Zhang et al., 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _normalised(1, 64, (10, 4), stride=2, padding=(5, 1)),
            *(nn.Sequential(_normalised(64, 64, 3, groups=64), _normalised(64, 64, 1)) for _ in range(4)),
            nn.Dropout(0.2),
        )
        self.head = nn.Linear(64, 12)

    def forward(self, features: Tensor) -> Tensor:
        """Spectral features to logits."""
        return self.head(self.layers(features).mean((2, 3)))


class Autoencoder(nn.Module):
    """MLPerf Tiny's fully connected autoencoder: spectra of shape ``(n, 640)`` to themselves, through eight numbers."""

    def __init__(self) -> None:
        super().__init__()
        widths = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU())
                for inputs, outputs in itertools.pairwise(widths)
            ),
            nn.Linear(128, 640),
        )

    def forward(self, spectrum: Tensor) -> Tensor:
        """Spectra to what is left of them."""
        return self.layers(spectrum)


@torch.no_grad()
def rescale_channels(network: DepthwiseNet, *, generator: torch.Generator) -> None:
    """Multiply each channel between two convolutions by 10^U(-2, 2), and divide it out in the next: float stays what it was.

    A rectifier passes a positive factor, max(0, a x) = a max(0, x), so it can be undone after it; the equivalence that
    cross-layer equalisation uses (Nagel et al., 2019), turned against the quantiser. In place.

    Args:
        network: With ReLU and without residuals.
        generator: Of the factors.
    """
    chain = [network.stem, *(layer for block in network.blocks for layer in block)]
    for first, second in zip(chain, [*chain[1:], None], strict=True):
        convolution, normalisation = first[0], first[1]
        factors = 10 ** (4 * torch.rand(convolution.out_channels, generator=generator) - 2)
        normalisation.weight.mul_(factors)
        normalisation.bias.mul_(factors)
        if second is None:
            network.head.weight.div_(factors)
        elif second[0].groups > 1:
            second[0].weight.div_(factors.reshape(-1, 1, 1, 1))
        else:
            second[0].weight.div_(factors.reshape(1, -1, 1, 1))


def _normalised(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int],
    *,
    stride: int = 1,
    padding: tuple[int, int] | None = None,
    groups: int = 1,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    pads = padding if padding is not None else kernel // 2 if isinstance(kernel, int) else (0, 0)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=pads, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        activation(),
    )


class _SqueezeExcitation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 4, 1)
        self.excite = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.excite(nn.functional.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return x * nn.functional.hardsigmoid(gate)


class _InvertedResidual(nn.Module):
    def __init__(
        self, inputs: int, expanded: int, outputs: int, kernel: int, *, stride: int, activation: type[nn.Module]
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _normalised(inputs, expanded, 1, activation=activation),
            _normalised(expanded, expanded, kernel, stride=stride, groups=expanded, activation=activation),
            _SqueezeExcitation(expanded),
            _normalised(expanded, outputs, 1, activation=nn.Identity),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _normalised(inputs, outputs, 3, stride=stride), _normalised(outputs, outputs, 3, activation=nn.Identity)
        )
        self.shortcut = _normalised(inputs, outputs, 1, stride=stride, activation=nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.layers(x) + self.shortcut(x))


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.projection = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self._attended(self.attention_norm(tokens))
        return tokens + self.feed(self.feed_norm(tokens))

    def _attended(self, x: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        weights = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(-1)
        return self.projection((weights @ value).transpose(1, 2).flatten(2))
