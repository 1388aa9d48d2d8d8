"""Tunes the version that serves, once, when the board has nothing else to do; the choice holds from its worker's next start on.

No worker is started anew for it: a swap costs callers more than a setting gains them. The measurements take only CPU that nobody
else wants, and end when a deployment begins or the board is strained.
"""

import logging
import threading
import time
from collections.abc import Callable

import msgspec

from edgeops.bundle import open_bundle
from edgeops.errors import EdgeOpsError
from edgeops_runtime.ladder import Rung
from edgeops_runtime.loop import Loop
from edgeops_runtime.tuning.choice import Choice
from edgeops_runtime.tuning.tuner import Remembered, Subject, Tuner, TuningStore

logger = logging.getLogger(__name__)

LOOK_S = 60.0
IDLE_LOAD = 0.5
"""Load average for each core, at most, of a board that is called idle."""


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """How busy the board is.

    Attributes:
        is_serving: Whether the incumbent accepts requests.
        has_room: Whether the memory holds a second worker, which is what a measurement is.
        load: Average over the last minute; ``None``: unknown.
    """

    rung: Rung
    is_deploying: bool
    is_serving: bool
    has_room: bool
    load: float | None
    cores: int

    @property
    def is_idle(self) -> bool:
        """Whether a measurement disturbs nobody, and comes out right.

        >>> calm = {"rung": Rung.NORMAL, "is_deploying": False, "is_serving": True, "has_room": True, "cores": 4}
        >>> Situation(load=2.0, **calm).is_idle, Situation(load=2.1, **calm).is_idle, Situation(load=None, **calm).is_idle
        (True, False, False)
        """
        is_calm = self.load is not None and self.load <= IDLE_LOAD * self.cores
        return self.rung is Rung.NORMAL and self.is_serving and not self.is_deploying and self.has_room and is_calm


class IdleTuning:
    """Looks every minute whether there is something to tune and time for it.

    Args:
        loop: For the next look.
        store: Choices from before.
        make_tuner: A new one for each tuning.
        subject: What serves; ``None``: nothing, or something that is not to be tuned.
        situation: Asked only when there is something to tune.
        notice: Takes ``(kind, text)`` for the log.
    """

    def __init__(
        self,
        *,
        loop: Loop,
        store: TuningStore,
        make_tuner: Callable[[], Tuner],
        subject: Callable[[], Subject | None],
        situation: Callable[[], Situation],
        notice: Callable[[str, str], None],
    ) -> None:
        self._loop, self._store, self._make_tuner = loop, store, make_tuner
        self._subject, self._situation, self._notice = subject, situation, notice
        self._under_way: Tuner | None = None
        self._fruitless: set[str] = set()

    def look(self) -> None:
        """Begin, where there is something to tune and nothing else to do; look again in a minute."""
        self._loop.call_later(LOOK_S, self.look)
        subject = self._subject()
        if self._under_way is not None or subject is None or subject.slot.digest in self._fruitless:
            return
        tuner = self._make_tuner()
        if self._store.find(subject, board=tuner.board) is not None or not self._situation().is_idle:
            return
        self._under_way = tuner
        threading.Thread(target=self._tune, args=(tuner, subject), name="tuning", daemon=True).start()

    def interrupt(self) -> None:
        """Something more important begins: what was measured is forgotten, and measured again another time."""
        if self._under_way is not None:
            self._under_way.cancel()

    def _tune(self, tuner: Tuner, subject: Subject) -> None:
        choice = None
        try:
            bundle = open_bundle(subject.bundle, partial=True)
            choice = tuner.tune(bundle, [subject.usual], threads=None if subject.may_vary else (subject.threads,))
        except EdgeOpsError as error:
            logger.warning("%s: not tuned: %s", subject.slot.version, error)
        self._loop.post(lambda: self._tuned(tuner, subject, choice))

    def _tuned(self, tuner: Tuner, subject: Subject, choice: Choice | None) -> None:
        self._under_way = None
        slot = subject.slot
        if tuner.is_cancelled:
            return
        if choice is None:
            self._fruitless.add(slot.digest)
            return
        self._store.add(
            Remembered(
                digest=slot.digest,
                engine_version=subject.engine_version,
                board=tuner.board,
                setting=choice.setting,
                reason=choice.reason,
                at=time.time(),
            )
        )
        text = f"{slot.version}: {choice.setting.words}: {choice.reason}"
        self._notice("tuned", text if choice.setting == subject.usual else f"{text}; from its worker's next start on")
