"""``edgeops serve``: bundles over local HTTP and MQTT, in one process, without a fleet."""

import contextlib
import json
import os
import shlex
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Self

import click

from edgeops.errors import ConfigError
from edgeops.manifest import Manifest
from edgeops.parts import from_part
from edgeops.signing import PublicKey
from edgeops.tensors import TensorSpec
from edgeops_runtime.control import MQTT_VARIABLE
from edgeops_runtime.serving.admin import Admin, check_address
from edgeops_runtime.serving.budget import ThreadBudget
from edgeops_runtime.serving.folders import Folders
from edgeops_runtime.serving.http import Handler
from edgeops_runtime.serving.listener import Listener, address_of, bind
from edgeops_runtime.serving.loader import Loader
from edgeops_runtime.serving.model import LoadedModel, load
from edgeops_runtime.serving.protocols import Protocols
from edgeops_runtime.serving.repository import Repository, Served
from edgeops_runtime.serving.shared_memory import Regions

if TYPE_CHECKING:
    from edgeops.mqtt_requests import MqttRequests

_MAX_EXAMPLE_VALUES = 16
_IDLE_S = 1.0


@click.command("serve")
@click.argument("directories", metavar="DIRECTORY...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--listen", "address", default="127.0.0.1:8080", show_default=True, help="host:port, or unix:/path of a socket."
)
@click.option(
    "--admin", "admin_address", help="Socket on which models are loaded and unloaded: unix:/path, or a loopback port."
)
@click.option("--shared-memory-over-tcp", is_flag=True, help="Callers over TCP may use this user's shared memory too.")
@click.option(
    "--mqtt",
    "mqtt_url",
    envvar=MQTT_VARIABLE,
    help="Answer MQTT 5 requests too: mqtt://[user:password@]host:port/prefix.",
)
@click.option("--variant", help="Name of a variant; otherwise the first that can run here.")
@click.option("--engine", help="onnxruntime, litert or tflite; otherwise the first that is installed.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of one inference.")
@click.option(
    "--key", "keys", multiple=True, help="Public key that must have signed a bundle (base64); several: any of them."
)
def serve_command(
    directories: tuple[Path, ...],
    *,
    address: str,
    admin_address: str | None,
    shared_memory_over_tcp: bool,
    mqtt_url: str | None,
    variant: str | None,
    engine: str | None,
    threads: int,
    keys: tuple[str, ...],
) -> None:
    """Serve bundles over local HTTP until Ctrl-C (Open Inference Protocol, version 2, and TensorFlow Serving's REST API).

    Each DIRECTORY is a bundle, or holds bundles: then the newest version of each model is served.
    """
    public_keys = [PublicKey(key) for key in keys] if keys else None

    budget = ThreadBudget.for_machine(threads)

    def serve(directory: Path) -> Served:
        model = load(directory, variant=variant, engine=engine, threads=threads, keys=public_keys)
        return Served(model.loaded, budget=budget)

    repository = Repository()
    loader = Loader(repository, Folders(directories, keys=public_keys), serve)
    protocols = Protocols(repository, Regions(over_tcp=shared_memory_over_tcp))
    places: list[tuple[str, str, Handler]] = [("listening", address, protocols)]
    if admin_address is not None:
        places.append(("admin", check_address(admin_address), Admin(protocols, loader)))
    loader.start()
    if not repository.served and admin_address is None:
        raise ConfigError(
            f"{', '.join(map(str, directories))}: no bundle there, and no --admin socket to load one later"
        )
    stopped = _stopped_by_signal()
    with contextlib.ExitStack() as stack:
        doors = [stack.enter_context(_Door(what, where, handler)) for what, where, handler in places]
        requests = _answer_over_mqtt(mqtt_url, protocols) if mqtt_url is not None else None
        if requests is not None:
            stack.callback(requests.close)
        for line in describe([served.model for served in repository.served], doors[0].address):
            click.echo(line)
        for door in doors[1:]:
            click.echo(f"{door.what} on {door.address}")
        if requests is not None:
            click.echo(
                f"MQTT requests below {requests.broker.prefix}/ at {requests.broker.host}:{requests.broker.port}"
            )
        stopped.wait()
        repository.leave()
    loader.close()
    click.echo(f"stopped after {loader.retired.requests} requests, {loader.retired.errors} of them failed")


class _Door:
    """A socket with its listener, while the block runs; afterwards what came is answered and a socket file is removed."""

    def __init__(self, what: str, address: str, handler: Handler) -> None:
        self.what = what
        # What decides over models is for nobody but its user, from the moment it exists.
        before = os.umask(0o177) if what == "admin" else None
        try:
            self._listening = bind(address)
        finally:
            if before is not None:
                os.umask(before)
        self.address = address_of(self._listening)
        self._listener = Listener(self._listening, handler)

    def __enter__(self) -> Self:
        self._listener.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._listener.drain(_IDLE_S)
        self._listening.close()
        if self.address.startswith("unix:"):
            Path(self.address.removeprefix("unix:")).unlink(missing_ok=True)


def _stopped_by_signal() -> threading.Event:
    stopped = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return stopped


def _answer_over_mqtt(url: str, protocols: Protocols) -> "MqttRequests":
    open_mqtt = from_part("edgeops_runtime.serving.mqtt", "open_mqtt", extra="link")
    requests: MqttRequests = open_mqtt(url, protocols, protocols.metrics)
    return requests


def describe(models: Sequence[LoadedModel], address: str) -> list[str]:
    """What a person wants to know when it has started: what runs where, and a line to try for each model."""
    lines = []
    for model in models:
        name = f"{model.manifest.name} {model.manifest.version}"
        lines.append(f"{name}, variant {model.variant.name} on {model.engine} {model.engine_version}")
        lines += [f"  {kind} {spec.name}: {spec.dtype} {list(spec.shape)}" for kind, spec in _tensors(model.manifest)]
    lines.append(f"listening on {address}; Ctrl-C ends it")
    if models:
        lines.append("try it:")
    tried = {model.manifest.name: model.manifest for model in reversed(models)}  # Of two versions, the stable one.
    return [*lines, *(f"  {curl_line(manifest, address)}" for manifest in reversed(tried.values()))]


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
