"""What hostile devices, broken clients and full disks send and do; everybody else is served as before."""

import base64
import concurrent.futures
import io
import tarfile

import msgspec
import pytest
from fleet_rig import GROUP, archive, enrolment_request, wait_for

from edgeops.messages import Death, encode_json
from edgeops.signing import SigningKey
from edgeops.topics import Topics, Upstream

TOPICS = Topics("test")

HUGE = 10**20


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/v1/tokens", {"uses": HUGE}),
        ("POST", "/api/v1/tokens", {"uses": 2**63}),
        ("POST", "/api/v1/tokens", {"attributes": {"a": {"b": 1}}}),
        ("POST", "/api/v1/tokens", ["no"]),
        ("POST", "/api/v1/labels", [{"sample": "x", "label": HUGE}]),
        ("POST", "/api/v1/rollouts", {"group": "../x", "model": "m", "version": "1.0.0"}),
        ("POST", "/api/v1/rollouts", {"group": GROUP, "model": "m", "version": "1.0.0", "where": "__import__('os')"}),
        ("POST", "/api/v1/rollouts/r-1/explode", {}),
        ("POST", "/api/v1/devices/x/command", {"kind": "collect", "count": -1}),
        ("POST", "/api/v1/devices/x/command", {"kind": "collect", "share": 2.0}),
        ("GET", f"/api/v1/log?after={HUGE}", None),
        ("GET", "/api/v1/log?limit=0", None),
        ("GET", "/api/v1/samples/%00/inputs", None),
        ("GET", "/api/v1/datasets/..%2f..%2foperator.token/x", None),
        ("GET", "/api/v1/datasets/x/..%2f..%2foperator.token", None),
        ("GET", "/blobs/sha256:..%2f..%2foperator.token", None),
        ("GET", "/blobs/..%2f..%2foperator.token", None),
        ("GET", "/api/v1/bundles/%2e%2e%2foperator.token/manifest", None),
    ],
)
def test_nonsense_is_refused_with_a_reason(shared_rig, method, path, body):
    status, answer = shared_rig.api.call(method, path, body)
    assert 400 <= status < 500, (status, answer)
    assert answer["error"] if "error" in answer else answer["detail"]


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"uses": 1e999}', b"null"])
def test_bodies_that_are_no_json_are_refused(shared_rig, raw):
    status, answer = shared_rig.api.call("POST", "/api/v1/tokens", raw=raw)
    assert (status, "body" in answer["error"]) == (400, True)


def test_a_body_without_end_is_refused(shared_rig):
    status, answer = shared_rig.api.call("POST", "/api/v1/tokens", raw=b" " * (17 << 20))
    assert (status, "at most" in answer["error"]) == (400, True)


def bundles_in(rig):
    return rig.api.get("/api/v1/bundles")["bundles"], sorted((rig.directory / "scratch").glob("*"))


