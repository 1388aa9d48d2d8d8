"""Every message that passes between a device and the server, and how it looks on the wire.

Control is JSON, so that a person can read it; what devices send in bulk is MessagePack, compressed with zlib. The server drops
a record that it has already, by ``(device, epoch, stream, sequence)``, and acknowledges what it has *committed*; a device forgets
a record only after that. One struct for each message; topics are in :mod:`edgeops.topics`.
"""

import zlib
from enum import StrEnum
from typing import TypeVar

import msgspec

from edgeops.errors import EdgeOpsError, MessageError
from edgeops.latency import Buckets, check_buckets
from edgeops.selection import Attribute
from edgeops.signals import Profile

MAX_PAYLOAD_BYTES = 128_000
"""The largest message that the large cloud brokers take."""

_MAX_INFLATED_BYTES = 8 << 20


class _Message(msgspec.Struct, frozen=True, kw_only=True):
    """Common settings: immutable; unknown keys are ignored, so that an older reader understands a newer writer."""


class Trial(_Message, frozen=True, kw_only=True):
    """What a candidate has to pass on a device before it stays.

    Attributes:
        shadow_requests: Recent live inputs that the candidate must answer, beside the incumbent and unseen by callers; 0: none.
        min_agreement: Lowest share of shadow answers with the incumbent's top class; 0: not looked at.
        probation_requests: Live requests that it must answer after the switch.
        probation_s: Shortest time of probation, in seconds.
        max_error_rate: Highest share of live requests in probation that fail or answer something that is not finite.
        max_latency_ratio: Highest ratio of its p95 latency to the incumbent's.
        deadline_s: Longest time from the offer to the commit, in seconds, once the device has started on it.
        attempts: How many starts of the candidate may die before it is rolled back.
    """

    shadow_requests: int = 32
    min_agreement: float = 0.0
    probation_requests: int = 50
    probation_s: float = 5.0
    max_error_rate: float = 0.01
    max_latency_ratio: float = 3.0
    deadline_s: float = 600.0
    attempts: int = 3


class RolloutOrder(_Message, frozen=True, kw_only=True):
    """The part of a target that says who moves to a newer version, and how carefully.

    Attributes:
        percent: Devices at a position below ``percent``/100 of the order take part (:mod:`edgeops.selection`).
        where: Predicate on attributes.
        not_before: Unix time in seconds; nobody starts earlier.
        spread_s: A device starts at ``not_before`` plus its position's share of this many seconds.
    """

    id: str
    version: str
    digest: str
    percent: float
    rotation: int = 0
    where: str = ""
    not_before: float = 0.0
    spread_s: float = 0.0
    trial: Trial = Trial()


class Target(_Message, frozen=True, kw_only=True):
    """What a group wants of one model.

    Attributes:
        version: The version for everybody who is not in the rollout; ``None``: none, keep what is there.
        digest: Manifest digest of that version.
        url: Base of the blobs: the manifest is at ``{url}/{digest}``, its files at ``{url}/{their digest}``.
        floor: No version below this one is installed.
        quarantine: Digests that must not run, whatever a device thinks of them.
    """

    model: str
    version: str | None = None
    digest: str | None = None
    url: str
    floor: str = "0.0.0"
    rollout: RolloutOrder | None = None
    quarantine: tuple[str, ...] = ()


class Desired(_Message, frozen=True, kw_only=True):
    """The desired state of a group, or of one device; signed (:mod:`edgeops.signing`), retained.

    Attributes:
        generation: Only grows; a device refuses one below the highest that it has seen.
        issued: Unix time in seconds.
        expires: Unix time in seconds; later it is not acted on.
        device: The device, for an override; ``None`` for a group.
    """

    fleet: str
    group: str
    device: str | None = None
    generation: int
    issued: float
    expires: float
    targets: tuple[Target, ...]


