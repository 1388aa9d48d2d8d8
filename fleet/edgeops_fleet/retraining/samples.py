"""Samples that devices sent for labelling, the labels that people gave, and data sets made of both.

A data set is a folder with ``samples.npz`` (the inputs by name, and ``labels``, as the converter reads them) and
``manifest.json``; it appears whole or not at all, and is never changed.
"""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from edgeops.errors import InputError, NotFoundError
from edgeops.files import digest_bytes, sync_directory, write_durably
from edgeops.messages import Sample, SampledTensor
from edgeops.tensors import NUMPY_NAMES
from edgeops_fleet.catalog import Catalog
from edgeops_fleet.schema import commands, datasets, samples
from edgeops_fleet.store import Store, read_row

DATASET_SCHEMA = 1


class SampleView(msgspec.Struct, frozen=True, kw_only=True):
    """A sample without its bytes; times are Unix seconds."""

    id: str
    device: str
    received: float
    time: float
    model: str
    version: str
    digest: str
    command: str
    request: str
    probability: float
    predicted: int | None = None
    confidence: float | None = None
    label: int | None = None
    labelled: float | None = None


class LabelRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The truth about one sample: the class by its index, or by its name in the bundle's labels."""

    sample: str
    label: int | str


class DatasetSample(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a data set."""

    id: str
    device: str
    time: float
    request: str
    probability: float
    label: int
    predicted: int | None = None


class DatasetManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a data set is: where its rows come from, and the digest of the data.

    Attributes:
        created: Unix time in seconds.
        cohort: For example ``site=south``.
        digest: Manifest digest of the bundle that ran when the samples were taken.
        files: Name → digest and size of each file beside the manifest.
    """

    schema: int = DATASET_SCHEMA
    id: str
    created: float
    cause: str
    model: str
    version: str
    digest: str
    cohort: str
    labels: tuple[str, ...]
    files: dict[str, dict[str, str | int]]
    samples: tuple[DatasetSample, ...]


class Samples:
    """Reads and labels samples, and writes data sets.

    Args:
        store: The database.
        catalog: Knows the names of classes.
        directory: Where data sets are written.
    """

    def __init__(self, store: Store, catalog: Catalog, directory: Path) -> None:
        self._store = store
        self._catalog = catalog
        self._directory = directory

    def all(
        self, *, labelled: bool | None = None, model: str | None = None, limit: int = 10_000
    ) -> tuple[SampleView, ...]:
        """Samples in the order in which they came."""
        query = sa.select(*(column for column in samples.c if column.name != "inputs")).order_by(samples.c.received)
        if labelled is not None:
            query = query.where(samples.c.label.is_not(None) if labelled else samples.c.label.is_(None))
        if model is not None:
            query = query.where(samples.c.model == model)
        with self._store.read() as connection:
            return tuple(read_row(row, SampleView) for row in connection.execute(query.limit(limit)).mappings())

    def inputs(self, sample: str) -> dict[str, SampledTensor]:
        """The tensors of a sample.

        Raises:
            NotFoundError: There is no such sample.
        """
        query = sa.select(samples.c.inputs).where(samples.c.id == sample)
        with self._store.read() as connection:
            data = connection.execute(query).scalar()
        if data is None:
            raise NotFoundError(f"sample {sample!r}: there is none")
        return msgspec.msgpack.decode(data, type=dict[str, SampledTensor])

    def label(self, requests: Sequence[LabelRequest]) -> int:
        """Take labels; all of them or none. Returns how many.

        Raises:
            NotFoundError: A sample is unknown.
            InputError: A label is none of the bundle's.
        """
        with self._store.write() as connection:
            for request in requests:
                query = sa.select(samples.c.digest).where(samples.c.id == request.sample)
                digest = connection.execute(query).scalar()
                if digest is None:
                    raise NotFoundError(f"sample {request.sample!r}: there is none")
                values = {"label": self._class_index(digest, request.label), "labelled": self._store.clock()}
                connection.execute(samples.update().where(samples.c.id == request.sample).values(values))
            if requests:
                self._store.note(connection, "samples.labelled", f"{len(requests)} samples labelled", actor="operator")
        return len(requests)

    def dataset(self, dataset: str) -> bytes:
        """The manifest of a data set, as JSON.

        Raises:
            NotFoundError: There is none.
        """
        query = sa.select(datasets.c.manifest).where(datasets.c.id == dataset)
        with self._store.read() as connection:
            manifest: bytes | None = connection.execute(query).scalar()
        if manifest is None:
            raise NotFoundError(f"data set {dataset!r}: there is none")
        return manifest

    def dataset_file(self, dataset: str, name: str) -> Path:
        """Where a file of a data set is.

        Raises:
            NotFoundError: There is no such data set, or it has no such file.
        """
        manifest = msgspec.json.decode(self.dataset(dataset), type=DatasetManifest)
        if name not in manifest.files:
            raise NotFoundError(f"data set {dataset!r}: no file {name!r}; it has {', '.join(manifest.files)}")
        return self._directory / dataset / name

    def write_dataset(self, dataset: str, *, cause: str, retrain: str, about: dict[str, str]) -> tuple[Path, str]:
        """Write the labelled samples that were collected for a cause; the same again when it is there already.

        Args:
            dataset: Id of the data set, and name of its folder.
            cause: Why it was made.
            retrain: Whose commands collected the samples.
            about: ``model``, ``version``, ``digest`` and ``cohort``.

        Returns:
            The folder, and the digest of its manifest.

        Raises:
            InputError: The samples do not fit together.
        """
        with self._store.read() as connection:
            query = collected(retrain, digest=about["digest"]).where(samples.c.label.is_not(None))
            rows = connection.execute(query).mappings().all()
        data = _pack(rows)
        manifest = DatasetManifest(
            id=dataset,
            created=self._store.clock(),
            cause=cause,
            model=about["model"],
            version=about["version"],
            digest=about["digest"],
            cohort=about["cohort"],
            labels=self._catalog.manifest(about["digest"]).labels,
            files={"samples.npz": {"digest": digest_bytes(data), "size_bytes": len(data)}},
            samples=tuple(read_row(row, DatasetSample) for row in rows),
        )
        encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        path = self._directory / dataset
        _write_folder(path, {"samples.npz": data, "manifest.json": encoded})
        digest = digest_bytes(encoded)
        values = {"created": manifest.created, "manifest": encoded, "digest": digest, "path": str(path)}
        with self._store.write() as connection:
            connection.execute(datasets.delete().where(datasets.c.id == dataset))
            connection.execute(datasets.insert().values(id=dataset, **values))
        return path, digest

    def _class_index(self, digest: str, label: int | str) -> int:
        names = self._catalog.manifest(digest).labels
        if isinstance(label, str):
            if label not in names:
                raise InputError(f"label {label!r}: expected one of {', '.join(names) or 'no names: give the index'}")
            return names.index(label)
        if names and not 0 <= label < len(names):
            raise InputError(f"label {label}: expected 0 to {len(names) - 1}")
        return label


def insert_sample(
    connection: sa.Connection, device: str, record: Sample, *, dating: dict[str, Any], now: float
) -> None:
    """Store a sample; one whose id is there already changes nothing.

    Args:
        connection: Of the transaction.
        device: Whose it is.
        record: Its time is put right.
        dating: By what (:func:`edgeops_fleet.dating.dating_columns`).
        now: Unix time in seconds.
    """
    if connection.execute(sa.select(samples.c.id).where(samples.c.id == record.id)).first() is not None:
        return
    connection.execute(
        samples.insert().values(
            id=record.id,
            device=device,
            received=now,
            time=record.time,
            model=record.model,
            version=record.version,
            digest=record.digest,
            command=record.command,
            request=record.request,
            probability=record.probability,
            predicted=record.predicted,
            confidence=record.confidence,
            inputs=msgspec.msgpack.encode(record.inputs),
            **dating,
        )
    )


def collected(retrain: str, *, digest: str) -> sa.Select[Any]:
    """The samples that the commands of a retraining collected on one version, in the order in which they came."""
    # By a device that was asked: another one may not add to the evidence.
    asked = sa.and_(commands.c.id == samples.c.command, commands.c.device == samples.c.device)
    own = sa.select(commands.c.id).where(asked, commands.c.retrain == retrain).exists()
    condition = sa.and_(own, samples.c.digest == digest)
    return sa.select(samples).where(condition).order_by(samples.c.received, samples.c.id)


def _pack(rows: Sequence[sa.RowMapping]) -> bytes:
    """The rows as ``.npz``: one array for each input, rows first, and ``labels``; the same rows give the same bytes."""
    arrays: dict[str, list[NDArray[Any]]] = {}
    for row in rows:
        for name, tensor in msgspec.msgpack.decode(row["inputs"], type=dict[str, SampledTensor]).items():
            arrays.setdefault(name, []).append(_array(tensor, where=f"sample {row['id']}, input {name!r}"))
    try:
        stacked = {name: np.concatenate(parts) for name, parts in arrays.items()}
    except ValueError as error:
        raise InputError(f"samples do not fit together: {error}") from error
    if any(len(array) != len(rows) for array in stacked.values()):
        raise InputError("samples do not fit together: some lack an input that others have")
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **stacked, labels=np.asarray([row["label"] for row in rows], dtype=np.int64))
    return buffer.getvalue()


def _array(tensor: SampledTensor, *, where: str) -> NDArray[Any]:
    """One row, shape ``(1, …)``."""
    dtype = np.dtype(NUMPY_NAMES.get(tensor.dtype, tensor.dtype)).newbyteorder("<")
    try:
        array = np.frombuffer(tensor.data, dtype=dtype).reshape(tensor.shape)
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: {error}") from error
    return array if array.shape[:1] == (1,) else array[np.newaxis]


def _write_folder(path: Path, files: dict[str, bytes]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, content in files.items():
        write_durably(temporary / name, content)
    if path.exists():
        # Left by a kill between the rename and the row.
        shutil.rmtree(path)
    temporary.replace(path)
    sync_directory(path.parent)
