"""The outbox: what a day at a record a second writes to flash, three weeks without a broker, and its memory with a full backlog.

Days pass on a clock of the benchmark's own. What is written is ``write_bytes`` of ``/proc/self/io``: the pages that the process
has made the kernel write, without the file system's own journal, so it says which file system that was. The three weeks run in
memory (``/dev/shm``) where that is possible, since there it is the records that matter; they are then drained through a real
broker and the real MQTT link.
"""

import os
import queue
import random
import socket
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

from iotcore import Broker

from benchmarks.figures import Figure
from edgeops.link import Received
from edgeops.messages import (
    Gap,
    HostMetrics,
    Notice,
    Sample,
    SampledTensor,
    StoredRecord,
    Telemetry,
    decode_record,
)
from edgeops.mqtt import MqttLink
from edgeops.signals import Profile
from edgeops_runtime.outbox import Outbox, Stamp, Stream
from edgeops_runtime.sender import Pace, Sender

_DAY_S = 86400
_QUOTA_BYTES = 64 << 20
_WEEKS_QUOTA_BYTES = 4 << 20
_WEEKS_DAYS = 21
_WEEKS_WINDOW_S = 30
_SIGNALS, _BINS = 8, 12
_REQUESTS = 10
_DIGEST, _REFERENCE = f"sha256:{'3f9a61c07be2d548' * 4}", f"sha256:{'e07d24ab915c3f68' * 4}"
_MB = 1e6
_MEMORY = Path("/dev/shm")


class Device:
    """Makes records on a clock of its own.

    Attributes:
        now_s: Seconds of monotonic time.
    """

    def __init__(self, directory: Path, *, quota_bytes: int) -> None:
        self.now_s = 100.0
        self.rng = random.Random(1)
        self.requests = 0
        self.outbox = Outbox(directory, quota_bytes=quota_bytes, stamp=self.stamp)

    def stamp(self) -> Stamp:
        """Now."""
        return Stamp(
            boot=3, time=1.79e9 + self.now_s, uptime_s=self.now_s, clock_trusted=True, machine_boot="a1b2c3d4e5f6"
        )

    def window(self, length_s: float) -> None:
        """A telemetry window of a model with eight drift signals and a few requests."""

        def make(sequence: int) -> StoredRecord:
            rng = self.rng
            counts = {f"image.signal{number}": [0] * _BINS for number in range(_SIGNALS)}
            latency: dict[int, int] = {}
            for _ in range(_REQUESTS):
                bucket = int(rng.gauss(150, 3))
                latency[bucket] = latency.get(bucket, 0) + 1
                for bins in counts.values():
                    bins[int(min(max(rng.gauss(_BINS / 2, 2), 0), _BINS - 1))] += 1
            now = self.stamp()
            return Telemetry(
                **self._base(Stream.TELEMETRY, sequence),
                model="fashion",
                version="1.2.0",
                digest=_DIGEST,
                variant="onnx-int8",
                engine="onnxruntime",
                start=now.time - length_s + rng.random() / 1000,
                end=now.time + rng.random() / 1000,
                requests=_REQUESTS,
                rows=_REQUESTS,
                latency=latency,
                profile=Profile(
                    reference=_REFERENCE, rows=_REQUESTS, counts={name: tuple(bins) for name, bins in counts.items()}
                ),
                host=HostMetrics(
                    agent_rss_bytes=27_123_712,
                    worker_rss_bytes=81_231_232,
                    available_memory_bytes=rng.randrange(400 << 20, 401 << 20) & ~4095,
                    free_disk_bytes=rng.randrange(4 << 30, (4 << 30) + (1 << 20)) & ~4095,
                    load=round(rng.random(), 2),
                    temperature_c=51.5,
                    outbox_bytes=self.outbox.size_bytes,
                ),
            )

        self.outbox.append(Stream.TELEMETRY, make)
        self.requests += _REQUESTS

    def sample(self, size_bytes: int) -> None:
        """A captured row that does not compress."""
        tensor = SampledTensor(dtype="UINT8", shape=(size_bytes,), data=self.rng.randbytes(size_bytes))
        self.outbox.append(
            Stream.SAMPLE,
            lambda sequence: Sample(
                **self._base(Stream.SAMPLE, sequence),
                id=f"{self.outbox.epoch}-{sequence}",
                model="fashion",
                version="1.2.0",
                digest=_DIGEST,
                inputs={"image": tensor},
            ),
        )

    def event(self) -> None:
        """A notice of usual length."""
        text = self.rng.randbytes(40).hex()
        self.outbox.append(
            Stream.EVENT,
            lambda sequence: Notice(**self._base(Stream.EVENT, sequence), kind="worker-died", text=text),
        )

    def _base(self, stream: Stream, sequence: int) -> dict[str, object]:
        now = self.stamp()
        return {
            "epoch": self.outbox.epoch,
            "stream": stream.value,
            "sequence": sequence,
            "boot": now.boot,
            "time": now.time,
            "uptime_s": now.uptime_s,
            "machine_boot": now.machine_boot,
        }


