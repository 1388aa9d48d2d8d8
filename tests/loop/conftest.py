"""A whole fleet in real processes: a server with one of two brokers, agents with workers, and cameras that ask them."""

import http.client
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeops.bundle import Bundle
from edgeops.signing import SigningKey
from edgeops_demo.people import Operator, wait_until
from edgeops_demo.processes import Program, Programs

GROUP = "cameras"
TRIAL = {
    "shadow_requests": 24,
    "probation_requests": 5,
    "probation_s": 0.5,
    "deadline_s": 60.0,
    "max_latency_ratio": 50.0,
}
_AGENT = """\
data = "{data}"
listen = "127.0.0.1:0"
telemetry_window_s = 0.5
server = "{server}"
device = "{device}"
token = "{token}"
"""


class Fleet:
    """A server and devices that can be killed and started again.

    Args:
        directory: Everything is below it.
        programs: Where processes are started.
        key: The release key.
        broker: ``embedded`` or ``mqtt://host:port``.
    """

    def __init__(self, directory: Path, programs: Programs, *, key: SigningKey, broker: str) -> None:
        self.directory, self._programs = directory, programs
        self._settings = directory / "fleet.toml"
        self._settings.write_text(
            f'fleet = "loop"\nlisten = "127.0.0.1:0"\nmqtt_port = 0\nbroker = "{broker}"\n'
            f'release_keys = ["{key.public.text}"]\n[controller]\ntick_s = 0.2\n'
        )
        self.agents: dict[str, Program] = {}
        self.server = self.start_server()

    @property
    def server_data(self) -> Path:
        return self.directory / "server"

    def start_server(self) -> Program:
        ready = self.server_data / "server.json"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "edgeops", "fleet", "up", "--config", str(self._settings)]
        self.server = self._programs.start("server", *command, "--data", str(self.server_data))
        self.url = json.loads(self.server.wait_for(ready, timeout_s=60))["url"]
        self.operator = Operator(self.url, (self.server_data / "operator.token").read_text().strip())
        return self.server

    def start_device(
        self, device: str, *, python: Path = Path(sys.executable), attributes: dict[str, Any] | None = None
    ) -> Program:
        config = self.directory / f"{device}.toml"
        if not config.exists():
            body = {"group": GROUP, "attributes": attributes or {}, "uses": 1, "ttl_s": 600}
            token = self.operator.post("/api/v1/tokens", body)["token"]
            config.write_text(_AGENT.format(data=self.data(device), server=self.url, device=device, token=token))
        self.agents[device] = self._programs.start(
            device, str(python), "-m", "edgeops_runtime", "run", "--config", str(config)
        )
        return self.agents[device]

    def data(self, device: str) -> Path:
        return self.directory / "devices" / device

    def address(self, device: str) -> str:
        return self.agents[device].wait_for(self.data(device) / "address", timeout_s=30).strip()

    def devices(self) -> dict[str, dict[str, Any]]:
        return {device["id"]: device for device in self.operator.get("/api/v1/devices")["devices"]}

    def wait_online(self) -> None:
        wait_until(
            lambda: {name for name, device in self.devices().items() if device["online"]} >= set(self.agents),
            timeout_s=60,
            what=f"{sorted(self.agents)} online",
            on_timeout=lambda: "\n".join(agent.tail() for agent in self.agents.values()),
        )

    def roll_out(self, bundle: Bundle, *, waves: list[dict[str, Any]] | None = None) -> str:
        self.operator.publish(bundle)
        return self.start_rollout(bundle, waves=waves)

    def start_rollout(self, bundle: Bundle, *, waves: list[dict[str, Any]] | None = None) -> str:
        order = {
            "group": GROUP,
            "model": bundle.manifest.name,
            "version": bundle.manifest.version,
            "waves": waves or [{"devices": 1}, {"percent": 100}],
            "soak_s": 0.3,
            "trial": TRIAL,
            "gate": {"when_unproven": "unanimous", "max_latency_ratio": 50.0},
        }
        return str(self.operator.post("/api/v1/rollouts", order)["id"])

    def rollout(self, rollout: str) -> dict[str, Any]:
        found: dict[str, Any] = self.operator.get(f"/api/v1/rollouts/{rollout}")
        return found

    def wait_rollout(self, rollout: str, *states: str, timeout_s: float = 90) -> dict[str, Any]:
        wait_until(
            lambda: self.rollout(rollout)["state"] in states,
            timeout_s=timeout_s,
            what=f"rollout {states}",
            on_timeout=lambda: json.dumps(self.rollout(rollout), indent=1),
        )
        return self.rollout(rollout)


