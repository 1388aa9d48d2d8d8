"""What the agent and a worker say to each other, over a socket pair: JSON, one object a line.

The worker is started with ``python -m edgeops_runtime.serving`` and a :class:`Launch` as its only argument, which is JSON
too. It loads and warms up, sends :class:`Ready` or :class:`Failed`, and serves only when told :class:`Serve`. A worker whose
control socket ends exits at once.
"""

import contextlib
import socket
import threading
from pathlib import Path
from typing import TypeVar

import msgspec

from edgeops.errors import MessageError
from edgeops.latency import Buckets
from edgeops.signals import Profile
from edgeops_runtime.engines.options import SessionOptions

MQTT_VARIABLE = "EDGEOPS_MQTT"
"""Environment variable with the broker and prefix of MQTT 5 requests: it may hold a password, which arguments would show."""


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """One object on the control socket."""


class Launch(_Line, frozen=True, kw_only=True):
    """What a worker is to load, and the sockets that it inherits: its command line.

    Attributes:
        bundle: The directory.
        variant: Name of the variant; ``engine`` likewise.
        listen_fd: The serving socket.
        control_fd: The worker's end of the socket pair.
        threads: Of one inference.
    """

    bundle: Path
    variant: str
    engine: str
    listen_fd: int
    control_fd: int
    threads: int = 1
    options: SessionOptions = SessionOptions()

    @property
    def argument(self) -> str:
        """As it stands on the command line."""
        return msgspec.json.encode(self, enc_hook=str).decode()

    @classmethod
    def from_argument(cls, argument: str) -> "Launch":
        """Read :attr:`argument`.

        Raises:
            MessageError: It is none.
        """
        try:
            return msgspec.json.decode(argument.encode(), type=cls, dec_hook=lambda kind, value: kind(value))
        except msgspec.DecodeError as error:
            raise MessageError(f"worker: expected its order as JSON: {error}: {argument[:200]!r}") from error


class Golden(_Line, frozen=True, kw_only=True, tag="golden"):
    """Agent: run the golden inputs and compare."""


class Recent(_Line, frozen=True, kw_only=True, tag="recent"):
    """Agent, to the incumbent: write the last ``count`` request inputs with your answers to the ``.npz`` at ``path``.

    Keys are ``input/<name>`` and ``output/<name>``, one row a request.
    """

    count: int
    path: str


class Shadow(_Line, frozen=True, kw_only=True, tag="shadow"):
    """Agent, to the candidate: answer the inputs in the ``.npz`` at ``path`` and compare with the answers in it.

    It takes what CPU is left over, and ``budget_s`` at most; then the answers so far are the result.
    """

    path: str
    budget_s: float = 30.0


class Serve(_Line, frozen=True, kw_only=True, tag="serve"):
    """Agent: accept connections on the inherited socket from now on."""


class Pause(_Line, frozen=True, kw_only=True, tag="pause"):
    """Agent, to the incumbent while its successor is on probation: accept no more and stay warm; :class:`Serve` takes it back.

    As with :class:`Drain`, open connections get their next answer with ``Connection: close``, so that callers move over
    and no request fails; the counters go on.
    """


class Window(_Line, frozen=True, kw_only=True, tag="window"):
    """Agent: hand over the counters since the last window and begin a new one."""


class Collect(_Line, frozen=True, kw_only=True, tag="collect"):
    """Agent: send the inputs of the next ``count`` rows, each drawn with probability ``share``; a count of 0 ends an order.

    Attributes:
        seal_to: Public key to which rows are sealed.
        redact: ``module:function`` that is asked what of a row may leave; empty: all of it.
    """

    command: str
    count: int
    share: float
    seal_to: str
    redact: str = ""


class Ease(_Line, frozen=True, kw_only=True, tag="ease"):
    """Agent: take less of the board from now on; the whole state, so that the last one counts. No answer.

    Attributes:
        capture: Whether rows are drawn for orders to collect; orders are kept.
        cores: How many the process may use; ``None``: all.
        shed: Share of the inference requests that are answered with 503.
    """

    capture: bool = True
    cores: int | None = None
    shed: float = 0.0


class Drain(_Line, frozen=True, kw_only=True, tag="drain"):
    """Agent: accept no more, finish what is there, close connections after their next answer, send the last window, exit."""

    timeout_s: float = 10.0


class Ready(_Line, frozen=True, kw_only=True, tag="ready"):
    """Worker: the engine has loaded the model and answered a warm-up."""

    engine: str
    engine_version: str
    pid: int
    rss_bytes: int
    load_s: float


