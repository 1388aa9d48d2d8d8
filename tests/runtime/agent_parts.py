"""What the tests of the agent stand on: a fleet of one device in memory, a blob server over HTTP, a caller."""

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.request import urlopen

import msgspec

from edgeops.bundle import MANIFEST_FILE, Bundle, write_bundle
from edgeops.enrolment import Enrolment
from edgeops.files import digest_bytes
from edgeops.manifest import FileEntry, Lineage, Manifest, Variant
from edgeops.messages import (
    Ack,
    Birth,
    Command,
    Death,
    Desired,
    RolloutOrder,
    StoredRecord,
    Target,
    Transition,
    Trial,
    decode_json,
    decode_record,
    encode_json,
)
from edgeops.sealing import SealingKey
from edgeops.signing import DESIRED, SigningKey, seal, unseal
from edgeops.tensors import TensorSpec
from edgeops.testing import MemoryBroker
from edgeops.topics import Topics, Upstream
from edgeops_runtime.agent import Agent
from edgeops_runtime.config import Config
from edgeops_runtime.identity import KEY_FILE, Identity
from edgeops_runtime.memory import Memory
from edgeops_runtime.tuning.tuner import Tuner

FLEET, GROUP, DEVICE = "north", "cameras", "camera-1"
SCRIPTED = (sys.executable, str(Path(__file__).with_name("scripted_worker.py")))
PATIENCE = float(os.environ.get("EDGEOPS_PATIENCE", "1"))
"""How many times longer than usual to wait; ``scripts/arm64`` asks for more, since each start takes seconds there."""
QUICK = Trial(shadow_requests=0, probation_requests=3, probation_s=0.2, deadline_s=60)


def eventually(claim: Callable[[], object], what: object = "", *, within_s: float = 20.0):
    """Wait until a claim holds; returns its value."""
    deadline = time.monotonic() + within_s * PATIENCE
    while time.monotonic() < deadline:
        if value := claim():
            return value
        time.sleep(0.01)
    raise AssertionError(f"not within {within_s * PATIENCE} s: {what() if callable(what) else what}")


def scripted_bundle(directory: Path, version: str, key: SigningKey, *, name: str = "digits", **script) -> Bundle:
    """A signed bundle whose model is a script for :mod:`scripted_worker`."""
    work = directory / f"work-{version}-{time.monotonic_ns()}"
    work.mkdir(parents=True)
    (work / "model.onnx").write_text(json.dumps(script))
    (work / "golden.npz").write_bytes(version.encode() * 1000)
    files = {"model.onnx": work / "model.onnx", "golden.npz": work / "golden.npz"}
    manifest = Manifest(
        name=name,
        version=version,
        created="2026-01-01T00:00:00Z",
        inputs=(TensorSpec("image", "FP32", ("batch", 4)),),
        outputs=(TensorSpec("logits", "FP32", ("batch", 2)),),
        variants=(
            Variant(
                name="onnx",
                file="model.onnx",
                format="onnx",
                engines={"onnxruntime": "1.0"},
                precision="float32",
                inputs={"image": "x"},
                outputs={"logits": "y"},
                tolerance=0.1,
            ),
        ),
        files=dict.fromkeys(files, FileEntry(digest="sha256:" + "0" * 64, size_bytes=0)),
        golden="golden.npz",
        lineage=Lineage(source="tests", source_digest="", data_digest=""),
    )
    return write_bundle(work / "bundle", manifest, files, keys=[key])


