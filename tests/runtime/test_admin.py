"""Models that come and go on the admin socket: Triton's repository extension, with the official client and by hand."""

import contextlib
import json
import re
import shutil
import threading
import warnings
import weakref

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeops_runtime
from edgeops.errors import ConfigError, ConflictError, EdgeOpsError, ManifestError
from edgeops.signing import SigningKey
from edgeops_runtime.serving.admin import Admin, check_address
from edgeops_runtime.serving.folders import Folders
from edgeops_runtime.serving.http import Request
from edgeops_runtime.serving.listener import Listener, bind
from edgeops_runtime.serving.loader import Loader
from edgeops_runtime.serving.protocols import Protocols
from edgeops_runtime.serving.repository import Repository, Served

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # gevent and geventhttpclient
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException


class Server:
    """What ``edgeops serve`` puts together, without sockets."""

    def __init__(self, *directories, keys=None):
        self.keys = keys
        self.repository = Repository()
        self.loaded = []
        self.loader = Loader(self.repository, Folders(directories, keys=keys), self.serve)
        self.protocols = Protocols(self.repository)
        self.admin = Admin(self.protocols, self.loader)

    def serve(self, directory):
        served = Served(edgeops_runtime.load(directory, keys=self.keys).loaded)
        self.loaded.append(weakref.ref(served.model))
        return served

    def post(self, path, body=None, **headers):
        text = b"" if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
        named = {name.encode(): value for name, value in headers.items()}
        return self.ask(Request(b"POST", path.encode(), named, text, keep_alive=True))

    def get(self, path):
        return self.ask(Request(b"GET", path.encode(), {}, b"", keep_alive=True))

    def ask(self, request, *, handler=None):
        response = (handler or self.admin)(request)
        return response.status, msgspec.json.decode(b"".join(response.body))

    def load(self, model="digits", **parameters):
        return self.post(f"/v2/repository/models/{model}/load", {"parameters": parameters})

    def versions(self, model="digits"):
        return self.get(f"/v2/models/{model}")[1]["versions"]


@pytest.fixture
def shelf(tmp_path, make_bundle):
    """A directory, and a way to put bundles into it."""
    directory = tmp_path / "models"
    directory.mkdir()

    def put(version, broken=None, **more):
        bundle = make_bundle(version, broken, **more)
        shutil.copytree(bundle.path, directory / f"{bundle.manifest.name}-{version}")

    put.directory = directory
    return put


@pytest.fixture
def start():
    """A factory of servers, whose models are closed with the test."""
    servers = []

    def make(*directories, keys=None):
        server = Server(*directories, keys=keys)
        servers.append(server)
        server.loader.start()
        return server

    yield make
    for server in servers:
        server.loader.close()


IMAGE = np.full((1, 1, 28, 28), 0.25, np.float32)


def infer_body():
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": IMAGE.ravel().tolist()}
    return msgspec.json.encode({"inputs": [tensor]})


def test_the_official_client_lists_loads_and_unloads(shelf, start):
    shelf("1.0.0")
    shelf("1.1.0")
    shelf("2.0.0", name="other")
    server = start(shelf.directory)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(bind("127.0.0.1:0"))
        listener = Listener(listening, server.admin)
        listener.start()
        stack.callback(listener.drain, 0.0)
        client = stack.enter_context(triton.InferenceServerClient("{}:{}".format(*listening.getsockname())))
        assert "model_repository" in client.get_server_metadata()["extensions"]
        index = client.get_model_repository_index()
        assert [(one["name"], one["version"], one["state"]) for one in index] == [
            ("digits", "1.1.0", "READY"),
            ("other", "2.0.0", "READY"),
            ("digits", "1.0.0", "UNAVAILABLE"),
        ]
        client.load_model("digits", config=json.dumps({"version": "1.0.0"}))
        assert client.get_model_metadata("digits")["versions"] == ["1.0.0"]
        client.load_model("digits")
        assert client.get_model_metadata("digits")["versions"] == ["1.1.0"]
        client.unload_model("digits")
        assert not client.is_model_ready("digits")
        assert client.is_server_ready()
        client.unload_model("other")
        assert not client.is_server_ready()
        with pytest.raises(InferenceServerException, match="no model other"):
            client.unload_model("other")


