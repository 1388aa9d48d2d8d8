"""What can be known of the machine: CPU, heat, memory, pressure, limits, flash; ``None`` where it cannot be read.

Reads ``/proc`` and ``/sys``, whose roots can be given. Which engines are installed is known by :mod:`edgeops_runtime.engines`,
what to do about the readings by :mod:`edgeops_runtime.ladder`.
"""

import os
from enum import IntFlag
from pathlib import Path

import msgspec

from edgeops.messages import HostMetrics

_PROC = Path("/proc")
_SYS = Path("/sys")
_THERMAL = _SYS / "class" / "thermal"
_KIB = 1024
_COLDEST_C, _HOTTEST_C = -60, 150


class Throttling(IntFlag):
    """What the firmware of a Raspberry Pi holds back now; the same bits 16 higher say that it ever did since the boot.

    https://www.raspberrypi.com/documentation/computers/os.html#get_throttled
    """

    UNDER_VOLTAGE = 1
    CAPPED = 2
    THROTTLED = 4
    SOFT_LIMIT = 8


class CgroupMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of the control group that this process is in (version 2).

    Attributes:
        limit_bytes: The lowest of its own and its ancestors'; ``None``: none is set.
        used_bytes: Without what the kernel gives back at once: cached files that nobody has read lately.
        oom_kills: Processes of the group that were killed for memory.
        pressure: Share of the last ten seconds in which some process of it waited for memory, in percent.
    """

    limit_bytes: int | None
    used_bytes: int | None
    oom_kills: int | None
    pressure: float | None


def cpu_name(proc: Path = _PROC) -> str | None:
    """The CPU's model: a name where Linux has one, on ARM the implementer's and the part's number."""
    found: dict[str, str] = {}
    for line in _lines(proc / "cpuinfo"):
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    if name := found.get("model name"):
        return name
    numbers = [found[key] for key in ("CPU implementer", "CPU part", "CPU revision") if found.get(key)]
    return "/".join(numbers) or None


