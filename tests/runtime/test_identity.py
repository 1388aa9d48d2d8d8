"""Joining a fleet: over real HTTP, once."""

import base64
import json
import stat
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import msgspec
import pytest
from click.testing import CliRunner

from edgeops.enrolment import Enrolment, EnrolmentRequest
from edgeops.errors import ConfigError, MessageError, RefusedError, TransientError
from edgeops.signing import PublicKey, SigningKey
from edgeops_runtime.commands import edgeops_agent
from edgeops_runtime.config import load_config
from edgeops_runtime.identity import enrol, load_identity

ENROLMENT = Enrolment(
    fleet="f",
    group="g",
    device="camera-1",
    attributes={"site": "north"},
    director_key=SigningKey.generate().public.text,
    release_keys=(SigningKey.generate().public.text,),
    broker_host="b",
    broker_port=1883,
    url="http://fleet:8080/",
)


@pytest.fixture
def server():
    """Answers with ``server.answer``, a status and a body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.server.requests.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = self.server.answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_): ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.answer = [], (200, msgspec.json.encode(ENROLMENT))
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def join(directory, at, **fields):
    usual = {"server": at.url, "token": "secret", "device": "camera-1", "attributes": {"site": "north"}}
    return enrol(directory, **(usual | fields))


def test_enrolment_proves_the_key_and_keeps_the_answer(tmp_path, server):
    identity = join(tmp_path / "d", server)
    path, body = server.requests[0]
    request = msgspec.json.decode(body, type=EnrolmentRequest)
    assert path == "/api/v1/enrol"
    assert PublicKey(request.public_key).has_signed(b"secret", base64.b64decode(request.proof))
    assert request.attributes == {"site": "north"}
    assert b"secret" not in (tmp_path / "d" / "identity.json").read_bytes()
    again = load_identity(tmp_path / "d")
    assert again.enrolment == identity.enrolment == ENROLMENT
    for name in ("identity.json", "device.key"):
        assert stat.S_IMODE((tmp_path / "d" / name).stat().st_mode) == 0o600
    assert again.blob_url("/blobs") == "http://fleet:8080/blobs"
    assert again.blob_url("http://cdn/x") == "http://cdn/x"


def test_second_try_uses_the_same_key(tmp_path, server):
    server.answer = (503, b"")
    with pytest.raises(TransientError, match="503"):
        join(tmp_path, server)
    server.answer = (200, msgspec.json.encode(ENROLMENT))
    join(tmp_path, server)
    first, second = (msgspec.json.decode(body, type=EnrolmentRequest) for _, body in server.requests)
    assert first.public_key == second.public_key


def test_enrolled_device_does_not_use_up_another_token(tmp_path, server):
    join(tmp_path, server)
    with pytest.raises(ConfigError, match="enrolled already as camera-1"):
        join(tmp_path, server)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ((403, json.dumps({"detail": "the token was used"}).encode()), RefusedError, "the token was used"),
        ((200, b"<html>"), ConfigError, "enrolment"),
        ((200, b'{"fleet": "f"}'), ConfigError, "missing"),
    ],
)
def test_refusal_says_why_and_leaves_no_identity(tmp_path, server, answer, error, words):
    server.answer = answer
    with pytest.raises(error, match=words):
        join(tmp_path, server)
    with pytest.raises(ConfigError, match="not enrolled"):
        load_identity(tmp_path)


def test_wrong_names_and_addresses_are_refused_before_anything_is_sent(tmp_path, server):
    with pytest.raises(MessageError, match="camera/1"):
        join(tmp_path, server, device="camera/1")
    with pytest.raises(ConfigError, match="http://"):
        join(tmp_path, server, server="ftp://x")
    with pytest.raises(TransientError, match=r"127\.0\.0\.1:9"):
        join(tmp_path, server, server="http://127.0.0.1:9")
    assert server.requests == []


def test_command_line_joins_and_shows_the_state(tmp_path, server):
    runner = CliRunner()
    arguments = ["--server", server.url, "--token", "t", "--device", "camera-1", "--data", str(tmp_path / "d")]
    done = runner.invoke(edgeops_agent, ["enrol", *arguments, "--attribute", "site=south", "--listen", "127.0.0.1:0"])
    assert done.exit_code == 0, done.output
    assert load_config(tmp_path / "d" / "agent.toml").serving_address({}) == "127.0.0.1:0"
    request = msgspec.json.decode(server.requests[0][1], type=EnrolmentRequest)
    assert request.attributes["site"] == "south"
    assert request.attributes["arch"]
    shown = runner.invoke(edgeops_agent, ["status", "--config", str(tmp_path / "d" / "agent.toml"), "--json"])
    state = json.loads(shown.output)
    assert (state["device"], state["running"], state["current"]) == ("camera-1", False, None)
    assert "camera-1" in runner.invoke(edgeops_agent, ["status", "--config", str(tmp_path / "d" / "agent.toml")]).output


def test_without_an_address_inferences_are_served_on_a_unix_socket(tmp_path, server):
    arguments = ["--server", server.url, "--token", "t", "--device", "camera-1", "--data", str(tmp_path / "d")]
    done = CliRunner().invoke(edgeops_agent, ["enrol", *arguments])
    assert done.exit_code == 0, done.output
    config = load_config(tmp_path / "d" / "agent.toml")
    assert config.serving_address({}) == f"unix:{tmp_path / 'd' / 'serve.sock'}"
    assert config.serving_address({"RUNTIME_DIRECTORY": "/run/edgeops"}) == "unix:/run/edgeops/serve.sock"
