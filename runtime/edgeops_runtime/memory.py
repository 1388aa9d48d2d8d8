"""Whether a second worker fits beside the first: what it would take, and what of the memory can be had.

Estimates, made before anything is loaded: the incumbent's worker is there to be looked at, and the candidate's files are. What
follows is decided in :mod:`edgeops_runtime.deployment`.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgeops.bundle import MANIFEST_FILE, read_manifest
from edgeops.errors import EdgeOpsError
from edgeops_runtime import host
from edgeops_runtime.deployment import Weighed
from edgeops_runtime.slots import Slot

logger = logging.getLogger(__name__)

RESERVE_PERCENT = 15.0
"""Of the memory that stays free: with less, the load ladder would put back what was just started."""

WORKER_BYTES = 65 << 20
"""A worker without its model, where there is none to look at."""

_COPIES = 2
"""Of the weights in a worker: as the file has them, and as the CPU likes them."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What there is, in bytes; ``None``: unknown."""

    available: int | None
    total: int | None


def read_memory(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Memory:
    """What this process and its children may still have: the machine's, or its control group's where that is less.

    Args:
        proc: In place of ``/proc``.
        sys: In place of ``/sys``.
    """
    available, total = host.available_memory_bytes(proc), host.total_memory_bytes(proc)
    group = host.cgroup_memory(proc, sys)
    if group is not None and group.limit_bytes is not None and group.used_bytes is not None:
        left = max(group.limit_bytes - group.used_bytes, 0)
        if available is None or left < available:
            return Memory(available=left, total=group.limit_bytes)
    return Memory(available=available, total=total)


def weigh(
    memory: Memory,
    *,
    incumbent_bytes: int | None,
    incumbent_file_bytes: int,
    candidate_file_bytes: int,
    required_bytes: int = 0,
) -> Weighed:
    """Set what a second worker would take against what can be had.

    Args:
        memory: What there is.
        incumbent_bytes: Resident memory of the worker that serves; ``None``: there is none to look at.
        incumbent_file_bytes: Size of its model file.
        candidate_file_bytes: Likewise of the candidate.
        required_bytes: What the manifest asks for; at least that.

    >>> megabyte = 1 << 20
    >>> weigh(
    ...     Memory(available=150 * megabyte, total=512 * megabyte),
    ...     incumbent_bytes=80 * megabyte,
    ...     incumbent_file_bytes=5 * megabyte,
    ...     candidate_file_bytes=6 * megabyte,
    ... ).is_enough
    False
    """
    more = _COPIES * max(candidate_file_bytes - incumbent_file_bytes, 0)
    usual = WORKER_BYTES + _COPIES * incumbent_file_bytes if incumbent_bytes is None else incumbent_bytes
    reserve = int((memory.total or 0) * RESERVE_PERCENT / 100)
    return Weighed(needed=max(usual + more, required_bytes), available=memory.available, reserve=reserve)


class Scales:
    """Weighs versions that are on the device.

    Args:
        bundle_path: Where the bundle of a digest lies.
        read: What memory there is.
    """

    def __init__(self, bundle_path: Callable[[str], Path], read: Callable[[], Memory] = read_memory) -> None:
        self._bundle_path, self._read = bundle_path, read

    def weigh(self, candidate: Slot, current: Slot | None, *, worker_pid: int | None) -> Weighed:
        """What a worker of the candidate would take beside that of the current version.

        Args:
            candidate: Its bundle is here; likewise of ``current``.
            current: ``None``: there is none.
            worker_pid: Of the current version's worker, if there is one to look at.
        """
        size_bytes, required_bytes = self._demands(candidate)
        return weigh(
            self._read(),
            incumbent_bytes=host.rss_bytes(worker_pid) if worker_pid is not None else None,
            incumbent_file_bytes=self._demands(current)[0] if current is not None else 0,
            candidate_file_bytes=size_bytes,
            required_bytes=required_bytes,
        )

    def _demands(self, slot: Slot) -> tuple[int, int]:
        """Size of a slot's model file, and the memory that its manifest asks for, in bytes."""
        try:
            # Without a key: its signature was checked when it was brought.
            manifest = read_manifest((self._bundle_path(slot.digest) / MANIFEST_FILE).read_bytes(), keys=None)
            variant = manifest.variant(slot.variant)
        except (EdgeOpsError, OSError) as error:
            logger.warning("%s: %s", slot.version, error)
            return 0, 0
        return manifest.files[variant.file].size_bytes, variant.requires.memory_mb << 20
