"""A temporary folder for everything that a command makes on its way, which is gone however the command ends.

Ctrl-C, SIGTERM and errors unwind, so that the folder is removed at once. Nothing runs after SIGKILL or a power cut: then the next
command removes it, and knows by the lock that nobody works in it any more.
"""

import contextlib
import fcntl
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_PREFIX, _LOCK = "edgeops-scratch-", "lock"
_TERMINATED = 128 + signal.SIGTERM


@contextlib.contextmanager
def scratch() -> Iterator[None]:
    """Send the temporary files of this process, the libraries' too, to one folder, and remove it at the end."""
    before = signal.signal(signal.SIGTERM, _unwind)
    kept = tempfile.tempdir
    _sweep(Path(tempfile.gettempdir()))
    try:
        with (
            tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as folder,
            (Path(folder) / f"{_LOCK}.new").open("w") as lock,
        ):
            fcntl.flock(lock, fcntl.LOCK_EX)
            Path(lock.name).rename(Path(folder) / _LOCK)  # whoever sees it, sees it locked
            tempfile.tempdir = folder
            yield
    finally:
        tempfile.tempdir = kept
        signal.signal(signal.SIGTERM, before)


def _unwind(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(_TERMINATED)


def _sweep(above: Path) -> None:
    """Remove what killed commands left."""
    for lock in above.glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError), lock.open("r+") as stream:  # it is another user's, in use, or just gone
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
