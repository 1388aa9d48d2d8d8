"""The content store on the device: blobs by digest, and bundles assembled from them.

A blob or a bundle appears whole and verified, or not at all: temporary file, fsync, verify, rename, fsync of the directory.
Fetching is left to :mod:`edgeops_runtime.updater`; which bundles to keep is said by :mod:`edgeops_runtime.slots`.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from edgeops.bundle import MANIFEST_FILE, open_bundle
from edgeops.errors import DownloadError, EdgeOpsError
from edgeops.files import digest_file, make_directories, sync_directory, write_durably
from edgeops_runtime.host import free_disk_bytes

_COPY_BYTES = 1 << 20


class BlobStore:
    """Blobs and bundles below one directory.

    Args:
        directory: Made when missing; holds ``blobs/`` and ``bundles/``.
    """

    def __init__(self, directory: Path) -> None:
        self._blobs = directory / "blobs"
        self._bundles = directory / "bundles"
        for each in (self._blobs, self._bundles):
            make_directories(each)

    def has(self, digest: str) -> bool:
        """Whether a blob is there, whole and verified when it came."""
        return self.blob_path(digest).exists()

    def missing_bytes(self, sizes: Mapping[str, int]) -> int:
        """What has yet to come of some blobs, given by digest and size."""
        return sum(
            max(size - self.partial(digest).size_bytes, 0) for digest, size in sizes.items() if not self.has(digest)
        )

    def free_bytes(self) -> int | None:
        """What may still be written; ``None`` where that cannot be known."""
        return free_disk_bytes(self._blobs)

    def damage(self, digest: str, variant: str) -> str:
        """What is wrong with a bundle that was assembled; empty when nothing is. Reads all of it."""
        try:
            bundle = open_bundle(self.bundle_path(digest), partial=True)
            needed = bundle.manifest.needed_files(bundle.manifest.variant(variant))
        except EdgeOpsError as error:
            return str(error)
        missing = sorted(name for name in needed if not bundle.file(name).exists())
        return f"{bundle.path}: {', '.join(missing)}: missing" if missing else ""

    def blob_path(self, digest: str) -> Path:
        """Where a blob lies, or will."""
        return self._blobs / _hex(digest)

    def bundle_path(self, digest: str) -> Path:
        """Where a bundle lies, or will."""
        return self._bundles / _hex(digest)

    def has_bundle(self, digest: str) -> bool:
        """Whether a bundle was assembled."""
        return (self.bundle_path(digest) / MANIFEST_FILE).exists()

    def partial(self, digest: str) -> "PartialBlob":
        """The beginning of a blob, kept across attempts and restarts."""
        return PartialBlob(self._blobs / f".{_hex(digest)}.partial", self.blob_path(digest), digest)

    def assemble(self, digest: str, *, manifest: bytes, files: dict[str, str]) -> Path:
        """Make the directory of a bundle from its blobs.

        Args:
            digest: Of the manifest.
            manifest: The bytes of ``manifest.json``.
            files: Path in the bundle → digest of a blob that is there.
        """
        target = self.bundle_path(digest)
        if self.has_bundle(digest):
            return target
        temporary = self._bundles / f".{_hex(digest)}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name, blob in files.items():
            path = temporary / name
            make_directories(path.parent)
            _link_or_copy(self.blob_path(blob), path)
        write_durably(temporary / MANIFEST_FILE, manifest)
        for directory in {(temporary / name).parent for name in files} | {temporary}:
            sync_directory(directory)
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
        sync_directory(self._bundles)
        return target

    def discard_bundle(self, digest: str) -> None:
        """Remove a bundle, for example one that was found damaged; its blobs go too, so that they are fetched anew."""
        shutil.rmtree(self.bundle_path(digest), ignore_errors=True)
        self.collect(keep=[path.name for path in self._bundles.iterdir()])

    def collect(self, keep: Iterable[str]) -> int:
        """Remove bundles that are not kept, then blobs that no bundle uses; beginnings of blobs too.

        Args:
            keep: Digests, or their hexadecimal part.

        Returns:
            Bytes that were freed.
        """
        kept = {_hex(digest) for digest in keep}
        freed = 0
        for bundle in list(self._bundles.iterdir()):
            if bundle.name not in kept:
                shutil.rmtree(bundle, ignore_errors=True)
        for blob in list(self._blobs.iterdir()):
            state = blob.stat()
            # A blob that a bundle uses has a second name; where links are not possible, the bundle has its own copy.
            if state.st_nlink == 1:
                blob.unlink(missing_ok=True)
                freed += state.st_size
        return freed


class PartialBlob:
    """The first bytes of a blob, on the way to becoming one."""

    def __init__(self, path: Path, target: Path, digest: str) -> None:
        self._path = path
        self._target = target
        self._digest = digest

    @property
    def size_bytes(self) -> int:
        """How much of it is there."""
        return self._path.stat().st_size if self._path.exists() else 0

    def append(self, data: bytes, *, offset: int) -> None:
        """Write bytes at an offset, and drop what was behind them."""
        with self._path.open("r+b" if self._path.exists() else "wb") as stream:
            stream.truncate(offset)
            stream.seek(offset)
            stream.write(data)

    def discard(self) -> None:
        """Begin anew."""
        self._path.unlink(missing_ok=True)

    def finish(self, size_bytes: int | None = None) -> Path:
        """Verify and put in place; what does not verify is discarded.

        Raises:
            DownloadError: The size or the digest is not the expected one.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        found, size = digest_file(self._path), self.size_bytes
        if found != self._digest or size_bytes not in {None, size}:
            self.discard()
            raise DownloadError(f"blob: expected {self._digest} ({size_bytes} bytes), got {found} ({size} bytes)")
        self._path.replace(self._target)
        sync_directory(self._target.parent)
        return self._target


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP}:
            raise
        with source.open("rb") as reader, target.open("wb") as writer:
            shutil.copyfileobj(reader, writer, _COPY_BYTES)
            writer.flush()
            os.fsync(writer.fileno())
