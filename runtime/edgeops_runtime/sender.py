"""Publish what waits in the outbox, in order, a window at a time, again until the server has acknowledged it.

Decides when to send what; it keeps no record itself and never waits, so that serving is not held up.
"""

import logging
from collections import deque
from collections.abc import Callable

import msgspec

from edgeops.errors import LinkError
from edgeops_runtime.outbox import Outbox, Stream

logger = logging.getLogger(__name__)

Publish = Callable[[Stream, bytes], None]
"""Hands a record to the link; raises :class:`LinkError`."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How much, and how soon again.

    Attributes:
        window: Records of one stream that are sent and not acknowledged.
        resend_s: Silence after which they are sent again; doubled up to ``max_resend_s`` while the server stays silent.
    """

    window: int = 32
    resend_s: float = 5.0
    max_resend_s: float = 120.0


class _Progress(msgspec.Struct):
    """Where one stream stands: the highest sequence sent, those under way, since when it waits, and how long it will."""

    sent: int = 0
    under_way: deque[int] = msgspec.field(default_factory=deque)
    waiting_since: float = 0.0
    patience_s: float = 0.0


class Sender:
    """Moves records from an outbox to a link.

    Args:
        outbox: Where they wait.
        publish: Where they go.
        pace: Window and patience.
    """

    def __init__(self, outbox: Outbox, publish: Publish, *, pace: Pace = Pace()) -> None:  # noqa: B008 - immutable
        self._outbox = outbox
        self._publish = publish
        self._pace = pace
        self._progress = {stream: _Progress(patience_s=pace.resend_s) for stream in Stream}

    def reconnected(self) -> None:
        """Whatever was under way may be lost: send it again."""
        for progress in self._progress.values():
            progress.sent, progress.patience_s = 0, self._pace.resend_s
            progress.under_way.clear()

    def acknowledged(self) -> None:
        """The server has more than before: there is room in the window."""
        for progress in self._progress.values():
            progress.patience_s = self._pace.resend_s

    def pump(self, now: float) -> bool:
        """Send what the windows allow, the most important stream first.

        Args:
            now: Monotonic time in seconds.

        Returns:
            Whether anything still waits.
        """
        try:
            for stream in reversed(Stream):
                self._pump_stream(stream, now)
        except LinkError as error:
            logger.debug("%s", error)
        return any(self._outbox.counts().values())

    def _pump_stream(self, stream: Stream, now: float) -> None:
        progress, acked = self._progress[stream], self._outbox.acked(stream)
        if progress.sent > acked and now - progress.waiting_since >= progress.patience_s:
            progress.sent = acked
            progress.under_way.clear()
            progress.patience_s = min(progress.patience_s * 2, self._pace.max_resend_s)
        progress.sent = max(progress.sent, acked)
        while progress.under_way and progress.under_way[0] <= acked:
            progress.under_way.popleft()
        # Records are counted, not sequences: one of them may stand for many.
        room = self._pace.window - len(progress.under_way)
        if room <= 0 or progress.sent >= self._outbox.last(stream):
            return
        for entry in self._outbox.read(stream, after=progress.sent, limit=room):
            self._publish(stream, entry.payload)
            progress.sent = entry.sequence
            progress.under_way.append(entry.sequence)
            progress.waiting_since = now
