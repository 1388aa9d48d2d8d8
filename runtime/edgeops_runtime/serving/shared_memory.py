"""Tensors in memory that a caller shares with us, so that large ones are never sent: Triton's extension ``system_shared_memory``.

A caller makes a file in ``/dev/shm``, registers it under a name, and writes in its requests where in it a tensor begins. Here is
who may register what, and how a part of a region becomes an array. A region belongs to the user who registered it: others neither
see nor use it. Which paths there are is :mod:`edgeops_runtime.serving.v2`'s matter.

The size of the file is looked at before every use, since touching memory beyond its end would end this process. A caller that
shortens its file during a call can still do that.
"""

import mmap
import os
import stat
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.errors import ConflictError, MessageError, NotFoundError, OverloadedError, RefusedError, TensorError
from edgeops_runtime.engines.engine import Tensors
from edgeops_runtime.serving.codec import Feeds, PlacedTensor, Placement, Wanted, to_bytes
from edgeops_runtime.serving.statistics import Metric

MAX_REGIONS = 64
MAX_BYTES = 1 << 30
_MEMORY = Path("/dev/shm")  # noqa: S108 - where shm_open() has its files
_MAX_NAME = 255


class Registration(msgspec.Struct):
    """What a caller registers: a file below ``/dev/shm``, and the part of it that is the region, in bytes."""

    key: str
    byte_size: int
    offset: int = 0


