"""Signatures checked by another process: what is believed, and what is when there is no answer."""

import sys

import pytest

from edgeops.errors import UntrustedError
from edgeops.signing import DESIRED, MANIFEST, SigningKey, seal
from edgeops_runtime.notary import Answer, Notary, answer

NOBODY = ("/nonexistent/notary",)


def says(program: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", program)


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="module")
def envelope(key) -> bytes:
    return seal(b'{"a": 1}', kind=DESIRED, keys=[key])


def test_real_process_tells_what_is_signed_from_what_is_not(key, envelope):
    notary = Notary()
    assert notary(envelope, kind=DESIRED, keys=[key.public]) == b'{"a": 1}'
    with pytest.raises(UntrustedError, match="expected a valid signature"):
        notary(envelope.replace(b"1}", b"2}"), kind=DESIRED, keys=[key.public])


def test_what_was_trusted_is_trusted_again_without_a_process_for_exactly_these_bytes_kind_and_keys(key, envelope):
    notary, other = Notary(), SigningKey.generate()
    notary(envelope, kind=DESIRED, keys=[key.public])
    notary._command = says("import os; os.abort()")
    assert notary(envelope, kind=DESIRED, keys=[key.public]) == b'{"a": 1}'
    for changed, kind, keys in (
        (envelope + b" ", DESIRED, [key.public]),
        (envelope, MANIFEST, [key.public]),
        (envelope, DESIRED, [key.public, other.public]),
    ):
        with pytest.raises(UntrustedError, match="ended by signal 6"):
            notary(changed, kind=kind, keys=keys)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"payload": {}, "signatures": []}'])
def test_what_no_key_of_ours_has_signed_is_refused_without_a_process(key, data):
    with pytest.raises(UntrustedError):
        Notary(NOBODY)(data, kind=DESIRED, keys=[key.public])


def test_without_keys_nobody_is_asked(envelope):
    assert Notary(NOBODY)(envelope, kind=DESIRED, keys=None) == b'{"a": 1}'


@pytest.mark.parametrize(
    "command",
    [
        NOBODY,
        says("import time; time.sleep(60)"),
        says("raise SystemExit(3)"),
        says("print('yes')"),
        says("""print('{"request": "sha256:0"}')"""),
        says("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
    ],
)
def test_where_no_answer_is_to_be_had_the_check_is_made_here(key, envelope, command):
    notary = Notary(command, limit_s=0.5)
    assert notary(envelope, kind=DESIRED, keys=[key.public]) == b'{"a": 1}'
    with pytest.raises(UntrustedError, match="expected a valid signature"):
        notary(envelope.replace(b"1}", b"2}"), kind=DESIRED, keys=[key.public])


def test_answer_names_the_request(key, envelope):
    import msgspec

    from edgeops.files import digest_bytes
    from edgeops_runtime.notary import Request

    data = msgspec.json.encode(Request(envelope, DESIRED, (key.public.text,)))
    assert answer(data) == Answer(request=digest_bytes(data))
    wrong = msgspec.json.encode(Request(envelope, DESIRED, ("no key",)))
    assert "public key" in answer(wrong).objection
