"""Bring a bundle onto the device: manifest, variant, files; each verified before it counts. Blocking, for a thread of its own.

Which bundle is wanted is decided in :mod:`edgeops_runtime.admission`; bytes come from a
:class:`edgeops_runtime.downloads.Downloader`, and lie in a :class:`edgeops_runtime.blobs.BlobStore`. Nothing here touches the
version that runs.
"""

import logging
import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from edgeops.bundle import open_bundle, read_manifest
from edgeops.errors import DownloadError, EdgeOpsError, InputError, ManifestError, UntrustedError
from edgeops.files import DIGEST_PATTERN
from edgeops.manifest import Manifest, Variant
from edgeops.messages import ReasonClass
from edgeops.signing import PublicKey, Unseal, unseal
from edgeops_runtime.blobs import BlobStore
from edgeops_runtime.downloads import Downloader, NotThereError

logger = logging.getLogger(__name__)

_MAX_MANIFEST_BYTES = 4 << 20
_BUDGET_FACTOR = 2
_TRIES_WITHOUT_PROGRESS = 8
_TRIES_WHEN_MISSING = 4
_TRIES_WHEN_WRONG = 2

Choose = Callable[[Manifest, str], tuple[Variant, str] | str]
"""Picks the variant and the engine of the bundle with a digest for this device, or says why there is none."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to bring.

    Attributes:
        digest: Of the manifest; ``model`` and ``version`` must be what it says.
        url: Base of the blobs, absolute.
    """

    model: str
    version: str
    digest: str
    url: str


class Brought(msgspec.Struct, frozen=True, kw_only=True):
    """The bundle is on the device."""

    variant: str
    engine: str
    downloaded_bytes: int


