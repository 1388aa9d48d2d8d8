"""Writing files so that a power cut leaves either the old content or the new, and digests of what was written."""

import contextlib
import hashlib
import os
import re
from pathlib import Path

_CHUNK_BYTES = 1 << 20
DIGEST_PATTERN = re.compile(r"^sha256:[0-9a-f]{64}\Z")


def digest_bytes(data: bytes) -> str:
    """The SHA-256 of bytes, written ``sha256:<hex>``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_file(path: Path) -> str:
    """The SHA-256 of a file, written ``sha256:<hex>``, in constant memory."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable; a rename is only on disk after this."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(directory: Path) -> None:
    """Make a directory, and those above it that are missing; the new names are durable."""
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        sync_directory(each.parent)


def write_durably(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace a file: temporary file, fsync, rename, fsync of the directory.

    Args:
        path: The file to replace or to make; its directory exists.
        data: The whole content.
        mode: Permission bits; ``0o600`` for what nobody else may read.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)