class Failed(_Line, frozen=True, kw_only=True, tag="failed"):
    """Worker: it could not load or do what it was told; it exits when it failed to load."""

    what: str
    reason: str


class GoldenResult(_Line, frozen=True, kw_only=True, tag="golden_result"):
    """Worker: how the golden inputs came out."""

    passed: bool
    rows: int
    largest_difference: float
    tolerance: float
    reason: str = ""


class RecentResult(_Line, frozen=True, kw_only=True, tag="recent_result"):
    """Worker: how many requests were written."""

    count: int


class ShadowResult(_Line, frozen=True, kw_only=True, tag="shadow_result"):
    """Worker: how the shadow inputs came out.

    Attributes:
        agreement: Share of answers with the incumbent's top class; ``None`` when there was nothing to compare.
        latency_ms: Median of the CPU time of one answer: the shadow waits for others, which is not the candidate's fault.
    """

    answered: int
    failed: int
    not_finite: int
    agreement: float | None = None
    latency_ms: float | None = None
    reason: str = ""


class Serving(_Line, frozen=True, kw_only=True, tag="serving"):
    """Worker: it accepts."""


class Paused(_Line, frozen=True, kw_only=True, tag="paused"):
    """Worker: it accepts no more."""


class WindowClosed(_Line, frozen=True, kw_only=True, tag="window_closed"):
    """Worker: counters of one window; the sum over all windows is the sum over all requests.

    Attributes:
        start: Unix time in seconds; likewise ``end``.
        latency: Time from the parsed request to the encoded answer.
        busy_s: How long the oldest request that is not answered yet has been under way, in seconds.
    """

    start: float
    end: float
    requests: int
    rows: int
    errors: int
    not_finite: int
    latency: Buckets
    profile: Profile | None
    rss_bytes: int
    busy_s: float = 0.0


class Sampled(_Line, frozen=True, kw_only=True, tag="sampled"):
    """Worker: one captured row; ``sealed`` is an :class:`edgeops.messages.SampleContent`, for the fleet's eyes only."""

    command: str
    request: str
    probability: float
    sealed: bytes


class CaptureEnded(_Line, frozen=True, kw_only=True, tag="capture_ended"):
    """Worker: no more rows are captured for a command, though not all came that were asked for."""

    command: str
    reason: str


class Drained(_Line, frozen=True, kw_only=True, tag="drained"):
    """Worker: the last that is heard of it."""

    window: WindowClosed


FromAgent = Golden | Recent | Shadow | Serve | Pause | Window | Collect | Ease | Drain
FromWorker = (
    Ready
    | Failed
    | GoldenResult
    | RecentResult
    | ShadowResult
    | Serving
    | Paused
    | WindowClosed
    | Sampled
    | CaptureEnded
    | Drained
)

_AGENT: msgspec.json.Decoder[FromAgent] = msgspec.json.Decoder(FromAgent)
_WORKER: msgspec.json.Decoder[FromWorker] = msgspec.json.Decoder(FromWorker)
_LineType = TypeVar("_LineType")


class ControlSocket:
    """Lines over a socket; sending is safe from several threads, receiving belongs to one."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._reader = connection.makefile("rb")
        self._lock = threading.Lock()

    def send(self, line: FromAgent | FromWorker) -> bool:
        """Send one line; ``False`` when the other side is gone."""
        data = msgspec.json.encode(line) + b"\n"
        try:
            with self._lock:
                self._socket.sendall(data)
        except OSError:
            return False
        return True

    def receive_from_agent(self) -> FromAgent | None:
        """The next line of the agent; ``None`` when it is gone.

        Raises:
            MessageError: It is no such line.
        """
        return self._decode(_AGENT)

    def receive_from_worker(self) -> FromWorker | None:
        """The next line of the worker; ``None`` when it is gone.

        Raises:
            MessageError: It is no such line.
        """
        return self._decode(_WORKER)

    def close(self) -> None:
        """End the conversation."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.close()
        self._socket.close()

    def _decode(self, decoder: msgspec.json.Decoder[_LineType]) -> _LineType | None:
        try:
            line = self._reader.readline()
        except (OSError, ValueError):
            return None
        if not line.endswith(b"\n"):
            return None
        try:
            return decoder.decode(line)
        except msgspec.DecodeError as error:
            raise MessageError(f"control socket: {error}: {line[:200]!r}") from error