class BlobServer:
    """Blobs over real HTTP, with ``Range``; can break off, lie and refuse."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.break_after: int | None = None
        """Every answer ends after so many bytes."""
        self.ignores_range = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def add(self, bundle: Bundle) -> None:
        envelope = (bundle.path / MANIFEST_FILE).read_bytes()
        self.blobs[digest_bytes(envelope)] = envelope
        for name, entry in bundle.manifest.files.items():
            self.blobs[entry.digest] = bundle.file(name).read_bytes()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        digest = handler.path.rpartition("/")[2]
        wanted = handler.headers.get("Range")
        self.requests.append((digest, wanted))
        if digest not in self.blobs:
            handler.send_response(404)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        data = self.blobs[digest]
        offset = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and not self.ignores_range else 0
        if offset:
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {offset}-{len(data) - 1}/{len(data)}")
        else:
            handler.send_response(200)
        rest = data[offset:]
        handler.send_header("Content-Length", str(len(rest)))
        handler.end_headers()
        if self.break_after is not None and len(rest) > self.break_after:
            handler.wfile.write(rest[: self.break_after])
            handler.close_connection = True
            return
        handler.wfile.write(rest)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Station:
    """One device and the server's side of its messages."""

    def __init__(self, directory: Path, release_key: SigningKey, *, command=SCRIPTED, **settings: object) -> None:
        self.directory, self.release_key, self.command = directory, release_key, command
        self.director_key, self.device_key = SigningKey.generate(), SigningKey.generate()
        self.sealing_key = SealingKey(os.urandom(32))
        self.blobs = BlobServer()
        self.broker = MemoryBroker()
        self.topics = Topics(FLEET)
        self.settings: dict[str, object] = {"listen": "127.0.0.1:0", "telemetry_window_s": 0.5, **settings}
        self.generation = 0
        self.records: dict[tuple[str, int], StoredRecord] = {}
        self.births: list[Birth] = []
        self.deaths: list[Death] = []
        self.acknowledges = True
        self._server = self.broker.link()
        for kind in Upstream:
            self._server.subscribe(self.topics.upstream_filter(kind), self._received)
        self._server.open()
        self.signals: dict[str, float | None] = {}
        """What the ladder reads; empty: all is calm, whatever the machine of the tests is like."""
        self.memory = Memory(available=None, total=None)
        """For a second worker; unknown: it fits."""
        self.make_tuner = lambda: Tuner(("/nonexistent/measurement",))
        self.probe_command = self.notifier = None
        self.agent: Agent | None = None
        self._thread: threading.Thread | None = None
        self.link = None

    @property
    def data(self) -> Path:
        return self.directory / "device"

    @property
    def config(self) -> Config:
        return msgspec.convert({"data": str(self.data), **self.settings}, Config)

    @property
    def enrolment(self) -> Enrolment:
        return Enrolment(
            fleet=FLEET,
            group=GROUP,
            device=DEVICE,
            attributes={"site": "north"},
            director_key=self.director_key.public.text,
            release_keys=(self.release_key.public.text,),
            broker_host="127.0.0.1",
            broker_port=1,
            sealing_key=self.sealing_key.public,
            url=self.blobs.url,
        )

    def write_identity(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        self.device_key.save(self.data / KEY_FILE)
        (self.data / "identity.json").write_bytes(msgspec.json.encode(self.enrolment))

    def start(self, *, clock=None) -> Agent:
        self.link = self.broker.link()
        self.agent = Agent(
            self.config,
            Identity(self.enrolment),
            lambda: self.link,
            clock,
            worker_command=self.command,
            probe_command=self.probe_command,
            read_signals=lambda: self.signals,
            notifier=self.notifier,
            read_memory=lambda: self.memory,
            make_tuner=self.make_tuner,
            unseal=unseal,  # Without the process for each check: it is tested with the notary, and by the real agents.
            rng=random.Random(1),
        )
        self._thread = threading.Thread(target=self.agent.run, name="agent", daemon=True)
        self._thread.start()
        return self.agent

    def stop(self) -> None:
        if self.agent is not None:
            self.agent.stop()
            self._thread.join(timeout=20)
            assert not self._thread.is_alive()
            self.agent = None

    def close(self) -> None:
        self.stop()
        self._server.close()
        self.blobs.close()

    def cut(self) -> None:
        """The device's connection breaks."""
        will = self.link.lose()
        self.broker.detach(self.link)
        self.broker.deliver(will.topic, will.payload, retain=False)

    def desire(
        self, *targets: Target, generation: int | None = None, key=None, expires_s: float = 3600, device=None, **fields
    ):
        """Publish the desired state of the group, or of the device."""
        self.generation = generation if generation is not None else self.generation + 1
        now = time.time()
        document = Desired(
            **{"fleet": FLEET, "group": GROUP, **fields},
            device=device,
            generation=self.generation,
            issued=now - 1,
            expires=now + expires_s,
            targets=targets,
        )
        envelope = seal(encode_json(document), kind=DESIRED, keys=[key or self.director_key])
        topic = self.topics.device_desired(device) if device else self.topics.group_desired(GROUP)
        self._server.publish(topic, envelope, retain=True)

    def clear_override(self) -> None:
        self._server.publish(self.topics.device_desired(DEVICE), b"", retain=True)

    def command_device(self, command: Command) -> None:
        self._server.publish(self.topics.command(DEVICE), encode_json(command))

    def target(self, bundle: Bundle | None, *, rollout: Bundle | None = None, trial: Trial = QUICK, **fields) -> Target:
        """``bundle`` for everybody, ``rollout`` for all who take part (and that is everybody)."""
        order = None
        for each in filter(None, (bundle, rollout)):
            self.blobs.add(each)
        if rollout is not None:
            manifest = rollout.manifest
            order = RolloutOrder(
                id=f"r-{manifest.version}", version=manifest.version, digest=rollout.digest, percent=100, trial=trial
            )
        return Target(
            model="digits",
            version=bundle.manifest.version if bundle else None,
            digest=bundle.digest if bundle else None,
            url="/blobs",
            rollout=order,
            **fields,
        )

    def _received(self, message) -> None:
        _, kind = self.topics.parse_upstream(message.topic)
        if kind is Upstream.BIRTH:
            self.births.append(decode_json(message.payload, Birth, where="birth"))
        elif kind is Upstream.DEATH:
            self.deaths.append(decode_json(message.payload, Death, where="death"))
        else:
            record = decode_record(message.payload, where=message.topic)
            self.records[record.stream, record.sequence] = record
            self.acknowledge(record)

    def acknowledge(self, record: StoredRecord) -> None:
        if not self.acknowledges:
            return
        high = 0
        for (stream, sequence), known in sorted(self.records.items(), key=lambda item: item[0]):
            first = getattr(known, "first", sequence)
            if stream == record.stream and first <= high + 1:
                high = max(high, sequence)
        ack = Ack(epoch=record.epoch, sequences={record.stream: high})
        self._server.publish(self.topics.ack(DEVICE), encode_json(ack))

    def transitions(self, version: str) -> list[Transition]:
        found = [record for record in list(self.records.values()) if isinstance(record, Transition)]
        return sorted((each for each in found if each.version == version), key=lambda each: each.sequence)

    def states(self, version: str) -> list[str]:
        return [each.state.value for each in self.transitions(version)]

    def notices(self, kind: str) -> list[str]:
        return [record.text for record in list(self.records.values()) if getattr(record, "kind", None) == kind]

    def telemetry(self):
        return [record for (stream, _), record in sorted(self.records.items()) if stream == "telemetry"]

    def wait_for(self, version: str, state: str, *, within_s: float = 20.0) -> Transition:
        def reached():
            return next((each for each in self.transitions(version) if each.state == state), None)

        return eventually(reached, lambda: f"{version} {state}; it is {self.transitions(version)}", within_s=within_s)

    def answer(self) -> str:
        return urlopen(f"http://{self.agent.address}/", timeout=10).read().decode()

    def install(self, bundle: Bundle) -> int:
        """Have a version committed, with traffic so that it takes no longer than it must; returns how many answers there were."""
        self.desire(self.target(None, rollout=bundle))
        with Hammer(self) as hammer:
            self.wait_for(bundle.manifest.version, "committed")
        return len(hammer.answers)


class Hammer(threading.Thread):
    """Asks and asks; every request must be answered."""

    def __init__(self, station: Station) -> None:
        super().__init__(daemon=True)
        self.station, self.answers, self.failures = station, [], []
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.005):
            try:
                self.answers.append(self.station.answer())
            except OSError as error:
                self.failures.append(repr(error))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(timeout=15)
