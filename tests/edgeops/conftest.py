"""Fixtures of the contract's tests: a bundle without any model engine, and the brokers that a link is held against."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from iotcore import Broker

from edgeops.bundle import Bundle, write_bundle
from edgeops.link import Link
from edgeops.manifest import FileEntry, Lineage, Manifest, Variant
from edgeops.mqtt import MqttLink
from edgeops.signing import SigningKey
from edgeops.tensors import TensorSpec
from edgeops.testing import MemoryBroker

EMPTY = FileEntry(digest="sha256:" + "0" * 64, size_bytes=0)
FILES = {"model.onnx": b"m" * 5000, "golden.npz": b"g" * 300, "parts/reference.json": b"{}"}


@pytest.fixture
def manifest() -> Manifest:
    """A valid manifest of three files."""
    return Manifest(
        name="fashion",
        version="1.0.0",
        created="2026-01-01T00:00:00Z",
        inputs=(TensorSpec(name="image", dtype="UINT8", shape=("batch", 1, 28, 28)),),
        outputs=(TensorSpec(name="logits", dtype="FP32", shape=("batch", 10)),),
        variants=(
            Variant(
                name="onnx",
                file="model.onnx",
                format="onnx",
                engines={"onnxruntime": "1.18"},
                precision="float32",
                inputs={"image": "image"},
                outputs={"logits": "logits"},
                tolerance=1e-3,
            ),
        ),
        files=dict.fromkeys(FILES, EMPTY),
        golden="golden.npz",
        reference="parts/reference.json",
        lineage=Lineage(source="net.py:build", source_digest=EMPTY.digest, data_digest=EMPTY.digest),
    )


@pytest.fixture
def key() -> SigningKey:
    """A release key."""
    return SigningKey.generate()


@pytest.fixture
def bundle(tmp_path: Path, manifest: Manifest, key: SigningKey) -> Bundle:
    """A signed bundle directory."""
    sources = {}
    for name, content in FILES.items():
        source = tmp_path / "sources" / name
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_bytes(content)
        sources[name] = source
    return write_bundle(tmp_path / "fashion-1.0.0", manifest, sources, keys=[key])


NewLink = Callable[[str], Link]


@pytest.fixture(params=["memory", "iotcore", "mosquitto"])
def new_link(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewLink]:
    """A factory of links to one broker: in memory, the embedded one, and mosquitto."""
    if request.param == "memory":
        broker = MemoryBroker()
        yield lambda _name: broker.link()
        return
    port = _free_port()
    links: list[MqttLink] = []

    def make(name: str) -> Link:
        link = MqttLink("127.0.0.1", port, client_id=name, max_backoff_s=0.5)
        links.append(link)
        return link

    if request.param == "iotcore":
        with Broker(port=port, listen="127.0.0.1"):
            yield make
            for link in links:
                link.close()
        return
    process = _start_mosquitto(port, tmp_path)
    try:
        yield make
        for link in links:
            link.close()
    finally:
        process.terminate()
        process.wait(10)


def _start_mosquitto(port: int, directory: Path) -> subprocess.Popen[bytes]:
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        if os.environ.get("EDGEOPS_REQUIRE_MOSQUITTO"):
            pytest.fail("mosquitto is not installed, and EDGEOPS_REQUIRE_MOSQUITTO asks for it")
        pytest.skip("mosquitto is not installed")
    settings = directory / "mosquitto.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n")
    process = subprocess.Popen([program, "-c", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.02)
    process.kill()
    raise RuntimeError("mosquitto does not listen")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
