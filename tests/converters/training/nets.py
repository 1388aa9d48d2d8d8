"""Networks that tie channels together in every way that real ones do, with random batch norms so that nothing is the identity."""

import torch
from torch import nn
from torch.nn import functional

CLASSES = 10


class Block(nn.Sequential):
    """Convolution, batch norm, rectifier; in place, as most are written."""

    def __init__(self, before, after, size=3, *, groups=1, stride=1, act=None):
        super().__init__(
            nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=False),
            nn.BatchNorm2d(after),
            act() if act is not None else nn.ReLU(inplace=True),
        )


class Residual(nn.Module):
    """Additions, depthwise convolutions and an inverted bottleneck."""

    def __init__(self, width=16):
        super().__init__()
        self.stem = Block(1, width, stride=2)
        self.expand = Block(width, 2 * width, 1)
        self.depthwise = Block(2 * width, 2 * width, groups=2 * width)
        self.project = Block(2 * width, width, 1, act=nn.Identity)
        self.down = Block(width, 2 * width, stride=2)
        self.skip = nn.Conv2d(width, 2 * width, 1, stride=2)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, image):
        hidden = self.stem(image)
        hidden = hidden + self.project(self.depthwise(self.expand(hidden)))
        hidden = functional.relu(self.down(hidden) + self.skip(hidden))
        return self.head(hidden.mean((2, 3)))


class Dense(nn.Module):
    """Concatenations that are read together and apart, and a flatten before a linear layer."""

    def __init__(self):
        super().__init__()
        self.one = Block(1, 16, stride=2, act=nn.ReLU6)
        self.two = Block(16, 16)
        self.three = Block(32, 24)
        self.hidden = nn.Linear((32 + 24) * 9, 32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, image):
        one = self.one(image)
        both = torch.cat([one, self.two(one)], dim=1)
        every = torch.cat([both, self.three(both)], dim=1)
        pooled = functional.adaptive_avg_pool2d(every, 3)
        return self.head(functional.relu(self.hidden(pooled.flatten(1))))


class Excited(nn.Module):
    """Squeeze and excitation, hard swish, and a scale for each channel that is a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.stem = Block(1, 32, stride=2, act=nn.Hardswish)
        self.squeeze, self.excite = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 32, 1)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 32).reshape(32, 1, 1))
        self.head = nn.Linear(32, CLASSES)

    def forward(self, image):
        hidden = self.stem(image)
        gate = functional.hardsigmoid(self.excite(functional.relu(self.squeeze(hidden.mean((2, 3), keepdim=True)))))
        return self.head((hidden * gate * self.scale).mean((2, 3)))


class Spread(nn.Module):
    """Channels whose scales lie a factor of a thousand apart, behind hard swish, through which no factor can be moved."""

    def __init__(self, width=24):
        super().__init__()
        swish = nn.Hardswish
        self.stem = Block(1, width, stride=2, act=swish)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                Block(width, 2 * width, 1, act=swish),
                Block(2 * width, 2 * width, groups=2 * width, act=swish),
                Block(2 * width, width, 1, act=nn.Identity),
            )
            for _ in range(2)
        )
        self.last = Block(width, 2 * width, stride=2, act=swish)
        self.head = nn.Linear(2 * width, CLASSES)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.data = 10 ** (3 * torch.rand(layer.num_features) - 1.5)

    def forward(self, image):
        hidden = self.stem(image)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.head(self.last(hidden).mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution, and a gate that is half of the channels."""

    def __init__(self):
        super().__init__()
        self.stem = Block(1, 32, stride=2)
        self.grouped = nn.Conv2d(32, 64, 3, padding=1, groups=2)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, image):
        values, gate = self.grouped(self.stem(image)).chunk(2, dim=1)
        return self.head((values * torch.sigmoid(gate)).amax((2, 3)))


class Up(nn.Module):
    """A transposed convolution, a parametric rectifier and one layer that is used twice; answers an image."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 2, 1)
        self.again = nn.Conv2d(16, 16, 3, padding=1)
        self.act = nn.PReLU()
        self.up = nn.ConvTranspose2d(16, 24, 2, stride=2)
        self.last = nn.Conv2d(24, 1, 3, padding=1)

    def forward(self, image):
        hidden = self.act(self.stem(image))
        hidden = self.again(torch.relu(self.again(hidden)))
        return self.last(torch.relu(self.up(hidden)))


class Transformer(nn.Module):
    """Tokens along the last axis: the hidden layer can shrink, what layer norm and attention see cannot."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(1, 16, 7, stride=7)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.wide, self.narrow = nn.Linear(16, 64), nn.Linear(64, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, image):
        tokens = self.patch(image).flatten(2).transpose(1, 2)
        seen = self.norm(tokens)
        tokens = tokens + self.attention(seen, seen, seen, need_weights=False)[0]
        tokens = tokens + self.narrow(functional.gelu(self.wide(tokens)))
        return self.head(tokens.mean(1))


class Written(nn.Module):
    """A size that is written out, behind a layer that it fixes."""

    def __init__(self):
        super().__init__()
        self.free = Block(1, 16, stride=2)
        self.fixed = Block(16, 32, stride=2)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, image):
        return self.head(self.fixed(self.free(image)).mean((2, 3)).view(-1, 32))


def seeded(make):
    """In eval mode, with weights and batch norms from a fixed seed."""
    torch.manual_seed(0)
    module = make()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.3)
            nn.init.normal_(layer.running_mean, 0, 0.3)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return module.eval()