class CommandKind(StrEnum):
    """What a device can be told to do once."""

    COLLECT = "collect"
    """Send the inputs of the next ``count`` requests as samples, drawn with probability ``share``."""
    REPORT = "report"
    """Close the telemetry window now."""


class Command(_Message, frozen=True, kw_only=True):
    """Something to do once; a device ignores an id that it has seen, and one that expired."""

    id: str
    kind: CommandKind
    expires: float
    model: str = ""
    count: int = 0
    share: float = 1.0


class Ack(_Message, frozen=True, kw_only=True):
    """What the server has committed: stream → highest sequence below which nothing is missing."""

    epoch: str
    sequences: dict[str, int]


class DeploymentState(StrEnum):
    """Where a device stands with one version of one model."""

    OFFERED = "offered"
    DOWNLOADING = "downloading"
    VERIFIED = "verified"
    TRIAL = "trial"
    PROBATION = "probation"
    COMMITTED = "committed"
    FAILED = "failed"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"
    SUPERSEDED = "superseded"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Whether nothing more comes."""
        return self in _FINAL


_FINAL = frozenset(
    {
        DeploymentState.COMMITTED,
        DeploymentState.FAILED,
        DeploymentState.REJECTED,
        DeploymentState.ROLLED_BACK,
        DeploymentState.SUPERSEDED,
        DeploymentState.EXPIRED,
    }
)


class ReasonClass(StrEnum):
    """Why a deployment did not end in ``committed``; says what may be tried next."""

    TRANSIENT = "transient"
    """Try again."""
    ENVIRONMENT = "environment"
    """Wait for a condition: disk, memory, clock."""
    INCOMPATIBLE = "incompatible"
    """This device can never run it."""
    DEFECT = "defect"
    """The model is bad: it crashed, failed its golden test, answered NaN, was too slow."""
    SECURITY = "security"
    """A signature, a digest or a generation was wrong."""


class Record(_Message, frozen=True, kw_only=True):
    """What every stored message of a device carries.

    Attributes:
        epoch: Identity of the device's outbox; sequences count within it.
        stream: ``event``, ``telemetry`` or ``sample``.
        sequence: 1, 2, 3, … within the stream.
        boot: How many times the agent had started.
        time: Unix time in seconds by the device's clock.
        uptime_s: Seconds of monotonic time since the machine started.
        clock_trusted: Whether the device believed its clock.
        machine_boot: Which start of the machine ``uptime_s`` counts from: 12 hexadecimal digits of the kernel's boot id. Empty
            where that is unknown, as in records of older agents; such a record keeps the time that it claims.
    """

    epoch: str
    stream: str
    sequence: int
    boot: int
    time: float
    uptime_s: float
    clock_trusted: bool = True
    machine_boot: str = ""

    @property
    def first_sequence(self) -> int:
        """The first sequence that this record stands for; the last is its own."""
        return self.sequence


class Transition(Record, frozen=True, kw_only=True, tag="transition"):
    """A deployment changed its state."""

    model: str
    version: str
    digest: str
    state: DeploymentState
    rollout: str | None = None
    generation: int = 0
    attempt: int = 0
    previous: str | None = None
    variant: str | None = None
    reason_class: ReasonClass | None = None
    reason: str = ""
    figures: dict[str, float] = {}


class Gap(Record, frozen=True, kw_only=True, tag="gap"):
    """Records were dropped: this one stands for ``first`` to ``sequence`` of the stream, ``count`` of them."""

    first: int
    count: int
    reason: str

    @property
    def first_sequence(self) -> int:
        """The first sequence that went."""
        return self.first


class Anchor(Record, frozen=True, kw_only=True, tag="anchor"):
    """The wall clock was believed for the first time, or was set: what dates other records of the same ``machine_boot``.

    ``time`` less ``uptime_s`` is when the machine started by the clock from now on.

    Attributes:
        before_s: The same by the clock before; ``None``: the agent has only begun to look.
        before_trusted: Whether the clock before was believed.
    """

    before_s: float | None = None
    before_trusted: bool = False


class Notice(Record, frozen=True, kw_only=True, tag="notice"):
    """Something else that the log should have: a worker died, a document was refused, the clock stepped."""

    kind: str
    text: str


class HostMetrics(_Message, frozen=True, kw_only=True, omit_defaults=True):
    """The state of the device; ``None`` where it cannot be read.

    Attributes:
        rung: Of the load-shedding ladder: ``normal``, ``no-shadow``, ``no-capture``, ``fewer-threads``, ``shed-load``.
        throttled: Bits that the firmware of a Raspberry Pi sets: 1 under-voltage, 2 frequency capped, 4 throttled, 8 soft limit.
        cpu_pressure: Share of the last ten seconds in which some process waited, in percent; likewise memory and io.
        cgroup_used_bytes: Without cached files that can be given back.
        agent_written_bytes: To disk, since the agent's start.
        flash_wear_percent: Used life of an eMMC, in steps of 10.
    """

    agent_rss_bytes: int | None = None
    worker_rss_bytes: int | None = None
    available_memory_bytes: int | None = None
    free_disk_bytes: int | None = None
    load: float | None = None
    temperature_c: float | None = None
    outbox_bytes: int | None = None
    rung: str | None = None
    throttled: int | None = None
    throttled_since_boot: int | None = None
    cpu_mhz: float | None = None
    cpu_max_mhz: float | None = None
    cpu_pressure: float | None = None
    memory_pressure: float | None = None
    io_pressure: float | None = None
    total_memory_bytes: int | None = None
    cgroup_limit_bytes: int | None = None
    cgroup_used_bytes: int | None = None
    cgroup_oom_kills: int | None = None
    agent_written_bytes: int | None = None
    flash_wear_percent: int | None = None


class Telemetry(Record, frozen=True, kw_only=True, tag="telemetry"):
    """One window of one model, or several that were added up: counters, latency, drift profile, host.

    Attributes:
        first: First sequence of those that a device with too little room added up, none of which it had sent; this record
            stands for all of them, up to its own. 0: for itself alone.
        windows: How many windows were added up.
        start: Unix time in seconds of the beginning; ``end`` likewise.
        requests: Inference requests that were answered, errors included; ``rows`` counts rows.
        errors: Requests that failed on the device's account; bad requests are not among them.
        not_finite: Answers that held NaN or infinity; they are among the errors.
        latency: Histogram of the time inside the worker.
        host: At the end of the last window.
    """

    first: int = 0
    windows: int = 1
    model: str
    version: str
    digest: str
    variant: str
    engine: str
    start: float
    end: float
    requests: int = 0
    rows: int = 0
    errors: int = 0
    not_finite: int = 0
    latency: Buckets = {}
    profile: Profile | None = None
    host: HostMetrics = HostMetrics()

    def __post_init__(self) -> None:
        # What is wrong here would spoil every sum that it is added to.
        if min(self.first, self.requests, self.rows, self.errors, self.not_finite) < 0:
            raise MessageError("telemetry: counters are not negative")
        check_buckets(self.latency)

    @property
    def first_sequence(self) -> int:
        """The first sequence that was added up."""
        return self.first or self.sequence


class SampledTensor(_Message, frozen=True, kw_only=True):
    """A tensor as bytes, little-endian, row-major."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


