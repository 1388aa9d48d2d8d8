"""``python -m benchmarks.runtime.kills``: kill -9 of workers, agents and the server at random points of install, swap and send.

Real processes: a server with its broker, devices with agents and workers, a caller for each device that asks without pause, and
an operator who rolls out one version after the other. What was accepted is counted in the end, in the server's database, against
what the devices had given a number.
"""

import collections
import contextlib
import http.client
import json
import os
import random
import signal
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.figures import Figure
from edgeops.bundle import Bundle, write_bundle
from edgeops.errors import EdgeOpsError
from edgeops.manifest import FileEntry, Lineage, Manifest, Variant
from edgeops.messages import Gap, decode_record
from edgeops.signing import SigningKey
from edgeops.tensors import TensorSpec
from edgeops_demo.people import Operator, wait_until
from edgeops_demo.processes import Program, Programs
from edgeops_runtime.outbox import Outbox, Stream
from edgeops_runtime.slots import SlotStore

DEVICES = ("camera-1", "camera-2", "camera-3")
VICTIMS = {"worker": 12, "agent": 9, "server": 1}
"""What is killed, by weight: the server takes seconds to start, and no caller notices."""

_MODEL, _GROUP = "scores", "cameras"
_PAUSE_S = 0.5
_PATIENCE_S = 60.0
_ROLLOUT_S = 20.0
_ENDS = {"completed", "paused", "rolled_back", "aborted"}
_TRIAL = {
    "shadow_requests": 16,
    "probation_requests": 5,
    "probation_s": 0.3,
    "deadline_s": 60.0,
    "max_latency_ratio": 100.0,
}


def measure(kills: int = 500, *, seed: int = 1) -> list[Figure]:
    """Kill, and count what became of records and requests."""
    with tempfile.TemporaryDirectory() as name, Programs(Path(name) / "logs") as programs:
        begun = time.monotonic()
        fleet = _Fleet(Path(name), programs)
        fleet.begin()
        callers = {device: _Caller(fleet.addresses[device]) for device in DEVICES}
        operator = _Rollouts(fleet)
        for thread in (*callers.values(), operator):
            thread.start()
        killer = _Killer(fleet, callers, random.Random(seed))
        for number in range(1, kills + 1):
            time.sleep(killer.rng.uniform(0, _PAUSE_S))
            killer.kill()
            if number % 25 == 0:
                print(f"{number} kills, {operator.committed} versions, {time.monotonic() - begun:.0f} s", flush=True)
        operator.stop()
        for caller in callers.values():
            caller.stop()
        given = fleet.stop_agents()
        fleet.start_agents()
        wait_until(
            lambda: all(fleet.marks().get(key, 0) >= last for key, last in given.items()),
            timeout_s=_PATIENCE_S,
            what="every record stored",
            on_timeout=lambda: f"{given} against {fleet.marks()}",
        )
        return [
            *killer.figures(),
            *_request_figures(callers, killer.outages),
            *_record_figures(fleet, given),
            Figure("versions committed everywhere meanwhile", operator.committed, ""),
            Figure("it took", time.monotonic() - begun, "s"),
        ]


