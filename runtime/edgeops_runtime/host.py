"""What can be known of the machine: memory, load, temperature, CPU flags; ``None`` where it cannot be read.

Reads ``/proc`` and ``/sys``. Which engines are installed is known by :mod:`edgeops_runtime.engines`.
"""

import os
from pathlib import Path

from edgeops.messages import HostMetrics

_PROC = Path("/proc")
_THERMAL = Path("/sys/class/thermal")
_KIB = 1024


def cpu_flags(proc: Path = _PROC) -> frozenset[str]:
    """The CPU's features as Linux names them (``flags`` on x86, ``Features`` on ARM); empty when unknown."""
    for line in _lines(proc / "cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


def available_memory_bytes(proc: Path = _PROC) -> int | None:
    """Memory that can be had without swapping."""
    return _kib_field(proc / "meminfo", "MemAvailable")


def rss_bytes(pid: int | str = "self", proc: Path = _PROC) -> int | None:
    """Resident memory of a process."""
    return _kib_field(proc / str(pid) / "status", "VmRSS")


def load_average(proc: Path = _PROC) -> float | None:
    """Load over the last minute."""
    for line in _lines(proc / "loadavg"):
        try:
            return float(line.split()[0])
        except (IndexError, ValueError):
            return None
    return None


def temperature_c(thermal: Path = _THERMAL) -> float | None:
    """The hottest thermal zone, in degrees Celsius."""
    readings: list[float] = []
    try:
        zones = sorted(thermal.glob("thermal_zone*"))
    except OSError:
        return None
    for zone in zones:
        lines = _lines(zone / "temp")
        readings.extend(int(line) / 1000 for line in lines if line.strip().lstrip("-").isdigit())
    return max(readings, default=None)


def free_disk_bytes(directory: Path) -> int | None:
    """What an unprivileged process may still write where ``directory`` lies."""
    try:
        space = os.statvfs(directory)
    except OSError:
        return None
    return space.f_bavail * space.f_frsize


def read_metrics(directory: Path, *, worker_rss_bytes: int | None, outbox_bytes: int | None) -> HostMetrics:
    """All host figures of one telemetry window.

    Args:
        directory: Where the agent keeps its data.
        worker_rss_bytes: As the worker reported.
        outbox_bytes: What waits to be sent.
    """
    return HostMetrics(
        agent_rss_bytes=rss_bytes(),
        worker_rss_bytes=worker_rss_bytes,
        available_memory_bytes=available_memory_bytes(),
        free_disk_bytes=free_disk_bytes(directory),
        load=load_average(),
        temperature_c=temperature_c(),
        outbox_bytes=outbox_bytes,
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _kib_field(path: Path, key: str) -> int | None:
    for line in _lines(path):
        name, _, value = line.partition(":")
        if name == key and value.split() and value.split()[0].isdigit():
            return int(value.split()[0]) * _KIB
    return None
