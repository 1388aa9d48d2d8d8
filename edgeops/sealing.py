"""Data that only its recipient can read: a device seals captured rows to its fleet, and cannot open them again itself.

Hybrid public key encryption (RFC 9180) with X25519, HKDF-SHA256 and ChaCha20-Poly1305, by ``cryptography``, which is imported on
use: most devices never seal anything.
"""

import base64
import binascii
from pathlib import Path
from typing import Any

from edgeops.errors import ConfigError, UntrustedError
from edgeops.files import write_durably


def seal(data: bytes, *, to: str, about: str) -> bytes:
    """Encrypt data so that only the holder of a private key can read it.

    Args:
        data: What to hide.
        to: Public key of the recipient, the base64 of 32 bytes.
        about: What it is; :meth:`SealingKey.open` has to be told the same, so that it cannot be passed off as something else.

    Raises:
        ConfigError: The key is none.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey  # noqa: PLC0415 - 7 MB

    try:
        key = X25519PublicKey.from_public_bytes(base64.b64decode(to, validate=True))
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"sealing key: expected the base64 of 32 bytes, got {to[:60]!r}") from error
    return bytes(_suite().encrypt(data, key, info=about.encode()))


class SealingKey:
    """A private key; kept in a file of mode 0600 that holds the base64 of its 32 bytes.

    Attributes:
        public: What is given to those who seal, the base64 of 32 bytes.
    """

    def __init__(self, raw: bytes) -> None:
        """Take the 32 bytes of a key.

        Raises:
            ConfigError: They are not 32.
        """
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey  # noqa: PLC0415 - as above

        try:
            self._key = X25519PrivateKey.from_private_bytes(raw)
        except ValueError as error:
            raise ConfigError(f"sealing key: expected 32 bytes, got {len(raw)}") from error
        self.public = base64.b64encode(self._key.public_key().public_bytes_raw()).decode()

    @classmethod
    def load_or_generate(cls, path: Path) -> "SealingKey":
        """Read a key; where the file is missing, make one and write it first.

        Raises:
            ConfigError: The file does not hold a key, or cannot be read or written.
        """
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey  # noqa: PLC0415 - as above

        try:
            if path.exists():
                return cls(base64.b64decode(path.read_text().strip(), validate=True))
            raw = X25519PrivateKey.generate().private_bytes_raw()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, base64.b64encode(raw) + b"\n", mode=0o600)
        except (OSError, binascii.Error) as error:
            raise ConfigError(f"{path}: expected a private key (base64 of 32 bytes): {error}") from error
        return cls(raw)

    def open(self, sealed: bytes, *, about: str) -> bytes:
        """Decrypt what was sealed to this key.

        Raises:
            UntrustedError: It was sealed to another key, as something else, or was changed.
        """
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - as above

        try:
            return bytes(_suite().decrypt(sealed, self._key, info=about.encode()))
        except (InvalidTag, ValueError) as error:
            raise UntrustedError(f"{about}: was not sealed to this key, or was changed") from error


def _suite() -> Any:  # noqa: ANN401 - its type is imported with it
    from cryptography.hazmat.primitives import hpke  # noqa: PLC0415 - as above

    return hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
