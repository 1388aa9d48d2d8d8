"""``agent.toml``: the settings of one agent, read and checked; nothing here touches the network or starts anything."""

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edgeops.errors import ConfigError, EdgeOpsError
from edgeops.mqtt_requests import parse_broker_url
from edgeops.selection import Attribute
from edgeops.topics import check_name
from edgeops_runtime.deployment import HOLD_S
from edgeops_runtime.ladder import HOT_C

SOCKET_FILE = "serve.sock"
LOG_LEVELS = ("debug", "info", "warning", "error")
_MIN_OUTBOX_BYTES = 64 << 10
_HOOK = re.compile(r"[\w.]+:\w+")
_MIN_HOT_C, _MAX_HOT_C = 40, 120


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings of an agent.

    Attributes:
        data: Directory that belongs to this agent alone: identity, slots, blobs, outbox.
        listen: ``host:port`` or ``unix:/path``, where inferences are served; port 0 takes a free one and keeps it. Empty: a Unix
            socket, see :attr:`serving_address`.
        model: The model to run; empty: the first that the desired state names.
        engines: Engines that may be used, the preferred first; empty: all that are installed.
        threads: Threads of one inference; ``None``: 1, until a better number was measured.
        tune: Whether the model that serves is tuned when the board is idle.
        mqtt_requests: ``mqtt://[user:password@]host:port/prefix``, where inferences are asked for over MQTT 5; empty: nowhere.
        telemetry_window_s: Length of a telemetry window, in seconds.
        capture: Whether inputs may leave the device when a command asks for samples.
        capture_bytes_per_day: Most that they may take in a day.
        redact: ``module:function`` that is asked what of a captured row may leave (:mod:`edgeops_runtime.serving.redaction`).
        outbox_bytes: Most that unsent records may take on disk.
        shed_load: Whether load is shed while the board is hot or short of memory.
        swap_hold_s: How long requests may wait while a new version takes the old one's place, where memory does not hold both.
        hot_c: Temperature that the board must not reach, in degrees Celsius; load is shed before it.
        worker_memory_mb: Memory at which a worker's allocations fail, so that it dies and not the board; ``None``: no limit.
        attributes: What this device says of itself; those of the enrolment win.
        server: Base URL, for enrolment at the first start; with ``device`` and ``token``.
    """

    data: str
    listen: str = ""
    model: str = ""
    engines: tuple[str, ...] = ()
    threads: int | None = None
    tune: bool = True
    mqtt_requests: str = ""
    telemetry_window_s: float = 60.0
    capture: bool = False
    capture_bytes_per_day: int = 16 << 20
    redact: str = ""
    outbox_bytes: int = 64 << 20
    shed_load: bool = True
    swap_hold_s: float = HOLD_S
    hot_c: float = HOT_C
    worker_memory_mb: int | None = None
    attributes: dict[str, Attribute] = {}
    log_level: str = "info"
    server: str = ""
    device: str = ""
    token: str = ""

    def __post_init__(self) -> None:
        if self.listen:
            parse_listen(self.listen)
        _require(bool(self.data), "data", "a directory", self.data)
        _require(self.threads is None or self.threads >= 1, "threads", "1 or more", self.threads)
        _require(self.telemetry_window_s > 0, "telemetry_window_s", "more than 0", self.telemetry_window_s)
        _require(
            self.outbox_bytes >= _MIN_OUTBOX_BYTES, "outbox_bytes", f"{_MIN_OUTBOX_BYTES} or more", self.outbox_bytes
        )
        _require(self.worker_memory_mb is None or self.worker_memory_mb > 0, "worker_memory_mb", "more than 0", 0)
        _require(self.swap_hold_s > 0, "swap_hold_s", "more than 0", self.swap_hold_s)
        _require(_MIN_HOT_C <= self.hot_c <= _MAX_HOT_C, "hot_c", f"{_MIN_HOT_C} to {_MAX_HOT_C} °C", self.hot_c)
        _require(self.capture_bytes_per_day > 0, "capture_bytes_per_day", "more than 0", self.capture_bytes_per_day)
        _require(not self.redact or _HOOK.fullmatch(self.redact) is not None, "redact", "module:function", self.redact)
        _require(self.log_level in LOG_LEVELS, "log_level", " | ".join(LOG_LEVELS), self.log_level)
        if self.mqtt_requests:
            parse_broker_url(self.mqtt_requests)
        if self.model:
            check_name("model", self.model)

    @property
    def directory(self) -> Path:
        """``data`` as an absolute path."""
        return Path(self.data).expanduser().absolute()

    def serving_address(self, environ: Mapping[str, str] = os.environ) -> str:
        """``listen``, or by default the Unix socket ``serve.sock``: in systemd's runtime directory, else in the data directory.

        Args:
            environ: May have ``RUNTIME_DIRECTORY``, whose first directory is taken.
        """
        runtime = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        return self.listen or f"unix:{Path(runtime or self.directory) / SOCKET_FILE}"


def load_config(path: Path) -> Config:
    """Read ``agent.toml``.

    Raises:
        ConfigError: The file is missing or no TOML, a key is unknown or missing, or a value is wrong; it names both.
    """
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Config)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, EdgeOpsError) as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_listen(listen: str) -> tuple[str, int] | Path:
    """The host and port, or the path of the Unix socket, of a ``listen`` setting.

    Raises:
        ConfigError: It is neither ``host:port`` nor ``unix:/path``.
    """
    if listen.startswith("unix:/") and "\0" not in listen:
        return Path(listen.removeprefix("unix:"))
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isdigit() or int(port) > 65535 or not _is_host(host):  # noqa: PLR2004 - the last port
        raise ConfigError(f"listen: expected 'address:port' or 'unix:/path', got {listen!r}")
    return host, int(port)


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True


def _require(holds: bool, key: str, expected: str, got: object) -> None:
    if not holds:
        raise ConfigError(f"{key}: expected {expected}, got {got!r}")
