"""What a disk may hold after a power cut: records what a program asks of the file system, and replays it up to any point.

After "All File Systems Are Not Created Equal" (Pillai et al., OSDI 2014), with the weakest promises that POSIX gives:

* what was written to a file since its last fsync is there, or not, or torn at any byte, or only its size is (zeros);
* names that were made, moved or removed in a directory since its last fsync are there or not, each for itself; a rename is whole;
* an fsync of a file does not sync its name, and the name of a directory is no different from that of a file.

:class:`Recorder` stands between Python and the operating system: it replaces the functions of :mod:`os` and :func:`open` that
change files, for everything below one directory; :meth:`Recorder.check` compares what it understood with what is really there, so
that nothing that it does not know can pass it by. A child process is not seen. The same place serves to let calls fail
(:attr:`Recorder.faults`). What a program promises meanwhile is recorded with
:meth:`Recorder.mark`; :func:`states` gives the states with the marks that came before.
"""

import builtins
import contextlib
import fcntl
import io
import itertools
import os
import random
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

ROOT = 0


@dataclass(frozen=True)
class Write:
    node: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Truncate:
    node: int
    size: int


@dataclass(frozen=True)
class Sync:
    """fsync or fdatasync of a file or a directory."""

    node: int


@dataclass(frozen=True)
class Names:
    """Entries of directories change together: (directory, name, node or nothing)."""

    changes: tuple[tuple[int, str, int | None], ...]
    made: str = ""
    """"file" or "directory" where the node is new."""


@dataclass(frozen=True)
class Mark:
    """The program's own word, between two operations."""

    value: Any


Operation = Write | Truncate | Sync | Names | Mark


def written(content: bytes, change: Write | Truncate) -> bytes:
    if isinstance(change, Truncate):
        return content[: change.size].ljust(change.size, b"\0")
    return (
        content[: change.offset].ljust(change.offset, b"\0") + change.data + content[change.offset + len(change.data) :]
    )


