"""A disk that loses what was not synced: names and bytes, in the worst order, and the power in the middle of anything."""

import contextlib
import errno
import random
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from edgeops_runtime import outbox, segments


class PowerCut(BaseException):
    """No ``except`` of the program sees it, as it would see no power cut."""


class _File:
    def __init__(self) -> None:
        self.content = self.durable = b""


class SimulatedDisk:
    """One directory. What is in it is also on the real disk, unsynced, so that the program reads it as ever.

    Attributes:
        is_full: Writes fail.
        fails_to_sync: Syncs fail, and what they were to make durable is as good as lost.
        fuse: After so many more operations the power is cut; ``None``: it stays.
    """

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self.directory, self._rng = directory, rng
        self.is_full = self.fails_to_sync = False
        self.fuse: int | None = None
        self.operations = 0
        self._names: dict[str, _File] = {}
        self._durable_names: dict[str, _File] = {}

    def open(self, path: Path) -> "_Segment":
        """As :class:`edgeops_runtime.segments.OpenSegment`."""
        self._operate()
        self._refuse_when_full()
        path.touch(exist_ok=False)
        file = self._names[path.name] = _File()
        return _Segment(self, path, file)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Be the disk of the outbox."""
        unlink, replace = Path.unlink, Path.replace

        def unlink_here(path: Path, *, missing_ok: bool = False) -> None:
            if path.parent == self.directory and path.name in self._names:
                self._operate()
                self._names.pop(path.name)
            unlink(path, missing_ok=missing_ok)

        def replace_here(path: Path, target: Path) -> Path:
            self._operate()
            self._names[target.name] = self._names.pop(path.name)
            return replace(path, target)

        with (
            mock.patch.object(Path, "unlink", unlink_here),
            mock.patch.object(Path, "replace", replace_here),
            mock.patch.object(segments, "sync_directory", self._sync_directory),
            mock.patch.object(outbox, "sync_directory"),
            mock.patch.object(segments, "_sync_file", self._sync_file),
            mock.patch.object(outbox, "write_durably", self._write_durably),
        ):
            yield

    def crash(self) -> None:
        """The power is gone and comes back: of what was not synced anything may be there, or nothing."""
        self.fuse = None
        self.is_full = self.fails_to_sync = False
        survivors: dict[str, bytes] = {}
        for name in {*self._names, *self._durable_names}:
            file = self._rng.choice([self._names.get(name), self._durable_names.get(name)])
            if file is not None:
                unsynced = file.content[len(file.durable) :]
                survivors[name] = file.durable + unsynced[: self._rng.randint(0, len(unsynced))]
        self._names = {}
        for path in self.directory.iterdir():
            path.unlink()
        for name, content in survivors.items():
            (self.directory / name).write_bytes(content)
            file = self._names[name] = _File()
            file.content = file.durable = content
        self._durable_names = dict(self._names)

    def append(self, path: Path, file: _File, data: bytes) -> None:
        """Some of it, when the disk is full or the power goes."""
        part = data[: self._rng.randint(0, len(data))]
        is_cut = self.fuse is not None and self.fuse <= 1
        kept = part if self.is_full or is_cut else data
        with path.open("ab") as stream:
            stream.write(kept)
        file.content += kept
        self._operate()
        self._refuse_when_full()

    def sync(self, file: _File) -> None:
        """Durable from here on, unless the disk fails."""
        self._operate()
        if self.fails_to_sync:
            raise OSError(errno.EIO, "Input/output error")
        file.durable = file.content

    def _sync_directory(self, directory: Path) -> None:
        if directory == self.directory:
            self._operate()
            self._durable_names = dict(self._names)

    def _sync_file(self, path: Path) -> None:
        self._operate()
        # What a tail was cut to is durable before anything is written behind it.
        file = self._names[path.name]
        file.content = file.durable = path.read_bytes()

    def _write_durably(self, path: Path, data: bytes) -> None:
        self._operate()
        self._refuse_when_full()
        path.write_bytes(data)
        file = self._names[path.name] = _File()
        file.content = file.durable = data
        self._durable_names = dict(self._names)
        self._operate()

    def _operate(self) -> None:
        self.operations += 1
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse <= 0:
                raise PowerCut

    def _refuse_when_full(self) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")


class _Segment:
    def __init__(self, disk: SimulatedDisk, path: Path, file: _File) -> None:
        self._disk, self._path, self._file = disk, path, file

    def append(self, data: bytes) -> None:
        self._disk.append(self._path, self._file, data)

    def sync(self) -> None:
        self._disk.sync(self._file)

    def close(self) -> None:
        """Nothing."""
