"""Tensors in shared memory: with the official client as it is, and with regions that are not what they seem."""

import contextlib
import os
import socket
import threading
import uuid
import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeops_runtime
from edgeops_runtime.serving import shared_memory
from edgeops_runtime.serving.http import Request
from edgeops_runtime.serving.listener import Listener, bind
from edgeops_runtime.serving.protocols import Protocols
from edgeops_runtime.serving.repository import Repository, Served
from edgeops_runtime.serving.shared_memory import Regions

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # gevent and geventhttpclient
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException
    from tritonclient.utils import shared_memory as shm

US = os.geteuid()
IMAGE_BYTES, LOGITS_BYTES = 28 * 28 * 4, 10 * 4


@pytest.fixture(scope="module")
def model(make_bundle):
    with edgeops_runtime.load(make_bundle("1.0.0").path) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def golden(model):
    arrays = np.load(model.bundle.file("golden.npz"))
    return arrays["input/image"], arrays["output/onnx/logits"]


@pytest.fixture
def shared_file():
    """A factory of files in /dev/shm, gone with the test; returns their keys."""
    made = []

    def make(content):
        path = Path("/dev/shm") / f"edgeops-{uuid.uuid4().hex}"
        path.write_bytes(content)
        made.append(path)
        return path.name

    yield make
    for path in made:
        path.unlink(missing_ok=True)


def ask(service, path, body=None, *, uid=US, method=None):
    text = b"" if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
    method = method or (b"POST" if body is not None else b"GET")
    response = service(Request(method, path.encode(), {}, text, keep_alive=True, peer_uid=uid))
    return response.status, msgspec.json.decode(b"".join(response.body))


def register(service, name, key, size, *, uid=US, **more):
    return ask(
        service, f"/v2/systemsharedmemory/region/{name}/register", {"key": key, "byte_size": size, **more}, uid=uid
    )


def infer_body(region, *, rows=1, offset=0, out=None, **more):
    parameters = {"shared_memory_region": region, "shared_memory_byte_size": rows * IMAGE_BYTES, **more}
    if offset:
        parameters["shared_memory_offset"] = offset
    body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [rows, 1, 28, 28], "parameters": parameters}]}
    if out is not None:
        body["outputs"] = [{"name": "logits", "parameters": out}]
    return body


def infer(service, body, *, uid=US):
    return ask(service, "/v2/models/digits/infer", body, uid=uid)


def test_the_official_client_sends_and_receives_through_shared_memory(model, golden, monkeypatch):
    images, logits = golden
    key = f"edgeops-{uuid.uuid4().hex}"
    service = Protocols(Repository(Served(model.loaded)), Regions(over_tcp=True))
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(bind("127.0.0.1:0"))
        listener = Listener(listening, service)
        listener.start()
        stack.callback(listener.drain, 0.0)
        client = stack.enter_context(triton.InferenceServerClient("{}:{}".format(*listening.getsockname())))
        assert "system_shared_memory" in client.get_server_metadata()["extensions"]
        handle = shm.create_shared_memory_region("both", key, images.nbytes + logits.nbytes)
        stack.callback(shm.destroy_shared_memory_region, handle)
        client.register_system_shared_memory("both", key, images.nbytes + logits.nbytes)
        assert client.get_system_shared_memory_status() == [
            {"name": "both", "key": key, "offset": 0, "byte_size": images.nbytes + logits.nbytes}
        ]
        shm.set_shared_memory_region(handle, [images])
        image = triton.InferInput("image", list(images.shape), "FP32")
        image.set_shared_memory("both", images.nbytes)
        wanted = triton.InferRequestedOutput("logits")
        wanted.set_shared_memory("both", logits.nbytes, offset=images.nbytes)
        answer = client.infer("digits", [image], outputs=[wanted])
        described = answer.get_output("logits")
        assert described["parameters"] == {
            "shared_memory_region": "both",
            "shared_memory_byte_size": logits.nbytes,
            "shared_memory_offset": images.nbytes,
        }
        assert "data" not in described
        found = shm.get_contents_as_numpy(handle, np.float32, described["shape"], offset=images.nbytes)
        np.testing.assert_allclose(found, logits, atol=1e-3)
        del found
        client.unregister_system_shared_memory("both")
        assert client.get_system_shared_memory_status() == []
        with pytest.raises(InferenceServerException, match="not registered"):
            client.infer("digits", [image], outputs=[wanted])