class Recorder:
    """Records below a directory while its ``with`` block runs, for the whole process; what is there already counts as synced."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(os.path.realpath(directory))
        self.operations: list[Operation] = []
        self._lock = threading.RLock()
        self._entries: dict[int, dict[str, int]] = {ROOT: {}}
        self._content: dict[int, bytes] = {}
        self._descriptors: dict[int, int] = {}
        self._count = itertools.count(1)
        self._real: dict[str, Any] = {}
        self.faults: dict[str, int] = {}
        """Kind of call (``create``, ``write``, ``sync``, ``names``, ``read``) → the error number that it ends with."""

    def mark(self, value: Any) -> None:
        with self._lock:
            self.operations.append(Mark(value))

    def __enter__(self) -> Self:
        self._take_in()
        for name in ("open", "close", "write", "fsync", "fdatasync", "rename", "replace", "link", "unlink", "remove",
                     "mkdir", "rmdir", "truncate", "ftruncate", "posix_fallocate"):  # fmt: skip
            self._real[name] = getattr(os, name)
            setattr(os, name, getattr(self, f"_{name}"))
        self._real_open = io.open
        io.open = builtins.open = self._open_file
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self._real.items():
            setattr(os, name, function)
        io.open = builtins.open = self._real_open

    def _take_in(self) -> None:
        for path in sorted(self.directory.rglob("*")):
            place = self._place(path, None)
            assert place is not None
            node = next(self._count)
            self._apply(Names(((*place, node),), made="directory" if path.is_dir() else "file"))
            if not path.is_dir():
                self._apply(Write(node, 0, path.read_bytes()))
            self._apply(Sync(node))
            self._apply(Sync(place[0]))

    def check(self) -> None:
        """Everything that happened was understood."""
        found: dict[str, bytes | None] = {}
        for path in self.directory.rglob("*"):
            found[str(path.relative_to(self.directory))] = None if path.is_dir() else path.read_bytes()
        assert found == dict(_tree(self._entries, self._content))

    def _may(self, kind: str, place: object) -> None:
        if place is not None and kind in self.faults:
            raise OSError(self.faults[kind], os.strerror(self.faults[kind]))

    # ---- what stands in the place of the operating system's functions ----------------------------------------------

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        place = self._place(path, dir_fd)
        self._may("create" if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) else "read", place)
        with self._lock:
            descriptor: int = self._real["open"](path, flags, mode, dir_fd=dir_fd)
            node = self._node(place) if place is not None else None
            if place is not None and node is None and flags & os.O_CREAT:
                node = next(self._count)
                self._apply(Names(((*place, node),), made="file"))
            elif node is not None and flags & os.O_TRUNC and self._content[node]:
                self._apply(Truncate(node, 0))
            self._descriptors.pop(descriptor, None)
            if node is not None:
                self._descriptors[descriptor] = node
            return descriptor

    def _close(self, descriptor: int) -> None:
        with self._lock:
            self._descriptors.pop(descriptor, None)
            self._real["close"](descriptor)

    def _write(self, descriptor: int, data: Any) -> int:
        return self.recorded_write(descriptor, data, lambda: self._real["write"](descriptor, data))

    def recorded_write(self, descriptor: int, data: Any, write: Callable[[], int]) -> int:
        with self._lock:
            node = self._descriptors.get(descriptor)
            if node is None:
                return write()
            self._may("write", node)
            appends = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
            offset = len(self._content[node]) if appends else os.lseek(descriptor, 0, os.SEEK_CUR)
            count = write()
            self._apply(Write(node, offset, bytes(memoryview(data).cast("B")[:count])))
            return count

    def _fsync(self, file: Any) -> None:
        self._synced(file, self._real["fsync"])

    def _fdatasync(self, file: Any) -> None:
        self._synced(file, self._real["fdatasync"])

    def _synced(self, file: Any, sync: Callable[[int], None]) -> None:
        descriptor = file if isinstance(file, int) else file.fileno()
        with self._lock:
            self._may("sync", self._descriptors.get(descriptor))
            sync(descriptor)
            if descriptor in self._descriptors:
                self._apply(Sync(self._descriptors[descriptor]))

    def _rename(
        self, source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        old, new = self._place(source, src_dir_fd), self._place(target, dst_dir_fd)
        self._may("names", new)
        with self._lock:
            self._real["rename"](source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            if old is not None and new is not None:
                self._apply(Names(((*old, None), (*new, self._node(old)))))

    _replace = _rename

    def _link(self, source: Any, target: Any, **named: Any) -> None:
        old, new = self._place(source, named.get("src_dir_fd")), self._place(target, named.get("dst_dir_fd"))
        self._may("names", new)
        with self._lock:
            self._real["link"](source, target, **named)
            if old is not None and new is not None:
                self._apply(Names(((*new, self._node(old)),)))

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._removed(path, dir_fd, self._real["unlink"])

    _remove = _unlink

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._removed(path, dir_fd, self._real["rmdir"])

    def _removed(self, path: Any, dir_fd: int | None, remove: Callable[..., None]) -> None:
        place = self._place(path, dir_fd)
        self._may("names", place)
        with self._lock:
            remove(path, dir_fd=dir_fd)
            if place is not None:
                self._apply(Names(((*place, None),)))

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        place = self._place(path, dir_fd)
        self._may("names", place)
        with self._lock:
            self._real["mkdir"](path, mode, dir_fd=dir_fd)
            if place is not None:
                self._apply(Names(((*place, next(self._count)),), made="directory"))

    def _truncate(self, path: Any, length: int) -> None:
        place = self._place(path, None)
        self._may("write", place)
        with self._lock:
            self._real["truncate"](path, length)
            node = self._node(place) if place is not None else None
            if node is not None:
                self._apply(Truncate(node, length))

    def _ftruncate(self, descriptor: int, length: int) -> None:
        self.recorded_truncate(descriptor, length, lambda: self._real["ftruncate"](descriptor, length))

    def _posix_fallocate(self, descriptor: int, offset: int, length: int) -> None:
        size = max(os.fstat(descriptor).st_size, offset + length)
        self.recorded_truncate(descriptor, size, lambda: self._real["posix_fallocate"](descriptor, offset, length))

    def recorded_truncate(self, descriptor: int, length: int, truncate: Callable[[], Any]) -> None:
        with self._lock:
            self._may("write", self._descriptors.get(descriptor))
            truncate()
            node = self._descriptors.get(descriptor)
            if node is not None and len(self._content[node]) != length:
                self._apply(Truncate(node, length))

    def forget(self, descriptor: int) -> None:
        """The descriptor is about to be closed."""
        with self._lock:
            self._descriptors.pop(descriptor, None)

    def _open_file(self, file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        is_ours = file in self._descriptors if isinstance(file, int) else self._place(file, None) is not None
        if not is_ours or not set(mode) & set("wax+"):
            self._may("read", is_ours or None)
            return self._real_open(file, mode, *more, **named)
        raw = _RecordedFile(self, file, re.sub("[bt]", "", mode), closefd=named.get("closefd", True))
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, "utf-8")

    # ---- the live tree ---------------------------------------------------------------------------------------------

    def _place(self, path: Any, dir_fd: int | None) -> tuple[int, str] | None:
        """The directory's node and the name; nothing for what is not below our directory."""
        if isinstance(path, int):
            return None
        name = os.fsdecode(path)
        if dir_fd is not None and not name.startswith("/"):
            return (self._descriptors[dir_fd], name) if dir_fd in self._descriptors else None
        absolute = os.path.abspath(name)  # noqa: PTH100 - links are left alone
        if absolute != str(self.directory) and not absolute.startswith(f"{self.directory}/"):
            return None
        *parents, last = os.path.relpath(absolute, self.directory).split("/")
        node: int | None = ROOT
        for parent in parents:
            node = self._entries.get(node, {}).get(parent) if node is not None else None
        return (node, last) if node is not None else None

    def _node(self, place: tuple[int, str]) -> int | None:
        return ROOT if place == (ROOT, ".") else self._entries[place[0]].get(place[1])

    def _apply(self, operation: Operation) -> None:
        self.operations.append(operation)
        _change(self._entries, self._content, operation)


