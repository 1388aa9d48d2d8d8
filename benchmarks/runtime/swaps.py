"""Versions exchanged under load: through a real agent with its workers, and in process with ``Model.swap``.

The agent is told over MQTT, for each swap anew, to run the other of two versions, with a trial that asks for no shadow and no
probation; all else is as ever: a new worker loads, passes the golden test, takes over, and the old one is drained. Two clients
ask over the Unix socket meanwhile. The same load without swaps is measured in between, in the same run.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.figures import Figure, quantile
from benchmarks.runtime import models
from benchmarks.runtime.exchange import binary_request
from benchmarks.runtime.phases import Phases, take_turns
from benchmarks.runtime.station import Station, resident_mb
from benchmarks.runtime.swapping import Found
from edgeops.bundle import Bundle

_CLIENTS = 2
_P999 = 0.999


def measure(swaps: int = 1000) -> list[Figure]:
    """So many swaps of each kind."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        key = models.SigningKey.generate()
        pair = (models.linear(directory, "1.0.0", key=key), models.linear(directory, "1.0.1", key=key))
        with Station(directory, key, engine="onnxruntime") as station:
            through_agent = _through_agent(station, pair, directory, swaps)
        return [*_figures("agent", through_agent), *_figures("in process", _in_process(pair, swaps))]


def _figures(way: str, found: Found) -> list[Figure]:
    for failure in found.failed[:10]:
        print(f"{way}: {failure}", flush=True)
    quiet, busy = ([each / 1e6 for each in taken] for taken in (found.quiet, found.busy))
    return [
        Figure(f"{way}: swaps", len(found.swaps_ms), ""),
        Figure(f"{way}: a swap", statistics.median(found.swaps_ms), "ms"),
        Figure(f"{way}: requests answered while swapping", len(busy), ""),
        Figure(f"{way}: failed requests", len(found.failed), ""),
        Figure(f"{way}: p50 while swapping", quantile(busy, 0.5), "ms", "without", quantile(quiet, 0.5)),
        Figure(f"{way}: p99.9 while swapping", quantile(busy, _P999), "ms", "without", quantile(quiet, _P999)),
        Figure(f"{way}: the longest while swapping", max(busy), "ms", "without", max(quiet)),
        Figure(
            f"{way}: resident memory at the end",
            found.after_mb,
            "MB",
            "after both versions were there once",
            found.before_mb,
        ),
    ]


def _in_process(pair: tuple[Bundle, Bundle], swaps: int) -> Found:
    command = [sys.executable, "-m", "benchmarks.runtime.swapping", *(str(each.path) for each in pair), str(swaps)]
    done = subprocess.run(command, check=True, capture_output=True)
    return msgspec.json.decode(done.stdout, type=Found)


def _through_agent(station: Station, pair: tuple[Bundle, Bundle], directory: Path, swaps: int) -> Found:
    agent = station.start()
    station.install(pair[0])
    swaps_ms: list[float] = []

    def swap(number: int) -> None:
        begun = time.perf_counter()
        station.install(pair[(number + 1) % 2])
        swaps_ms.append(1000 * (time.perf_counter() - begun))

    row = np.random.default_rng(0).random((1, *models.IMAGE)).astype(np.float32)
    request = directory / "request"
    request.write_bytes(binary_request("linear", {"input": row}))
    failed: list[str] = []
    taken = directory / "taken"
    with _load(station.address, request, taken, failed):
        for number in (0, 1):
            swap(number)
        swaps_ms.clear()
        before = resident_mb(agent.pid)["Rss"]
        phases: Phases = take_turns(swap, swaps)
        after = resident_mb(agent.pid)["Rss"]
    numbers = array("q", taken.read_bytes())
    quiet, busy = phases.split(zip(numbers[::2], numbers[1::2], strict=True))
    return Found(failed, quiet, busy, swaps_ms, before, after)


@contextmanager
def _load(address: str, request: Path, taken: Path, failed: list[str]) -> Iterator[None]:
    """Clients in a process of their own; afterwards ``taken`` is written, and ``failed`` has what they said."""
    command = [sys.executable, "-m", "benchmarks.runtime.load", address, str(request), str(taken), str(_CLIENTS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield
        except BaseException:
            process.kill()
            raise
        said, _ = process.communicate()
        failed += json.loads(said)
