"""Lives, in a data directory: one agent at a time holds it, its starts are counted, and those of the machine told apart."""

import fcntl
import logging
import os
import stat
import threading
from pathlib import Path
from typing import BinaryIO

from edgeops.errors import ConfigError, ConflictError
from edgeops.files import digest_bytes, make_directories, write_durably

logger = logging.getLogger(__name__)

_BOOT_FILE = "boot"
_LOCK_FILE = "lock"
_TRIES, _RETRY_S = 20, 0.05
_KERNEL_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BOOT_DIGITS = 12
"""Enough to tell the starts of one machine apart, and short in every record."""


def lock_directory(directory: Path) -> BinaryIO:
    """Hold a data directory as long as the returned file is open, so that no two agents share it.

    Raises:
        ConflictError: Another agent has it.
        ConfigError: It cannot be written.
    """
    try:
        make_directories(directory)
        lock = (directory / _LOCK_FILE).open("ab")
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be written: {error.strerror}") from error
    waiter = threading.Event()
    for _ in range(_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            waiter.wait(_RETRY_S)  # The agent before may be on its last moments.
        else:
            return lock
    lock.close()
    raise ConflictError(f"{directory}: another agent runs on it")


def is_locked(directory: Path) -> bool:
    """Whether an agent runs on a data directory."""
    try:
        with (directory / _LOCK_FILE).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def read_boot(directory: Path) -> int | None:
    """How many times an agent has started; ``None`` where the file is damaged."""
    try:
        return int((directory / _BOOT_FILE).read_text())
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        logger.warning("%s: cannot be read: %s", directory / _BOOT_FILE, error)
        return None


def count_boot(directory: Path, *, now: float) -> int:
    """One more start; a disk that refuses only costs the count.

    Args:
        directory: The data directory.
        now: Unix time in seconds. A count that was lost goes on from there: one that began anew would let the server take
            everything that this device says of itself for old.
    """
    boot = read_boot(directory)
    boot = boot + 1 if boot is not None else int(now)
    try:
        write_durably(directory / _BOOT_FILE, f"{boot}\n".encode())
    except OSError as error:
        logger.warning("%s: %s", directory / _BOOT_FILE, error)
    return boot


def read_machine_boot(path: Path = _KERNEL_BOOT_ID) -> str:
    """Which start of the machine this is, as records say it (:attr:`edgeops.messages.Record.machine_boot`)."""
    try:
        digits = path.read_text().replace("-", "").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return digits[:_BOOT_DIGITS] if digits.isalnum() else ""


def volatile_directory(directory: Path, *, memory: Path = Path("/dev/shm")) -> Path:  # noqa: S108 - made and checked below
    """A directory in memory that belongs to a data directory, for what must not reach the card.

    The service's runtime directory where it has one, else one of our own in ``memory``; the data directory where neither is to
    be had.
    """
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if runtime:
        return Path(runtime)
    place = memory / f"edgeops-{digest_bytes(str(directory).encode()).removeprefix('sha256:')[:16]}"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        status = place.lstat()
    except OSError as error:
        logger.warning("%s: %s; live inputs are handed over in %s", place, error, directory)
        return directory
    # Anybody may have made something of that name there.
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return place if is_ours else directory
