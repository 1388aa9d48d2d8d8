"""Calibration and evaluation data: reading ``.npz`` files or mappings of arrays, and refusing what cannot work.

The keys of the file are the names of the model's inputs as the caller of the bundle will give them, before ``preprocess``;
``labels`` and ``stratum`` are reserved. Whether the arrays fit a model is found out in :mod:`edgeops_converters.sources`.
"""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.errors import RecipeError
from edgeops.processing import Tensors
from edgeops.tensors import PROTOCOL_NAMES

LABELS = "labels"
STRATUM = "stratum"
_FEWEST_ROWS = 2
_LARGEST_RATIO = 16.0
"""Of the root mean squares of two sets of rows; beyond it half of the eight bits of one are of no use to the other."""

SampleSource = str | Path | Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Samples:
    """Rows of data.

    Attributes:
        where: File or argument that they came from, for messages.
        inputs: Input name → rows, each of shape ``(n, …)``.
        labels: Class index of each row, shape ``(n,)``, int64; ``None`` without labels.
        strata: Site, lens or the like of each row, shape ``(n,)``, str; ``None`` without strata.
    """

    where: str
    inputs: Tensors
    labels: NDArray[np.int64] | None = None
    strata: NDArray[np.str_] | None = None

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(next(iter(self.inputs.values())))

    def part(self, rows: NDArray[np.int64]) -> "Samples":
        """Some of the rows."""
        return Samples(
            self.where,
            {name: array[rows] for name, array in self.inputs.items()},
            None if self.labels is None else self.labels[rows],
            None if self.strata is None else self.strata[rows],
        )

    def digest(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of all arrays, written ``sha256:<hex>``."""
        digest = hashlib.sha256()
        named: dict[str, NDArray[Any] | None] = {**self.inputs, LABELS: self.labels, STRATUM: self.strata}
        for name, array in sorted(named.items()):
            if array is not None:
                digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return f"sha256:{digest.hexdigest()}"


def read_calibration(source: SampleSource) -> Samples:
    """Read calibration data; ``labels`` and ``stratum`` in it are left aside.

    Raises:
        RecipeError: The file is not readable, has no input, fewer than two rows, or values that are not finite.
    """
    where, arrays = _read(source, "calibration data")
    return _checked(Samples(where, _inputs(arrays)))


def read_evaluation(source: SampleSource) -> Samples:
    """Read evaluation data, with ``labels`` and ``stratum`` where they are there.

    Raises:
        RecipeError: As in :func:`read_calibration`, or labels or strata do not fit the rows.
    """
    where, arrays = _read(source, "evaluation data")
    samples = _checked(Samples(where, _inputs(arrays)))
    labels, strata = arrays.get(LABELS), arrays.get(STRATUM)
    return Samples(
        where,
        samples.inputs,
        None if labels is None else _checked_labels(labels, samples),
        None if strata is None else _checked_strata(strata, samples),
    )


def check_alike(calibration: Samples, evaluation: Samples) -> None:
    """Both sets must have the same inputs, with the same dtype and the same shape of a row.

    Raises:
        RecipeError: It names the key.
    """
    if set(calibration.inputs) != set(evaluation.inputs):
        raise RecipeError(
            f"{evaluation.where}: expected the keys {sorted(calibration.inputs)} of {calibration.where}, "
            f"got {sorted(evaluation.inputs)}"
        )
    for name, array in calibration.inputs.items():
        other = evaluation.inputs[name]
        if (array.dtype, array.shape[1:]) != (other.dtype, other.shape[1:]):
            raise RecipeError(
                f"{name!r}: expected the same rows in both files, got {array.dtype} {list(array.shape[1:])} in "
                f"{calibration.where} and {other.dtype} {list(other.shape[1:])} in {evaluation.where}"
            )
        _check_scale(name, calibration, evaluation)


def is_constant(array: NDArray[Any]) -> bool:
    """Whether all rows hold one and the same value, of which no range can be learned.

    >>> is_constant(np.zeros((4, 2))), is_constant(np.eye(2))
    (True, False)
    """
    return bool((array == array.flat[0]).all())


def _check_scale(name: str, calibration: Samples, evaluation: Samples) -> None:
    """Calibration rows that look nothing like the held-out rows set ranges that do not fit them."""
    given, held_out = calibration.inputs[name], evaluation.inputs[name]
    if is_constant(given) and not is_constant(held_out):
        raise RecipeError(
            f"{calibration.where}: {name!r}: expected rows that look like those of {evaluation.where}, "
            f"got the one value {given.flat[0]} everywhere"
        )
    if not np.issubdtype(given.dtype, np.floating):
        return
    sizes = [float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) for array in (given, held_out)]
    if max(sizes) > _LARGEST_RATIO * min(sizes) > 0:
        spans = [f"{array.min():.4g} to {array.max():.4g}" for array in (given, held_out)]
        raise RecipeError(
            f"{calibration.where}: {name!r}: expected values on the scale of {evaluation.where} ({spans[1]}), "
            f"got {spans[0]}; were they divided by 255 in one of the two only?"
        )


def _read(source: SampleSource, what: str) -> tuple[str, dict[str, NDArray[Any]]]:
    if isinstance(source, Mapping):
        return what, {name: np.asarray(array) for name, array in source.items()}
    path = Path(source)
    try:
        # numpy leaves the file open when it is damaged, so it is opened here.
        with path.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise RecipeError(f"{path}: expected an .npz file (numpy.savez) with {what}, one array for each input")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as archive:
                return str(path), {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RecipeError(f"{path}: expected an .npz file with {what}: {error}") from error


def _inputs(arrays: Mapping[str, NDArray[Any]]) -> Tensors:
    return {name: array for name, array in arrays.items() if name not in {LABELS, STRATUM}}


def _checked(samples: Samples) -> Samples:
    if not samples.inputs:
        raise RecipeError(f"{samples.where}: expected one key for each input of the model, found none")
    for name, array in samples.inputs.items():
        if str(array.dtype) not in PROTOCOL_NAMES or array.dtype == np.float64:
            raise RecipeError(f"{samples.where}: {name!r}: dtype {array.dtype} does not go to a device; {_hint(array)}")
        if array.ndim == 0 or 0 in array.shape:
            raise RecipeError(f"{samples.where}: {name!r}: expected rows with values, got the shape {array.shape}")
        if len(array) < _FEWEST_ROWS:
            raise RecipeError(f"{samples.where}: {name!r}: expected at least {_FEWEST_ROWS} rows, got {len(array)}")
        if len(array) != samples.rows:
            raise RecipeError(f"{samples.where}: {name!r} has {len(array)} rows where others have {samples.rows}")
        _check_finite(samples.where, name, array)
    return samples


def _hint(array: NDArray[Any]) -> str:
    if np.issubdtype(array.dtype, np.floating):
        return "use .astype(numpy.float32)"
    return "use float32, an integer type or bool"


def _check_finite(where: str, name: str, array: NDArray[Any]) -> None:
    if not np.issubdtype(array.dtype, np.floating):
        return
    finite = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise RecipeError(
            f"{where}: {name!r}: {int((~finite).sum())} of {len(array)} rows have NaN or Inf, the first is row {row}"
        )


def _checked_labels(labels: NDArray[Any], samples: Samples) -> NDArray[np.int64]:
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (samples.rows,):
        raise RecipeError(
            f"{samples.where}: {LABELS!r}: expected {samples.rows} class indices (integers), "
            f"got {labels.dtype} of shape {list(labels.shape)}"
        )
    return labels.astype(np.int64)


def _checked_strata(strata: NDArray[Any], samples: Samples) -> NDArray[np.str_]:
    if strata.dtype.kind != "U" or strata.shape != (samples.rows,):
        raise RecipeError(
            f"{samples.where}: {STRATUM!r}: expected {samples.rows} strings, "
            f"got {strata.dtype} of shape {list(strata.shape)}"
        )
    if (strata == "").any():
        raise RecipeError(f"{samples.where}: {STRATUM!r}: row {int(np.argmax(strata == ''))} is empty")
    return strata