def cpu_flags(proc: Path = _PROC) -> frozenset[str]:
    """The CPU's features as Linux names them (``flags`` on x86, ``Features`` on ARM); empty when unknown."""
    for line in _lines(proc / "cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


def cpu_frequencies_mhz(sys: Path = _SYS) -> tuple[float | None, float | None]:
    """The fastest core's frequency now, and the most that it can."""
    cores = sys / "devices" / "system" / "cpu"
    current = _numbers(sorted(cores.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")))
    highest = _numbers(sorted(cores.glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq")))
    return _thousandth(max(current, default=None)), _thousandth(max(highest, default=None))


def big_cores(sys: Path = _SYS) -> int | None:
    """How many cores are as capable as the most capable, on a board with fast and slow ones; ``None`` where all are alike."""
    cores = sys / "devices" / "system" / "cpu"
    for pattern in ("cpu[0-9]*/cpu_capacity", "cpu[0-9]*/cpufreq/cpuinfo_max_freq"):
        found = _numbers(sorted(cores.glob(pattern)))
        if found and min(found) < max(found):
            return found.count(max(found))
    return None


def throttling(sys: Path = _SYS) -> tuple[Throttling, Throttling] | None:
    """What a Raspberry Pi's firmware holds back now, and what it ever did since the boot."""
    for line in _lines(sys / "devices" / "platform" / "soc" / "soc:firmware" / "get_throttled"):
        try:
            bits = int(line, 16)
        except ValueError:
            return None
        return Throttling(bits & 0xF), Throttling(bits >> 16 & 0xF)
    return None


def pressure_percent(resource: str, proc: Path = _PROC) -> float | None:
    """Share of the last ten seconds in which some process waited for a resource: ``cpu``, ``memory`` or ``io``."""
    return _some_avg10(proc / "pressure" / resource)


def total_memory_bytes(proc: Path = _PROC) -> int | None:
    """The machine's memory."""
    return _kib_field(proc / "meminfo", "MemTotal")


def cgroup_memory(proc: Path = _PROC, sys: Path = _SYS) -> CgroupMemory | None:
    """The memory of this process's control group; ``None`` without version 2, or where no group is set up for it."""
    root = sys / "fs" / "cgroup"
    # In a container the group is the root of what is seen; the machine's own root has no such files.
    path = next(
        (line.removeprefix("0::/") for line in _lines(proc / "self" / "cgroup") if line.startswith("0::/")), None
    )
    if path is None:
        return None
    group = root / path
    current = next(iter(_numbers([group / "memory.current"])), None)
    if current is None:
        return None
    above = [each for each in group.parents if each.is_relative_to(root)]
    limits = _numbers([each / "memory.max" for each in (group, *above)])  # "max" is no number.
    cached = _field(group / "memory.stat", "inactive_file") or 0
    return CgroupMemory(
        limit_bytes=min(limits, default=None),
        used_bytes=max(current - cached, 0),
        oom_kills=_field(group / "memory.events", "oom_kill"),
        pressure=_some_avg10(group / "memory.pressure"),
    )


def written_bytes(proc: Path = _PROC) -> int | None:
    """What this process has caused to be written to disk since its start."""
    return _field(proc / "self" / "io", "write_bytes:")


def flash_wear_percent(sys: Path = _SYS) -> int | None:
    """How much of the most worn eMMC's life is used, as it says itself, in steps of 10; SD cards do not say."""
    worn = []
    for path in sorted((sys / "block").glob("mmcblk*/device/life_time")):
        for line in _lines(path):
            worn += [int(word, 16) * 10 for word in line.split() if word.startswith("0x") and int(word, 16)]
    return max(worn, default=None)


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
    """The hottest thermal zone, in degrees Celsius; a zone that is switched off may read as anything, and is left out."""
    readings: list[float] = []
    try:
        zones = sorted(thermal.glob("thermal_zone*"))
    except OSError:
        return None
    for zone in zones:
        lines = _lines(zone / "temp")
        readings.extend(int(line) / 1000 for line in lines if line.strip().lstrip("-").isdigit())
    return max((reading for reading in readings if _COLDEST_C < reading < _HOTTEST_C), default=None)


def free_disk_bytes(directory: Path) -> int | None:
    """What an unprivileged process may still write where ``directory`` lies."""
    try:
        space = os.statvfs(directory)
    except OSError:
        return None
    return space.f_bavail * space.f_frsize


def read_metrics(
    directory: Path,
    *,
    worker_rss_bytes: int | None,
    outbox_bytes: int | None,
    rung: str | None = None,
    proc: Path = _PROC,
    sys: Path = _SYS,
) -> HostMetrics:
    """All host figures of one telemetry window.

    Args:
        directory: Where the agent keeps its data.
        worker_rss_bytes: As the worker reported.
        outbox_bytes: What waits to be sent.
        rung: Of the ladder.
        proc: In place of ``/proc``.
        sys: In place of ``/sys``.
    """
    frequency, highest = cpu_frequencies_mhz(sys)
    held_back = throttling(sys)
    group = cgroup_memory(proc, sys)
    return HostMetrics(
        agent_rss_bytes=rss_bytes(proc=proc),
        worker_rss_bytes=worker_rss_bytes,
        available_memory_bytes=available_memory_bytes(proc),
        free_disk_bytes=free_disk_bytes(directory),
        load=load_average(proc),
        temperature_c=temperature_c(sys / "class" / "thermal"),
        outbox_bytes=outbox_bytes,
        rung=rung,
        throttled=None if held_back is None else int(held_back[0]),
        throttled_since_boot=None if held_back is None else int(held_back[1]),
        cpu_mhz=frequency,
        cpu_max_mhz=highest,
        cpu_pressure=pressure_percent("cpu", proc),
        memory_pressure=pressure_percent("memory", proc),
        io_pressure=pressure_percent("io", proc),
        total_memory_bytes=total_memory_bytes(proc),
        cgroup_limit_bytes=group.limit_bytes if group else None,
        cgroup_used_bytes=group.used_bytes if group else None,
        cgroup_oom_kills=group.oom_kills if group else None,
        agent_written_bytes=written_bytes(proc),
        flash_wear_percent=flash_wear_percent(sys),
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


def _field(path: Path, key: str) -> int | None:
    """The number behind a word, as in ``memory.stat`` and ``io``."""
    for line in _lines(path):
        words = line.split()
        if len(words) == 2 and words[0] == key and words[1].isdigit():  # noqa: PLR2004 - a word and a number
            return int(words[1])
    return None


def _numbers(paths: list[Path]) -> list[int]:
    """The whole numbers that files begin with; those that do not, or cannot be read, are left out."""
    firsts = [lines[0].strip() for lines in map(_lines, paths) if lines]
    return [int(first) for first in firsts if first.isdigit()]


def _thousandth(value: int | None) -> float | None:
    return None if value is None else value / 1000


def _some_avg10(path: Path) -> float | None:
    for line in _lines(path):
        if line.startswith("some "):
            for word in line.split():
                name, _, value = word.partition("=")
                if name == "avg10":
                    try:
                        return float(value)
                    except ValueError:
                        return None
    return None
