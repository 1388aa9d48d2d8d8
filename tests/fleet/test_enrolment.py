import base64

import pytest
from fleet_rig import GROUP, enrolment_request

from edgeops.signing import SigningKey


@pytest.fixture
def key():
    return SigningKey.generate()


def enrol(rig, request):
    return rig.api.call("POST", "/api/v1/enrol", request)


def test_a_token_makes_a_device_a_member_and_the_servers_attributes_win(rig, key):
    token = rig.token(attributes={"site": "north"})
    status, answer = enrol(rig, enrolment_request("camera-1", token, key, site="moon", hw="pi4"))
    assert status == 200
    assert (answer["fleet"], answer["group"], answer["device"]) == ("test", GROUP, "camera-1")
    assert answer["attributes"] == {"site": "north", "hw": "pi4"}
    assert answer["director_key"] == rig.server.director_key.public.text
    assert answer["release_keys"] == [key.text for key in rig.server.release_keys]
    assert answer["url"] == rig.server.url


def test_enrolling_needs_no_operator_token(rig, key):
    request = enrolment_request("camera-1", rig.token(), key)
    status, _ = rig.api.call("POST", "/api/v1/enrol", request, Authorization="")
    assert status == 200


def test_the_same_device_gets_the_same_answer_after_a_lost_one(rig, key):
    request = enrolment_request("camera-1", rig.token(), key)
    first = enrol(rig, request)
    rig.clock.advance(10_000)
    assert enrol(rig, request) == first


def test_a_device_id_belongs_to_its_key(rig, key):
    enrol(rig, enrolment_request("camera-1", rig.token(), key))
    status, answer = enrol(rig, enrolment_request("camera-1", rig.token(), SigningKey.generate()))
    assert status == 409
    assert "another key" in answer["error"]


def test_an_unknown_token_is_refused(rig, key):
    status, answer = enrol(rig, enrolment_request("camera-1", "eo_made_up", key))
    assert (status, "unknown" in answer["error"]) == (403, True)


def test_a_used_up_token_is_refused(rig, key):
    token = rig.token(uses=2)
    for name in ("a", "b"):
        assert enrol(rig, enrolment_request(name, token, SigningKey.generate()))[0] == 200
    status, answer = enrol(rig, enrolment_request("c", token, key))
    assert (status, "used up (2 of 2)" in answer["error"]) == (403, True)


def test_an_expired_token_is_refused(rig, key):
    token = rig.token(ttl_s=60)
    rig.clock.advance(61)
    status, answer = enrol(rig, enrolment_request("camera-1", token, key))
    assert (status, "expired" in answer["error"]) == (403, True)


def test_a_proof_by_another_key_is_refused_and_the_token_stays_good(rig, key):
    token = rig.token()
    other = SigningKey.generate()
    forged = {
        **enrolment_request("camera-1", token, key),
        "proof": base64.b64encode(other.sign(token.encode())).decode(),
    }
    status, answer = enrol(rig, forged)
    assert (status, "proof" in answer["error"]) == (403, True)
    assert enrol(rig, enrolment_request("camera-1", token, key))[0] == 200


@pytest.mark.parametrize(
    "wrong", [{"device": "no/slash"}, {"device": ""}, {"public_key": "nonsense"}, {"proof": "%%%"}, {"token": 3}]
)
def test_requests_that_make_no_sense_are_told_so(rig, key, wrong):
    status, answer = enrol(rig, {**enrolment_request("camera-1", rig.token(), key), **wrong})
    assert status == 400, answer


def test_only_the_digest_of_a_token_is_kept(rig):
    token = rig.token()
    database = b"".join(path.read_bytes() for path in rig.directory.glob("fleet.db*"))
    assert token.encode() not in database