class _Fleet:
    """A server and some devices, each of which can be killed and started again."""

    def __init__(self, directory: Path, programs: Programs) -> None:
        self.directory, self._programs = directory, programs
        self.key = SigningKey.generate()
        self.agents: dict[str, Program] = {}
        self.addresses: dict[str, str] = {}
        (directory / "fleet.toml").write_text(
            f'fleet = "kills"\nlisten = "127.0.0.1:0"\nmqtt_port = 0\nrelease_keys = ["{self.key.public.text}"]\n'
            "[controller]\ntick_s = 0.2\n"
        )
        self.start_server()

    def begin(self) -> None:
        """Enrol the devices and bring the first version on."""
        for device in DEVICES:
            token = self.operator.post("/api/v1/tokens", {"group": _GROUP, "attributes": {}, "uses": 1, "ttl_s": 600})
            (self.directory / f"{device}.toml").write_text(
                f'data = "{self.data(device)}"\nlisten = "127.0.0.1:0"\ntelemetry_window_s = 0.5\n'
                f'server = "{self.url}"\ndevice = "{device}"\ntoken = "{token["token"]}"\n'
            )
        self.start_agents()
        for device, agent in self.agents.items():
            self.addresses[device] = agent.wait_for(self.data(device) / "address", timeout_s=_PATIENCE_S).strip()
        wait_until(self._are_online, timeout_s=_PATIENCE_S, what="devices online")
        rollout = self.roll_out(make_bundle(self.directory, "1.0.0", self.key))
        wait_until(lambda: self.state(rollout) == "completed", timeout_s=_PATIENCE_S, what="the first version")

    def start_server(self) -> None:
        ready = self.directory / "server" / "server.json"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "edgeops", "fleet", "up", "--config", str(self.directory / "fleet.toml")]
        self.server = self._programs.start("server", *command, "--data", str(self.directory / "server"))
        self.url = json.loads(self.server.wait_for(ready, timeout_s=_PATIENCE_S))["url"]
        token = (self.directory / "server" / "operator.token").read_text().strip()
        self.operator = Operator(self.url, token)

    def start_agents(self) -> None:
        for device in DEVICES:
            self.start_agent(device)

    def start_agent(self, device: str) -> None:
        config = str(self.directory / f"{device}.toml")
        command = (sys.executable, "-m", "edgeops_runtime", "run", "--config", config)
        self.agents[device] = self._programs.start(device, *command)

    def data(self, device: str) -> Path:
        return self.directory / "devices" / device

    def roll_out(self, bundle: Bundle) -> str:
        """Publish a bundle and start its rollout, for all at once."""
        self.operator.publish(bundle)
        order = {
            "group": _GROUP,
            "model": _MODEL,
            "version": bundle.manifest.version,
            "waves": [{"percent": 100}],
            "soak_s": 0.1,
            "trial": _TRIAL,
            "gate": {"when_unproven": "unanimous", "max_latency_ratio": 100.0},
        }
        return str(self.operator.post("/api/v1/rollouts", order)["id"])

    def state(self, rollout: str) -> str:
        return str(self.operator.get(f"/api/v1/rollouts/{rollout}")["state"])

    def stop_agents(self) -> dict[tuple[str, str, str], int]:
        """End the agents in good order; returns the highest sequence of each stream that they have given."""
        for agent in self.agents.values():
            agent.ask_to_stop()
        for agent in self.agents.values():
            agent.end(timeout_s=_PATIENCE_S)
        given = {}
        for device in DEVICES:
            outbox = Outbox(self.data(device) / "outbox", quota_bytes=64 << 20, stamp=_no_stamp)
            given |= {(device, outbox.epoch, stream.value): outbox.last(stream) for stream in Stream}
            outbox.close()
        return {key: last for key, last in given.items() if last}

    def rows(self, query: str) -> list[tuple[object, ...]]:
        """Ask the server's database."""
        with contextlib.closing(sqlite3.connect(self.directory / "server" / "fleet.db")) as database:
            return list(database.execute(query))

    def marks(self) -> dict[tuple[str, str, str], int]:
        """What the server says it has, up to which sequence."""
        rows = self.rows("SELECT device, epoch, stream, contiguous FROM streams")
        return {(str(device), str(epoch), str(stream)): int(str(mark)) for device, epoch, stream, mark in rows}

    def _are_online(self) -> bool:
        devices = self.operator.get("/api/v1/devices")["devices"]
        return {found["id"] for found in devices if found["online"]} >= set(DEVICES)


