"""Bringing a bundle over real HTTP: resumed, verified, bounded, cancelled."""

import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeops.bundle import Bundle, open_bundle
from edgeops.messages import ReasonClass
from edgeops.signing import SigningKey
from edgeops_runtime.blobs import BlobStore
from edgeops_runtime.downloads import HttpDownloader
from edgeops_runtime.updater import Brought, NotBrought, Order, Pace, Updater

sys.path.insert(0, str(Path(__file__).parent))  # The folder is no package, and this module is only for its tests.

from agent_parts import BlobServer, eventually, scripted_bundle


@pytest.fixture
def server() -> Iterator[BlobServer]:
    server = BlobServer()
    yield server
    server.close()


@pytest.fixture
def bundle(tmp_path: Path, release_key: SigningKey, server: BlobServer) -> Bundle:
    made = scripted_bundle(tmp_path / "made", "1.0.0", release_key)
    server.add(made)
    return made


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "device")


def updater(
    store: BlobStore, key: SigningKey, choose=lambda manifest, _: (manifest.variants[0], "onnxruntime")
) -> Updater:
    return Updater(
        store,
        HttpDownloader(timeout_s=5),
        keys=[key.public],
        choose=choose,
        pace=Pace(backoff_s=0.01, max_backoff_s=0.02),
        rng=random.Random(1),
    )


def bring(made: Updater, server: BlobServer, bundle: Bundle, *, cancelled: threading.Event | None = None, **fields):
    order = {"model": "digits", "version": "1.0.0", "digest": bundle.digest, "url": f"{server.url}/blobs"} | fields
    return made.bring(Order(**order), cancelled=cancelled or threading.Event())


def golden(bundle: Bundle) -> str:
    return bundle.manifest.files["golden.npz"].digest


def test_bundle_is_brought_whole_and_verified(store, server, bundle, release_key):
    made = updater(store, release_key)
    result = bring(made, server, bundle)
    assert result == Brought(variant="onnx", engine="onnxruntime", downloaded_bytes=result.downloaded_bytes)
    here = open_bundle(store.bundle_path(bundle.digest), keys=[release_key.public])
    assert here.manifest == bundle.manifest
    asked = len(server.requests)
    assert bring(made, server, bundle).downloaded_bytes == 0
    assert len(server.requests) == asked


def test_only_the_files_that_the_device_needs_are_fetched(store, server, bundle, release_key):
    spare = bundle.manifest.files["model.onnx"].digest
    made = updater(store, release_key)
    assert isinstance(bring(made, server, bundle), Brought)
    assert {digest for digest, _ in server.requests} == {bundle.digest, golden(bundle), spare}


def test_download_that_breaks_off_goes_on_where_it_was(store, server, bundle, release_key):
    server.break_after = 700
    assert isinstance(bring(updater(store, release_key), server, bundle), Brought)
    ranges = [wanted for digest, wanted in server.requests if digest == golden(bundle)]
    assert ranges == [None, *(f"bytes={700 * number}-" for number in range(1, len(ranges)))]
    assert len(ranges) > 3


def test_bytes_are_kept_for_the_next_attempt(store, server, bundle, release_key, tmp_path):
    server.break_after = 700
    cancelled = threading.Event()
    data = server.blobs[golden(bundle)]
    store.partial(golden(bundle)).append(data[:2000], offset=0)
    del server.blobs[golden(bundle)]
    assert bring(updater(store, release_key), server, bundle, cancelled=cancelled).reason_class is ReasonClass.TRANSIENT
    server.blobs[golden(bundle)] = data
    server.requests.clear()
    assert isinstance(bring(updater(BlobStore(tmp_path / "device"), release_key), server, bundle), Brought)
    assert (golden(bundle), "bytes=2000-") in server.requests


def test_server_that_ignores_the_range_is_read_from_the_start(store, server, bundle, release_key):
    store.partial(golden(bundle)).append(b"some bytes", offset=0)
    server.ignores_range = True
    assert isinstance(bring(updater(store, release_key), server, bundle), Brought)


def test_damaged_beginning_is_discarded_and_fetched_anew(store, server, bundle, release_key):
    store.partial(golden(bundle)).append(b"\0" * 2000, offset=0)
    assert isinstance(bring(updater(store, release_key), server, bundle), Brought)


