"""Whether a second worker fits beside the first: what it would take, and what of the memory can be had.

Estimates, made before anything is loaded: the incumbent's worker is there to be looked at, and the candidate's files are. What
follows is decided in :mod:`edgeops_runtime.deployment`.
"""

from pathlib import Path

import msgspec

from edgeops_runtime import host
from edgeops_runtime.deployment import Weighed

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
