"""``edgeops serve``: one bundle over local HTTP, in one process, without a fleet."""

import json
import shlex
import signal
import threading
from pathlib import Path
from types import FrameType

import click

from edgeops.manifest import Manifest
from edgeops.signing import PublicKey
from edgeops.tensors import TensorSpec
from edgeops_runtime.serving.listener import Listener, address_of, bind
from edgeops_runtime.serving.model import Model, load
from edgeops_runtime.serving.repository import Repository, Served
from edgeops_runtime.serving.v2 import Service

_MAX_EXAMPLE_VALUES = 16
_IDLE_S = 1.0


@click.command("serve")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--listen", "address", default="127.0.0.1:8080", show_default=True, help="host:port, or unix:/path of a socket."
)
@click.option("--variant", help="Name of a variant; otherwise the first that can run here.")
@click.option("--engine", help="onnxruntime, litert or tflite; otherwise the first that is installed.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of one inference.")
@click.option(
    "--key", "keys", multiple=True, help="Public key that must have signed the bundle (base64); several: any of them."
)
def serve_command(
    directory: Path, *, address: str, variant: str | None, engine: str | None, threads: int, keys: tuple[str, ...]
) -> None:
    """Serve the bundle in DIRECTORY over local HTTP until Ctrl-C (Open Inference Protocol, version 2)."""
    public_keys = [PublicKey(key) for key in keys] if keys else None
    model = load(directory, variant=variant, engine=engine, threads=threads, keys=public_keys)
    listening = bind(address)
    stopped = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    listener = Listener(listening, Service(Repository(Served(model.loaded))))
    listener.start()
    for line in describe(model, address_of(listening)):
        click.echo(line)
    stopped.wait()
    listener.drain(_IDLE_S)
    window = model.window()
    model.close()
    listening.close()
    if address.startswith("unix:"):
        Path(address.removeprefix("unix:")).unlink(missing_ok=True)
    click.echo(f"stopped after {window.requests} requests, {window.errors} of them failed")


def describe(model: Model, address: str) -> list[str]:
    """What a person wants to know when it has started: what runs where, and a line to try."""
    manifest = model.manifest
    return [
        f"{manifest.name} {manifest.version}, variant {model.variant.name} on {model.engine} {model.engine_version}",
        *(f"  {kind} {spec.name}: {spec.dtype} {list(spec.shape)}" for kind, spec in _tensors(manifest)),
        f"listening on {address}; Ctrl-C ends it",
        "try it:",
        f"  {curl_line(manifest, address)}",
    ]


def curl_line(manifest: Manifest, address: str) -> str:
    """A command that asks for an inference; zeros where the input is larger than a line of text."""
    if address.startswith("unix:"):
        where = f"--unix-socket {shlex.quote(address.removeprefix('unix:'))} http://localhost"
    else:
        where = f"http://{address}"
    url = f"{where}/v2/models/{manifest.name}"
    if any(_count(spec) > _MAX_EXAMPLE_VALUES for spec in manifest.inputs):
        return f"curl -s {url}"
    tensors = [
        {"name": spec.name, "datatype": spec.dtype, "shape": _example_shape(spec), "data": [0] * _count(spec)}
        for spec in manifest.inputs
    ]
    return f"curl -s {url}/infer -d {shlex.quote(json.dumps({'inputs': tensors}, separators=(',', ':')))}"


def _tensors(manifest: Manifest) -> list[tuple[str, TensorSpec]]:
    return [*(("input ", spec) for spec in manifest.inputs), *(("output", spec) for spec in manifest.outputs)]


def _example_shape(spec: TensorSpec) -> list[int]:
    return [1 if isinstance(size, str) else size for size in spec.shape]


def _count(spec: TensorSpec) -> int:
    count = 1
    for size in _example_shape(spec):
        count *= size
    return count