@pytest.mark.parametrize("lie", ["other bytes", "longer"])
def test_wrong_blob_is_refused_after_a_second_try(store, server, bundle, release_key, lie):
    data = server.blobs[golden(bundle)]
    server.blobs[golden(bundle)] = {"other bytes": b"\0" * len(data), "longer": data + b"x"}[lie]
    result = bring(updater(store, release_key), server, bundle)
    assert isinstance(result, NotBrought)
    assert result.reason_class is ReasonClass.SECURITY
    assert golden(bundle) in result.reason
    assert not store.has_bundle(bundle.digest)
    assert store.partial(golden(bundle)).size_bytes == 0


def test_blob_that_is_too_short_is_waited_for(store, server, bundle, release_key):
    data = server.blobs[golden(bundle)]
    server.blobs[golden(bundle)] = data[:-1]
    result = bring(updater(store, release_key), server, bundle)
    assert result.reason_class is ReasonClass.TRANSIENT
    assert f"expected {len(data)} bytes" in result.reason
    server.blobs[golden(bundle)] = data
    assert isinstance(bring(updater(store, release_key), server, bundle), Brought)


def test_missing_blob_is_transient_after_some_tries(store, server, bundle, release_key):
    del server.blobs[golden(bundle)]
    result = bring(updater(store, release_key), server, bundle)
    assert result.reason_class is ReasonClass.TRANSIENT
    assert "404" in result.reason
    assert len([digest for digest, _ in server.requests if digest == golden(bundle)]) > 2


def test_server_that_is_away_is_transient(store, server, bundle, release_key):
    result = bring(updater(store, release_key), server, bundle, url="http://127.0.0.1:9/blobs")
    assert result.reason_class is ReasonClass.TRANSIENT


@pytest.mark.parametrize("fields", [{"model": "faces"}, {"version": "2.0.0"}])
def test_manifest_of_something_else_is_refused(store, server, bundle, release_key, fields):
    result = bring(updater(store, release_key), server, bundle, **fields)
    assert result.reason_class is ReasonClass.SECURITY
    assert "digits 1.0.0" in result.reason


def test_signature_of_somebody_else_is_refused(store, server, bundle):
    result = bring(updater(store, SigningKey.generate()), server, bundle)
    assert result.reason_class is ReasonClass.SECURITY
    assert not store.has_bundle(bundle.digest)


def test_device_that_cannot_run_it_fetches_the_manifest_only(store, server, bundle, release_key):
    result = bring(updater(store, release_key, choose=lambda *_: "needs a lion"), server, bundle)
    assert result.reason_class is ReasonClass.INCOMPATIBLE
    assert "lion" in result.reason
    assert [digest for digest, _ in server.requests] == [bundle.digest]


