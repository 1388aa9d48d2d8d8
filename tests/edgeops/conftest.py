"""Fixtures of the contract's tests: a bundle without any model engine, and the brokers that a link is held against."""

import socket
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
def new_link(request: pytest.FixtureRequest) -> Iterator[NewLink]:
    """A factory of links to one broker: in memory, the embedded one, and mosquitto."""
    if request.param == "memory":
        broker = MemoryBroker()
        yield lambda _name: broker.link()
        return
    port = 0
    links: list[MqttLink] = []

    def make(name: str) -> Link:
        link = MqttLink("127.0.0.1", port, client_id=name, max_backoff_s=0.5)
        links.append(link)
        return link

    if request.param == "iotcore":
        port = _free_port()
        with Broker(port=port, listen="127.0.0.1"):
            yield make
            for link in links:
                link.close()
        return
    port = request.getfixturevalue("start_mosquitto")("max_queued_messages 0")
    yield make
    for link in links:
        link.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
