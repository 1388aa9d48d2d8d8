"""Bundles on disk: a directory with a signed ``manifest.json``, and the same files in one ``.tar``.

What a manifest means is in :mod:`edgeops.manifest`. The digest of the bundle is that of the bytes of ``manifest.json``,
signatures included; since the manifest has the digest of every other file, it stands for all of them. Archives are imported where
they are read or written: a device does neither, and has this module in each process.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from edgeops.errors import ConflictError, ManifestError, TransientError, UntrustedError
from edgeops.files import digest_bytes, digest_file, sync_directory, write_durably
from edgeops.manifest import FileEntry, Manifest, check_path, decode_manifest, encode_manifest
from edgeops.signing import MANIFEST, PublicKey, SigningKey, Unseal, seal, unseal

if TYPE_CHECKING:
    import tarfile

MANIFEST_FILE = "manifest.json"
_MAX_MANIFEST_BYTES = 4 << 20


class Bundle(msgspec.Struct, frozen=True):
    """An opened bundle: where it is, what it is, and the digest that identifies it."""

    path: Path
    manifest: Manifest
    digest: str

    def file(self, name: str) -> Path:
        """The path of one of the bundle's files."""
        return self.path / name


def read_manifest(
    envelope: bytes, *, keys: Iterable[PublicKey] | None, where: str = MANIFEST_FILE, unseal: Unseal = unseal
) -> Manifest:
    """Check the signature of a manifest and read it.

    Args:
        envelope: The bytes of ``manifest.json``.
        keys: One of these must have signed; ``None`` does not ask for a signature.
        where: Named in errors.
        unseal: Checks the signature.

    Raises:
        UntrustedError: None of the keys signed it.
        ManifestError: It is signed, and not a valid manifest.
    """
    try:
        payload = unseal(envelope, kind=MANIFEST, keys=keys)
    except UntrustedError as error:
        raise UntrustedError(f"{where}: {error}") from error
    return decode_manifest(payload, where=where)