def test_damaged_and_tricky_bundles_leave_nothing(rig, make_bundle, tmp_path):
    good = archive(make_bundle("1.0.0"), tmp_path)
    evil = io.BytesIO()
    with tarfile.open(fileobj=evil, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../../operator.token"), io.BytesIO(b""))
    link = io.BytesIO()
    with tarfile.open(fileobj=link, mode="w") as tar:
        info = tarfile.TarInfo("manifest.json")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    token = (rig.directory / "operator.token").read_bytes()
    for raw in (
        good[: len(good) // 2],
        good.replace(b"digits", b"digitz"),
        b"x" * 5000,
        evil.getvalue(),
        link.getvalue(),
    ):
        status, answer = rig.api.call("POST", "/api/v1/bundles", raw=raw)
        assert (400 <= status < 500, bool(answer["error"])) == (True, True), (status, answer)
        assert bundles_in(rig) == ([], [])
    assert (rig.directory / "operator.token").read_bytes() == token
    assert rig.api.call("POST", "/api/v1/bundles", raw=good)[0] == 201


def test_a_bundle_that_is_too_large_is_refused_before_it_is_whole(make_rig, make_bundle, tmp_path):
    rig = make_rig(max_bundle_bytes=1000)
    status, answer = rig.api.call("POST", "/api/v1/bundles", raw=archive(make_bundle("1.0.0"), tmp_path))
    assert (status, "max_bundle_bytes" in answer["error"]) == (400, True)
    assert bundles_in(rig) == ([], [])


def test_a_full_disk_is_told_and_nothing_is_half_written(rig, make_bundle, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    raw = archive(make_bundle("1.0.0"), tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("edgeops_fleet.catalog.tempfile.mkdtemp", full)
        status, answer = rig.api.call("POST", "/api/v1/bundles", raw=raw)
    assert (status, "No space left" in answer["error"]) == (507, True)
    assert rig.api.call("POST", "/api/v1/bundles", raw=raw)[0] == 201


def test_a_replayed_enrolment_gives_the_token_to_nobody_else(rig):
    token = rig.token()
    mine, other = SigningKey.generate(), SigningKey.generate()
    request = enrolment_request("device-0", token, mine)
    assert rig.api.call("POST", "/api/v1/enrol", request)[0] == 200
    assert rig.api.call("POST", "/api/v1/enrol", request)[0] == 200, "the same device asks again"
    assert rig.api.call("POST", "/api/v1/enrol", enrolment_request("device-0", token, other))[0] in {403, 409}
    assert rig.api.call("POST", "/api/v1/enrol", enrolment_request("device-1", token, mine))[0] in {403, 409}
    stolen = {**enrolment_request("device-2", rig.token(), other), "proof": base64.b64encode(bytes(64)).decode()}
    assert rig.api.call("POST", "/api/v1/enrol", stolen)[0] in {400, 403}


def test_an_expired_token_is_refused(rig):
    token = rig.token(ttl_s=10.0)
    rig.clock.advance(11)
    assert rig.api.call("POST", "/api/v1/enrol", enrolment_request("d", token, SigningKey.generate()))[0] == 403


def test_two_hundred_requests_at_once_are_all_answered(rig):
    for number in range(5):
        rig.add_device(f"device-{number}")
    paths = ["/api/v1/devices", "/api/v1/rollouts", "/api/v1/log", "/api/v1/drift", "/healthz"]
    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        statuses = list(pool.map(lambda number: rig.api.call("GET", paths[number % 5])[0], range(200)))
    assert statuses == [200] * 200


GARBAGE = [b"", b"\x00", b"{}", b"[" * 50_000, b"\xc1" * 100, b"x\x9c" + b"\xff" * 50, b'{"device": "other"}', b"null"]


@pytest.mark.parametrize("kind", list(Upstream))
def test_garbage_on_every_topic_is_counted_and_the_next_message_is_stored(rig, kind):
    device = rig.add_device("device-0")
    for topic in (TOPICS.upstream("device-0", kind), TOPICS.upstream("nobody", kind)):
        for payload in GARBAGE:
            device.link.publish(topic, payload)
    device.report("digits", "offered", version="1.0.0", digest="sha256:" + "0" * 64, rollout=None)
    wait_for(lambda: device.acked.get("event") == 1, "the good record is stored")
    assert rig.api.get("/healthz")["ingest"]["bad"] >= len(GARBAGE)


def test_a_device_cannot_speak_for_another_in_births_and_deaths(rig):
    rig.add_device("victim")
    attacker = rig.add_device("attacker")
    death = encode_json(Death(device="victim", boot=99, session=99))
    attacker.link.publish(TOPICS.upstream("attacker", Upstream.DEATH), death)
    wait_for(lambda: rig.api.get("/healthz")["ingest"]["bad"], "refused")
    assert rig.api.get("/api/v1/devices/victim")["online"]


def test_numbers_that_no_database_can_hold_spoil_nobody_elses_records(rig):
    attacker, device = rig.add_device("attacker"), rig.add_device("device-0")
    for each in (attacker, device):
        each.current["digits"] = ("1.0.0", "sha256:" + "0" * 64)
    attacker.window(requests=2**63)
    attacker.window(rows=2**64 - 1)
    record = attacker.gap("event", 1, 2**63 - 1)
    attacker.send(Upstream.EVENT, record)
    attacker.window(start=float("nan"))
    device.window()
    wait_for(lambda: device.acked.get("telemetry") == 1, "stored")
    wait_for(lambda: rig.api.get("/healthz")["ingest"]["bad"] >= 4, "refused")
    attacker.window()
    wait_for(
        lambda: attacker.acked.get("telemetry", 0) >= 4, "what cannot be stored does not hold up what comes after it"
    )


def test_hostile_names_are_text_on_the_dashboard(rig):
    hostile = "<script>alert(1)</script>"
    device = rig.add_device("device-0", site=hostile)
    device.report("digits", "failed", version="1.0.0", digest="sha256:" + "0" * 64, rollout=None, reason=hostile)
    wait_for(lambda: device.acked.get("event") == 1, "stored")
    import urllib.request

    with urllib.request.urlopen(rig.api.url + "/", timeout=10) as answer:
        page = answer.read().decode()
    assert hostile not in page
    assert "&lt;script&gt;" in page
    assert msgspec.json.encode(rig.api.get("/api/v1/devices/device-0"))