def test_what_the_memory_holds_now_is_what_is_answered(model, golden, shared_file):
    images, logits = golden
    key = shared_file(bytes(IMAGE_BYTES + LOGITS_BYTES))
    service = Protocols(Repository(Served(model.loaded)))
    assert register(service, "one", key, IMAGE_BYTES + LOGITS_BYTES) == (200, {})
    out = {"shared_memory_region": "one", "shared_memory_byte_size": LOGITS_BYTES, "shared_memory_offset": IMAGE_BYTES}
    for image, expected in zip(images, logits, strict=True):
        with Path("/dev/shm", key).open("r+b") as file:
            file.write(image.tobytes())
        status, answer = infer(service, infer_body("one"))
        assert status == 200
        np.testing.assert_allclose(answer["outputs"][0]["data"], expected, atol=1e-3)
        status, answer = infer(service, infer_body("one", out=out))
        assert (status, answer["outputs"][0]["parameters"]) == (200, out)
        written = np.frombuffer(Path("/dev/shm", key).read_bytes()[IMAGE_BYTES:], np.float32)
        np.testing.assert_allclose(written, expected, atol=1e-3)


def test_offsets_count_from_the_region_and_may_be_unaligned(model, golden, shared_file):
    images, logits = golden
    key = shared_file(b"x" * 7 + images[:2].tobytes())
    service = Protocols(Repository(Served(model.loaded)))
    assert register(service, "two", f"/{key}", 2 * IMAGE_BYTES, offset=7) == (200, {})
    _, answer = infer(service, infer_body("two", offset=IMAGE_BYTES))
    np.testing.assert_allclose(answer["outputs"][0]["data"], logits[1], atol=1e-3)


def test_a_caller_over_a_unix_socket_is_known_and_one_over_tcp_is_not(model, golden, shared_file, tmp_path):
    key = shared_file(golden[0][:1].tobytes())
    service = Protocols(Repository(Served(model.loaded)))
    body = msgspec.json.encode({"key": key, "byte_size": IMAGE_BYTES})
    for address, status in ((f"unix:{tmp_path / 'socket'}", b"HTTP/1.1 200"), ("127.0.0.1:0", b"HTTP/1.1 403")):
        with bind(address) as listening:
            listener = Listener(listening, service)
            listener.start()
            with socket.socket(listening.family) as caller:
                caller.settimeout(30)
                caller.connect(listening.getsockname())
                path = f"/v2/systemsharedmemory/region/r/register HTTP/1.1\r\nContent-Length: {len(body)}\r\n"
                caller.sendall(f"POST {path}Connection: close\r\n\r\n".encode() + body)
                assert caller.recv(1000).startswith(status)
            listener.drain(0.0)
    assert ask(service, "/v2/systemsharedmemory/status")[1][0]["name"] == "r"
    for verb, asked in (("status", None), ("unregister", b"")):
        status, answer = ask(service, f"/v2/systemsharedmemory/{verb}", asked, uid=None)
        assert status == 403
        assert "over TCP" in answer["error"]
    assert infer(service, infer_body("r"), uid=None)[0] == 403
    assert "system_shared_memory" in ask(service, "/v2")[1]["extensions"]
    assert "system_shared_memory" not in ask(service, "/v2", uid=None)[1]["extensions"]


def test_a_region_is_its_users_alone(model, golden, shared_file):
    key = shared_file(golden[0][:1].tobytes())
    service = Protocols(Repository(Served(model.loaded)))
    assert register(service, "mine", key, IMAGE_BYTES)[0] == 200
    other = US + 1
    assert infer(service, infer_body("mine"), uid=other)[0] == 404
    assert ask(service, "/v2/systemsharedmemory/status", uid=other) == (200, [])
    assert ask(service, "/v2/systemsharedmemory/region/mine/unregister", b"", uid=other)[0] == 404
    assert ask(service, "/v2/systemsharedmemory/unregister", b"", uid=other)[0] == 200
    status, answer = register(service, "stolen", key, IMAGE_BYTES, uid=other)
    assert status == 403
    assert f"expected a plain file of the caller's (user {other})" in answer["error"]
    assert infer(service, infer_body("mine"))[0] == 200