class _Region:
    """A part of a mapped file."""

    def __init__(self, name: str, wanted: Registration, memory: mmap.mmap) -> None:
        self.name, self.key = name, wanted.key
        self.offset, self.size_bytes = wanted.offset, wanted.byte_size
        self.memory = memory
        self.mapped_bytes = wanted.offset + wanted.byte_size

    def start_of(self, part: Placement) -> int:
        """Where in the file a part begins.

        Raises:
            TensorError: It is not inside the region.
        """
        start = self.offset + part.offset
        if start + part.size_bytes > self.mapped_bytes:
            raise TensorError(
                f"shared memory region {self.name!r}: expected at most {self.size_bytes} bytes, "
                f"got {part.size_bytes} at offset {part.offset}"
            )
        return start

    def array(self, part: Placement, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """A view of a part; look anew for each use.

        Raises:
            TensorError: It is not inside the region, or the file has become too short.
        """
        return np.ndarray(shape, dtype, self.memory, self._safe_start(part))

    def put(self, part: Placement, data: bytes | memoryview) -> None:
        """Write to a part from its beginning; no more than its size.

        Raises:
            TensorError: It is not inside the region, or the file has become too short.
        """
        start = self._safe_start(part)
        self.memory[start : start + len(data)] = data

    def _safe_start(self, part: Placement) -> int:
        start = self.start_of(part)
        if start + part.size_bytes > self.memory.size():
            raise TensorError(
                f"shared memory region {self.name!r}: its file {self.key!r} has only {self.memory.size()} bytes now"
            )
        return start

    def describe(self) -> dict[str, str | int]:
        """As the extension has it."""
        return {"name": self.name, "key": self.key, "offset": self.offset, "byte_size": self.size_bytes}


class Regions:
    """The regions of all callers; may be used from several threads.

    Args:
        over_tcp: Callers over TCP, of whom nothing is known, may use the memory of this process's own user.
    """

    def __init__(self, *, over_tcp: bool = False) -> None:
        self._over_tcp = over_tcp
        self._regions: dict[tuple[int, str], _Region] = {}
        self._lock = threading.Lock()

    def is_open_to(self, peer_uid: int | None) -> bool:
        """Whether a caller may use shared memory at all."""
        return peer_uid is not None or self._over_tcp

    def register(self, name: str, wanted: Registration, peer_uid: int | None) -> None:
        """Map a file of the caller's.

        Raises:
            MessageError: The name, the key or the size is none.
            NotFoundError: There is no such file.
            RefusedError: Callers like this one have no shared memory here, the file is not theirs, or we may not open it.
            ConflictError: The name is taken.
            OverloadedError: There are too many regions, or they are too large.
        """
        owner = self._owner(peer_uid)
        if not 0 < len(name) <= _MAX_NAME:
            raise MessageError(f"shared memory region: expected a name of 1 to {_MAX_NAME} characters, got {len(name)}")
        if wanted.offset < 0 or wanted.byte_size <= 0:
            raise MessageError(
                f"shared memory region {name!r}: expected an offset of 0 or more and a byte_size of 1 or more, "
                f"got {wanted.offset} and {wanted.byte_size}"
            )
        memory = _map(wanted, owner)
        with self._lock:
            if (owner, name) in self._regions:
                raise ConflictError(f"shared memory region {name!r}: registered already; unregister it first")
            in_use = sum(region.mapped_bytes for region in self._regions.values())
            if len(self._regions) >= MAX_REGIONS or in_use + wanted.offset + wanted.byte_size > MAX_BYTES:
                raise OverloadedError(
                    f"shared memory: expected at most {MAX_REGIONS} regions of {MAX_BYTES >> 20} MB together, "
                    f"got {len(self._regions)} of {in_use >> 20} MB already; unregister what is not used"
                )
            self._regions = self._regions | {(owner, name): _Region(name, wanted, memory)}

    def unregister(self, name: str | None, peer_uid: int | None) -> None:
        """Forget a region of the caller's, or all of them; memory in use is let go after the call that uses it.

        Raises:
            NotFoundError: There is no such region.
            RefusedError: As in :meth:`register`.
        """
        owner = self._owner(peer_uid)
        with self._lock:
            if name is not None:
                self._find(owner, name)
            self._regions = {
                key: region for key, region in self._regions.items() if key[0] != owner or name not in {None, key[1]}
            }

    def status(self, name: str | None, peer_uid: int | None) -> list[dict[str, str | int]]:
        """A region of the caller's, or all of them.

        Raises:
            NotFoundError: There is no such region.
            RefusedError: As in :meth:`register`.
        """
        owner = self._owner(peer_uid)
        if name is not None:
            return [self._find(owner, name).describe()]
        return [region.describe() for (uid, _), region in self._regions.items() if uid == owner]

    def metrics(self) -> list[Metric]:
        """What there is, for Prometheus."""
        sizes = [region.size_bytes for region in self._regions.values()]
        return [
            Metric("edgeops_shared_memory_regions", "gauge", "Regions of shared memory.", len(sizes)),
            Metric("edgeops_shared_memory_bytes", "gauge", "Their size together.", sum(sizes)),
        ]

    def resolve(self, feeds: Feeds, wanted: Iterable[Wanted], peer_uid: int | None) -> Tensors:
        """The tensors of a request, those in shared memory as views of it.

        Args:
            feeds: As they were asked.
            wanted: Outputs; whether they have a place is found out now, before they are there.
            peer_uid: Who asks.

        Raises:
            NotFoundError: A region is not registered.
            RefusedError: As in :meth:`register`.
            TensorError: A tensor is not inside its region.
        """
        owner = self._owner(peer_uid)
        for output in wanted:
            if output.part is not None:
                self._find(owner, output.part.region).start_of(output.part)
        return {
            name: self._view(feed, owner) if isinstance(feed, PlacedTensor) else feed for name, feed in feeds.items()
        }

    def write(self, wanted: Iterable[Wanted], outputs: Tensors, peer_uid: int | None) -> None:
        """Write the outputs that go into shared memory, little-endian and row-major.

        Raises:
            NotFoundError, RefusedError: As in :meth:`resolve`.
            TensorError: One is larger than its place, or the place is not inside the region.
        """
        owner = self._owner(peer_uid)
        for spec, _, part in wanted:
            if part is not None:
                self._write(part, outputs[spec.name], owner)

    def _write(self, part: Placement, array: NDArray[Any], owner: int) -> None:
        if array.nbytes > part.size_bytes:
            raise TensorError(
                f"shared memory region {part.region!r}: expected room for {array.nbytes} bytes of output, "
                f"got shared_memory_byte_size {part.size_bytes}"
            )
        self._find(owner, part.region).put(part, to_bytes(array))

    def _view(self, tensor: PlacedTensor, owner: int) -> NDArray[Any]:
        part, shape, dtype = tensor
        array = self._find(owner, part.region).array(part, shape, dtype)
        if not array.flags.aligned or not dtype.isnative:
            return array.astype(dtype.newbyteorder("="))
        return array

    def _owner(self, peer_uid: int | None) -> int:
        if peer_uid is not None:
            return peer_uid
        if not self._over_tcp:
            raise RefusedError(
                "shared memory: expected a caller over a Unix socket, which says who it is, got one over TCP; "
                "listen on unix:/path, or start with --shared-memory-over-tcp"
            )
        return os.geteuid()

    def _find(self, owner: int, name: str) -> _Region:
        region = self._regions.get((owner, name))
        if region is None:
            raise NotFoundError(f"shared memory region {name!r}: not registered by this user")
        return region


def _map(wanted: Registration, owner: int) -> mmap.mmap:
    """Map the file of a key up to the end of the region."""
    name = wanted.key.removeprefix("/")
    if not name or name in {".", ".."} or "/" in name or "\0" in name or len(os.fsencode(name)) > _MAX_NAME:
        raise MessageError(f"shared memory key {wanted.key[:60]!r}: expected the plain name of a file in {_MEMORY}")
    end = wanted.offset + wanted.byte_size
    if end > MAX_BYTES:
        raise OverloadedError(
            f"shared memory key {wanted.key!r}: expected at most {MAX_BYTES >> 20} MB, got {end >> 20}"
        )
    try:
        descriptor = os.open(_MEMORY / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFoundError(f"shared memory key {wanted.key!r}: no such file in {_MEMORY}") from error
    except (OSError, ValueError) as error:
        raise RefusedError(f"shared memory key {wanted.key!r}: cannot be opened: {error}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != owner:
            raise RefusedError(
                f"shared memory key {wanted.key!r}: expected a plain file of the caller's (user {owner}), "
                f"got one of user {found.st_uid}"
            )
        if end > found.st_size:
            raise MessageError(
                f"shared memory key {wanted.key!r}: expected a file of at least {end} bytes, got {found.st_size}"
            )
        return mmap.mmap(descriptor, end)  # It keeps a descriptor of its own.
    except (OSError, ValueError, OverflowError) as error:
        raise RefusedError(f"shared memory key {wanted.key!r}: cannot be mapped: {error}") from error
    finally:
        os.close(descriptor)