class SampleContent(_Message, frozen=True, kw_only=True):
    """What of a captured row only the fleet may read; fields as in :class:`Sample`."""

    inputs: dict[str, SampledTensor]
    predicted: int | None = None
    confidence: float | None = None


class Sample(Record, frozen=True, kw_only=True, tag="sample"):
    """One row that was captured for labelling.

    Attributes:
        sealed: A :class:`SampleContent` in MessagePack, sealed to the fleet (:mod:`edgeops.sealing`) as :func:`about_sample`
            says; the device cannot read it again. The fields that are in it are empty then.
        id: Unique over the fleet.
        request: The id that the caller gave the request; empty when none.
        probability: With which this row was drawn, for unbiased estimates.
        predicted: Index of the top class, ``None`` for other models.
    """

    id: str
    model: str
    version: str
    digest: str
    command: str = ""
    request: str = ""
    probability: float = 1.0
    sealed: bytes = b""
    inputs: dict[str, SampledTensor] = {}
    predicted: int | None = None
    confidence: float | None = None


def about_sample(command: str) -> str:
    """What a sealed sample is sealed as: a row that this command asked for."""
    return f"edgeops sample for {command}"


StoredRecord = Transition | Gap | Notice | Anchor | Telemetry | Sample
"""What goes through the outbox and is acknowledged."""