def test_a_region_that_became_shorter_is_an_error_and_no_crash(model, golden, shared_file):
    key = shared_file(golden[0][:2].tobytes())
    service = Protocols(Repository(Served(model.loaded)))
    register(service, "two", key, 2 * IMAGE_BYTES)
    os.truncate(Path("/dev/shm", key), IMAGE_BYTES)
    status, answer = infer(service, infer_body("two", rows=2))
    assert status == 400
    assert f"has only {IMAGE_BYTES} bytes now" in answer["error"]
    assert infer(service, infer_body("two", offset=0))[0] == 200
    out = {"shared_memory_region": "two", "shared_memory_byte_size": 40, "shared_memory_offset": IMAGE_BYTES}
    assert infer(service, infer_body("two", out=out))[0] == 400


def test_what_is_kept_of_a_request_does_not_change_with_the_callers_memory(model, golden, shared_file):
    kept = []
    service = Protocols(
        Repository(Served(model.loaded, observer=lambda _request, feeds, _answer: kept.append(feeds["image"])))
    )
    key = shared_file(golden[0][:1].tobytes())
    register(service, "one", key, IMAGE_BYTES)
    assert infer(service, infer_body("one"))[0] == 200
    os.truncate(Path("/dev/shm", key), 0)
    np.testing.assert_array_equal(kept[0], golden[0][:1])


@pytest.mark.parametrize(
    ("key", "size", "more", "status", "message"),
    [
        ("", 4, {}, 400, "expected the plain name of a file"),
        ("..", 4, {}, 400, "expected the plain name of a file"),
        ("../etc/passwd", 4, {}, 400, "expected the plain name of a file"),
        ("a/b", 4, {}, 400, "expected the plain name of a file"),
        ("a\0b", 4, {}, 400, "expected the plain name of a file"),
        ("x" * 300, 4, {}, 400, "expected the plain name of a file"),
        ("edgeops-nobody-made-this", 4, {}, 404, "no such file"),
        ("{file}", 0, {}, 400, "byte_size of 1 or more"),
        ("{file}", 4, {"offset": -1}, 400, "offset of 0 or more"),
        ("{file}", 65, {}, 400, "expected a file of at least 65 bytes, got 64"),
        ("{file}", 4, {"offset": 61}, 400, "expected a file of at least 65 bytes, got 64"),
        ("{file}", 2**70, {}, 503, "expected at most 1024 MB"),
        ("{link}", 4, {}, 403, "cannot be opened"),
        ("{directory}", 4, {}, 403, "cannot be opened"),
        ("{fifo}", 4, {}, 403, "expected a plain file"),
    ],
)
def test_only_plain_files_of_the_callers_are_registered(  # noqa: PLR0917
    model, shared_file, key, size, more, status, message
):
    file = shared_file(bytes(64))
    base = Path("/dev/shm")
    special = {name: base / f"{file}-{name}" for name in ("link", "directory", "fifo")}
    special["link"].symlink_to(base / file)
    special["directory"].mkdir()
    os.mkfifo(special["fifo"])
    try:
        names = {name: path.name for name, path in special.items()} | {"file": file}
        service = Protocols(Repository(Served(model.loaded)))
        answer = register(service, "r", key.format(**names), size, **more)
    finally:
        special["link"].unlink()
        special["directory"].rmdir()
        special["fifo"].unlink()
    assert answer[0] == status, answer
    assert message in answer[1]["error"]
    assert ask(service, "/v2/systemsharedmemory/status") == (200, [])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (infer_body("none"), "not registered"),
        (infer_body("r", offset=1), f"expected at most {IMAGE_BYTES} bytes"),
        (infer_body("r", offset=2**70), "expected at most"),
        (infer_body("r", shared_memory_offset=-4), "sizes of 0 or more"),
        (infer_body("r", shared_memory_byte_size=4), f"expected {IMAGE_BYTES} bytes of shared memory"),
        (infer_body("r", shared_memory_byte_size=None), "expected shared_memory_region, shared_memory_byte_size"),
        (infer_body("r", binary_data_size=IMAGE_BYTES), "got both"),
        (infer_body("r", out={"shared_memory_region": "none", "shared_memory_byte_size": 40}), "not registered"),
        (infer_body("r", out={"shared_memory_region": "r", "shared_memory_byte_size": 39}), "room for 40 bytes"),
        (infer_body("r", out={"shared_memory_region": "r"}), "expected shared_memory_region, shared_memory_byte_size"),
        (
            infer_body(
                "r", out={"shared_memory_region": "r", "shared_memory_byte_size": 40, "shared_memory_offset": 3120}
            ),
            "expected at most",
        ),
    ],
)
def test_tensors_that_are_not_inside_a_region_are_refused(model, golden, shared_file, body, message):
    service = Protocols(Repository(Served(model.loaded)))
    register(service, "r", shared_file(golden[0][:1].tobytes()), IMAGE_BYTES)
    status, answer = infer(service, body)
    assert status in {400, 404}
    assert message in answer["error"]


