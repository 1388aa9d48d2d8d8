"""Bytes over HTTP from an offset on."""

import sys
from pathlib import Path

import pytest

from edgeops.errors import DownloadError
from edgeops_runtime.downloads import HttpDownloader, NotThereError

sys.path.insert(0, str(Path(__file__).parent))  # The folder is no package, and this module is only for its tests.

from agent_parts import BlobServer


@pytest.fixture
def server():
    server = BlobServer()
    server.blobs["sha256:x"] = bytes(range(256)) * 40
    yield server
    server.close()


def read(url: str, offset: int = 0) -> tuple[int, bytes]:
    with HttpDownloader(timeout_s=5).open(url, offset=offset) as stream:
        return stream.offset, b"".join(stream.chunks)


def test_whole_and_from_an_offset(server):
    data = server.blobs["sha256:x"]
    assert read(f"{server.url}/sha256:x") == (0, data)
    assert read(f"{server.url}/sha256:x", 1000) == (1000, data[1000:])
    server.ignores_range = True
    assert read(f"{server.url}/sha256:x", 1000) == (0, data)


def test_break_is_an_error_after_the_bytes_that_came(server):
    server.break_after = 500
    received = []
    with (
        HttpDownloader(timeout_s=5).open(f"{server.url}/sha256:x", offset=0) as stream,
        pytest.raises(DownloadError, match="broke off after 500"),
    ):
        received.extend(stream.chunks)
    assert b"".join(received) == server.blobs["sha256:x"][:500]


def test_errors_say_what_to_do(server):
    with pytest.raises(NotThereError, match="404"):
        read(f"{server.url}/sha256:y")
    with pytest.raises(DownloadError, match="http://"):
        read("file:///etc/passwd")
    with pytest.raises(DownloadError, match="refused"):
        read("http://127.0.0.1:9/x")
