"""The catalog: bundles that were released, verified before anything is kept, and their files as blobs.

A bundle is never replaced: the same bytes again change nothing, other bytes under a known version are refused.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import sqlalchemy as sa

from edgeops.bundle import MANIFEST_FILE, Bundle, read_manifest, unpack
from edgeops.errors import ConflictError, ManifestError, NotFoundError
from edgeops.manifest import Manifest, parse_version
from edgeops.signals import Reference, decode_reference
from edgeops.signing import PublicKey
from edgeops_fleet.blobs import Blobs
from edgeops_fleet.schema import bundles
from edgeops_fleet.store import Store, read_row


class BundleView(msgspec.Struct, frozen=True, kw_only=True):
    """A released bundle.

    Attributes:
        created: When it was converted, ISO 8601; ``uploaded`` is Unix time in seconds.
        size_bytes: Of all its files.
        variants: Names, in its maker's order of preference.
        parent: Digest of the bundle that it was retrained from; ``dataset`` likewise.
    """

    digest: str
    model: str
    version: str
    created: str
    uploaded: float
    size_bytes: int
    variants: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    parent: str | None = None
    dataset: str | None = None


class Catalog:
    """Released bundles.

    Args:
        store: Has the rows.
        blobs: Has the bytes.
        keys: One of these must have signed a bundle.
        scratch: A folder for unpacking.
    """

    def __init__(self, store: Store, blobs: Blobs, *, keys: Sequence[PublicKey], scratch: Path) -> None:
        self._store = store
        self._blobs = blobs
        self._keys = tuple(keys)
        self._scratch = scratch

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder that is gone afterwards."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(dir=self._scratch))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def publish(self, archive: Path, *, actor: str = "operator") -> tuple[BundleView, bool]:
        """Verify a ``.tar`` of a bundle and release it.

        Returns:
            The bundle, and whether it is new; the same bytes again are not.

        Raises:
            UntrustedError: None of the release keys signed it.
            ManifestError: It is damaged or incomplete.
            ConflictError: The version exists with other content.
        """
        with self.scratch() as directory:
            bundle = unpack(archive, directory / "bundle", keys=self._keys)
            known = self._known(bundle)
            if known is not None:
                return known, False
            for name, entry in bundle.manifest.files.items():
                self._blobs.put(entry.digest, bundle.file(name))
            self._blobs.put(bundle.digest, bundle.file(MANIFEST_FILE))
            envelope = bundle.file(MANIFEST_FILE).read_bytes()
        return self._insert(bundle, envelope, actor=actor)

    def bundles(self, *, model: str | None = None) -> tuple[BundleView, ...]:
        """All bundles, by model and version."""
        query = sa.select(bundles)
        if model is not None:
            query = query.where(bundles.c.model == model)
        with self._store.read() as connection:
            views = [_view(row) for row in connection.execute(query).mappings()]
        return tuple(sorted(views, key=lambda view: (view.model, parse_version(view.version))))

    def find(self, model: str, version: str) -> BundleView:
        """The bundle of a version.

        Raises:
            NotFoundError: There is none; the message lists those that there are.
        """
        known = self.bundles(model=model)
        for view in known:
            if view.version == version:
                return view
        there = ", ".join(view.version for view in known) or "none"
        raise NotFoundError(f"{model} {version}: not in the catalog; published versions of {model}: {there}")

    def manifest(self, digest: str) -> Manifest:
        """The manifest of a bundle.

        Raises:
            NotFoundError: There is no such bundle.
        """
        query = sa.select(bundles.c.manifest).where(bundles.c.digest == digest)
        with self._store.read() as connection:
            envelope = connection.execute(query).scalar()
        if envelope is None:
            raise NotFoundError(f"{digest}: no such bundle")
        return read_manifest(envelope, keys=None, where=digest)

    def reference(self, digest: str) -> Reference | None:
        """The drift baseline of a bundle; ``None`` when it has none, or is unknown."""
        try:
            manifest = self.manifest(digest)
        except NotFoundError:
            return None
        if manifest.reference is None:
            return None
        return decode_reference(self._blobs.get(manifest.files[manifest.reference].digest), where=f"{digest} reference")

    def _known(self, bundle: Bundle) -> BundleView | None:
        manifest = bundle.manifest
        condition = sa.and_(bundles.c.model == manifest.name, bundles.c.version == manifest.version)
        with self._store.read() as connection:
            row = connection.execute(sa.select(bundles).where(condition)).mappings().first()
        return self._same(row, bundle) if row is not None else None

    def _same(self, row: sa.RowMapping, bundle: Bundle) -> BundleView:
        if row["digest"] != bundle.digest:
            raise ConflictError(
                f"{row['model']} {row['version']} is published already as {row['digest']}, this is {bundle.digest}; "
                "a version never changes, choose a new one"
            )
        return _view(row)

    def _insert(self, bundle: Bundle, envelope: bytes, *, actor: str) -> tuple[BundleView, bool]:
        manifest = bundle.manifest
        size = len(envelope) + sum(entry.size_bytes for entry in manifest.files.values())
        condition = sa.and_(bundles.c.model == manifest.name, bundles.c.version == manifest.version)
        with self._store.write() as connection:
            row = connection.execute(sa.select(bundles).where(condition)).mappings().first()
            if row is not None:
                return self._same(row, bundle), False
            connection.execute(
                bundles.insert().values(
                    digest=bundle.digest,
                    model=manifest.name,
                    version=manifest.version,
                    created=manifest.created,
                    uploaded=self._store.clock(),
                    size_bytes=size,
                    manifest=envelope,
                )
            )
            text = f"{manifest.name} {manifest.version} published, {len(manifest.variants)} variants, {size} bytes"
            self._store.note(connection, "bundle.published", text, actor=actor, model=manifest.name)
            row = connection.execute(sa.select(bundles).where(condition)).mappings().one()
        return _view(row), True


def _view(row: sa.RowMapping) -> BundleView:
    view = read_row(row, BundleView)
    try:
        manifest = read_manifest(row["manifest"], keys=None, where=view.digest)
    except ManifestError:
        return view
    return msgspec.structs.replace(
        view,
        variants=tuple(variant.name for variant in manifest.variants),
        labels=manifest.labels,
        parent=manifest.lineage.parent,
        dataset=manifest.lineage.dataset,
    )
