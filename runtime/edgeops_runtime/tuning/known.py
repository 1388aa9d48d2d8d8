"""What was chosen before, for whoever starts a worker or picks a variant; the settings of the agent win over it."""

from collections.abc import Callable, Mapping
from pathlib import Path

from edgeops_runtime.slots import Slot
from edgeops_runtime.tuning.choice import Setting
from edgeops_runtime.tuning.tuner import Board, Subject, TuningStore


class KnownSettings:
    """The choices that hold on this board.

    Args:
        store: Has them.
        bundle_path: Where the bundle of a digest lies.
        engines: Those that may serve, name → version.
        threads: As the agent's settings have them; ``None``: they may be chosen.
        is_used: Whether choices are used at all.
    """

    def __init__(
        self,
        store: TuningStore,
        *,
        bundle_path: Callable[[str], Path],
        engines: Callable[[], Mapping[str, str]],
        threads: int | None,
        is_used: bool,
    ) -> None:
        self._store = store
        self._bundle_path, self._engines = bundle_path, engines
        self._threads, self._is_used = threads, is_used
        self.board = Board.here()

    def subject(self, slot: Slot) -> Subject | None:
        """What there is to tune of a version; ``None`` where nothing is to be, or its engine may not serve."""
        engine_version = self._engines().get(slot.engine)
        if not self._is_used or engine_version is None:
            return None
        return Subject(
            slot=slot,
            bundle=self._bundle_path(slot.digest),
            engine_version=engine_version,
            threads=self._threads or 1,
            may_vary=self._threads is None,
        )

    def find(self, slot: Slot) -> Setting | None:
        """The choice for a version, where it was tuned and the agent's settings allow it."""
        subject = self.subject(slot)
        return self._store.find(subject, board=self.board) if subject is not None else None

    def best_variant(self, digest: str, engines: Mapping[str, str]) -> tuple[str, str] | None:
        """The variant and engine that were best when a bundle was tuned here, if it was.

        Args:
            digest: Of the bundle.
            engines: Those that may serve, name → version.
        """
        if not self._is_used:
            return None
        setting = self._store.preferred(digest, engines=engines, board=self.board)
        return (setting.variant, setting.engine) if setting is not None else None
