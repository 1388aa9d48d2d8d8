import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from http.client import HTTPConnection

import pytest

from edgeops.signing import SigningKey
from edgeops.tensors import TensorSpec


@pytest.fixture
def serve():
    running = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "edgeops", "serve", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def lines_until(process, wanted):
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if wanted in line:
            return lines
    raise AssertionError(f"ended without {wanted!r}: {lines} {process.stderr.read()}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_prints_an_address_that_answers_and_ends_cleanly(make_bundle, release_key, serve, number):
    process = serve(make_bundle("1.0.0").path, "--listen", "127.0.0.1:0", "--key", release_key.public.text)
    lines = lines_until(process, "curl")
    assert lines[0].startswith("digits 1.0.0, variant onnx on onnxruntime")
    address = next(line for line in lines if line.startswith("listening on ")).split()[2].rstrip(";")
    client = HTTPConnection(address, timeout=20)
    client.request("GET", lines[-1].split(address)[1].split()[0])
    assert client.getresponse().status == 200
    client.close()
    process.send_signal(number)
    rest, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert "stopped after 0 requests" in rest


def test_serve_listens_on_a_unix_socket_and_removes_it(make_bundle, serve, tmp_path):
    path = tmp_path / "socket"
    process = serve(make_bundle("1.0.0").path, "--listen", f"unix:{path}", "--threads", 2)
    lines = lines_until(process, "curl")
    assert f"--unix-socket {path} http://localhost/v2/models/digits" in lines[-1]
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(b"GET /v2/health/ready HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert not path.exists()


def test_serve_runs_the_variant_and_engine_that_were_asked_for(small_bundle, serve):
    process = serve(small_bundle.path, "--listen", "127.0.0.1:0", "--engine", "litert")
    assert lines_until(process, "curl")[0].startswith("digits 1.0.0, variant tflite-float on litert")


def ask_unix(path, request):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(f"{request}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())
        return b"".join(iter(lambda: client.recv(65536), b"")).decode()


def test_serve_takes_several_bundles_and_directories_of_them_and_is_managed_over_its_admin_socket(
    make_bundle, serve, tmp_path
):
    models = tmp_path / "models"
    for version in ("1.0.0", "1.1.0"):
        shutil.copytree(make_bundle(version).path, models / version)
    other = make_bundle("2.0.0", name="other").path
    listen, admin = tmp_path / "listen", tmp_path / "admin"
    process = serve(models, other, "--listen", f"unix:{listen}", "--admin", f"unix:{admin}")
    lines = lines_until(process, "admin on ")
    assert [line.split(",")[0] for line in lines if "variant" in line] == ["digits 1.1.0", "other 2.0.0"]
    assert [line.rpartition("/")[2] for line in lines if "curl" in line] == ["digits", "other"]
    assert stat.S_IMODE(admin.stat().st_mode) == 0o600
    load = "POST /v2/repository/models/digits/load HTTP/1.1"
    assert ask_unix(listen, load).startswith("HTTP/1.1 404")
    assert ask_unix(admin, "POST /v2/repository/models/other/unload HTTP/1.1").startswith("HTTP/1.1 200")
    assert ask_unix(admin, load).startswith("HTTP/1.1 200")
    assert ask_unix(listen, "GET /v1/models/digits HTTP/1.1").startswith("HTTP/1.1 200")
    assert ask_unix(listen, "GET /v2/models/other HTTP/1.1").startswith("HTTP/1.1 404")
    assert 'edgeops_requests_total{model="digits",version="1.1.0"} 0' in ask_unix(admin, "GET /metrics HTTP/1.1")
    process.send_signal(signal.SIGTERM)
    rest, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert "stopped after 0 requests" in rest
    assert not listen.exists()
    assert not admin.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--key", "not a key"], 1, "public key: expected the base64 of 32 bytes"),
        (["--key", SigningKey.generate().public.text], 1, "expected a valid signature"),
        (["--variant", "huge"], 1, "no variant 'huge'"),
        (["--engine", "cloud"], 1, "engine 'cloud': expected one of"),
        (["--engine", "litert"], 1, "nothing in it can run here on litert"),
        (["--listen", "nonsense"], 1, "expected host:port or unix:/path"),
        (["--admin", "0.0.0.0:0"], 1, "expected unix:/path, or a port of the loopback interface"),
        (["--mqtt", "mqtt://127.0.0.1"], 1, "expected mqtt://host:port/prefix"),
        (["--threads", "0"], 2, "Invalid value for '--threads'"),
    ],
)
def test_serve_refuses_what_cannot_work(make_bundle, serve, arguments, code, message):
    process = serve(make_bundle("1.0.0").path, "--listen", "127.0.0.1:0", *arguments)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert message in errors
    assert "Traceback" not in errors


def test_serve_does_not_start_with_nothing_and_no_way_to_get_something(serve, tmp_path):
    process = serve(tmp_path)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "no bundle there, and no --admin socket" in errors


def test_serve_says_where_there_is_no_bundle(serve, tmp_path):
    process = serve(tmp_path / "nowhere")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "expected a bundle directory with manifest.json" in errors


def test_the_example_of_a_small_model_is_a_whole_request(make_bundle):
    import msgspec

    from edgeops_runtime.cli import curl_line

    manifest = msgspec.structs.replace(
        make_bundle("1.0.0").manifest,
        inputs=(TensorSpec("x", "FP32", ("batch", 2)),),
        variants=tuple(msgspec.structs.replace(v, inputs={"x": "x"}) for v in make_bundle("1.0.0").manifest.variants),
    )
    line = curl_line(manifest, "127.0.0.1:8080")
    assert line == (
        "curl -s http://127.0.0.1:8080/v2/models/digits/infer "
        """-d '{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[0,0]}]}'"""
    )
