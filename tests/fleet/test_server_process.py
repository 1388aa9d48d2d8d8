"""A server as its own process over the real embedded broker, killed in the middle of a rollout."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fleet_rig import Api, archive, enrol, quick_order, wait_for

from edgeops.mqtt import MqttLink


class Server:
    """``edgeops fleet up`` in a process of its own."""

    def __init__(self, data: Path, release_key, *arguments: str) -> None:
        self.data = data
        config = data.with_suffix(".toml")
        config.write_text(
            f'fleet = "test"\nlisten = "127.0.0.1:0"\nmqtt_port = 0\nrelease_keys = ["{release_key.public.text}"]\n'
            "[controller]\ntick_s = 0.05\n"
        )
        self._command = [sys.executable, "-m", "edgeops", "fleet", "up", "--data", str(data), "--config", str(config)]
        self.start()

    def start(self) -> None:
        (self.data / "server.json").unlink(missing_ok=True)
        with self.data.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_for(lambda: self.process.poll() is not None or (self.data / "server.json").exists(), "server.json")
        assert self.process.poll() is None, self.output()
        self.address = json.loads((self.data / "server.json").read_text())
        self.api = Api(self.address["url"], (self.data / "operator.token").read_text().strip())

    def output(self) -> str:
        return self.data.with_suffix(".log").read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


@pytest.fixture
def server(tmp_path, release_key):
    made = Server(tmp_path / "data", release_key)
    yield made
    made.stop()


class Resender(threading.Thread):
    """What an agent does with records that are not acknowledged: sends them again, now and then."""

    def __init__(self, devices):
        super().__init__(daemon=True)
        self.devices, self.stopped = devices, threading.Event()

    def run(self):
        while not self.stopped.wait(0.3):
            for device in self.devices:
                device.resend()


def connect(enrolment):
    return MqttLink(
        enrolment.broker_host, enrolment.broker_port, client_id=enrolment.device, max_backoff_s=0.2, keepalive_s=5
    )


def test_a_killed_server_goes_on_with_its_rollout_and_nothing_is_counted_twice(server, make_bundle, tmp_path):
    api = server.api
    token = api.post("/api/v1/tokens", {"group": "cameras", "uses": 4})["token"]
    devices = {f"device-{number}": enrol(api, f"device-{number}", token, connect) for number in range(4)}
    resender = Resender(devices.values())
    try:
        for device in devices.values():
            device.start()
        resender.start()
        bundle = make_bundle("1.0.0")
        assert api.call("POST", "/api/v1/bundles", raw=archive(bundle, tmp_path))[0] == 201
        order = {
            **quick_order("digits", "1.0.0"),
            "soak_s": 0.2,
            "waves": [{"devices": 1}, {"devices": 2}, {"percent": 100}],
        }
        rollout = api.post("/api/v1/rollouts", order)["id"]
        wait_for(lambda: api.get(f"/api/v1/rollouts/{rollout}")["counts"].get("committed"), "the canary committed")
        sent = 0
        for moment in range(3):
            server.kill()
            for device in devices.values():
                if device.current:
                    device.window(requests=1)
                    sent += 1
            server.start()
            assert server.api.url == api.url, "devices know the address"
            wait_for(lambda: server.api.get("/healthz")["broker"], "the broker is back")
            if moment < 2:
                wait_for(
                    lambda moment=moment: (
                        server.api.get(f"/api/v1/rollouts/{rollout}")["wave"] > moment
                        or server.api.get(f"/api/v1/rollouts/{rollout}")["state"] == "completed"
                    ),
                    "the next wave",
                )
        wait_for(lambda: server.api.get(f"/api/v1/rollouts/{rollout}")["state"] == "completed", "completed")
        view = server.api.get(f"/api/v1/rollouts/{rollout}")
        assert view["counts"] == {"committed": 4}
        assert [wave["devices"] for wave in view["waves"]] == [1, 2, 4]
        wait_for(lambda: not any(device._outbox for device in devices.values()), "all acknowledged")
        assert sum(device["requests"] for device in server.api.get("/api/v1/devices")["devices"]) == sent
        for device in devices.values():
            assert len(device.offered) == 1
            assert device.generations == sorted(device.generations)
    finally:
        resender.stopped.set()
        resender.join()
        for device in devices.values():
            device.stop()


def test_a_server_stops_in_good_order_and_its_broker_with_it(server):
    broker = _child(server.process.pid)
    assert server.stop() == 0
    assert not (server.data / "server.json").exists()
    wait_for(lambda: not Path(f"/proc/{broker}").exists() or _parent(broker) == 0, "the broker is gone")
    assert (server.data / "operator.token").stat().st_mode & 0o777 == 0o600
    assert (server.data / "director.key").stat().st_mode & 0o777 == 0o600
    assert "Traceback" not in server.output()


def test_a_broker_that_dies_is_started_again(server):
    broker = _child(server.process.pid)
    os.kill(broker, signal.SIGKILL)
    wait_for(lambda: server.api.call("GET", "/healthz")[0] == 503, "the server noticed")
    wait_for(lambda: server.api.call("GET", "/healthz")[0] == 200, "it is back")


def test_a_port_that_is_taken_is_told(server, tmp_path):
    port = server.address["url"].rpartition(":")[2]
    command = [sys.executable, "-m", "edgeops", "fleet", "up", "--data", str(tmp_path / "other"), "--mqtt-port", "0"]
    result = subprocess.run(
        [*command, "--listen", f"127.0.0.1:{port}"], capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode == 1
    assert "choose another with --listen" in result.stderr


def _child(parent: int) -> int:
    return next(pid for path in Path("/proc").glob("[0-9]*") if _parent(pid := int(path.name)) == parent)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
