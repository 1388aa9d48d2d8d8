"""The device: memory of agent and worker, and how long a board takes from exec to the first answer, with a real server."""

import http.client
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.subject import Subject
from edgeops_demo.people import Operator, wait_until
from edgeops_demo.processes import Program, Programs, console_script
from edgeops_demo.release import MODEL

_ENGINES = ("onnxruntime", "litert")
_STARTS = 5
_PATIENCE_S = 30.0
_AGENT = """\
data = "{data}"
listen = "127.0.0.1:0"
engines = ["{engine}"]
server = "{server}"
device = "{engine}"
token = "{token}"
"""


def measure(subject: Subject, rounds: int) -> list[Figure]:  # noqa: ARG001 - the same signature for every part
    """Install the bundle on one device for each engine, then start each again and again."""
    key = (subject.bundle.path.parent / "release.key").read_bytes()
    with tempfile.TemporaryDirectory() as name, Programs(Path(name) / "logs") as programs:
        directory = Path(name)
        (directory / "server").mkdir()
        (directory / "server" / "release.key").write_bytes(key)
        operator = _start_server(directory, programs)
        operator.publish(subject.bundle)
        figures = []
        for engine in _ENGINES:
            token = operator.post("/api/v1/tokens", {"group": engine, "attributes": {}, "uses": 1, "ttl_s": 600})[
                "token"
            ]
            data = directory / engine
            config = directory / f"{engine}.toml"
            config.write_text(_AGENT.format(data=data, engine=engine, server=operator.url, token=token))
            agent = _start_agent(programs, engine, config)
            order = {
                "group": engine,
                "model": MODEL,
                "version": "1.0.0",
                "waves": [{"percent": 100}],
                "soak_s": 0,
                "trial": {"probation_requests": 0, "probation_s": 0.1},
                "gate": {"when_unproven": "unanimous"},
            }
            wait_until(lambda engine=engine: _is_online(operator, engine), timeout_s=30, what=f"{engine} online")
            rollout = operator.post("/api/v1/rollouts", order)["id"]
            wait_until(
                lambda rollout=rollout: operator.get(f"/api/v1/rollouts/{rollout}")["state"] == "completed",
                timeout_s=60,
                what=f"{engine} committed",
                on_timeout=agent.tail,
            )
            figures += _figures(engine, agent, data, lambda c=config, e=engine: _start_agent(programs, e, c))
    return figures


def _figures(engine: str, agent: Program, data: Path, start: Callable[[], Program]) -> list[Figure]:
    agent_kb, worker_kb = _resident_kb(agent.pid), sum(map(_resident_kb, agent.children))
    address = agent.wait_for(data / "address", timeout_s=30)
    starts, recoveries, worker_recoveries = [], [], []
    for _ in range(_STARTS):
        agent.ask_to_stop()
        agent.end(timeout_s=30)
        begun = time.perf_counter()
        agent = start()
        starts.append(_until_answer(agent, address, begun))
        begun = time.perf_counter()
        for child in agent.children:
            os.kill(child, signal.SIGKILL)
        worker_recoveries.append(_until_answer(agent, address, begun))
        begun = time.perf_counter()
        agent.kill()
        agent = start()
        recoveries.append(_until_answer(agent, address, begun))
    return [
        Figure(f"{engine}: agent, resident", agent_kb / 1000, "MB"),
        Figure(f"{engine}: worker, resident, with its model", worker_kb / 1000, "MB"),
        Figure(f"{engine}: from exec of the agent to the first answer", 1000 * statistics.median(starts), "ms"),
        Figure(
            f"{engine}: from kill -9 of the worker to the next answer",
            1000 * statistics.median(worker_recoveries),
            "ms",
        ),
        Figure(f"{engine}: the longest of {_STARTS}", 1000 * max(worker_recoveries), "ms"),
        Figure(
            f"{engine}: from kill -9 of the agent, started again at once, to the next answer",
            1000 * statistics.median(recoveries),
            "ms",
        ),
        Figure(f"{engine}: the longest of {_STARTS}", 1000 * max(recoveries), "ms"),
    ]


def _start_server(directory: Path, programs: Programs) -> Operator:
    data = directory / "server"
    server = programs.start(
        "server",
        console_script("edgeops"),
        "fleet",
        "up",
        "--data",
        str(data),
        "--listen",
        "127.0.0.1:0",
        "--mqtt-port",
        "0",
    )
    where = json.loads(server.wait_for(data / "server.json", timeout_s=60))
    return Operator(where["url"], (data / "operator.token").read_text().strip())


def _start_agent(programs: Programs, name: str, config: Path) -> Program:
    return programs.start(name, console_script("edgeops-agent"), "run", "--config", str(config))


def _is_online(operator: Operator, device: str) -> bool:
    return any(found["id"] == device and found["online"] for found in operator.get("/api/v1/devices")["devices"])


def _until_answer(agent: Program, address: str, begun: float) -> float:
    """Seconds from ``begun`` until the model is ready; a connection that nobody answers is tried again."""
    host, _, port = address.strip().rpartition(":")
    while time.perf_counter() - begun < _PATIENCE_S:
        connection = http.client.HTTPConnection(host, int(port), timeout=_PATIENCE_S)
        try:
            connection.request("GET", f"/v2/models/{MODEL}/ready")
            if connection.getresponse().status == http.client.OK:
                return time.perf_counter() - begun
        except (OSError, http.client.HTTPException):
            time.sleep(0.005)
        finally:
            connection.close()
    raise RuntimeError(f"{agent.name} does not answer: {agent.tail()}")


def _resident_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
