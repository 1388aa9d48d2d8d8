"""The steps of a conversion: told as they begin, and timed."""

import contextlib
import errno
import tempfile
from collections.abc import Callable, Iterator

from edgeops.errors import EdgeOpsError, TransientError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Steps:
    """Tells a listener what begins and keeps how long each step took.

    Args:
        on_step: Called with the name of a step when it begins; ``None`` tells nobody.
        clock: Seconds that only go forward.
    """

    def __init__(self, on_step: Callable[[str], None] | None, *, clock: Callable[[], float]) -> None:
        self._on_step, self._clock = on_step, clock
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str, part: str = "") -> Iterator[None]:
        """One step, or a part of one, for example ``3 of 12``; durations of the same name add up.

        Raises:
            TransientError: The operating system refused: a full disk, a directory that cannot be written.
        """
        if self._on_step is not None:
            self._on_step(f"{name}, {part}" if part else name)
        begin = self._clock()
        try:
            yield
        except EdgeOpsError as error:
            # The libraries' exceptions are translated where they are met; that the disk was full is known only here.
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL:
                raise TransientError(f"{name}: {error.__cause__} (in {tempfile.gettempdir()})") from error
            raise
        except OSError as error:
            # Writing to an open file names none.
            where = "" if error.filename is not None else f" (in {tempfile.gettempdir()}, or where the bundle is to be)"
            raise TransientError(f"{name}: {error}{where}") from error
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + self._clock() - begin, 3)
