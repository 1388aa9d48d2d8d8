"""The machine, looked over for what would keep a model from being served: one line a subject.

What can be read is read with :mod:`edgeops_runtime.host`; the engines are :mod:`edgeops_runtime.doctor.examiner`'s.
"""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from edgeops.errors import EdgeOpsError
from edgeops.files import sync_directory
from edgeops_runtime import host
from edgeops_runtime.clock import SystemClock, TrustedClock
from edgeops_runtime.identity import Identity, is_enrolled, load_identity

_MIB = 1 << 20
_LEAST_MEMORY = 64 * _MIB
"""A worker without its model takes about this much."""
_LEAST_DISK = 16 * _MIB
_REACH_TIMEOUT_S = 3.0
UNIT = "edgeops-agent.service"


class Level(StrEnum):
    """What a line means."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    FAILURE = "failure"
    """This would keep a model from being served."""


class Line(msgspec.Struct, frozen=True):
    """One line of the report."""

    subject: str
    level: Level
    text: str


def cpu_line(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Line:
    """The CPU, and whether engines can see it: some abort where these files are hidden (onnxruntime #10038)."""
    hidden = [
        str(path)
        for path in (proc / "cpuinfo", sys / "devices" / "system" / "cpu" / "possible")
        if not os.access(path, os.R_OK)
    ]
    if hidden:
        return Line(
            "cpu", Level.FAILURE, f"cannot read {', '.join(hidden)}: engines abort without; is a sandbox too tight?"
        )
    flags = sorted(host.cpu_flags(proc) & _TELLING_FLAGS)
    current, highest = host.cpu_frequencies_mhz(sys)
    clock = f", {current:.0f} of {highest:.0f} MHz" if current and highest else ""
    name = host.cpu_name(proc) or "unknown"
    return Line("cpu", Level.OK, f"{name}, {os.cpu_count()} cores{clock}, {' '.join(flags) or 'no telling flags'}")


_TELLING_FLAGS = frozenset(
    {
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx_vnni",
        "fma",
        "asimd",
        "asimddp",
        "asimdhp",
        "atomics",
        "i8mm",
        "sve",
        "sme",
        "neon",
    }
)


def memory_line(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Line:
    """Memory that is there, by the machine and by the control group."""
    available, total = host.available_memory_bytes(proc), host.total_memory_bytes(proc)
    if available is None or total is None:
        return Line("memory", Level.WARNING, "cannot be read: load is not shed for it")
    text = f"{available // _MIB} of {total // _MIB} MB available"
    group = host.cgroup_memory(proc, sys)
    if group is not None and group.limit_bytes is not None:
        left = group.limit_bytes - (group.used_bytes or 0)
        text += f"; the control group has {left // _MIB} of {group.limit_bytes // _MIB} MB left"
        text += f", {group.oom_kills} killed for memory" if group.oom_kills else ""
        available = min(available, left)
    return Line("memory", Level.FAILURE if available < _LEAST_MEMORY else Level.OK, text)


def heat_line(sys: Path = Path("/sys"), *, hot_c: float) -> Line:
    """Temperature and throttling."""
    degrees, held_back = host.temperature_c(sys / "class" / "thermal"), host.throttling(sys)
    words = [f"{degrees:.1f} °C, the limit is {hot_c:g}" if degrees is not None else "no temperature to be read"]
    is_bad = degrees is not None and degrees >= hot_c
    if held_back is not None:
        now, ever = held_back
        words.append(f"firmware holds back now: {_flags(now)}; since the boot: {_flags(ever)}")
        is_bad = is_bad or bool(now)
    level = Level.WARNING if is_bad else Level.INFO if degrees is None and held_back is None else Level.OK
    return Line("heat", level, "; ".join(words))


def disk_line(directory: Path) -> Line:
    """Whether the data directory takes what is written durably, and how much of it."""
    if not directory.is_dir():
        nearest = next((each for each in directory.parents if each.exists()), Path("/"))
        level = Level.INFO if os.access(nearest, os.W_OK) else Level.FAILURE
        return Line("disk", level, f"{directory}: is not there; {nearest} {_WRITABLE[level]}")
    free = host.free_disk_bytes(directory)
    scratch = directory / f".doctor.{os.getpid()}.tmp"
    try:
        with scratch.open("wb") as stream:
            stream.write(b"\0" * 4096)
            stream.flush()
            os.fsync(stream.fileno())
        sync_directory(directory)
    except OSError as error:
        return Line("disk", Level.FAILURE, f"{directory}: cannot be written and fsynced: {error.strerror or error}")
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()
    wear = host.flash_wear_percent()
    text = f"{directory}: written and fsynced, {(free or 0) // _MIB} MB free"
    text += f", {wear} % of the eMMC's life used" if wear is not None else ""
    return Line("disk", Level.FAILURE if free is not None and free < _LEAST_DISK else Level.OK, text)


_WRITABLE = {Level.INFO: "can be written", Level.FAILURE: "cannot be written by this user"}


def clock_line(directory: Path) -> Line:
    """Whether the clock is believed; without, what runs goes on and nothing new is installed."""
    clock = TrustedClock(SystemClock(), directory / "clock")
    if clock.is_trusted:
        return Line("clock", Level.OK, "trusted")
    return Line("clock", Level.WARNING, "before the newest moment that is vouched for: nothing new is installed")


def network_lines(directory: Path) -> list[Line]:
    """Broker and server, for information: the network has no part in health."""
    if not is_enrolled(directory):
        return [Line("network", Level.INFO, "not enrolled: there is no broker and no server to reach")]
    try:
        identity = load_identity(directory)
    except EdgeOpsError as error:
        return [Line("network", Level.FAILURE, str(error))]
    return [_reach("broker", *_broker(identity)), _reach("server", *_server(identity))]


def systemd_line(command: Sequence[str] = ("systemctl",)) -> Line | None:
    """The service, where systemd runs this machine; ``None`` where it does not."""
    if not Path("/run/systemd/system").is_dir() or shutil.which(command[0]) is None:
        return None
    asked = [*command, "show", UNIT, "--property=LoadState,ActiveState,NRestarts,WatchdogUSec,StatusText"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603 - systemd's own
    except (OSError, subprocess.SubprocessError) as error:
        return Line("systemd", Level.INFO, f"cannot be asked: {error}")
    state = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    if state.get("LoadState") != "loaded":
        return Line("systemd", Level.INFO, f"{UNIT} is not installed")
    text = f"{UNIT} {state.get('ActiveState')}, {state.get('NRestarts')} restarts, watchdog {state.get('WatchdogUSec')}"
    level = Level.WARNING if state.get("ActiveState") == "failed" else Level.OK
    return Line("systemd", level, f"{text}; {state['StatusText']}" if state.get("StatusText") else text)


def _broker(identity: Identity) -> tuple[str, int]:
    return identity.enrolment.broker_host, identity.enrolment.broker_port


def _server(identity: Identity) -> tuple[str, int]:
    url = urlsplit(identity.enrolment.url)
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def _reach(subject: str, name: str, port: int) -> Line:
    try:
        with socket.create_connection((name, port), timeout=_REACH_TIMEOUT_S):
            return Line(subject, Level.INFO, f"{name}:{port} can be reached")
    except OSError as error:
        return Line(subject, Level.INFO, f"{name}:{port} cannot be reached: {error}; what serves goes on without")


def _flags(bits: host.Throttling) -> str:
    names = [flag.name.lower().replace("_", "-") for flag in bits if flag.name]
    return ", ".join(names) or "nothing"
