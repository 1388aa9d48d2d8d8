"""A real agent with its worker, and no more of a fleet than it needs: a broker, blobs, signed documents, acknowledgements.

The server's place is taken by this process, so that the machine's two cores are left to what is measured.
"""

import shutil
import subprocess
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import msgspec

from edgeops.bundle import MANIFEST_FILE, Bundle
from edgeops.enrolment import Enrolment
from edgeops.link import Received
from edgeops.messages import (
    Ack,
    Desired,
    RolloutOrder,
    StoredRecord,
    Target,
    Transition,
    Trial,
    decode_record,
    encode_json,
)
from edgeops.mqtt import MqttLink
from edgeops.signing import DESIRED, SigningKey, seal
from edgeops.topics import Topics, Upstream
from edgeops_fleet.broker import EmbeddedBroker, free_port
from edgeops_runtime.identity import IDENTITY_FILE, KEY_FILE

PATIENCE_S = 120.0
_FLEET, _GROUP, _DEVICE = "bench", "devices", "device"
_HOST = "127.0.0.1"
_QUICK = Trial(shadow_requests=0, probation_requests=0, probation_s=0.0, deadline_s=PATIENCE_S)
_YEAR_S = 365 * 86400.0


class Station:
    """One device and what it hears from.

    Args:
        directory: For everything; the device's own is in it.
        release_key: What its bundles are signed with.
        engine: The only engine that it may use.
    """

    def __init__(self, directory: Path, release_key: SigningKey, *, engine: str) -> None:
        self.data = directory / "device"
        self._config = directory / "agent.toml"
        self._log = directory / "agent.log"
        self.address = f"unix:{directory / 'serve.sock'}"
        self._director = SigningKey.generate()
        self._topics = Topics(_FLEET)
        self._high: dict[tuple[str, str], int] = {}
        self._generation = 0
        self._told = threading.Condition()
        self._ends: dict[int, Transition] = {}
        self.agent: subprocess.Popen[bytes] | None = None
        self._blobs = directory / "blobs"
        self._blobs.mkdir()
        self._web = ThreadingHTTPServer((_HOST, 0), _handler(directory))
        threading.Thread(target=self._web.serve_forever, daemon=True).start()
        self._broker = EmbeddedBroker(directory, host=_HOST, port=free_port(_HOST))
        self._broker.start()
        self._link = MqttLink(_HOST, self._broker.port, client_id="station")
        for kind in (Upstream.EVENT, Upstream.TELEMETRY, Upstream.SAMPLE):
            self._link.subscribe(self._topics.upstream_filter(kind), self._received)
        connected = threading.Event()
        self._link.open(on_connect=connected.set)
        if not connected.wait(PATIENCE_S):
            raise RuntimeError(f"no connection to the broker at {_HOST}:{self._broker.port}")
        self._enrol(release_key)
        self._config.write_text(
            f'data = "{self.data}"\nlisten = "{self.address}"\nengines = ["{engine}"]\ntelemetry_window_s = 5.0\n'
        )

    def start(self) -> subprocess.Popen[bytes]:
        """Start the agent."""
        command = [sys.executable, "-m", "edgeops_runtime", "run", "--config", str(self._config)]
        with self._log.open("ab") as log:
            self.agent = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self.agent

    def install(self, bundle: Bundle) -> None:
        """Have a version committed, with a trial that takes no longer than it must, and wait for that.

        Raises:
            RuntimeError: It ended otherwise, or not within a time that suffices for everybody.
        """
        self._offer(bundle)
        self._generation += 1
        self._link.publish(self._topics.group_desired(_GROUP), self._document(bundle), retain=True)
        with self._told:
            if not self._told.wait_for(lambda: self._generation in self._ends, PATIENCE_S):
                raise RuntimeError(f"{bundle.manifest.version}: no end after {PATIENCE_S:.0f} s: {self.tail()}")
            end = self._ends.pop(self._generation)
        if end.state != "committed":
            raise RuntimeError(f"{bundle.manifest.version}: {end.state}: {end.reason}")

    @property
    def workers(self) -> list[int]:
        """The ids of the agent's worker processes."""
        if self.agent is None:
            return []
        lists = Path(f"/proc/{self.agent.pid}/task").glob("*/children")
        return [int(child) for children in lists for child in children.read_text().split()]

    def stop(self) -> None:
        """Ask the agent to end, and see to it."""
        if self.agent is None:
            return
        self.agent.terminate()
        try:
            self.agent.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.agent.kill()
            self.agent.wait()
        self.agent = None

    def tail(self) -> str:
        """The last lines of the agent's log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:]) if self._log.exists() else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()
        self._link.close()
        self._broker.stop()
        self._web.shutdown()
        self._web.server_close()

    def _enrol(self, release_key: SigningKey) -> None:
        self.data.mkdir()
        SigningKey.generate().save(self.data / KEY_FILE)
        enrolment = Enrolment(
            fleet=_FLEET,
            group=_GROUP,
            device=_DEVICE,
            attributes={},
            director_key=self._director.public.text,
            release_keys=(release_key.public.text,),
            broker_host=_HOST,
            broker_port=self._broker.port,
            url=f"http://{_HOST}:{self._web.server_port}",
        )
        (self.data / IDENTITY_FILE).write_bytes(msgspec.json.encode(enrolment))

    def _offer(self, bundle: Bundle) -> None:
        entries = bundle.manifest.files
        for name, digest in [(MANIFEST_FILE, bundle.digest), *((each, entries[each].digest) for each in entries)]:
            if not (self._blobs / digest).exists():
                shutil.copy(bundle.path / name, self._blobs / digest)

    def _document(self, bundle: Bundle) -> bytes:
        manifest, now = bundle.manifest, time.time()
        order = RolloutOrder(
            id=f"r-{self._generation}", version=manifest.version, digest=bundle.digest, percent=100, trial=_QUICK
        )
        document = Desired(
            fleet=_FLEET,
            group=_GROUP,
            generation=self._generation,
            issued=now - 1,
            expires=now + _YEAR_S,
            targets=(Target(model=manifest.name, url="/blobs", rollout=order),),
        )
        return seal(encode_json(document), kind=DESIRED, keys=[self._director])

    def _received(self, message: Received) -> None:
        record = decode_record(message.payload, where=message.topic)
        self._acknowledge(record)
        if isinstance(record, Transition) and record.state.is_final:
            with self._told:
                self._ends[record.generation] = record
                self._told.notify_all()

    def _acknowledge(self, record: StoredRecord) -> None:
        """As a server that has stored it; the agent sends a stream in order, so nothing is missing below."""
        key = (record.epoch, record.stream)
        self._high[key] = max(self._high.get(key, 0), record.sequence)
        ack = Ack(epoch=record.epoch, sequences={record.stream: self._high[key]})
        self._link.publish(self._topics.ack(_DEVICE), encode_json(ack))


def _handler(directory: Path) -> type[SimpleHTTPRequestHandler]:
    class Handler(SimpleHTTPRequestHandler):
        """Gives out the files of a directory, and says nothing about it."""

        def __init__(self, *arguments: object, **settings: object) -> None:
            super().__init__(*arguments, directory=str(directory), **settings)  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    return Handler


def resident_mb(pid: int) -> dict[str, float]:
    """Resident memory of a process in MB: ``Rss``, ``Pss`` (shared pages by share) and ``Anonymous`` (in no file)."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in {"Rss", "Pss", "Anonymous"}:
            found[name] = int(rest.split()[0]) * 1024 / 1e6
    return found