class NotBrought(msgspec.Struct, frozen=True, kw_only=True):
    """It is not, and why."""

    reason_class: ReasonClass
    reason: str


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How patient to be.

    Attributes:
        backoff_s: Longest first pause between two tries, doubled each time up to ``max_backoff_s``; the pause itself is drawn.
    """

    backoff_s: float = 1.0
    max_backoff_s: float = 60.0


class Updater:
    """Brings bundles, one at a time.

    Args:
        store: Where to put them.
        downloader: Where they come from.
        keys: One of these must have signed the manifest.
        choose: Picks the variant.
        pace: Pauses between tries.
        rng: For the pauses.
        unseal: Checks signatures.
    """

    def __init__(
        self,
        store: BlobStore,
        downloader: Downloader,
        *,
        keys: Iterable[PublicKey],
        choose: Choose,
        pace: Pace = Pace(),  # noqa: B008 - immutable
        rng: random.Random | None = None,
        unseal: Unseal = unseal,
    ) -> None:
        self._unseal = unseal
        self._store = store
        self._downloader = downloader
        self._keys = tuple(keys)
        self._choose = choose
        self._pace = pace
        self._rng = rng or random.Random()  # noqa: S311 - not a secret

    def is_here(self, digest: str) -> bool:
        """Whether the bundle needs no bytes from outside."""
        return self._store.has_bundle(digest)

    def bring(self, order: Order, *, cancelled: threading.Event) -> Brought | NotBrought | None:
        """Fetch what is missing, verify all of it, assemble the bundle.

        Args:
            order: What to bring.
            cancelled: Set from outside to give up; then the answer is ``None``, and the bytes so far are kept.
        """
        fetch = _Fetch(self._store, self._downloader, order, pace=self._pace, rng=self._rng, cancelled=cancelled)
        try:
            return self._bring(order, fetch)
        except _CancelledError:
            return None
        except _SecurityError as error:
            return NotBrought(reason_class=ReasonClass.SECURITY, reason=str(error))
        except UntrustedError as error:
            return NotBrought(reason_class=ReasonClass.SECURITY, reason=str(error))
        except InputError as error:
            return NotBrought(reason_class=ReasonClass.INCOMPATIBLE, reason=str(error))
        except EdgeOpsError as error:
            return NotBrought(reason_class=ReasonClass.TRANSIENT, reason=str(error))
        except OSError as error:
            return NotBrought(reason_class=ReasonClass.ENVIRONMENT, reason=f"storage: {error}")

    def _bring(self, order: Order, fetch: "_Fetch") -> Brought | NotBrought:
        if not DIGEST_PATTERN.match(order.digest):  # Before it becomes part of a path.
            raise ManifestError(f"{order.model} {order.version}: expected 'sha256:<64 hex>', got {order.digest!r}")
        if self._store.has_bundle(order.digest):
            found = self._check_assembled(order)
            if found is not None:
                return found
        fetch.blob(order.digest, None)
        envelope = self._store.blob_path(order.digest).read_bytes()
        manifest = self._manifest(order, envelope)
        chosen = self._choose(manifest, order.digest)
        if isinstance(chosen, str):
            return NotBrought(reason_class=ReasonClass.INCOMPATIBLE, reason=f"no variant for this device: {chosen}")
        variant, engine = chosen
        names = manifest.needed_files(variant)
        fetch.allow(sum(manifest.files[name].size_bytes for name in names))
        missing = self._store.missing_bytes(
            {manifest.files[name].digest: manifest.files[name].size_bytes for name in names}
        )
        free = self._store.free_bytes()
        if free is not None and missing > free:
            reason = f"storage: {missing} more bytes are needed, {free} are free"
            return NotBrought(reason_class=ReasonClass.ENVIRONMENT, reason=reason)
        for name in sorted(names):
            fetch.blob(manifest.files[name].digest, manifest.files[name].size_bytes)
        self._store.assemble(
            order.digest, manifest=envelope, files={name: manifest.files[name].digest for name in names}
        )
        return Brought(variant=variant.name, engine=engine, downloaded_bytes=fetch.received_bytes)

    def _check_assembled(self, order: Order) -> Brought | NotBrought | None:
        """A bundle that is here already; ``None`` when it was damaged, and is now gone."""
        try:
            bundle = open_bundle(
                self._store.bundle_path(order.digest), keys=self._keys, partial=True, unseal=self._unseal
            )
        except ManifestError as error:
            return self._discard(order, str(error))
        if bundle.digest != order.digest:
            return self._discard(order, f"{bundle.path}: expected {order.digest}, found {bundle.digest}")
        self._check_name(order, bundle.manifest)
        chosen = self._choose(bundle.manifest, order.digest)
        if isinstance(chosen, str):
            return NotBrought(reason_class=ReasonClass.INCOMPATIBLE, reason=f"no variant for this device: {chosen}")
        variant, engine = chosen
        # Another variant than before, or a bundle whose removal a power cut has interrupted.
        missing = sorted(name for name in bundle.manifest.needed_files(variant) if not bundle.file(name).exists())
        if missing:
            return self._discard(order, f"{bundle.path}: {', '.join(missing)}: not there")
        return Brought(variant=variant.name, engine=engine, downloaded_bytes=0)

    def _discard(self, order: Order, reason: str) -> Brought | None:
        logger.warning("%s; fetched anew", reason)
        self._store.discard_bundle(order.digest)
        return None

    def _manifest(self, order: Order, envelope: bytes) -> Manifest:
        where = f"manifest of {order.model} {order.version}"
        manifest = read_manifest(envelope, keys=self._keys, where=where, unseal=self._unseal)
        self._check_name(order, manifest)
        return manifest

    @staticmethod
    def _check_name(order: Order, manifest: Manifest) -> None:
        if (manifest.name, manifest.version) != (order.model, order.version):
            raise UntrustedError(
                f"{order.digest}: expected {order.model} {order.version}, it is {manifest.name} {manifest.version}"
            )


class _CancelledError(Exception):
    """Somebody else decided that it is no longer wanted."""


class _SecurityError(Exception):
    """The right digest cannot be had from there."""


@dataclass
class _Tries:
    """How often a blob did not come: without a new byte, not there, with the wrong digest."""

    fruitless: int = 0
    missing: int = 0
    wrong: int = 0


class _Fetch:
    """One order's downloads: how many bytes so far, and how many may come."""

    def __init__(
        self,
        store: BlobStore,
        downloader: Downloader,
        order: Order,
        *,
        pace: Pace,
        rng: random.Random,
        cancelled: threading.Event,
    ) -> None:
        self._store, self._downloader, self._order = store, downloader, order
        self._pace, self._rng, self._cancelled = pace, rng, cancelled
        self._budget_bytes = _BUDGET_FACTOR * _MAX_MANIFEST_BYTES
        self.received_bytes = 0

    def allow(self, needed_bytes: int) -> None:
        """Say how many bytes the files have; twice as many may come, over all tries."""
        self._budget_bytes += _BUDGET_FACTOR * needed_bytes

    def blob(self, digest: str, size_bytes: int | None) -> None:
        """Fetch one blob, however many tries it takes within reason.

        Args:
            digest: What it must be.
            size_bytes: Its size; ``None`` for a manifest, which has a limit instead.
        """
        url = f"{self._order.url.rstrip('/')}/{digest}"
        tries = _Tries()
        while not self._store.has(digest):
            if self._cancelled.is_set():
                raise _CancelledError
            before = self._store.partial(digest).size_bytes
            try:
                self._stream(url, digest, size_bytes)
            except NotThereError:
                tries.missing += 1
                if tries.missing >= _TRIES_WHEN_MISSING:
                    raise
            except DownloadError as error:
                logger.info("%s", error)
                came_further = self._store.partial(digest).size_bytes > before
                tries.fruitless = 0 if came_further else tries.fruitless + 1
                if tries.fruitless >= _TRIES_WITHOUT_PROGRESS or self.received_bytes > self._budget_bytes:
                    raise
            else:
                self._finish(url, digest, size_bytes, tries)
                continue
            self._pause(tries.fruitless + tries.missing)

    def _finish(self, url: str, digest: str, size_bytes: int | None, tries: "_Tries") -> None:
        try:
            self._store.partial(digest).finish(size_bytes)
        except DownloadError as error:
            # Once may be the network's doing or a damaged beginning; twice from the first byte is the server's.
            tries.wrong += 1
            if tries.wrong >= _TRIES_WHEN_WRONG:
                raise _SecurityError(f"{url}: {error}") from error

    def _stream(self, url: str, digest: str, size_bytes: int | None) -> None:
        partial = self._store.partial(digest)
        limit = _MAX_MANIFEST_BYTES if size_bytes is None else size_bytes
        offset = partial.size_bytes
        if offset > limit:
            partial.discard()
            offset = 0
        if offset == size_bytes:
            return
        with self._downloader.open(url, offset=offset) as stream:
            place = stream.offset
            for chunk in stream.chunks:
                if self._cancelled.is_set():
                    raise _CancelledError
                self.received_bytes += len(chunk)
                if place + len(chunk) > limit:
                    partial.discard()
                    raise _SecurityError(f"{url}: expected at most {limit} bytes, more came")
                if self.received_bytes > self._budget_bytes:
                    raise DownloadError(f"{url}: {self.received_bytes} bytes were received, the budget is used up")
                try:
                    partial.append(chunk, offset=place)
                except OSError:
                    partial.discard()  # What was to be kept for the next try may be all the room that slots and outbox have.
                    raise
                place += len(chunk)
        if size_bytes is not None and place < size_bytes:
            # Nobody gains by sending too little; what is there is kept, as after any connection that breaks off.
            raise DownloadError(f"{url}: expected {size_bytes} bytes, {place} came")

    def _pause(self, tries: int) -> None:
        # Full jitter, after "Exponential backoff and jitter" (Brooker, 2015).
        longest = min(self._pace.backoff_s * 2 ** max(tries - 1, 0), self._pace.max_backoff_s)
        if self._cancelled.wait(self._rng.uniform(0, longest)):
            raise _CancelledError
