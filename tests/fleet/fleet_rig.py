"""A whole server in this process over a broker in memory, with real SQLite, real HTTP and simulated devices."""

import base64
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from device_simulator import DeviceSimulator

from edgeops.bundle import Bundle, pack
from edgeops.enrolment import Enrolment
from edgeops.signing import SigningKey
from edgeops.testing import MemoryBroker
from edgeops_fleet.server import FleetServer
from edgeops_fleet.settings import ControllerSection, RetrainSection, Settings

GROUP = "cameras"


class Clock:
    """Wall-clock time that a test can move forward."""

    def __init__(self) -> None:
        self._ahead = self._set = 0.0

    def __call__(self) -> float:
        return time.time() + self._ahead

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._ahead += seconds

    def set_forward(self, seconds: float) -> None:
        """Set the clock, while no time passes."""
        self._ahead += seconds
        self._set += seconds

    def steady(self) -> float:
        """Seconds that pass, whatever the clock is set to."""
        return time.monotonic() + self._ahead - self._set


class Api:
    """Calls a server's API; answers as ``(status, JSON)``."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url, token

    def call(
        self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, **headers: str
    ) -> tuple[int, Any]:
        data = raw if raw is not None else (json.dumps(body).encode() if body is not None else None)
        sent = {
            "Authorization": f"Bearer {self.token}",
            **{key.replace("_", "-"): value for key, value in headers.items()},
        }
        request = urllib.request.Request(self.url + path, data=data, headers=sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, content = error.code, error.read()
        return status, json.loads(content or b"null")

    def get(self, path: str) -> Any:
        status, answer = self.call("GET", path)
        assert status == 200, answer
        return answer

    def post(self, path: str, body: Any = None) -> Any:
        status, answer = self.call("POST", path, {} if body is None else body)
        assert status < 300, answer
        return answer


def wait_for(condition: Callable[[], Any], what: str, *, timeout_s: float = 20.0) -> Any:
    """Poll until something holds, and return it; the deadline is only there to end a failing test."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        threading.Event().wait(0.01)


class Rig:
    """A server with its devices."""

    def __init__(self, directory: Path, release_key: SigningKey, **settings: Any) -> None:
        self.clock = Clock()
        self.broker = MemoryBroker()
        self.directory = directory
        self.settings = Settings(
            data=directory,
            fleet="test",
            listen="127.0.0.1:0",
            release_keys=(release_key.public.text,),
            controller=settings.pop("controller", ControllerSection(tick_s=0.05)),
            retrain=settings.pop("retrain", RetrainSection()),
            **settings,
        )
        self.devices: dict[str, Any] = {}
        self.server: FleetServer = self._start()

    def _start(self) -> FleetServer:
        server = FleetServer(self.settings, link=self.broker.link(), clock=self.clock, steady=self.clock.steady)
        server.start()
        self.api = Api(server.url, server.operator_token)
        return server

    def restart(self) -> None:
        self.server.stop()
        self.server = self._start()

    def stop(self) -> None:
        for device in self.devices.values():
            device.stop()
        self.server.stop()

    def token(self, **request: Any) -> str:
        return self.api.post("/api/v1/tokens", {"group": GROUP, **request})["token"]

    def add_device(self, name: str, *, connect: bool = True, wait: bool = True, **attributes: Any) -> Any:
        device = enrol(self.api, name, self.token(attributes=attributes), lambda _: self.broker.link())
        self.devices[name] = device
        if connect:
            device.start()
        if connect and wait:
            wait_for(lambda: self.api.get(f"/api/v1/devices/{name}")["online"], f"{name} online")
        return device

    def publish(self, bundle: Bundle) -> str:
        status, answer = self.api.call("POST", "/api/v1/bundles", raw=archive(bundle, self.directory))
        assert status in {200, 201}, answer
        return answer["digest"]

    def roll_out(self, bundle: Bundle, **order: Any) -> str:
        self.publish(bundle)
        manifest = bundle.manifest
        return self.api.post("/api/v1/rollouts", {**quick_order(manifest.name, manifest.version), **order})["id"]

    def rollout(self, rollout: str) -> dict[str, Any]:
        return self.api.get(f"/api/v1/rollouts/{rollout}")

    def wait_for_state(self, rollout: str, *states: str) -> dict[str, Any]:
        view: dict[str, Any] = {}

        def has_come() -> bool:
            nonlocal view
            view = self.rollout(rollout)
            return view["state"] in states

        try:
            wait_for(has_come, f"{rollout} in {states}")
        except AssertionError as error:
            texts = "\n".join(entry["text"] for entry in view["transitions"])
            raise AssertionError(f"{error}; it is {view['state']}/{view['phase']}: {texts}") from None
        return view


def quick_order(model: str, version: str) -> dict[str, Any]:
    return {
        "group": GROUP,
        "model": model,
        "version": version,
        "waves": [{"devices": 1}, {"percent": 50}, {"percent": 100}],
        "soak_s": 0.0,
        "gate": {"when_unproven": "unanimous", "compare_metrics": False},
    }


def archive(bundle: Bundle, directory: Path) -> bytes:
    path = directory / f"{bundle.manifest.name}-{bundle.manifest.version}.tar"
    pack(bundle, path)
    return path.read_bytes()


def enrolment_request(name: str, token: str, key: SigningKey, **attributes: Any) -> dict[str, Any]:
    proof = base64.b64encode(key.sign(token.encode())).decode()
    return {"token": token, "device": name, "public_key": key.public.text, "attributes": attributes, "proof": proof}


def enrol(api: Api, name: str, token: str, link: Callable[[Enrolment], Any]) -> Any:
    key = SigningKey.generate()
    answer = api.post("/api/v1/enrol", enrolment_request(name, token, key))
    enrolment = msgspec.convert(answer, Enrolment)
    return DeviceSimulator(link(enrolment), enrolment)