def test_a_swap_under_load_fails_no_request_and_closes_the_model_before(shelf, start):
    shelf("1.0.0")
    shelf("1.1.0")
    server = start(shelf.directory)
    body, found, stop = infer_body(), [], threading.Event()

    def ask_for_ever():
        while not stop.is_set():
            request = Request(b"POST", b"/v2/models/digits/infer", {}, body, keep_alive=True)
            status, answer = server.ask(request, handler=server.protocols)
            found.append((status, answer.get("model_version"), answer.get("error")))

    threads = [threading.Thread(target=ask_for_ever) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in ("1.0.0", "1.1.0", "1.0.0"):
        assert server.load(version=version) == (200, {})
    stop.set()
    for thread in threads:
        thread.join()
    assert {status for status, _, _ in found} == {200}, found
    assert server.versions() == ["1.0.0"]
    *before, now = server.loaded
    assert len(before) == 3
    assert [model() for model in before] == [None] * 3
    assert now() is server.repository.find("digits").model
    assert server.loader.retired.requests + now().recorders.totals().requests == len(found)


def test_a_model_is_closed_only_after_the_calls_that_found_it(shelf, start):
    shelf("1.0.0")
    shelf("1.1.0")
    server = start(shelf.directory)
    server.load(version="1.0.0")
    found = server.repository.find("digits")
    loading = threading.Thread(target=server.load, kwargs={"version": "1.1.0"})
    loading.start()
    while server.repository.find("digits").version == "1.0.0":
        loading.join(0.01)
    assert found.answer({"image": IMAGE}, 0).rows == 1
    assert loading.is_alive()
    del found
    loading.join(30)
    assert not loading.is_alive()


@pytest.mark.parametrize(
    ("broken", "status", "message"),
    [
        ("wrong", 403, "differs by"),
        ("nan", 403, "NaN"),
        ("raises", 500, "cannot run it"),
        ("torn", 400, "expected sha256"),
    ],
)
def test_a_version_that_fails_leaves_the_one_before(shelf, start, broken, status, message):
    shelf("1.0.0")
    server = start(shelf.directory)
    shelf("1.1.0", None if broken == "torn" else broken)
    if broken == "torn":
        model = shelf.directory / "digits-1.1.0" / "model.onnx"
        content = bytearray(model.read_bytes())
        content[-100] ^= 1
        model.write_bytes(content)
    got, answer = server.load()
    assert (got, server.versions()) == (status, ["1.0.0"])
    assert message in answer["error"]
    index = server.post("/v2/repository/index", {})[1]
    assert [(one["version"], one["state"]) for one in index] == [("1.0.0", "READY"), ("1.1.0", "UNAVAILABLE")]
    assert index[1]["reason"] == answer["error"]
    assert len(server.post("/v2/repository/index", {"ready": True})[1]) == 1


def test_a_canary_stands_beside_the_stable_version_until_it_becomes_it(shelf, start):
    shelf("1.0.0")
    server = start(shelf.directory)
    shelf("1.1.0")
    status, answer = server.load(version="1.0.0", label="canary")
    assert status == 409
    assert "which is the same" in answer["error"]
    assert server.load(label="canary") == (200, {})
    assert server.versions() == ["1.0.0", "1.1.0"]
    assert server.get("/v2/models/digits/versions/1.1.0/ready")[0] == 200
    assert server.repository.find("digits").version == "1.0.0"
    assert server.post("/v2/repository/models/digits/unload", {"parameters": {"label": "canary"}}) == (200, {})
    assert server.versions() == ["1.0.0"]
    server.load(label="canary")
    assert server.load(version="1.1.0") == (200, {})
    assert server.versions() == ["1.1.0"]
    server.load(version="1.0.0", label="canary")
    assert server.post("/v2/repository/models/digits/unload") == (200, {})
    assert server.repository.served == ()


def test_two_bundles_of_a_model_are_the_stable_one_and_its_canary(make_bundle, start):
    one, two, three = (make_bundle(version).path for version in ("1.0.0", "1.1.0", "1.2.0"))
    assert start(one, two).versions() == ["1.0.0", "1.1.0"]
    with pytest.raises(ConflictError, match="at most two versions of digits"):
        start(one, two, three)


def test_only_what_the_server_was_started_with_is_loaded(shelf, start, tmp_path, make_bundle):
    shelf("1.0.0")
    server = start(shelf.directory)
    outside = tmp_path / "outside"
    shutil.copytree(make_bundle("1.1.0").path, outside)
    (shelf.directory / "linked").symlink_to(outside)
    for bundle in ("../outside", str(outside), "linked", ".", "", "digits-1.0.0/"):
        status, answer = server.load(bundle=bundle)
        assert status == 404, bundle
        assert "there is digits-1.0.0" in answer["error"]
    assert server.load(bundle="digits-1.0.0") == (200, {})
    assert server.load(model="other", bundle="digits-1.0.0")[0] == 404


def test_signatures_are_asked_for_as_at_the_start(shelf, start, release_key):
    shelf("1.0.0")
    server = start(shelf.directory, keys=[release_key.public])
    assert server.load() == (200, {})
    stranger = Server(shelf.directory, keys=[SigningKey.generate().public])
    with pytest.raises(EdgeOpsError, match="expected a valid signature"):
        stranger.loader.start()
    status, answer = stranger.load()
    assert status == 404
    assert "expected a valid signature" in answer["error"]
    assert "valid signature" in stranger.post("/v2/repository/index")[1][0]["reason"]


def test_one_load_of_a_model_at_a_time(shelf, start):
    shelf("1.0.0")
    server = start(shelf.directory)
    running, most, entered = [], [], threading.Event()
    serve = server.loader._serve

    def slowly(directory):
        running.append(directory)
        most.append(len(running))
        entered.set()
        threading.Event().wait(0.05)
        running.pop()
        return serve(directory)

    server.loader._serve = slowly
    threads = [threading.Thread(target=server.load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entered.is_set()
    assert most == [1, 1, 1]


def test_directories_without_bundles_and_damaged_bundles(tmp_path, start, shelf):
    assert start(tmp_path / "models").repository.served == ()
    with pytest.raises(ManifestError, match="expected a bundle directory"):
        start(tmp_path / "nowhere")
    shelf("1.0.0")
    (shelf.directory / "digits-1.0.0" / "manifest.json").write_text("{}")
    with pytest.raises(EdgeOpsError, match=r"digits-1\.0\.0"):
        start(shelf.directory)


def test_methods_pages_and_paths_are_checked(shelf, start):
    shelf("1.0.0")
    server = start(shelf.directory)
    assert server.get("/v2/repository/index")[0] == 405
    assert server.post("/v2/repository/index", origin=b"http://example.org")[0] == 403
    assert server.post("/v2/repository/models/digits/reload")[0] == 404
    assert server.post("/v2/repository/index", b"[1")[0] == 400
    assert server.get("/v2/models/digits")[0] == 200
    request = Request(b"POST", b"/v2/repository/index", {}, b"", keep_alive=True)
    status, answer = server.ask(request, handler=server.protocols)
    assert status == 404
    assert "--admin" in answer["error"]
    assert (
        "model_repository"
        not in msgspec.json.decode(server.protocols(Request(b"GET", b"/v2", {}, b"", keep_alive=True)).body[0])[
            "extensions"
        ]
    )


def test_the_admin_socket_is_reached_from_this_machine_only():
    for address in ("unix:/run/admin", "127.0.0.1:8081", "[::1]:8081", "localhost:0"):
        assert check_address(address) == address
    for address in ("0.0.0.0:8081", "192.168.1.2:80", "[::]:80", "example.org:80", ":8081", "8081"):
        with pytest.raises(ConfigError, match=re.escape(repr(address))):
            check_address(address)


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.lists(st.text(max_size=2), max_size=2)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return Server(tmp_path_factory.mktemp("models"))


@settings(max_examples=100, deadline=None)
@given(
    parameters=VALUES
    | st.dictionaries(st.sampled_from(["version", "bundle", "label", "config", "unload_dependents"]), VALUES),
    verb=st.sampled_from(["load", "unload"]),
)
def test_no_json_is_an_internal_error(empty, parameters, verb):
    status, answer = empty.post(f"/v2/repository/models/digits/{verb}", json.dumps({"parameters": parameters}).encode())
    assert status in {400, 404}, answer
