"""The bundles that a server may load: those in the directories that it was started with, and no others.

A directory is a bundle, or holds bundles. Which of them are loaded is :mod:`edgeops_runtime.serving.loader`'s matter.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from edgeops.bundle import MANIFEST_FILE, read_manifest
from edgeops.errors import EdgeOpsError, ManifestError, NotFoundError
from edgeops.manifest import Manifest, parse_version
from edgeops.signing import PublicKey

_MAX_MANIFEST_BYTES = 4 << 20


class Folders:
    """Looks into the directories anew each time, since bundles come and go.

    Args:
        directories: Bundles, or directories of bundles.
        keys: One of these must have signed a bundle; ``None`` does not ask for a signature.
    """

    def __init__(self, directories: Sequence[Path], *, keys: Iterable[PublicKey] | None = None) -> None:
        self._directories = tuple(directories)
        self._keys = None if keys is None else tuple(keys)

    def bundles(self) -> Iterator[tuple[Path, Manifest | EdgeOpsError]]:
        """Every bundle with its manifest, or with why that cannot be read."""
        for path in self._paths():
            try:
                yield path, self._manifest(path)
            except EdgeOpsError as error:
                yield path, error

    def newest(self) -> list[Path]:
        """What to serve at the start: bundles that were given, and of directories of bundles the newest version of each model.

        Raises:
            ManifestError: A bundle cannot be read, or a directory has none.
            UntrustedError: None of the keys signed it.
        """
        found: list[Path] = []
        for directory in self._directories:
            if _is_bundle(directory) or not directory.is_dir():
                found.append(directory)
                continue
            newest: dict[str, tuple[Path, Manifest]] = {}
            for path in _bundles_in(directory):
                manifest = self._manifest(path)
                known = newest.get(manifest.name)
                if known is None or parse_version(manifest.version) > parse_version(known[1].version):
                    newest[manifest.name] = path, manifest
            found += [path for path, _ in newest.values()]
        return found

    def find(self, name: str, *, version: str | None = None, directory: str | None = None) -> Path:
        """The bundle of a model.

        Args:
            name: The model's name.
            version: This version; otherwise the newest.
            directory: This directory, by its name alone.

        Raises:
            NotFoundError: There is none.
        """
        fitting = [
            (parse_version(manifest.version), path)
            for path, manifest in self.bundles()
            if isinstance(manifest, Manifest)
            and manifest.name == name
            and version in {None, manifest.version}
            and directory in {None, path.name}
        ]
        if not fitting:
            what = name + (f" version {version}" if version else "") + (f" in {directory!r}" if directory else "")
            broken = [f"{path.name}: {error}" for path, error in self.bundles() if isinstance(error, EdgeOpsError)]
            have = ", ".join(sorted(path.name for path in self._paths())) or "nothing"
            raise NotFoundError(
                f"no bundle of {what} in the directories that the server was started with; there is {have}"
                + "".join(f"; {text}" for text in broken)
            )
        return max(fitting)[1]

    def _paths(self) -> Iterator[Path]:
        for directory in self._directories:
            if _is_bundle(directory):
                yield directory
            else:
                yield from _bundles_in(directory)

    def _manifest(self, path: Path) -> Manifest:
        file = path / MANIFEST_FILE
        try:
            with file.open("rb") as stream:
                envelope = stream.read(_MAX_MANIFEST_BYTES)
        except OSError as error:
            raise ManifestError(f"{file}: cannot be read: {error.strerror}") from error
        return read_manifest(envelope, keys=self._keys, where=str(file))


def _is_bundle(directory: Path) -> bool:
    return (directory / MANIFEST_FILE).is_file()


def _bundles_in(directory: Path) -> list[Path]:
    """The bundles right below a directory; links are none, since they lead elsewhere."""
    try:
        return sorted(path for path in directory.iterdir() if not path.is_symlink() and _is_bundle(path))
    except OSError:
        return []
