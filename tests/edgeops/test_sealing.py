import pytest

from edgeops.errors import ConfigError, UntrustedError
from edgeops.sealing import SealingKey, seal


@pytest.fixture
def key(tmp_path):
    return SealingKey.load_or_generate(tmp_path / "sealing.key")


def test_what_is_sealed_is_opened_by_its_recipient_only(tmp_path, key):
    sealed = seal(b"a face", to=key.public, about="sample c-1")
    assert b"a face" not in sealed
    assert key.open(sealed, about="sample c-1") == b"a face"
    assert seal(b"a face", to=key.public, about="sample c-1") != sealed
    with pytest.raises(UntrustedError, match="not sealed to this key"):
        SealingKey.load_or_generate(tmp_path / "another.key").open(sealed, about="sample c-1")


@pytest.mark.parametrize("place", [0, 31, 32, 40, -1])
def test_what_was_changed_or_passed_off_is_refused(key, place):
    sealed = bytearray(seal(b"a face", to=key.public, about="sample c-1"))
    with pytest.raises(UntrustedError):
        key.open(bytes(sealed), about="sample c-2")
    sealed[place] ^= 1
    with pytest.raises(UntrustedError):
        key.open(bytes(sealed), about="sample c-1")
    with pytest.raises(UntrustedError):
        key.open(bytes(sealed[:20]), about="sample c-1")


def test_a_key_is_kept_and_its_file_is_its_owners_only(tmp_path, key):
    path = tmp_path / "sealing.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert SealingKey.load_or_generate(path).public == key.public


@pytest.mark.parametrize("text", ["", "no base64!", "YWJj"])
def test_what_is_no_key_is_said(tmp_path, text):
    with pytest.raises(ConfigError, match="32 bytes"):
        seal(b"x", to=text, about="y")
    path = tmp_path / "damaged.key"
    path.write_text(text)
    with pytest.raises(ConfigError, match="32 bytes"):
        SealingKey.load_or_generate(path)
