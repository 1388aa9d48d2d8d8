"""Models that have to come through, whatever their figures: unusual interfaces, recurrence, integers in, a hundred megabytes.

They are not trained: whether a file answers as the source does is seen with any weights.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.converter.ours import FORMATS, make
from benchmarks.converter.subjects import Rows
from edgeops.errors import EdgeOpsError
from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.fidelity import sqnr_db
from edgeops_converters.sessions import run_rows
from edgeops_converters.sources import open_model

_FLOAT_DB, _INT8_DB = 80.0, 15.0
"""The least signal to noise of a float file, which rounding alone leaves far behind, and of an int8 one; the gate's own floor."""


@dataclass(frozen=True)
class Carried:
    """What became of one model in one format.

    Attributes:
        model: Which.
        batch: Rows that the file takes at once; ``None`` when any.
        float_db: Signal to noise against the source; ``None`` when exact, or when there is no file. Likewise ``int8_db``.
        why_not: Why it is not as it should be; empty when it is.
    """

    model: str
    format: str
    batch: int | None
    float_db: float | None
    int8_db: float | None
    why_not: str


def carry(names: tuple[str, ...]) -> list[Carried]:
    """Convert each, and hold its answers against the source's."""
    found = []
    for name in names:
        click.echo(f"carried: {name} …", err=True)
        torch.manual_seed(0)
        module, rows = MODELS[name]()
        with tempfile.TemporaryDirectory() as directory:
            found += _converted(name, module.eval(), rows, Path(directory))
    return found


def _converted(name: str, module: nn.Module, rows: Tensors, scratch: Path) -> list[Carried]:
    try:
        model = open_model(module, {wire: part[:4] for wire, part in rows.items()})
    except EdgeOpsError as error:
        return [Carried(name, form, None, None, None, str(error)) for form in FORMATS]
    made = make(model, rows, Rows(rows, None), scratch)
    source = run_rows(model.answer, rows, batch=model.batch)
    found = []
    for form in FORMATS:
        exact, rounded = (_noise(files.get(form), source, rows) for files in (made.floats, made.int8))
        why = made.refused.get(form, "")
        if not why and exact is not None and exact < _FLOAT_DB:
            why = f"float answers differ from the source's: expected at least {_FLOAT_DB:g} dB"
        if not why and rounded is not None and rounded < _INT8_DB:
            why = f"int8 answers differ from the source's: expected at least {_INT8_DB:g} dB"
        batch = made.floats[form].batch if form in made.floats else None
        found.append(Carried(name, form, batch, exact, rounded, why))
    return found


def _noise(artifact: Artifact | None, source: Tensors, rows: Tensors) -> float | None:
    if artifact is None:
        return None
    return sqnr_db(source, run_rows(artifact.open().run, rows, batch=artifact.batch))


class _TwoInputs(nn.Module):
    """A picture and what is known about it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.facts, self.head = nn.Linear(6, 16), nn.Linear(48, 10)

    def forward(self, image: Tensor, facts: Tensor) -> Tensor:
        seen = self.layers(image).mean((2, 3))
        return self.head(torch.cat([seen, self.facts(facts).relu()], 1))


class _TwoOutputs(nn.Module):
    """Classes, and the embedding that they are read from."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        embedding = self.layers(image).mean((2, 3))
        return {"logits": self.head(embedding), "embedding": embedding}


class _Recurrent(nn.Module):
    """A series, read step by step."""

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM]) -> None:
        super().__init__()
        self.cell, self.head = kind(8, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, series: Tensor) -> Tensor:
        return self.head(self.cell(series)[0][:, -1])


class _RecurrentStep(nn.Module):
    """One step of a streaming model: the state goes in and comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(8, 32), nn.Linear(32, 4)

    def forward(self, frame: Tensor, state: Tensor) -> dict[str, Tensor]:
        following = self.cell(frame, state)
        return {"logits": self.head(following), "next_state": following}


class _Embedded(nn.Module):
    """Words by number."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(500, 32)
        self.head = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.table(words).mean(1))


class _Large(nn.Module):
    """113 MB in float."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(784, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 2048), nn.ReLU(),
            nn.Linear(2048, 10),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image.flatten(1))


_ROWS = 64


def _normal(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(5).normal(size=(_ROWS, *shape)).astype(np.float32)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensors]]] = {
    "two inputs": lambda: (_TwoInputs(), {"image": _normal(1, 28, 28), "facts": _normal(6)}),
    "two outputs, any number of rows": lambda: (_TwoOutputs(), {"image": _normal(1, 28, 28)}),
    "GRU": lambda: (_Recurrent(nn.GRU), {"series": _normal(20, 8)}),
    "LSTM": lambda: (_Recurrent(nn.LSTM), {"series": _normal(20, 8)}),
    "GRU cell, streaming": lambda: (_RecurrentStep(), {"frame": _normal(8), "state": np.tanh(_normal(32))}),
    "embedding": lambda: (_Embedded(), {"words": np.random.default_rng(5).integers(0, 500, (_ROWS, 12))}),
    "over 100 MB": lambda: (_Large(), {"image": _normal(1, 28, 28)}),
}
"""Name → an untrained module and rows for it."""
