"""Blobs by digest: immutable bytes in a local folder or an object store, behind obstore.

What the bytes mean is :mod:`edgeops_fleet.catalog`'s; who may read them is :mod:`edgeops_fleet.api`'s.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from edgeops.errors import ConfigError, TransientError
from edgeops.files import DIGEST_PATTERN, sync_directory

_CHUNK_BYTES = 1 << 20


class BlobError(TransientError):
    """The blob store did not answer as it should."""


class Blobs:
    """A blob store.

    Args:
        location: A local folder, or a URL that obstore knows (``s3://…``, ``gs://…``, ``az://…``).
    """

    def __init__(self, location: str) -> None:
        self._root: Path | None = None
        try:
            if "://" in location:
                self._store = from_url(location)
            else:
                self._root = Path(location)
                self._root.mkdir(parents=True, exist_ok=True)
                self._store = LocalStore(prefix=self._root)
        except (BaseError, ValueError, OSError) as error:
            raise ConfigError(f"blob store {location!r}: {error}") from error

    def size(self, digest: str) -> int | None:
        """The size of a blob in bytes; ``None`` when there is none."""
        if not DIGEST_PATTERN.match(digest):
            return None
        try:
            return int(obstore.head(self._store, _key(digest))["size"])
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise BlobError(f"{digest}: {error}") from error

    def put(self, digest: str, file: Path) -> None:
        """Keep the content of a file whose digest was verified; a blob that is there already is left alone.

        Raises:
            BlobError: It could not be written.
        """
        if self.size(digest) == file.stat().st_size:
            return
        try:
            obstore.put(self._store, _key(digest), file)
            if self._root is not None:
                _sync(self._root / _key(digest))
        except (BaseError, OSError) as error:
            raise BlobError(f"{digest}: {error}") from error

    def get(self, digest: str) -> bytes:
        """The whole of a small blob.

        Raises:
            BlobError: It is not there, or cannot be read.
        """
        try:
            return bytes(obstore.get(self._store, _key(digest)).bytes())
        except (BaseError, FileNotFoundError) as error:
            raise BlobError(f"{digest}: {error}") from error

    def chunks(self, digest: str, *, start: int, end: int) -> Iterator[bytes]:
        """The bytes from ``start`` to before ``end``, in pieces.

        Raises:
            BlobError: It is not there, or cannot be read.
        """
        for offset in range(start, end, _CHUNK_BYTES):
            try:
                yield bytes(
                    obstore.get_range(self._store, _key(digest), start=offset, end=min(offset + _CHUNK_BYTES, end))
                )
            except (BaseError, FileNotFoundError) as error:
                raise BlobError(f"{digest}: {error}") from error


def _key(digest: str) -> str:
    return digest.replace(":", "/", 1)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_directory(path.parent)
