"""The server's settings: a TOML file and options of the command line; unknown keys are refused."""

from pathlib import Path
from typing import Any

import msgspec

from edgeops.errors import ConfigError, EdgeOpsError
from edgeops.signing import PublicKey
from edgeops.topics import check_name

_PORTS = 65536


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Common settings of every section: immutable, and unknown keys are an error."""


class DriftSection(_Section, frozen=True, kw_only=True):
    """``[drift]``: what the detector promises; the meaning of each is in :class:`edgeops_fleet.drift.settings.DriftSettings`.

    Attributes:
        attribute: Device attribute whose values are the cohorts.
        false_alarm_windows: At most one false alarm in this many windows.
        tolerance: Changes smaller than this do not matter.
        window_s: Length of a window of evidence, in seconds.
    """

    attribute: str = "site"
    false_alarm_windows: float = 1000.0
    tolerance: float = 0.02
    window_s: float = 60.0
    design_effect: float = 1.0
    detectable_shift: float = 0.1
    min_windows: int = 3


class RetrainSection(_Section, frozen=True, kw_only=True):
    """``[retrain]``: what follows when a cohort drifts.

    Attributes:
        command: Program and arguments; gets the CloudEvent on standard input. Empty: none.
        webhook: URL that the CloudEvent is posted to. Empty: none.
        samples: How many samples are collected from the cohort.
        share: With which probability a request of a collecting device becomes a sample; below 1, samples are spread over time.
        harm_tolerance: How much higher the error rate may be than the reference's, as a share.
        min_labels: So many labels are needed before harm is assessed.
        cooldown_s: Shortest time between two requests for the same model and cohort, in seconds.
        collect_ttl_s: How long a command to collect is valid; then, where samples are missing, it is sent again.
        stop_with_server: Whether a running command is ended when the server stops in good order.
    """

    command: tuple[str, ...] = ()
    webhook: str = ""
    samples: int = 256
    share: float = 0.5
    min_labels: int = 100
    harm_tolerance: float = 0.05
    cooldown_s: float = 3600.0
    collect_ttl_s: float = 120.0
    stop_with_server: bool = False


class RetentionSection(_Section, frozen=True, kw_only=True):
    """``[retention]``: what is kept, and for how long; what is older goes in small steps.

    Attributes:
        windows_days: Telemetry windows; figures of a device are sums over what is kept.
        events_days: Transitions, notices and gaps as they came; the log is never cut.
        samples_mb: Inputs of samples, in 10^6 bytes; the oldest go first, those of an open cause last.
    """

    windows_days: float = 30.0
    events_days: float = 14.0
    samples_mb: float = 1000.0

    def __post_init__(self) -> None:
        if min(self.windows_days, self.events_days) < 1 or self.samples_mb <= 0:
            raise ConfigError("[retention]: expected windows_days and events_days of 1 or more, and samples_mb above 0")


class ControllerSection(_Section, frozen=True, kw_only=True):
    """``[controller]``: rhythm and validity.

    Attributes:
        tick_s: The controller looks at least this often, in seconds; reports wake it earlier.
        desired_ttl_s: Validity of a desired document, in seconds; issued anew at half of it.
    """

    tick_s: float = 0.5
    desired_ttl_s: float = 14 * 86400.0


class Settings(_Section, frozen=True, kw_only=True):
    """Everything that a server is told.

    Attributes:
        data: Folder of the database, blobs, keys and data sets.
        fleet: Name of the fleet; in every topic.
        listen: ``host:port`` of the HTTP server; port 0 takes a free one, and the same again after a restart.
        broker: ``embedded``, or ``mqtt://host:port`` (``mqtt://user:password@host:port``).
        mqtt_port: Of the embedded broker; 0 as above.
        mqtt_host: Address that the embedded broker binds to.
        advertise: Host name that devices are told for HTTP and the embedded broker; empty: the address listened on, or, where
            that is every interface, the one by which the device came.
        blobs: A URL for obstore; empty: the folder ``blobs`` in ``data``.
        release_keys: Public keys (base64), one of which must have signed a bundle; empty: a development key in ``data`` is made.
        max_bundle_bytes: Larger uploads are refused.
        open_reads: Whether reading needs no token from other machines either.
    """

    data: Path
    fleet: str = "edgeops"
    listen: str = "127.0.0.1:8080"
    broker: str = "embedded"
    mqtt_port: int = 1883
    mqtt_host: str = "127.0.0.1"
    advertise: str = ""
    blobs: str = ""
    release_keys: tuple[str, ...] = ()
    max_bundle_bytes: int = 2 << 30
    open_reads: bool = False
    controller: ControllerSection = ControllerSection()
    drift: DriftSection = DriftSection()
    retrain: RetrainSection = RetrainSection()
    retention: RetentionSection = RetentionSection()

    def __post_init__(self) -> None:
        check_name("fleet", self.fleet)
        split_address(self.listen)
        for key in self.release_keys:
            PublicKey(key)
        if self.broker != "embedded" and not self.broker.startswith("mqtt://"):
            raise ConfigError(f"broker {self.broker!r}: expected 'embedded' or mqtt://host:port")


def load_settings(file: Path | None, **options: Any) -> Settings:  # noqa: ANN401 - values of the command line
    """Settings from a TOML file, with what the command line says on top; options that are ``None`` are not said.

    Raises:
        ConfigError: The file cannot be read, or a key is unknown or of the wrong type.
    """
    values: dict[str, Any] = {}
    where = "options"
    try:
        if file is not None:
            where = str(file)
            values = msgspec.toml.decode(file.read_bytes())
        values.update({key: value for key, value in options.items() if value is not None})
        return msgspec.convert(values, Settings, dec_hook=_decode_path)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, EdgeOpsError) as error:
        raise ConfigError(f"{where}: {error}") from error


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port``; IPv6 hosts in brackets.

    >>> split_address("127.0.0.1:8080"), split_address("[::1]:80")
    (('127.0.0.1', 8080), ('::1', 80))

    Raises:
        ConfigError: It is not of that form.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) >= _PORTS:
        raise ConfigError(f"address {address!r}: expected host:port, for example 127.0.0.1:8080")
    return host.strip("[]"), int(port)


def _decode_path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise TypeError(f"expected {kind.__name__}, got {value!r}")
