"""Envelopes: only the key, the kind and the exact bytes open them."""

import json
import stat
from pathlib import Path

import pytest

from edgeops.errors import ConfigError, UntrustedError
from edgeops.signing import DESIRED, MANIFEST, PublicKey, SigningKey, seal, unseal

PAYLOAD = b'{"b": 1,  "a": [1, 2]}'


def test_payload_comes_back_byte_for_byte(key: SigningKey) -> None:
    assert unseal(seal(PAYLOAD, kind=MANIFEST, keys=[key]), kind=MANIFEST, keys=[key.public]) == PAYLOAD


def test_one_of_several_signatures_is_enough(key: SigningKey) -> None:
    other = SigningKey.generate()
    envelope = seal(PAYLOAD, kind=MANIFEST, keys=[other, key])
    assert unseal(envelope, kind=MANIFEST, keys=[SigningKey.generate().public, key.public]) == PAYLOAD


def test_signature_for_one_kind_does_not_open_another(key: SigningKey) -> None:
    with pytest.raises(UntrustedError):
        unseal(seal(PAYLOAD, kind=MANIFEST, keys=[key]), kind=DESIRED, keys=[key.public])


def test_every_flipped_bit_is_found(key: SigningKey) -> None:
    envelope = seal(PAYLOAD, kind=DESIRED, keys=[key])
    for position in range(len(envelope)):
        changed = bytearray(envelope)
        changed[position] ^= 4
        try:
            opened = unseal(bytes(changed), kind=DESIRED, keys=[key.public])
        except UntrustedError:
            continue
        assert opened == PAYLOAD


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b'{"payload": {}}', b"\x00\xff"])
def test_what_is_no_signed_envelope_is_untrusted(key: SigningKey, data: bytes) -> None:
    with pytest.raises(UntrustedError):
        unseal(data, kind=DESIRED, keys=[key.public])


def test_key_with_a_stolen_id_does_not_pass(key: SigningKey) -> None:
    envelope = json.loads(seal(PAYLOAD, kind=DESIRED, keys=[SigningKey.generate()]))
    envelope["signatures"][0]["key"] = key.public.id
    with pytest.raises(UntrustedError):
        unseal(json.dumps(envelope).encode(), kind=DESIRED, keys=[key.public])


def test_private_key_file_is_for_its_owner_only(tmp_path: Path, key: SigningKey) -> None:
    path = tmp_path / "release.key"
    key.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path).public.text == key.public.text


@pytest.mark.parametrize("text", ["", "not base64!", "AAAA"])
def test_what_is_no_key_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.key"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.key"):
        SigningKey.load(path)
    with pytest.raises(ConfigError, match="public key"):
        PublicKey(text)
