"""A file that holds some room on the disk, so that there is some to give back when the disk is full.

Without it a full disk is a trap: forgetting what the server has takes a write first.
"""

import contextlib
import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)


class Ballast:
    """The file.

    Args:
        path: Where it is.
        size_bytes: How much it holds.
    """

    def __init__(self, path: Path, *, size_bytes: int) -> None:
        self._path, self._size_bytes = path, size_bytes
        self.restore()

    def release(self) -> bool:
        """Give the room back; ``False`` when it was given already."""
        try:
            self._path.unlink()
        except OSError:
            return False
        self._is_there = False
        logger.warning("%s: the disk is full; %d bytes of reserve given back", self._path.parent, self._size_bytes)
        return True

    def restore(self) -> None:
        """Take the room again, where the disk has it."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            self._is_there = False
            return
        try:
            if os.fstat(descriptor).st_size != self._size_bytes:
                os.ftruncate(descriptor, 0)
                os.posix_fallocate(descriptor, 0, self._size_bytes)
            self._is_there = True
        except OSError:
            self._is_there = False
            with contextlib.suppress(OSError):
                self._path.unlink()
        finally:
            os.close(descriptor)

    @property
    def is_there(self) -> bool:
        """Whether the room is held."""
        return self._is_there
