"""The content store: whole or not at all, and no bigger than it must be."""

import errno
import os

import pytest

from edgeops.errors import DownloadError
from edgeops.files import digest_bytes
from edgeops_runtime.blobs import BlobStore


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path)


def put(store: BlobStore, data: bytes) -> str:
    digest = digest_bytes(data)
    if store.has(digest):
        return digest
    partial = store.partial(digest)
    partial.append(data[:3], offset=0)
    assert not store.has(digest)
    partial.append(data[3:], offset=3)
    partial.finish(len(data))
    return digest


def assemble(store: BlobStore, manifest: bytes, files: dict[str, bytes]) -> str:
    digest = digest_bytes(manifest)
    store.assemble(digest, manifest=manifest, files={name: put(store, data) for name, data in files.items()})
    return digest


def test_blob_appears_when_it_is_whole(store):
    digest = put(store, b"content")
    assert store.blob_path(digest).read_bytes() == b"content"
    assert store.partial(digest).size_bytes == 0


def test_wrong_bytes_are_discarded(store):
    digest = digest_bytes(b"content")
    partial = store.partial(digest)
    partial.append(b"CONTENT", offset=0)
    with pytest.raises(DownloadError, match=digest):
        partial.finish(7)
    assert not store.has(digest)
    assert partial.size_bytes == 0


def test_bytes_behind_a_new_piece_are_dropped(store):
    partial = store.partial(digest_bytes(b"abXY"))
    partial.append(b"abcdefgh", offset=0)
    partial.append(b"XY", offset=2)
    assert partial.finish(4).read_bytes() == b"abXY"


def test_bundle_is_assembled_from_blobs(store):
    digest = assemble(store, b"manifest", {"model.onnx": b"weights", "deep/golden.npz": b"golden"})
    path = store.bundle_path(digest)
    assert (path / "manifest.json").read_bytes() == b"manifest"
    assert (path / "deep" / "golden.npz").read_bytes() == b"golden"
    assert store.has_bundle(digest)


def test_bundle_that_was_half_assembled_does_not_count(store, tmp_path, monkeypatch):
    def broken(*_args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("edgeops_runtime.blobs.write_durably", broken)
    with pytest.raises(OSError, match="Input/output"):
        assemble(store, b"manifest", {"model.onnx": b"weights"})
    assert not store.has_bundle(digest_bytes(b"manifest"))
    monkeypatch.undo()
    assert store.has_bundle(assemble(BlobStore(tmp_path), b"manifest", {"model.onnx": b"weights"}))


@pytest.mark.parametrize("links", [True, False])
def test_collecting_keeps_what_is_named_and_frees_the_rest(store, monkeypatch, links):
    if not links:

        def forbidden(*_args):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", forbidden)
    kept = assemble(store, b"first", {"model.onnx": b"one", "golden.npz": b"shared"})
    gone = assemble(store, b"second", {"model.onnx": b"two", "golden.npz": b"shared"})
    store.partial(digest_bytes(b"never came")).append(b"never", offset=0)
    assert store.collect([kept]) > 0
    assert store.has_bundle(kept)
    assert (store.bundle_path(kept) / "golden.npz").read_bytes() == b"shared"
    assert not store.has_bundle(gone)
    assert not store.has(digest_bytes(b"two"))
    assert store.has(digest_bytes(b"one")) == links
    assert store.partial(digest_bytes(b"never came")).size_bytes == 0
