"""The seam to an inference engine, and what every engine needs: files that take a fixed number of rows at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeops.errors import EngineError
from edgeops.manifest import Variant
from edgeops_runtime.engines.options import SessionOptions

Tensors = dict[str, NDArray[Any]]
"""Tensor name, as the manifest has it → array."""


class Session(Protocol):
    """A loaded model; may be used from several threads."""

    def run(self, feeds: Tensors) -> Tensors:
        """Answer.

        Args:
            feeds: Every input by the manifest's name, with the dtype that the file takes; any number of rows.

        Returns:
            Every output by the manifest's name.

        Raises:
            EngineError: The engine cannot.
        """
        ...


class Engine(Protocol):
    """An installed inference engine."""

    name: str
    version: str

    def load(
        self,
        model_path: Path,
        variant: Variant,
        threads: int,
        options: SessionOptions = SessionOptions(),  # noqa: B008 - immutable
    ) -> Session:
        """Load a model.

        Args:
            model_path: The variant's file.
            variant: Names of its tensors, and how many rows it takes.
            threads: How many threads one call may use.
            options: What else there is to choose.

        Raises:
            EngineError: The engine cannot load it.
        """
        ...


def run_in_batches(run: Callable[[Tensors], Tensors], feeds: Tensors, batch: int) -> Tensors:
    """Answer any number of rows with a model that takes a fixed number.

    Args:
        run: Answers exactly ``batch`` rows.
        feeds: Arrays with the same number of rows; the last group is filled up by repeating its last row.
        batch: At least 1.

    Raises:
        EngineError: The inputs have no rows, or not the same number.
    """
    counts = {len(array) if array.ndim else 0 for array in feeds.values()}
    rows = counts.pop() if len(counts) == 1 else 0
    if rows < 1:
        raise EngineError(
            f"expected the same number of rows in every input, got {[list(a.shape) for a in feeds.values()]}"
        )
    if rows == batch:
        return run(feeds)
    parts = []
    for start in range(0, rows, batch):
        group = {name: array[start : start + batch] for name, array in feeds.items()}
        missing = batch - min(batch, rows - start)
        if missing:
            group = {
                name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for name, array in group.items()
            }
        parts.append({name: array[: batch - missing] for name, array in run(group).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
