"""The desired state as this device may believe it: signatures, addressee and generation checked, the last valid one kept on disk.

Whether to act on it now (time, wave, quarantine) is decided in :mod:`edgeops_runtime.admission`.
"""

import contextlib
import logging
from pathlib import Path

from edgeops.errors import EdgeOpsError, MessageError, UntrustedError
from edgeops.files import write_durably
from edgeops.messages import Desired, Target, decode_json
from edgeops.signing import DESIRED, Unseal, unseal
from edgeops_runtime.identity import Identity

logger = logging.getLogger(__name__)

GROUP, DEVICE = "group", "device"
"""The two sources; what is wanted of the device alone wins."""


class DesiredState:
    """The last valid documents.

    Args:
        directory: Exists; the documents are kept here, so that a device that starts without network knows what is wanted.
        identity: Whose keys and names are expected.
        unseal: Checks signatures.
    """

    def __init__(self, directory: Path, identity: Identity, *, unseal: Unseal = unseal) -> None:
        self._directory = directory
        self._identity = identity
        self._unseal = unseal
        self._documents: dict[str, Desired] = {}
        for source in (GROUP, DEVICE):
            with contextlib.suppress(FileNotFoundError):
                self._load(source)

    @property
    def effective(self) -> Desired | None:
        """What counts now: the override, else the group's document."""
        return self._documents.get(DEVICE) or self._documents.get(GROUP)

    @property
    def generation(self) -> int:
        """Of what counts now; 0 when nothing was ever heard."""
        return self.effective.generation if self.effective is not None else 0

    def target(self, model: str) -> Target | None:
        """What is wanted of a model; with an empty name, of the first."""
        if self.effective is None:
            return None
        return next((each for each in self.effective.targets if model in {"", each.model}), None)

    def has(self, source: str) -> bool:
        """Whether there is a document of a source."""
        return source in self._documents

    def accept(self, source: str, envelope: bytes, *, seen: int) -> Desired:
        """Take a document, if it is valid, and keep it.

        Args:
            source: :data:`GROUP` or :data:`DEVICE`, by the topic that it came on.
            envelope: The signed document.
            seen: The highest generation of this source that was ever seen.

        Raises:
            UntrustedError: The signature is not the director's, it is meant for somebody else, or it is older than another.
            MessageError: It is signed and makes no sense.
        """
        desired = self._verified(source, envelope)
        kept = self._documents.get(source)
        seen = max(seen, kept.generation if kept is not None else 0)  # Slots that were lost do not make the past valid.
        if desired.generation < seen:
            raise UntrustedError(
                f"desired state of the {source}: generation {desired.generation} is older than {seen}, which was seen"
            )
        if desired != kept:
            self._documents[source] = desired
            try:
                write_durably(self._path(source), envelope)
            except OSError as error:
                logger.warning("%s: not kept for the next start: %s", self._path(source), error)
        return desired

    def withdraw_override(self) -> bool:
        """Forget the override; ``True`` when there was one."""
        try:
            self._path(DEVICE).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s: cannot be removed: %s", self._path(DEVICE), error)
        return self._documents.pop(DEVICE, None) is not None

    def _verified(self, source: str, envelope: bytes) -> Desired:
        identity = self._identity
        payload = self._unseal(envelope, kind=DESIRED, keys=[identity.director_key])
        desired = decode_json(payload, Desired, where=f"desired state of the {source}")
        meant = (desired.fleet, desired.group, desired.device)
        expected = (identity.fleet, identity.group, identity.device if source == DEVICE else None)
        if meant != expected:
            raise UntrustedError(f"desired state of the {source}: meant for {meant}, this device is {expected}")
        if source == DEVICE and not desired.targets:
            raise MessageError("desired state of the device: an override without targets; an empty message removes it")
        return desired

    def _load(self, source: str) -> None:
        path = self._path(source)
        try:
            self._documents[source] = self._verified(source, path.read_bytes())
        except FileNotFoundError:
            raise
        except (OSError, EdgeOpsError) as error:
            logger.warning("%s: not used: %s", path, error)

    def _path(self, source: str) -> Path:
        return self._directory / f"desired-{source}.json"