class _RecordedFile(io.FileIO):
    def __init__(self, recorder: Recorder, file: Any, mode: str, *, closefd: bool) -> None:
        self._recorder = recorder
        opener = None if isinstance(file, int) else lambda path, flags: os.open(path, flags, 0o666)
        super().__init__(file, mode, closefd=closefd, opener=opener)

    def write(self, data: Any) -> int:
        return self._recorder.recorded_write(self.fileno(), data, lambda: super(_RecordedFile, self).write(data) or 0)

    def truncate(self, size: int | None = None) -> int:
        length = self.tell() if size is None else size
        self._recorder.recorded_truncate(self.fileno(), length, lambda: super(_RecordedFile, self).truncate(length))
        return length

    def close(self) -> None:
        if not self.closed:
            self._recorder.forget(self.fileno())
        super().close()


def _change(entries: dict[int, dict[str, int]], content: dict[int, bytes], operation: Operation) -> None:
    match operation:
        case Names():
            for directory, name, node in operation.changes:
                if node is None:
                    entries[directory].pop(name, None)
                else:
                    entries[directory][name] = node
                    if operation.made == "directory":
                        entries[node] = {}
                    elif operation.made == "file":
                        content[node] = b""
        case Write() | Truncate():
            content[operation.node] = written(content[operation.node], operation)
        case _:
            pass


def _tree(entries: dict[int, dict[str, int]], content: dict[int, bytes]) -> Iterator[tuple[str, bytes | None]]:
    for path, node in _paths(entries, ROOT, ""):
        yield path, content.get(node)


def _paths(entries: dict[int, dict[str, int]], directory: int, prefix: str) -> Iterator[tuple[str, int]]:
    for name, node in sorted(entries[directory].items()):
        yield prefix + name, node
        if node in entries:
            yield from _paths(entries, node, f"{prefix}{name}/")