class Server:
    """Stores each sequence once, and acknowledges."""

    def __init__(self) -> None:
        self.contiguous = dict.fromkeys(Stream, 0)
        self.records = self.added_up = self.dropped = self.requests = self.disordered = self.wrong = 0

    def take(self, payload: bytes) -> None:
        """A record has come."""
        record = decode_record(payload, where="benchmark")
        stream = Stream(record.stream)
        expected = self.contiguous[stream] + 1
        if record.sequence < expected:
            return  # Sent again.
        self.disordered += record.first_sequence > expected
        self.wrong += record.first_sequence < expected
        self.contiguous[stream] = record.sequence
        if isinstance(record, Gap):
            self.dropped += record.count
            return
        self.records += 1
        self.added_up += record.sequence - record.first_sequence
        self.requests += record.requests if isinstance(record, Telemetry) else 0


def measure() -> list[Figure]:
    """All figures; some minutes."""
    return [*measure_day(), *measure_weeks(), *measure_backlog()]


def measure_day() -> list[Figure]:
    """A day of one record a second with a server that acknowledges, and an hour of it with a sync for each record."""
    Path("build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="build") as name:
        file_system = _file_system(Path(name))
        grouped = _written_bytes(Device(Path(name) / "grouped", quota_bytes=_QUOTA_BYTES), _DAY_S, Outbox.commit)
        hour_s = _DAY_S // 24
        single = _written_bytes(Device(Path(name) / "single", quota_bytes=_QUOTA_BYTES), hour_s, Outbox.sync)
    return [
        Figure(
            f"written in a day of one record a second, on {file_system}",
            grouped / _MB,
            "MB",
            "a sync for each record, an hour of it times 24",
            single * 24 / _MB,
        )
    ]


def _written_bytes(device: Device, seconds: int, commit: Callable[[Outbox], object]) -> int:
    sent: list[int] = []

    def publish(_stream: Stream, payload: bytes) -> None:
        sent.append(decode_record(payload, where="benchmark").sequence)

    sender = Sender(device.outbox, publish)
    before = _write_bytes()
    for _ in range(seconds):
        device.now_s += 1
        device.window(1.0)
        commit(device.outbox)
        sender.pump(device.now_s)
        if sent:
            device.outbox.acknowledge(device.outbox.epoch, {Stream.TELEMETRY.value: sent[-1]})
            sender.acknowledged()
    device.outbox.close()
    return _write_bytes() - before


def measure_weeks() -> list[Figure]:
    """Three weeks without a broker, then everything through a real one."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None) as name:
        directory = Path(name) / "outbox"
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        device = Device(directory, quota_bytes=_WEEKS_QUOTA_BYTES)
        largest = 0
        for step in range(_WEEKS_DAYS * _DAY_S // _WEEKS_WINDOW_S):
            device.now_s += _WEEKS_WINDOW_S
            device.window(_WEEKS_WINDOW_S)
            if step % 20 == 0:
                device.sample(2000)
                device.event()
                largest = max(largest, _directory_bytes(directory))
            device.outbox.commit()
        memory = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        device.outbox.sync()
        given = sum(device.outbox.last(stream) for stream in Stream)
        server, drained_s = _drain(device.outbox)
    accounted = server.records + server.added_up + server.dropped
    return [
        Figure(
            f"{_WEEKS_DAYS} days offline, a window each {_WEEKS_WINDOW_S} s: memory of the outbox at most",
            memory / _MB,
            "MB",
        ),
        Figure("… on disk at most", largest / _MB, "MB", "outbox_bytes", _WEEKS_QUOTA_BYTES / _MB),
        Figure("… requests that arrive", server.requests, "requests", "counted", device.requests),
        Figure("… records that arrive or are accounted for", accounted, "records", "given", given),
        Figure("… of them added up into others", server.added_up, "records"),
        Figure("… of them dropped and counted in gaps", server.dropped, "records"),
        Figure("… out of order, or twice in a sum", server.disordered + server.wrong, "records"),
        Figure("… drained over MQTT in", drained_s, "s"),
    ]


def _drain(outbox: Outbox) -> tuple[Server, float]:
    """Send everything through a broker, as the agent does: a window at a time, again what is not acknowledged."""
    server, inbox = Server(), queue.SimpleQueue[bytes]()

    def receive(message: Received) -> None:
        inbox.put(message.payload)

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    with Broker(port=port, listen="127.0.0.1"):
        links = [MqttLink("127.0.0.1", port, client_id=name) for name in ("server", "device")]
        links[0].subscribe("up/#", receive)
        for link in links:
            link.open()
        _wait(lambda: all(link.connected for link in links))
        sender = Sender(outbox, lambda stream, payload: links[1].publish(f"up/{stream.value}", payload), pace=Pace())
        begun = time.monotonic()
        while sender.pump(time.monotonic()):
            for payload in _waiting(inbox):
                server.take(payload)
            if outbox.acknowledge(outbox.epoch, {stream.value: server.contiguous[stream] for stream in Stream}):
                sender.acknowledged()
        taken_s = time.monotonic() - begun
        for link in links:
            link.close()
    return server, taken_s


def _waiting(inbox: "queue.SimpleQueue[bytes]") -> Iterator[bytes]:
    try:
        yield inbox.get(timeout=0.05)
        while True:
            yield inbox.get_nowait()
    except queue.Empty:
        return


def measure_backlog() -> list[Figure]:
    """Memory of an outbox with as much as it may hold: while it is opened, and while it is sent."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None) as name:
        directory = Path(name) / "outbox"
        device = Device(directory, quota_bytes=_QUOTA_BYTES)
        while device.outbox.size_bytes < 0.97 * _QUOTA_BYTES:
            device.event()
        device.outbox.close()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        outbox = Outbox(directory, quota_bytes=_QUOTA_BYTES, stamp=device.stamp)
        opened = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.reset_peak()
        after = 0
        for _ in range(200):
            entries = outbox.read(Stream.EVENT, after=after, limit=32)
            after = entries[-1].sequence
        sending = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        return [
            Figure(f"backlog of {outbox.size_bytes / _MB:.0f} MB: memory while it is opened", opened / _MB, "MB"),
            Figure("… while it is sent", sending / _MB, "MB"),
        ]


def _wait(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not claim():
        if time.monotonic() > deadline:
            raise TimeoutError("the broker does not answer")
        time.sleep(0.02)


def _write_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.partition(":")[2]) for line in lines if line.startswith("write_bytes"))


def _directory_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def _file_system(directory: Path) -> str:
    """The type of the file system that a directory is on."""
    place = directory.resolve()
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [(mount, kind) for mount, kind in mounts if place.is_relative_to(mount)]
    return max(inside, key=lambda found: len(found[0]))[1]