def test_names_sizes_and_paths_are_bounded(model, shared_file, monkeypatch):
    service = Protocols(Repository(Served(model.loaded)))
    key = shared_file(bytes(64))
    assert register(service, "r", key, 64)[0] == 200
    assert register(service, "r", key, 64)[0] == 409
    assert register(service, "x" * 256, key, 64)[0] == 400
    assert register(service, "a%20b", key, 64)[0] == 200
    assert [one["name"] for one in ask(service, "/v2/systemsharedmemory/status")[1]] == ["r", "a b"]
    assert ask(service, "/v2/systemsharedmemory/region/a%20b/status")[1][0]["name"] == "a b"
    monkeypatch.setattr(shared_memory, "MAX_REGIONS", 2)
    assert register(service, "s", key, 64)[0] == 503
    monkeypatch.setattr(shared_memory, "MAX_REGIONS", 3)
    monkeypatch.setattr(shared_memory, "MAX_BYTES", 191)
    assert register(service, "s", key, 64)[0] == 503
    for path in ("", "/region", "/region/r", "/region/r/rename", "/register", "/region/r/s/status"):
        assert ask(service, f"/v2/systemsharedmemory{path}", b"{}")[0] == 404
    assert ask(service, "/v2/systemsharedmemory/status", b"")[0] == 405
    assert ask(service, "/v2/systemsharedmemory/unregister")[0] == 405
    assert ask(service, "/v2/systemsharedmemory/unregister", b"") == (200, {})
    assert ask(service, "/v2/systemsharedmemory/status") == (200, [])


def test_regions_come_and_go_while_they_are_used(model, golden, shared_file):
    service = Protocols(Repository(Served(model.loaded)))
    key = shared_file(golden[0][:1].tobytes())
    found = []

    def use():
        found.extend(infer(service, infer_body("r"))[0] for _ in range(50))

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        register(service, "r", key, IMAGE_BYTES)
        ask(service, "/v2/systemsharedmemory/region/r/unregister", b"")
    assert set(found) <= {200, 404}
    assert len(found) == 150


@pytest.fixture(scope="module")
def service_with_a_region(model):
    path = Path("/dev/shm") / f"edgeops-{uuid.uuid4().hex}"
    path.write_bytes(bytes(64))
    service = Protocols(Repository(Served(model.loaded)))
    register(service, "r", path.name, 64)
    yield service
    path.unlink()


VALUES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.sampled_from(["r", "", "..", "\0", "é" * 200])


@settings(max_examples=150, deadline=None)
@given(
    wanted=st.dictionaries(st.sampled_from(["key", "byte_size", "offset"]), VALUES),
    part=st.dictionaries(
        st.sampled_from(["shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"]), VALUES
    ),
    shape=st.lists(st.integers(-1, 2**66), max_size=3),
)
def test_no_json_is_an_internal_error(service_with_a_region, wanted, part, shape):
    status, answer = ask(service_with_a_region, "/v2/systemsharedmemory/region/s/register", wanted)
    assert status in {400, 403, 404, 503}, answer
    tensor = {"name": "image", "datatype": "UINT8", "shape": shape, "parameters": part}
    body = {"inputs": [tensor], "outputs": [{"name": "logits", "parameters": part}]}
    status, answer = infer(service_with_a_region, body)
    assert status in {400, 404}, answer
