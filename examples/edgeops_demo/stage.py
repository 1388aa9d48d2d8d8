"""The fleet of the demo: one server, eight devices at two sites, a camera in front of each, and what can be asked of them."""

import json
from pathlib import Path
from typing import Any

from edgeops_demo.cameras import smear_and_dim
from edgeops_demo.images import Split
from edgeops_demo.people import Operator, wait_until
from edgeops_demo.processes import Program, Programs, console_script
from edgeops_demo.release import MODEL
from edgeops_demo.traffic import Camera, Tally

GROUP = "cameras"
SITES = ("north", "south")
SMEARED_SITE = "south"
DEVICES_PER_SITE = 4
WINDOW_S = 2.0
REQUESTS_PER_SECOND = 10.0

_SERVER_SETTINGS = """\
fleet = "demo"
listen = "127.0.0.1:{port}"
mqtt_port = 0
release_keys = ["{release_key}"]

[drift]
attribute = "site"
window_s = {window_s}
detectable_shift = 0.2

[retrain]
command = {command}
samples = {samples}
min_labels = {min_labels}
stop_with_server = true
"""

_AGENT_SETTINGS = """\
data = "{data}"
listen = "127.0.0.1:0"
engines = ["{engine}"]
telemetry_window_s = {window_s}
capture = true
server = "{server}"
device = "{device}"
token = "{token}"
log_level = "info"
"""


def device_names() -> dict[str, str]:
    """Device → site: ``north-1`` to ``south-4``."""
    return {f"{site}-{number}": site for site in SITES for number in range(1, DEVICES_PER_SITE + 1)}


class Stage:
    """Starts the processes and knows how to reach them.

    Args:
        directory: Everything of the run is below it.
        programs: Where processes are started.
        release_key: Public release key, base64.
        retrain_command: What the server runs when retraining is asked for.
        samples: How many samples the server collects from a site that drifts.
        port: Of the API and the dashboard; 0 takes a free one.
    """

    def __init__(
        self,
        directory: Path,
        programs: Programs,
        *,
        release_key: str,
        retrain_command: list[str],
        samples: int,
        port: int,
    ) -> None:
        self._directory, self._programs = directory, programs
        settings = directory / "fleet.toml"
        settings.write_text(
            _SERVER_SETTINGS.format(
                port=port,
                release_key=release_key,
                window_s=WINDOW_S,
                command=json.dumps(retrain_command),
                samples=samples,
                min_labels=samples * 3 // 4,
            )
        )
        data = directory / "server"
        self.server = programs.start(
            "server", console_script("edgeops"), "fleet", "up", "--config", str(settings), "--data", str(data)
        )
        where = json.loads(self.server.wait_for(data / "server.json", timeout_s=120))
        self.operator = Operator(where["url"], (data / "operator.token").read_text().strip())
        self.broker = f"{where['broker_host']}:{where['broker_port']}"
        self.cameras: dict[str, Camera] = {}
        self._agents: dict[str, Program] = {}

    def start_devices(self) -> None:
        """Enrol and start every device, half of each site on onnxruntime and half on LiteRT."""
        for number, (device, site) in enumerate(device_names().items()):
            engine = "onnxruntime" if number % 2 == 0 else "litert"
            token = self.operator.post(
                "/api/v1/tokens",
                {"group": GROUP, "attributes": {"site": site, "engine": engine}, "uses": 1, "ttl_s": 600},
            )["token"]
            config = self._directory / f"{device}.toml"
            config.write_text(
                _AGENT_SETTINGS.format(
                    data=self._directory / "devices" / device,
                    engine=engine,
                    window_s=WINDOW_S,
                    server=self.operator.url,
                    device=device,
                    token=token,
                )
            )
            config.chmod(0o600)
            self._agents[device] = self._programs.start(
                device, console_script("edgeops-agent"), "run", "--config", str(config)
            )
        wait_until(
            lambda: sum(device["online"] for device in self.devices().values()) == len(self._agents),
            timeout_s=240,
            what="every device enrolled and online",
            on_timeout=self._tell_missing,
        )

    def point_cameras(self, scenes: Split) -> None:
        """Put a camera in front of every device; it asks as soon as the device serves."""
        for number, device in enumerate(self._agents):
            address = self._agents[device].wait_for(self._directory / "devices" / device / "address", timeout_s=120)
            camera = Camera(
                device, address.strip(), model=MODEL, scenes=scenes, per_second=REQUESTS_PER_SECOND, seed=number
            )
            self.cameras[device] = camera
            camera.start()

    def smear_lenses(self) -> None:
        """From now on the cameras of one site are blurred and dim."""
        for device, site in device_names().items():
            if site == SMEARED_SITE:
                self.cameras[device].lens = smear_and_dim

    def stop_cameras(self) -> None:
        """End the traffic."""
        for camera in self.cameras.values():
            camera.stop()
        for camera in self.cameras.values():
            camera.join(timeout=15)

    def tallies(self) -> dict[str, Tally]:
        """What each camera has seen."""
        return {device: camera.tally for device, camera in self.cameras.items()}

    def devices(self) -> dict[str, dict[str, Any]]:
        """Device → what the server knows of it."""
        return {device["id"]: device for device in self.operator.get("/api/v1/devices")["devices"]}

    def drift(self) -> dict[str, dict[str, Any]]:
        """Site → the verdict on the version that the fleet runs."""
        verdicts = self.operator.get("/api/v1/drift")["verdicts"]
        prefix = "site="
        return {
            verdict["cohort"].removeprefix(prefix): verdict
            for verdict in verdicts
            if verdict["scope"] == "cohort" and verdict["cohort"].startswith(prefix)
        }

    def rollout(self, rollout: str) -> dict[str, Any]:
        """A rollout as it stands."""
        found: dict[str, Any] = self.operator.get(f"/api/v1/rollouts/{rollout}")
        return found

    def _tell_missing(self) -> str:
        known = self.devices()
        missing = [device for device in self._agents if not known.get(device, {}).get("online")]
        return "\n".join(f"{device}:\n{self._agents[device].tail()}" for device in missing[:2])
