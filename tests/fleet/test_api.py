import base64
import json
import threading
import urllib.request

import pytest
from fleet_rig import GROUP, wait_for


def test_changing_anything_needs_the_operators_token(rig):
    for authorization in ("", "Bearer wrong", "Bearer", "Basic " + base64.b64encode(b"x:wrong").decode()):
        status, answer = rig.api.call("POST", "/api/v1/tokens", {}, Authorization=authorization)
        assert status == 401, authorization
        assert "operator" in answer["error"]


def test_reading_on_this_machine_is_open(rig):
    assert rig.api.call("GET", "/api/v1/devices", Authorization="")[0] == 200


def test_reading_from_elsewhere_needs_the_token(rig, monkeypatch):
    monkeypatch.setattr("edgeops_fleet.api.doorkeeper.is_loopback", lambda _: False)
    assert rig.api.call("GET", "/api/v1/devices", Authorization="")[0] == 401
    assert rig.api.call("GET", "/", Authorization="")[0] == 401
    assert rig.api.call("GET", "/api/v1/devices")[0] == 200
    password = base64.b64encode(f"me:{rig.api.token}".encode()).decode()
    assert rig.api.call("GET", "/api/v1/devices", Authorization=f"Basic {password}")[0] == 200
    assert rig.api.call("GET", "/healthz", Authorization="")[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/v1/rollouts", {"group": "g", "model": "m", "version": "1.0.0"}, 404, "not in the catalog"),
        ("/api/v1/rollouts", {"group": "g", "model": "m", "version": "x"}, 400, "major.minor.patch"),
        ("/api/v1/rollouts", {"group": "g", "model": "m", "version": "1.0.0", "wave": 3}, 400, "wave"),
        ("/api/v1/rollouts/r-1/pause", {}, 404, "r-1"),
        ("/api/v1/rollouts/r-1/explode", {}, 400, "action"),
        ("/api/v1/devices/nobody/command", {"kind": "report"}, 404, "not enrolled"),
        ("/api/v1/tokens", {"uses": 0}, 400, "uses"),
        ("/api/v1/nowhere", {}, 404, "Not Found"),
    ],
)
def test_requests_that_make_no_sense_are_told_so(shared_rig, path, body, status, words):
    came, answer = shared_rig.api.call("POST", path, body)
    assert (came, words in answer["error"]) == (status, True), answer


def test_a_body_that_is_no_json_is_told_so(shared_rig):
    status, answer = shared_rig.api.call("POST", "/api/v1/tokens", raw=b"{half")
    assert (status, answer["error"].startswith("body: ")) == (400, True)


def test_the_document_describes_every_body(rig):
    document = rig.api.get("/openapi.json")
    schemas = document["components"]["schemas"]
    assert {"RolloutSpec", "Plan", "RolloutView", "EnrolmentRequest", "Enrolment", "LabelRequest"} <= set(schemas)
    body = document["paths"]["/api/v1/rollouts"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/RolloutSpec"}
    text = json.dumps(document)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in schemas


def test_the_log_is_streamed_as_it_is_written(rig):
    lines, ready = [], threading.Event()

    def follow():
        with urllib.request.urlopen(f"{rig.server.url}/api/v1/stream") as stream:
            for line in stream:
                ready.set()
                if line.startswith(b"data: "):
                    lines.append(json.loads(line[6:])["text"])

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    assert ready.wait(10)
    rig.token()
    wait_for(lambda: lines, "a line")
    assert lines == [f"token for 1 device(s) of group {GROUP}, valid for 3600 s"]
    rig.server.stop()
    reader.join(timeout=10)
    assert not reader.is_alive()


def test_a_command_reaches_its_device(rig):
    device = rig.add_device("camera-1")
    answer = rig.api.post("/api/v1/devices/camera-1/command", {"kind": "collect", "model": "digits", "count": 5})
    wait_for(lambda: device.commands, "the command")
    assert (device.commands[0].id, device.commands[0].count) == (answer["id"], 5)


def test_the_dashboard_is_there(rig):
    with urllib.request.urlopen(rig.server.url) as page:
        assert page.headers["Content-Type"].startswith("text/html")


def test_health_tells_when_the_broker_is_away(rig):
    assert rig.api.get("/healthz")["status"] == "ok"
    rig.broker.cut()
    assert rig.api.call("GET", "/healthz")[0] == 503
