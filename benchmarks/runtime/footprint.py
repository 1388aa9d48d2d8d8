"""What agent and worker take on a board: memory, the way from exec to the first answer, and from kill -9 to the next.

A real agent over MQTT with the demo's network, whose file has some 50 to 150 kB, so that the worker's figure is the engine's and
ours. An answer is one to an inference over the Unix socket, not to a health check. Resident memory counts pages of files that are
shared with other processes; what is proportional and what is anonymous stands beside it.
"""

import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure
from benchmarks.runtime import models
from benchmarks.runtime.exchange import Exchange, binary_request
from benchmarks.runtime.station import PATIENCE_S, Station, resident_mb
from edgeops.bundle import Bundle

_ENGINES = ("onnxruntime", "litert")
_PAUSE_S = 0.002


def measure(starts: int = 5) -> list[Figure]:
    """Install on a device for each engine, then start and kill its processes so many times."""
    bundle, key = models.fashion()
    figures = []
    for engine in _ENGINES:
        with tempfile.TemporaryDirectory() as name, Station(Path(name), key, engine=engine) as station:
            station.start()
            station.install(bundle)
            figures += _figures(engine, station, _request(bundle), starts)
    return figures


def _figures(engine: str, station: Station, request: bytes, starts: int) -> list[Figure]:
    installed = resident_mb(_agent(station).pid)
    _until_answer(station, request, 0.0)
    begun_anew, workers_killed, agents_killed = [], [], []
    for _ in range(starts):
        station.stop()
        begun_anew.append(_timed(station, request, station.start))
    agent, worker = resident_mb(_agent(station).pid), resident_mb(_worker(station))
    for _ in range(starts):
        workers_killed.append(_timed(station, request, lambda: os.kill(_worker(station), signal.SIGKILL)))
        agents_killed.append(_timed(station, request, lambda: _start_after_a_kill(station)))
    return [
        *_memory(f"{engine}: agent, resident", installed),
        Figure(f"{engine}: agent, resident, after a restart", agent["Rss"], "MB"),
        *_memory(f"{engine}: worker, resident, with a model of some kB", worker),
        *_times(f"{engine}: from exec of the agent to the first answer", begun_anew),
        *_times(f"{engine}: from kill -9 of the worker to the next answer", workers_killed),
        *_times(f"{engine}: from kill -9 of the agent, started again at once, to the next answer", agents_killed),
    ]


def _memory(name: str, found: dict[str, float]) -> list[Figure]:
    return [
        Figure(name, found["Rss"], "MB"),
        Figure(f"{name}: proportional", found["Pss"], "MB"),
        Figure(f"{name}: anonymous", found["Anonymous"], "MB"),
    ]


def _times(name: str, seconds: list[float]) -> list[Figure]:
    return [
        Figure(name, 1000 * statistics.median(seconds), "ms"),
        Figure(f"{name}: the longest of {len(seconds)}", 1000 * max(seconds), "ms"),
    ]


def _timed(station: Station, request: bytes, act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return _until_answer(station, request, begun)


def _start_after_a_kill(station: Station) -> None:
    agent = _agent(station)
    agent.kill()
    agent.wait()
    station.start()


def _until_answer(station: Station, request: bytes, begun: float) -> float:
    """Seconds from ``begun`` until an inference is answered; a connection that nobody answers is tried again."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            with Exchange(station.address, request) as ask:
                ask()
            return time.perf_counter() - begun
        except OSError:
            time.sleep(_PAUSE_S)
    raise RuntimeError(f"no answer for {PATIENCE_S:.0f} s: {station.tail()}")


def _request(bundle: Bundle) -> bytes:
    (spec,) = bundle.manifest.inputs
    shape = tuple(1 if isinstance(size, str) else size for size in spec.shape)
    return binary_request(bundle.manifest.name, {spec.name: np.zeros(shape, np.uint8)})


def _agent(station: Station) -> subprocess.Popen[bytes]:
    if station.agent is None:
        raise RuntimeError("the agent does not run")
    return station.agent


def _worker(station: Station) -> int:
    """The only worker there is by the time that an answer has come."""
    (worker,) = station.workers
    return worker