class _Killer:
    """Chooses a victim, kills it, and looks how long its device is away."""

    def __init__(self, fleet: _Fleet, callers: "dict[str, _Caller]", rng: random.Random) -> None:
        self._fleet, self._callers, self.rng = fleet, callers, rng
        self._turns: list[str] = []
        self.away: dict[str, list[float]] = {victim: [] for victim in VICTIMS}
        self.outages: dict[str, list[tuple[float, float]]] = {device: [] for device in DEVICES}
        self.damaged = 0

    def kill(self) -> None:
        (victim,) = self.rng.choices(list(VICTIMS), weights=list(VICTIMS.values()))
        if not self._turns:
            self._turns = self.rng.sample(DEVICES, len(DEVICES))
        device = self._turns.pop()
        begun = time.monotonic()
        if victim == "server":
            self._fleet.server.kill()
            self._fleet.start_server()
        elif victim == "agent":
            self._fleet.agents[device].kill()
            store = SlotStore(self._fleet.data(device))
            self.damaged += store.damaged + (store.slots.current is None)
            self._fleet.start_agent(device)
        else:
            for child in self.rng.sample(children := self._fleet.agents[device].children, min(len(children), 1)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        if victim != "server":
            self._callers[device].until_answer()
            self.outages[device].append((begun, time.monotonic()))
        self.away[victim].append(time.monotonic() - begun)

    def figures(self) -> list[Figure]:
        found = [Figure("kills", sum(map(len, self.away.values())), "")]
        for victim, away in self.away.items():
            found.append(Figure(f"of them {victim}", len(away), ""))
            if away and victim != "server":
                found += [
                    Figure(f"{victim} killed: away, median", statistics.median(away), "s"),
                    Figure(f"{victim} killed: away, longest", max(away), "s"),
                ]
        return [*found, Figure("slots damaged or empty after a kill", self.damaged, "")]


class _Caller(threading.Thread):
    """Asks one device without pause, and notes what failed and when."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._over = threading.Event()
        self._connection: http.client.HTTPConnection | None = None
        self.answered = 0
        self.failures: list[tuple[float, float, str]] = []

    def run(self) -> None:
        while not self._over.wait(0.01):
            begun = time.monotonic()
            try:
                self._connection = _ask(self._address, self._connection)
                self.answered += 1
            except (OSError, http.client.HTTPException) as error:
                self.failures.append((begun, time.monotonic(), repr(error)))
                self._connection = None

    def until_answer(self) -> None:
        """Wait until the device answers on a new connection."""
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = _ask(self._address, None)
                if connection is not None:
                    connection.close()
                return
            time.sleep(0.005)
        raise RuntimeError(f"{self._address} has not answered for {_PATIENCE_S} s")

    def stop(self) -> None:
        self._over.set()
        self.join()


def _ask(address: str, connection: http.client.HTTPConnection | None) -> http.client.HTTPConnection | None:
    """One request; returns the connection where it may be used again."""
    host, _, port = address.rpartition(":")
    connection = connection or http.client.HTTPConnection(host, int(port), timeout=_PATIENCE_S)
    tensor = {"name": "row", "datatype": "FP32", "shape": [1, 16], "data": [0.25] * 16}
    connection.request("POST", f"/v2/models/{_MODEL}/infer", body=json.dumps({"inputs": [tensor]}))
    response = connection.getresponse()
    body = response.read()
    if response.status != http.client.OK:
        connection.close()
        raise http.client.HTTPException(f"{response.status}: {body[:200]!r}")
    if response.will_close:
        connection.close()
        return None
    return connection


class _Rollouts(threading.Thread):
    """The operator: one version after the other; one that stops half-way is rolled back."""

    def __init__(self, fleet: _Fleet) -> None:
        super().__init__(daemon=True)
        self._fleet = fleet
        self._over = threading.Event()
        self.committed = 0

    def run(self) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            # The server may be away at any moment.
            with contextlib.suppress(EdgeOpsError, OSError):
                self._follow(self._fleet.roll_out(make_bundle(self._fleet.directory, f"1.{number}.0", self._fleet.key)))

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _follow(self, rollout: str) -> None:
        deadline = time.monotonic() + _ROLLOUT_S
        state = ""
        while state not in _ENDS and time.monotonic() < deadline and not self._over.is_set():
            self._over.wait(0.1)
            with contextlib.suppress(EdgeOpsError, OSError):
                state = self._fleet.state(rollout)
        self.committed += state == "completed"
        while state not in {"completed", "rolled_back", "aborted"} and not self._over.wait(0.1):
            with contextlib.suppress(EdgeOpsError, OSError):
                self._fleet.operator.post(f"/api/v1/rollouts/{rollout}/rollback")
            with contextlib.suppress(EdgeOpsError, OSError):
                state = self._fleet.state(rollout)


def _request_figures(callers: dict[str, _Caller], outages: dict[str, list[tuple[float, float]]]) -> list[Figure]:
    """Requests; a failure while nothing of its device was killed is nobody's but ours."""
    unexcused = [
        text
        for device, caller in callers.items()
        for begun, ended, text in caller.failures
        if not any(begun <= back and ended >= away for away, back in outages[device])
    ]
    for text in unexcused[:10]:
        print("failed although its worker lived:", text)
    return [
        Figure("requests answered", sum(caller.answered for caller in callers.values()), ""),
        Figure(
            "requests failed while their worker or agent was killed", sum(len(c.failures) for c in callers.values()), ""
        ),
        Figure("requests failed while their worker lived", len(unexcused), ""),
    ]


def _record_figures(fleet: _Fleet, given: dict[tuple[str, str, str], int]) -> list[Figure]:
    """Every number that a device has given is there once: as its record, or counted in a gap."""
    seen: dict[tuple[str, str, str], collections.Counter[int]] = {key: collections.Counter() for key in given}
    in_gaps = 0
    windows = dict(fleet.rows("SELECT device, count(*) FROM windows GROUP BY device"))
    covered = {(device, "telemetry"): int(str(count)) for device, count in windows.items()}
    for device, data in fleet.rows("SELECT device, record FROM events"):
        record = decode_record(msgspec.convert(data, bytes), where=str(device))
        size = record.sequence - record.first + 1 if isinstance(record, Gap) else 1
        in_gaps += size if isinstance(record, Gap) else 0
        if record.stream == "telemetry":
            covered[device, "telemetry"] += size
        for sequence in range(record.sequence - size + 1, record.sequence + 1):
            key = (str(device), record.epoch, record.stream)
            seen.setdefault(key, collections.Counter())[sequence] += 1
    marks = fleet.marks()
    missing = twice = 0
    for key, mark in marks.items():
        if key[2] == "event":
            missing += sum(seen[key][sequence] == 0 for sequence in range(1, mark + 1))
            twice += sum(count > 1 for count in seen[key].values())
    # A window has no number in the database; as many as were given are there, or as many too few or too many.
    for device in DEVICES:
        stored = sum(mark for (name, _, stream), mark in marks.items() if (name, stream) == (device, "telemetry"))
        missing += max(stored - covered.get((device, "telemetry"), 0), 0)
        twice += max(covered.get((device, "telemetry"), 0) - stored, 0)
    epochs = len({key[:2] for key in marks}) - len(DEVICES)
    return [
        Figure("records stored", sum(marks.values()), ""),
        Figure("records lost", missing, ""),
        Figure("records counted twice", twice, ""),
        Figure("records counted in gaps: in memory only when their agent was killed", in_gaps, ""),
        Figure("outboxes that had to begin anew", epochs, ""),
    ]


def make_bundle(directory: Path, version: str, key: SigningKey) -> Bundle:
    """A signed bundle with a linear model of 16 inputs and a weight file of its own."""
    work = directory / f"bundle-{version}"
    work.mkdir()
    rng = np.random.default_rng(1)
    weights = rng.normal(0, 1, (16, 4)).astype(np.float32)
    ballast = np.random.default_rng(zlib.crc32(version.encode())).random(50_000).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["y"])],
        "scores",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(ballast, "ballast")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), work / "model.onnx")
    rows = rng.random((4, 16)).astype(np.float32)
    np.savez(work / "golden.npz", **{"input/row": rows, "output/onnx/scores": rows @ weights})
    files = {"model.onnx": work / "model.onnx", "golden.npz": work / "golden.npz"}
    manifest = Manifest(
        name=_MODEL,
        version=version,
        created="2026-01-01T00:00:00Z",
        inputs=(TensorSpec("row", "FP32", ("batch", 16)),),
        outputs=(TensorSpec("scores", "FP32", ("batch", 4)),),
        variants=(
            Variant(
                name="onnx",
                file="model.onnx",
                format="onnx",
                engines={"onnxruntime": "1.18"},
                precision="float32",
                inputs={"row": "x"},
                outputs={"scores": "y"},
                tolerance=1e-3,
            ),
        ),
        files=dict.fromkeys(files, FileEntry(digest="sha256:" + "0" * 64, size_bytes=0)),
        golden="golden.npz",
        lineage=Lineage(source="benchmark", source_digest="", data_digest=""),
    )
    return write_bundle(work / "bundle", manifest, files, keys=[key])


def _no_stamp() -> Iterator[None]:
    raise RuntimeError("an outbox found a loss when it was opened again")


@click.command()
@click.option("--kills", type=click.IntRange(1), default=500, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures to this file.")
def main(kills: int, seed: int, json_file: Path | None) -> None:
    """Kill, count, and print."""
    figures = measure(kills, seed=seed)
    for figure in figures:
        print(f"{figure.name:<72} {figure.value:>12,.6g} {figure.unit}")
    if json_file is not None:
        json_file.write_text(json.dumps([figure.as_json() for figure in figures], indent=2))


if __name__ == "__main__":
    main()