# ---- the states ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """What may be on the disk.

    Attributes:
        position: How many operations were asked for before the cut.
        entries: Directory → name → node; the root is :data:`ROOT`.
        content: Of the files.
        marks: What the program had said by then.
    """

    position: int
    entries: dict[int, dict[str, int]]
    content: dict[int, bytes]
    marks: list[Any]

    def write(self, directory: Path) -> None:
        """Make it real, hard links included."""
        made: dict[int, Path] = {}
        for name, node in _paths(self.entries, ROOT, ""):
            path = directory / name
            if node in self.entries:
                path.mkdir()
            elif node in made:
                os.link(made[node], path)
            else:
                path.write_bytes(self.content[node])
                made[node] = path

    @property
    def key(self) -> int:
        """Equal for states that no program can tell apart."""
        return hash(tuple(_tree(self.entries, self.content)))


@dataclass
class _Disk:
    """What is durable, and what is pending, after some operations."""

    entries: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    content: dict[int, bytes] = field(default_factory=dict)
    names: list[Names] = field(default_factory=list)
    changes: dict[int, list[Write | Truncate]] = field(default_factory=dict)
    marks: list[Any] = field(default_factory=list)

    def follow(self, operation: Operation) -> None:
        match operation:
            case Mark():
                self.marks.append(operation.value)
            case Names():
                for _, _, node in operation.changes:
                    # An inode is there as soon as a name for it is; until it is synced it is empty.
                    if operation.made == "directory" and node is not None:
                        self.entries[node] = {}
                    elif operation.made == "file" and node is not None:
                        self.content[node] = b""
                self.names.append(operation)
            case Write() | Truncate():
                self.changes.setdefault(operation.node, []).append(operation)
            case Sync() if operation.node in self.entries:
                self._sync_directory(operation.node)
            case Sync():
                for change in self.changes.pop(operation.node, []):
                    self.content[operation.node] = written(self.content[operation.node], change)

    def _sync_directory(self, directory: int) -> None:
        """What touches the directory, and what came before it to the same names."""
        slots: set[tuple[int, str]] = set()
        chosen: list[Names] = []
        for names in reversed(self.names):
            own = {(where, name) for where, name, _ in names.changes}
            if any(where == directory for where, _ in own) or own & slots:
                slots |= own
                chosen.insert(0, names)
        for names in chosen:
            self.names.remove(names)
            _set_names(self.entries, names)


def _set_names(entries: dict[int, dict[str, int]], names: Names) -> None:
    for directory, name, node in names.changes:
        if node is None:
            entries[directory].pop(name, None)
        else:
            entries[directory][name] = node


def _contents(durable: bytes, changes: list[Write | Truncate], rng: random.Random) -> list[bytes]:
    """What a file may hold: each prefix of what was not synced, its last piece torn, or only its size."""
    found = [durable]
    now = durable
    for change in changes:
        if isinstance(change, Write) and change.data:
            size = len(change.data)
            cuts = {1, size // 2, size - 1, rng.randrange(size)} - {0, size}
            found += [written(now, Write(change.node, change.offset, change.data[:cut])) for cut in sorted(cuts)]
            middle = rng.randrange(size)
            holes = (bytes(size), change.data[:middle].ljust(size, b"\0"), change.data[middle:].rjust(size, b"\0"))
            found += [written(now, Write(change.node, change.offset, hole)) for hole in holes]
        now = written(now, change)
        found.append(now)
    return list(dict.fromkeys(found))


def states(
    operations: list[Operation], *, rng: random.Random, each: int = 24, positions: float = 1.0
) -> Iterator[State]:
    """The states that a power cut may leave.

    Args:
        operations: What was recorded.
        rng: For what is drawn.
        each: Most states after one operation. All combinations where they are fewer; else everything lost, everything there,
            and a draw of the rest.
        positions: The share of the operations after which the power is cut, drawn.
    """
    disk = _Disk()
    seen: set[tuple[int, int]] = set()
    for position, operation in enumerate([Mark(None), *operations]):
        disk.follow(operation)
        if rng.random() >= positions:
            continue
        for state in _states_of(disk, position, rng, each):
            key = (len(disk.marks), state.key)
            if key not in seen:
                seen.add(key)
                yield state


def _states_of(disk: _Disk, position: int, rng: random.Random, each: int) -> Iterator[State]:
    files = list(disk.changes)
    contents = [_contents(disk.content[node], disk.changes[node], rng) for node in files]
    choices = [range(2)] * len(disk.names) + [range(len(found)) for found in contents]
    total = 1
    for choice in choices:
        total *= len(choice)
    if total <= each:
        picks: Iterator[tuple[int, ...]] = itertools.product(*choices)
    else:
        corners = [tuple(choice[0] for choice in choices), tuple(choice[-1] for choice in choices)]
        drawn = (tuple(rng.choice(choice) for choice in choices) for _ in range(each - len(corners)))
        picks = itertools.chain(corners, drawn)
    for pick in picks:
        entries = {node: dict(names) for node, names in disk.entries.items()}
        for is_there, names in zip(pick, disk.names, strict=False):
            if is_there:
                _set_names(entries, names)
        content = dict(disk.content)
        for index, node, found in zip(pick[len(disk.names) :], files, contents, strict=True):
            content[node] = found[index]
        yield State(position, entries, content, list(disk.marks))


@contextlib.contextmanager
def restored(state: State, scratch: Path) -> Iterator[Path]:
    """A directory that holds a state, and is removed afterwards."""
    directory = scratch / f"state-{state.position}-{state.key & 0xFFFFFFFF:08x}"
    directory.mkdir()
    state.write(directory)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
