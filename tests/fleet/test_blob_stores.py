"""What every blob store promises: the same cases for a local folder and for stores behind a URL."""

from pathlib import Path

import pytest

from edgeops.errors import ConfigError, TransientError
from edgeops.files import digest_bytes
from edgeops_fleet.blobs import Blobs

CONTENT = bytes(range(256)) * 10_000
DIGEST = digest_bytes(CONTENT)


@pytest.fixture(params=["folder", "file URL", "memory URL"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    (tmp_path / "blobs").mkdir()
    locations = {
        "folder": str(tmp_path / "blobs"),
        "file URL": f"file://{tmp_path / 'blobs'}",
        "memory URL": "memory:///",
    }
    return Blobs(locations[request.param])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    return path


def test_blob_comes_back_whole_and_in_ranges(blobs: Blobs, file: Path) -> None:
    blobs.put(DIGEST, file)
    assert blobs.size(DIGEST) == len(CONTENT)
    assert blobs.get(DIGEST) == CONTENT
    for start, end in [(0, len(CONTENT)), (0, 1), (1_048_575, 1_048_577), (2_000_000, len(CONTENT))]:
        assert b"".join(blobs.chunks(DIGEST, start=start, end=end)) == CONTENT[start:end]


def test_putting_a_blob_again_changes_nothing(blobs: Blobs, file: Path) -> None:
    blobs.put(DIGEST, file)
    blobs.put(DIGEST, file)
    assert blobs.get(DIGEST) == CONTENT


def test_blob_that_was_cut_off_is_replaced(blobs: Blobs, file: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    half.write_bytes(CONTENT[:1000])
    blobs.put(DIGEST, half)
    blobs.put(DIGEST, file)
    assert blobs.get(DIGEST) == CONTENT


def test_absent_blob_has_no_size_and_cannot_be_read(blobs: Blobs) -> None:
    assert blobs.size(DIGEST) is None
    with pytest.raises(TransientError, match=DIGEST):
        blobs.get(DIGEST)
    with pytest.raises(TransientError, match=DIGEST):
        list(blobs.chunks(DIGEST, start=0, end=1))


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../etc/passwd", "../x", "sha256:" + "g" * 64])
def test_what_is_no_digest_is_no_blob(blobs: Blobs, digest: str) -> None:
    assert blobs.size(digest) is None


def test_location_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    for location in ("nonsense://x", str(tmp_path / "plain" / "below")):
        with pytest.raises(ConfigError, match="blob store"):
            Blobs(location)
