"""Which version runs, which one ran before, which one is on trial: the state of a device that must survive anything.

One document with a checksum and a sequence number, kept in two files that are replaced in turn; a damaged one falls back to the
other. Starts of a candidate are counted here, on disk, before they happen, so that a model that takes the board down with it
is rolled back at the third boot. What to do with the state is decided in :mod:`edgeops_runtime.admission` and
:mod:`edgeops_runtime.deployment`.
"""

import logging
import zlib
from pathlib import Path

import msgspec

from edgeops.files import write_durably
from edgeops.messages import DeploymentState, Trial

logger = logging.getLogger(__name__)

_COPIES = 2


class _State(msgspec.Struct, frozen=True, kw_only=True):
    """Common settings; unknown keys are ignored, so that an older agent reads what a newer one wrote."""


class Slot(_State, frozen=True, kw_only=True):
    """A version that has been committed."""

    version: str
    digest: str
    variant: str
    engine: str


class Candidate(_State, frozen=True, kw_only=True):
    """A version that wants to become the current one.

    Attributes:
        variant: Empty until it was chosen; likewise ``engine``.
        attempts: Starts so far, counted before each.
        elapsed_s: Time since the offer, summed over boots, in seconds.
    """

    version: str
    digest: str
    url: str = ""
    rollout: str | None = None
    generation: int = 0
    trial: Trial = Trial()
    variant: str = ""
    engine: str = ""
    phase: DeploymentState = DeploymentState.OFFERED
    attempts: int = 0
    elapsed_s: float = 0.0


class Slots(_State, frozen=True, kw_only=True):
    """All that is to be remembered of one model.

    Attributes:
        quarantine: Digest → why it never runs here again.
        generations: Topic kind (``group``, ``device``) → highest generation seen.
        unreported: The end of a deployment that is perhaps not in the outbox yet, as JSON; empty when all is told.
    """

    model: str = ""
    current: Slot | None = None
    previous: Slot | None = None
    candidate: Candidate | None = None
    quarantine: dict[str, str] = {}
    generations: dict[str, int] = {}
    unreported: str = ""

    @property
    def kept_digests(self) -> frozenset[str]:
        """The bundles that must stay on disk."""
        return frozenset(slot.digest for slot in (self.current, self.previous, self.candidate) if slot is not None)

    def committed(self) -> "Slots":
        """The candidate becomes the current version, and the current one the previous."""
        if self.candidate is None:
            return self
        winner = Slot(
            version=self.candidate.version,
            digest=self.candidate.digest,
            variant=self.candidate.variant,
            engine=self.candidate.engine,
        )
        previous = self.current if self.current is None or self.current.digest != winner.digest else self.previous
        return msgspec.structs.replace(self, current=winner, previous=previous, candidate=None)

    def without_candidate(self, *, quarantine: str = "") -> "Slots":
        """The candidate is gone; with a reason, its digest is quarantined."""
        if self.candidate is None:
            return self
        barred = {**self.quarantine, self.candidate.digest: quarantine} if quarantine else self.quarantine
        return msgspec.structs.replace(self, candidate=None, quarantine=barred)

    def without_current(self) -> "Slots":
        """The current version cannot be read any more; the previous one, if there is one, takes its place. It is no defect."""
        return msgspec.structs.replace(self, current=self.previous, previous=None)

    def fallen_back(self, reason: str) -> "Slots":
        """The current version is quarantined and the previous one takes its place."""
        if self.current is None or self.previous is None:
            return self
        barred = {**self.quarantine, self.current.digest: reason}
        return msgspec.structs.replace(self, current=self.previous, previous=None, quarantine=barred)


class _Stored(msgspec.Struct, frozen=True):
    sequence: int
    slots: Slots


class SlotStore:
    """The two files.

    Args:
        directory: Exists; holds ``slots.0`` and ``slots.1``.
    """

    def __init__(self, directory: Path) -> None:
        self._paths = [directory / f"slots.{index}" for index in range(_COPIES)]
        copies = [stored for path in self._paths if (stored := _read(path)) is not None]
        newest = max(copies, key=lambda stored: stored.sequence, default=_Stored(0, Slots()))
        self.damaged = sum(path.exists() for path in self._paths) - len(copies)
        """How many files were there and could not be read."""
        self._sequence = newest.sequence
        self.slots = newest.slots
        """The state as it is on disk."""

    def save(self, slots: Slots) -> None:
        """Make a new state durable; the files are written in turn, so that one is always whole.

        Raises:
            OSError: The disk refused; the state is still the old one.
        """
        if slots == self.slots and self._sequence:
            return
        sequence = self._sequence + 1
        payload = msgspec.json.encode(_Stored(sequence, slots))
        write_durably(self._paths[sequence % _COPIES], f"{zlib.crc32(payload):08x} ".encode() + payload + b"\n")
        self._sequence, self.slots = sequence, slots

    def change(self, **changes: object) -> Slots:
        """Replace some fields and make it durable.

        Raises:
            OSError: The disk refused; the state is still the old one.
        """
        self.save(msgspec.structs.replace(self.slots, **changes))
        return self.slots


def _read(path: Path) -> _Stored | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    checksum, _, payload = data.removesuffix(b"\n").partition(b" ")
    if checksum != f"{zlib.crc32(payload):08x}".encode() or not data.endswith(b"\n"):
        logger.warning("%s: damaged; the other copy counts", path)
        return None
    try:
        return msgspec.json.decode(payload, type=_Stored)
    except msgspec.DecodeError as error:
        logger.warning("%s: cannot be read: %s", path, error)
        return None
