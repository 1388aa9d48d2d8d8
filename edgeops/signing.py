"""Ed25519 signatures over exact bytes, in an envelope that a person can read.

An envelope is JSON: ``{"payload": {…}, "signatures": [{"key": "…", "value": "…"}]}``. The signature covers the bytes of
``payload`` as they stand in the envelope, after a prefix that names the kind of document, so that a signed manifest never
passes as a signed desired state. Which keys to trust is the caller's knowledge.

The library behind it is imported when a signature is made or checked, and takes 7 MB: a process that only hands keys on, as the
agent of a device does, has none of it.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from edgeops.errors import ConfigError, UntrustedError
from edgeops.files import make_directories, write_durably

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MANIFEST = "manifest"
DESIRED = "desired"

_KEY_BYTES = 32


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signature: the id of the key that made it, and its 64 bytes in base64."""

    key: str
    value: str


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A payload, byte for byte, with its signatures."""

    payload: msgspec.Raw
    signatures: tuple[Signature, ...] = ()


class PublicKey:
    """The half of a key pair that may be known to all; written as the base64 of its 32 bytes."""

    def __init__(self, text: str) -> None:
        """Read a public key.

        Raises:
            ConfigError: The text is not the base64 of 32 bytes.
        """
        try:
            self._raw = base64.b64decode(text, validate=True)
        except ValueError:
            self._raw = b""
        if len(self._raw) != _KEY_BYTES:
            raise ConfigError(f"public key: expected the base64 of {_KEY_BYTES} bytes, got {text[:60]!r}")
        self.text = text
        self.id = hashlib.sha256(self._raw).hexdigest()[:16]

    def has_signed(self, data: bytes, signature: bytes) -> bool:
        """Whether this key made the signature over the data."""
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - see above: only where it is used
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415 - likewise

        try:
            Ed25519PublicKey.from_public_bytes(self._raw).verify(signature, data)
        except (InvalidSignature, ValueError):  # ValueError: 32 bytes that are no point on the curve.
            return False
        return True


class SigningKey:
    """A private key; kept in a file of mode 0600 that holds the base64 of its 32 bytes."""

    def __init__(self, key: "Ed25519PrivateKey") -> None:
        self._key = key
        self.public = PublicKey(base64.b64encode(key.public_key().public_bytes_raw()).decode())

    @classmethod
    def generate(cls) -> "SigningKey":
        """Make a new key pair."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - see above

        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> "SigningKey":
        """Read a private key.

        Raises:
            ConfigError: The file is missing or does not hold a key.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - see above

        try:
            raw = base64.b64decode(path.read_text().strip(), validate=True)
            return cls(Ed25519PrivateKey.from_private_bytes(raw))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: expected a private key (base64 of 32 bytes): {error}") from error

    @classmethod
    def load_or_generate(cls, path: Path) -> "SigningKey":
        """Read a private key; where the file is missing, make one and write it first."""
        if path.exists():
            return cls.load(path)
        key = cls.generate()
        make_directories(path.parent)
        key.save(path)
        return key

    def save(self, path: Path) -> None:
        """Write the private key with mode 0600.

        Raises:
            ConfigError: It cannot be written there.
        """
        raw = self._key.private_bytes_raw()
        try:
            write_durably(path, base64.b64encode(raw) + b"\n", mode=0o600)
        except OSError as error:
            raise ConfigError(f"{path}: a key cannot be written there: {error.strerror}") from error

    def sign(self, data: bytes) -> bytes:
        """The 64 bytes of the signature over the data."""
        return self._key.sign(data)


class Unseal(Protocol):
    """Takes payloads out of envelopes, as :func:`unseal` does."""

    def __call__(self, envelope: bytes, *, kind: str, keys: Iterable[PublicKey] | None) -> bytes:
        """See :func:`unseal`.

        Raises:
            UntrustedError: It is not an envelope, or none of the keys signed it.
        """


def seal(payload: bytes, *, kind: str, keys: Iterable[SigningKey] = ()) -> bytes:
    """Put a JSON document into an envelope.

    Args:
        payload: The JSON text of an object; it stands in the envelope unchanged.
        kind: :data:`MANIFEST` or :data:`DESIRED`; part of what is signed.
        keys: Who signs; none gives an unsigned envelope.
    """
    message = _signed_bytes(payload, kind)
    signatures = tuple(Signature(key=key.public.id, value=base64.b64encode(key.sign(message)).decode()) for key in keys)
    return msgspec.json.encode(Envelope(payload=msgspec.Raw(payload), signatures=signatures))


def unseal(envelope: bytes, *, kind: str, keys: Iterable[PublicKey] | None) -> bytes:
    """Take the payload out of an envelope.

    Args:
        envelope: What :func:`seal` made.
        kind: The kind of document that is expected.
        keys: One of these must have signed; ``None`` does not ask for a signature (inspection, development).

    Raises:
        UntrustedError: It is not an envelope, or none of the keys signed it.
    """
    opened = open_envelope(envelope, kind=kind)
    payload = bytes(opened.payload)
    if keys is None:
        return payload
    message = _signed_bytes(payload, kind)
    trusted = {key.id: key for key in keys}
    for signature in opened.signatures:
        key = trusted.get(signature.key)
        if key is not None and key.has_signed(message, _decode(signature.value)):
            return payload
    signers = ", ".join(signature.key for signature in opened.signatures) or "nobody"
    raise UntrustedError(
        f"{kind}: expected a valid signature by one of the keys {sorted(trusted)}, got one by {signers}"
    )


def open_envelope(envelope: bytes, *, kind: str) -> Envelope:
    """Read an envelope without believing it.

    Args:
        envelope: What :func:`seal` made.
        kind: Named in errors.

    Raises:
        UntrustedError: It is not an envelope.
    """
    try:
        return msgspec.json.decode(envelope, type=Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedError(f"{kind}: not a signed envelope: {error}") from error


def _signed_bytes(payload: bytes, kind: str) -> bytes:
    return b"edgeops/" + kind.encode() + b"/1\n" + payload


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""