def open_bundle(
    path: Path, *, keys: Iterable[PublicKey] | None = None, partial: bool = False, unseal: Unseal = unseal
) -> Bundle:
    """Open a bundle directory and verify every file.

    Args:
        path: The directory.
        keys: One of these must have signed the manifest; ``None`` does not ask for a signature.
        partial: Files may be missing (a device fetches the variant that it runs); those present are verified.
        unseal: Checks the signature.

    Raises:
        UntrustedError: None of the keys signed it.
        ManifestError: A file is missing, is no plain file, or has another size or digest.
    """
    manifest_path = path / MANIFEST_FILE
    try:
        with manifest_path.open("rb") as stream:
            envelope = stream.read(_MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ManifestError(f"{path}: expected a bundle directory with {MANIFEST_FILE}: {error.strerror}") from error
    if len(envelope) > _MAX_MANIFEST_BYTES:
        raise ManifestError(f"{manifest_path}: expected at most {_MAX_MANIFEST_BYTES} bytes")
    manifest = read_manifest(envelope, keys=keys, where=str(manifest_path), unseal=unseal)
    for name, entry in manifest.files.items():
        file = path / name
        if any((path / parent).is_symlink() for parent in PurePosixPath(name).parents):
            raise ManifestError(f"{file}: expected plain directories inside the bundle, found a link")
        if partial and not file.exists() and not file.is_symlink():
            continue
        verify_file(file, entry)
    return Bundle(path=path, manifest=manifest, digest=digest_bytes(envelope))


def verify_file(file: Path, entry: FileEntry) -> None:
    """Hold a file against its entry in the manifest.

    Raises:
        ManifestError: It is missing, is no plain file, or has another size or digest.
    """
    if file.is_symlink() or not file.is_file():
        raise ManifestError(
            f"{file}: expected a plain file of the bundle, found {'a link' if file.is_symlink() else 'none'}"
        )
    size = file.stat().st_size
    if size != entry.size_bytes:
        raise ManifestError(f"{file}: expected {entry.size_bytes} bytes, found {size}")
    digest = digest_file(file)
    if digest != entry.digest:
        raise ManifestError(f"{file}: expected {entry.digest}, found {digest}")


def write_bundle(
    path: Path, manifest: Manifest, files: Mapping[str, Path], *, keys: Iterable[SigningKey] = ()
) -> Bundle:
    """Write a bundle directory; it appears whole or not at all.

    Args:
        path: The directory to make.
        manifest: Its ``files`` are replaced by what is really there.
        files: Path in the bundle → the file to copy.
        keys: Who signs.

    Raises:
        ConflictError: The directory exists.
        ManifestError: The manifest names a file that was not given.
        TransientError: A file cannot be read or written; the disk may be full.
    """
    with _appearing(path) as temporary:
        entries = {}
        for name, source in sorted(files.items()):
            check_path(name)
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            entries[name] = FileEntry(digest=digest_file(target), size_bytes=target.stat().st_size)
        complete = msgspec.structs.replace(manifest, files=entries)
        envelope = seal(encode_manifest(complete), kind=MANIFEST, keys=keys)
        write_durably(temporary / MANIFEST_FILE, envelope)
    return Bundle(path=path, manifest=complete, digest=digest_bytes(envelope))


def pack(bundle: Bundle, target: Path) -> None:
    """Write the files of a bundle into one ``.tar``; the same bundle gives the same bytes.

    Raises:
        TransientError: A file cannot be read or written.
    """
    import tarfile  # noqa: PLC0415 - see above

    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with tarfile.open(temporary, "w") as archive:
            for name in [MANIFEST_FILE, *sorted(bundle.manifest.files)]:
                info = tarfile.TarInfo(name)
                info.size = bundle.file(name).stat().st_size
                info.mode = 0o644
                with bundle.file(name).open("rb") as stream:
                    archive.addfile(info, stream)
        temporary.replace(target)
    except OSError as error:
        raise TransientError(f"{target}: cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def unpack(archive: Path, target: Path, *, keys: Iterable[PublicKey] | None = None) -> Bundle:
    """Unpack and verify a ``.tar`` of a bundle; the directory appears whole or not at all.

    Only the files that the manifest lists are written, each no longer than the manifest says.

    Raises:
        UntrustedError: None of the keys signed it.
        ManifestError: It is no tar, is truncated, or does not hold what the manifest lists.
        ConflictError: The target exists.
        TransientError: A file cannot be read or written.
    """
    import tarfile  # noqa: PLC0415 - see above

    with _appearing(target) as temporary:
        try:
            with tarfile.open(archive, "r:") as tar:
                envelope = _member_bytes(tar, archive, MANIFEST_FILE, _MAX_MANIFEST_BYTES)
                manifest = read_manifest(envelope, keys=keys, where=f"{archive}:{MANIFEST_FILE}")
                (temporary / MANIFEST_FILE).write_bytes(envelope)
                for name, entry in manifest.files.items():
                    file = temporary / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(_member_bytes(tar, archive, name, entry.size_bytes))
        except (tarfile.TarError, EOFError) as error:
            raise ManifestError(f"{archive}: not a readable .tar of a bundle: {error}") from error
        open_bundle(temporary, keys=keys)
    return open_bundle(target, keys=keys)


@contextlib.contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A directory to fill, which takes the name of the target when the block ends well, and is gone when it does not."""
    import tempfile  # noqa: PLC0415 - see above

    if target.exists() or target.is_symlink():
        raise ConflictError(
            f"{target}: exists already; a bundle is never overwritten, choose another directory or version"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise TransientError(f"{target}: cannot be made: {error}") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(target)
        sync_directory(target.parent)
    except OSError as error:
        raise TransientError(f"{target}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _member_bytes(tar: "tarfile.TarFile", archive: Path, name: str, limit: int) -> bytes:
    try:
        member = tar.getmember(name)
    except KeyError:
        raise ManifestError(f"{archive}: no file {name!r} in it") from None
    if not member.isreg() or member.size > limit:
        raise ManifestError(f"{archive}: {name!r} is no plain file of at most {limit} bytes")
    stream = tar.extractfile(member)
    data = stream.read() if stream is not None else b""
    if len(data) != member.size:
        raise ManifestError(f"{archive}: truncated inside {name!r}: expected {member.size} bytes, got {len(data)}")
    return data
