"""Models that the tests convert: each is one thing that real models do."""

import torch
from torch import nn


class TwoInputs(nn.Module):
    """Two inputs of different rank, two named outputs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4 + 3, 5)

    def forward(self, image, features):
        pooled = self.conv(image).relu().mean((2, 3))
        joined = torch.cat([pooled, features], dim=1)
        return {"logits": self.head(joined), "embedding": joined}


class Tokens(nn.Module):
    """Integer input."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        return self.head(self.table(tokens).mean(1))


class Series(nn.Module):
    """Convolutions along time, one without bias, and a matrix product at each step."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(3, 8, 5, stride=2, padding=2, bias=False)
        self.depthwise = nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.each = nn.Linear(8, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        hidden = self.depthwise(self.first(x).relu()).relu()
        return self.head(self.each(hidden.transpose(1, 2)).relu().mean(1))


class FixedBatch(nn.Module):
    """Unrolls over the rows, so that its graph has as many as the example."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        return torch.stack([self.linear(row) for row in x])


class Gains(nn.Module):
    """A table that bright images reach beyond: it answers the evaluation data, and fails on an over-exposed frame."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.register_buffer("gains", torch.ones(4))

    def forward(self, image):
        bright = (image >= 2.0).to(torch.int32).sum(dim=(1, 2, 3)) // 32
        return self.network(image * self.gains[bright.long()].reshape(-1, 1, 1, 1))


class Bessel(nn.Module):
    """An operator that no format has."""

    def forward(self, x):
        return torch.special.bessel_j0(x)


class Branch(nn.Module):
    """A branch that depends on values."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class Wrapped(nn.Module):
    """A layer in the middle of a model, to be named in errors."""

    def __init__(self, inner):
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.inner = inner
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.inner(self.stem(x)))


class Linear(nn.Module):
    """Nearly all of it matrix products; 1.3 MB."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(128, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))

    def forward(self, x):
        return self.layers(x)


class Recurrent(nn.Module):
    """A recurrent cell and a head."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(16, 64, batch_first=True)
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


class Convolutions(nn.Module):
    """No matrix product at all."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3)
        self.second = nn.Conv2d(16, 16, 3)

    def forward(self, image):
        return self.second(self.first(image).relu())


def seeded(make):
    """The model with weights from a fixed seed, in eval mode."""
    torch.manual_seed(0)
    return make().eval()
