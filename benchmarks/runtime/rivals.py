"""The same ONNX file behind MLServer and BentoML, asked in turns with ours by one kind of client, over loopback.

Each has an environment of its own under ``build/rivals``, which ``scripts/rivals`` makes, and serves as its documentation says.
It is asked in JSON, since neither takes a tensor in binary over HTTP: MLServer's REST has no binary extension, BentoML refuses
pickle from outside. So ours is timed with JSON too, to show what the form makes of the difference.
"""

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, interleaved_us
from benchmarks.runtime import models
from benchmarks.runtime.exchange import Exchange, binary_request, json_request, post, running, serving
from edgeops.bundle import Bundle
from edgeops_runtime import load

ENVIRONMENTS = Path("build/rivals").absolute()
SERVERS = Path(__file__).with_name("rival_servers")
_HOW = "not installed; scripts/rivals installs it under build/rivals"

Requests = dict[str, tuple[str, bytes]]
"""How it is asked → the address, and the request."""


def measure(rounds: int = 4000) -> list[Figure]:
    """Round trips of ours and of those that are installed."""
    row = np.random.default_rng(0).random((1, *models.IMAGE)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        bundle = models.linear(directory)
        requests: Requests = {}
        for server, how in (
            ("EdgeOps", _ours(bundle, row, directory)),
            ("MLServer", _mlserver(bundle, row, directory)),
            ("BentoML", _bentoml(bundle, row, directory)),
        ):
            if server != "EdgeOps" and not _program(server.lower()).exists():
                continue
            requests |= {f"{server}, {form}": each for form, each in stack.enter_context(how).items()}
        # When all have started: they hang up on who is silent for some seconds.
        asked = {name: stack.enter_context(Exchange(*each)) for name, each in requests.items()}
        _check(asked, bundle, row)
        return _figures(interleaved_us(asked, rounds))


def _figures(medians: dict[str, float]) -> list[Figure]:
    figures = []
    for rival in ("MLServer", "BentoML"):
        theirs = f"{rival}, TCP, JSON"
        if theirs not in medians:
            figures.append(Figure.without_value(f"{rival}: ours over the Unix socket", _HOW))
            continue
        figures += [
            Figure(f"{rival}: ours over {where}", medians[f"EdgeOps, {form}"], "µs", theirs, medians[theirs])
            for where, form in (
                ("the Unix socket", "Unix socket, binary"),
                ("TCP", "TCP, binary"),
                ("TCP, in JSON too", "TCP, JSON"),
            )
        ]
    return figures


def _check(asked: dict[str, Exchange], bundle: Bundle, row: np.ndarray) -> None:
    """Whoever is timed answers what the model says: the first score is somewhere in the answer, as text or as bytes."""
    with load(bundle.path) as model:
        golden = model.infer({"input": row})["output"]
    for name, exchange in asked.items():
        answer = exchange()
        wanted = golden.tobytes() if not name.endswith("JSON") else f"{golden.ravel()[0]:.4f}"[:-1].encode()
        if wanted not in answer:
            raise RuntimeError(f"{name}: expected the scores {golden}, got {answer[-400:]!r}")


@contextmanager
def _ours(bundle: Bundle, row: np.ndarray, directory: Path) -> Iterator[Requests]:
    unix, tcp = f"unix:{directory / 'ours.sock'}", _free_address()
    binary, text = binary_request("linear", {"input": row}), json_request("linear", {"input": row})
    with serving(bundle.path, unix), serving(bundle.path, tcp):
        yield {"Unix socket, binary": (unix, binary), "TCP, binary": (tcp, binary), "TCP, JSON": (tcp, text)}


@contextmanager
def _mlserver(bundle: Bundle, row: np.ndarray, directory: Path) -> Iterator[Requests]:
    folder, address = directory / "mlserver", _free_address()
    folder.mkdir()
    model = {"uri": str(bundle.file("model.onnx"))}
    _write_json(folder / "model-settings.json",
                {"name": "linear", "implementation": "onnx_model.OnnxModel", "parameters": model})  # fmt: skip
    # No pool of processes: the model answers in the process that serves, which is its fastest way.
    _write_json(folder / "settings.json",
                {"host": "127.0.0.1", "http_port": _port(address), "grpc_port": _port(_free_address()),
                 "metrics_port": _port(_free_address()), "parallel_workers": 0})  # fmt: skip
    command = [str(_program("mlserver")), "start", str(folder)]
    environment = _environment(directory)
    with running(command, address=address, cwd=folder, env=environment):
        yield {"TCP, JSON": (address, json_request("linear", {"input": row}))}


@contextmanager
def _bentoml(bundle: Bundle, row: np.ndarray, directory: Path) -> Iterator[Requests]:
    address = _free_address()
    command = [str(_program("bentoml")), "serve", "bento_service:Linear", "--host", "127.0.0.1"]
    environment = _environment(directory) | {
        "MODEL": str(bundle.file("model.onnx")), "BENTOML_HOME": str(directory / "bentoml"), "BENTOML_DO_NOT_TRACK": "1"
    }  # fmt: skip
    text = json.dumps({"rows": row.tolist()}).encode()
    with running([*command, "--port", str(_port(address))], address=address, cwd=SERVERS, env=environment):
        yield {"TCP, JSON": (address, post("/infer", text, "Content-Type: application/json\r\n"))}


def _environment(directory: Path) -> dict[str, str]:
    """Ours without what would lead their Python to our packages."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | {"PYTHONPATH": str(SERVERS), "HOME": str(directory)}


def _program(name: str) -> Path:
    return ENVIRONMENTS / name / "bin" / name


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))