_RECORD_JSON: msgspec.json.Decoder[StoredRecord] = msgspec.json.Decoder(StoredRecord)
_RECORD_MSGPACK: msgspec.msgpack.Decoder[StoredRecord] = msgspec.msgpack.Decoder(StoredRecord)


class ModelState(_Message, frozen=True, kw_only=True):
    """One model on one device, as reported at birth."""

    model: str
    version: str | None = None
    digest: str | None = None
    variant: str | None = None
    previous: str | None = None
    candidate: str | None = None
    state: DeploymentState | None = None
    quarantined: dict[str, str] = {}
    """Digest → reason."""


class Birth(_Message, frozen=True, kw_only=True):
    """The full state of a device, published at every connection and when it changes."""

    device: str
    boot: int
    session: int
    """Counts connections; a late will never buries a newer birth."""
    epoch: str
    time: float
    clock_trusted: bool
    agent_version: str
    attributes: dict[str, Attribute]
    engines: dict[str, str]
    generation: int
    models: tuple[ModelState, ...]
    address: str
    """Where it serves inferences."""


class Death(_Message, frozen=True, kw_only=True):
    """The device is gone; as a will, or before an orderly stop."""

    device: str
    boot: int
    session: int


MessageType = TypeVar("MessageType", Birth, Death, Desired, Command, Ack)


def encode_json(message: Birth | Death | Desired | Command | Ack) -> bytes:
    """A control message as JSON."""
    return msgspec.json.encode(message)


def decode_json(data: bytes, kind: type[MessageType], *, where: str) -> MessageType:
    """Read a control message.

    Raises:
        MessageError: It is no JSON of that message; ``where`` is named.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, EdgeOpsError) as error:
        raise MessageError(f"{where}: expected a {kind.__name__}: {error}") from error


def encode_record(record: StoredRecord) -> bytes:
    """A stored record for the wire: events and gaps as JSON, the rest as compressed MessagePack.

    Raises:
        MessageError: It is larger than a broker takes.
    """
    if isinstance(record, Telemetry | Sample):
        data = zlib.compress(msgspec.msgpack.encode(record), 6)
    else:
        data = msgspec.json.encode(record)
    if len(data) > MAX_PAYLOAD_BYTES:
        raise MessageError(f"{type(record).__name__}: {len(data)} bytes; at most {MAX_PAYLOAD_BYTES} fit a message")
    return data


def decode_record(data: bytes, *, where: str) -> StoredRecord:
    """Read a stored record from the wire.

    Raises:
        MessageError: It is none; ``where`` is named.
    """
    try:
        if data[:1] == b"{":
            return _RECORD_JSON.decode(data)
        inflater = zlib.decompressobj()
        plain = inflater.decompress(data, _MAX_INFLATED_BYTES)
        if inflater.unconsumed_tail or not inflater.eof:
            raise MessageError(f"{where}: truncated, or more than {_MAX_INFLATED_BYTES} bytes when inflated")
        return _RECORD_MSGPACK.decode(plain)
    except (msgspec.DecodeError, zlib.error, UnicodeDecodeError, RecursionError, EdgeOpsError) as error:
        if isinstance(error, MessageError):
            raise
        raise MessageError(f"{where}: expected a record: {error}") from error