def test_full_disk_is_the_environments_fault(store, server, bundle, release_key, monkeypatch):
    def full(*_args, **_named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeops_runtime.blobs.PartialBlob.append", full)
    result = bring(updater(store, release_key), server, bundle)
    assert result.reason_class is ReasonClass.ENVIRONMENT
    assert "No space" in result.reason


def test_bundle_that_was_damaged_on_the_device_is_fetched_anew(store, server, bundle, release_key):
    made = updater(store, release_key)
    bring(made, server, bundle)
    path = store.bundle_path(bundle.digest) / "golden.npz"
    path.write_bytes(b"\0" * path.stat().st_size)
    result = bring(made, server, bundle)
    assert result.downloaded_bytes > 0
    open_bundle(store.bundle_path(bundle.digest), keys=[release_key.public])


def test_cancelled_download_ends_without_a_verdict(store, server, bundle, release_key):
    del server.blobs[golden(bundle)]
    cancelled, results = threading.Event(), []
    made = Updater(
        store,
        HttpDownloader(),
        keys=[release_key.public],
        choose=lambda manifest, _: (manifest.variants[0], "onnxruntime"),
        pace=Pace(backoff_s=600, max_backoff_s=600),
        rng=random.Random(1),
    )
    thread = threading.Thread(target=lambda: results.append(bring(made, server, bundle, cancelled=cancelled)))
    thread.start()
    eventually(lambda: any(digest == golden(bundle) for digest, _ in server.requests))
    cancelled.set()
    thread.join(timeout=10)
    assert results == [None]


def test_bundle_that_does_not_fit_on_the_disk_is_not_begun(server, bundle, release_key, tmp_path):
    class SmallStore(BlobStore):
        def free_bytes(self) -> int:
            return 1000

    store = SmallStore(tmp_path / "device")
    result = bring(updater(store, release_key), server, bundle)
    assert result.reason_class is ReasonClass.ENVIRONMENT
    assert "more bytes are needed, 1000 are free" in result.reason
    assert [digest for digest, _ in server.requests] == [bundle.digest]


def test_digest_that_is_a_path_touches_nothing(store, server, bundle, release_key, tmp_path):
    (tmp_path / "device" / "precious").mkdir()
    (tmp_path / "device" / "precious" / "manifest.json").write_text("{}")
    result = bring(updater(store, release_key), server, bundle, digest="../precious")
    assert result.reason_class is ReasonClass.INCOMPATIBLE
    assert (tmp_path / "device" / "precious" / "manifest.json").exists()


def test_disk_that_fills_up_under_a_download_gets_its_room_back(store, server, bundle, release_key, monkeypatch):
    def full(_self, _data: bytes, *, offset: int) -> None:
        raise OSError(28, "No space left on device")

    server.break_after = 100
    digest = bundle.manifest.files["golden.npz"].digest
    store.partial(digest).append(b"x" * 10, offset=0)
    monkeypatch.setattr("edgeops_runtime.blobs.PartialBlob.append", full)
    assert bring(updater(store, release_key), server, bundle).reason_class is ReasonClass.ENVIRONMENT
    assert store.partial(bundle.digest).size_bytes == 0


class Trickster:
    """Answers for some blobs in its own way; everything else as the server does."""

    def __init__(self, server: BlobServer, trick: str, digest: str) -> None:
        self._server, self._trick, self._digest = server, trick, digest
        self._honest = server.answer
        self.let_go = threading.Event()
        server.answer = self.answer

    def answer(self, handler) -> None:
        if not handler.path.endswith(self._digest):
            self._honest(handler)
            return
        self._server.requests.append((self._digest, handler.headers.get("Range")))
        data = self._server.blobs[self._digest]
        handler.close_connection = True
        status, headers, body = {
            "a page of a captive portal": (200, {"Content-Type": "text/html"}, b"<html>Welcome!</html>" * 300),
            "another range": (206, {"Content-Range": f"bytes 5-{len(data) - 1}/{len(data)}"}, data[5:]),
            "a range that nobody asked for": (206, {}, data),
            "no end": (200, {"Transfer-Encoding": "chunked"}, b"10000\r\n" + bytes(65536) + b"\r\n"),
            "nothing": (200, {}, b""),
            "a promise": (200, {"Content-Length": str(len(data))}, data[:100]),
            "a redirection to a file": (302, {"Location": "file:///etc/passwd"}, b""),
            "a redirection to itself": (302, {"Location": handler.path}, b""),
            "nonsense": (999, {"Content-Length": "-5"}, b"\0" * 100),
        }[self._trick]
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        try:
            handler.wfile.write(body)
            while self._trick == "no end":
                handler.wfile.write(body)
            if self._trick == "a promise":
                handler.wfile.flush()
                self.let_go.wait(20)  # And never a byte more.
        except OSError:
            return  # They have had enough.


@pytest.mark.parametrize(
    ("trick", "reason_class"),
    [
        ("a page of a captive portal", ReasonClass.TRANSIENT),
        ("another range", ReasonClass.TRANSIENT),
        ("a range that nobody asked for", ReasonClass.TRANSIENT),
        ("no end", ReasonClass.SECURITY),
        ("nothing", ReasonClass.TRANSIENT),
        ("a promise", ReasonClass.TRANSIENT),
        ("a redirection to a file", ReasonClass.TRANSIENT),
        ("a redirection to itself", ReasonClass.TRANSIENT),
        ("nonsense", ReasonClass.TRANSIENT),
    ],
)
def test_server_that_plays_tricks_brings_nothing_and_fills_nothing(
    store, server, bundle, release_key, *, trick, reason_class
):
    size = bundle.manifest.files["golden.npz"].size_bytes
    trickster = Trickster(server, trick, golden(bundle))
    made = Updater(
        store,
        HttpDownloader(timeout_s=0.3),
        keys=[release_key.public],
        choose=lambda manifest, _: (manifest.variants[0], "onnxruntime"),
        pace=Pace(backoff_s=0.01, max_backoff_s=0.02),
        rng=random.Random(1),
    )
    result = bring(made, server, bundle)
    trickster.let_go.set()
    assert isinstance(result, NotBrought)
    assert result.reason_class is reason_class, result
    assert not store.has(golden(bundle))
    assert not store.has_bundle(bundle.digest)
    assert store.partial(golden(bundle)).size_bytes <= size
    server.answer = trickster._honest
    assert isinstance(bring(updater(store, release_key), server, bundle), Brought)