class Caller(threading.Thread):
    """Sends requests over one kept-alive connection until it is stopped; never repeats one.

    Args:
        address: ``host:port`` of the device.
        model: The model to ask.
    """

    def __init__(self, address: str, model: str, *, seed: int = 0) -> None:
        super().__init__(daemon=True)
        self.address, self._model = address, model
        self.answered = 0
        self.failures: list[str] = []
        self._rng = np.random.default_rng(seed)
        self._stopped = threading.Event()
        self._connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        while not self._stopped.wait(0.01):
            try:
                self.ask()
                self.answered += 1
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                self._drop()

    def stop(self) -> None:
        self._stopped.set()
        if self.is_alive():
            self.join(timeout=15)
        self._drop()

    def ask(self) -> np.ndarray:
        """One request; every tenth image is bright."""
        top = 1.0 if self.answered % 10 == 9 else 0.5
        image = (self._rng.random((1, 1, 28, 28)) * 0.1 + top - 0.1).astype("<f4")
        tensor = {
            "name": "image",
            "datatype": "FP32",
            "shape": [1, 1, 28, 28],
            "parameters": {"binary_data_size": image.nbytes},
        }
        header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        if self._connection is None:
            host, _, port = self.address.rpartition(":")
            self._connection = http.client.HTTPConnection(host, int(port), timeout=10)
        self._connection.request(
            "POST",
            f"/v2/models/{self._model}/infer",
            body=header + image.tobytes(),
            headers={"Inference-Header-Content-Length": str(len(header))},
        )
        response = self._connection.getresponse()
        data = response.read()
        if response.status != http.client.OK:
            raise ValueError(f"HTTP {response.status}: {data[:200]!r}")
        if response.will_close:
            self._drop()
        answer = np.frombuffer(data, dtype="<f4", offset=int(response.headers["Inference-Header-Content-Length"]))
        if not np.isfinite(answer).all():
            raise ValueError("the answer is not finite")
        return answer

    def serves_within(self, seconds: float, *, what: str = "") -> None:
        """Ask until a request succeeds; fails when that takes longer."""
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            try:
                self.ask()
            except (OSError, http.client.HTTPException, ValueError):
                self._drop()
                time.sleep(0.01)
            else:
                return
        raise AssertionError(f"{self.address} did not serve within {seconds} s {what}")

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    with Programs(tmp_path / "logs") as running:
        yield running


@pytest.fixture(params=["iotcore", "mosquitto"])
def broker(request: pytest.FixtureRequest) -> str:
    """The URL of the broker for a server: its own, or mosquitto beside it."""
    if request.param == "iotcore":
        return "embedded"
    port = request.getfixturevalue("start_mosquitto")("max_queued_messages 0", "max_inflight_messages 0")
    return f"mqtt://127.0.0.1:{port}"


@pytest.fixture
def new_fleet(tmp_path: Path, programs: Programs, release_key: SigningKey) -> Callable[[str], Fleet]:
    return lambda broker: Fleet(tmp_path, programs, key=release_key, broker=broker)


@pytest.fixture
def new_caller() -> Iterator[Callable[..., Caller]]:
    callers: list[Caller] = []

    def make(address: str, model: str = "digits", *, seed: int = 0) -> Caller:
        callers.append(Caller(address, model, seed=seed))
        return callers[-1]

    yield make
    for caller in callers:
        caller.stop()
