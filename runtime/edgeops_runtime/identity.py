"""Who this device is: its key pair and what it was told at enrolment; ``edgeops-agent enrol`` makes both.

The private key never leaves the data directory, and is read for the enrolment alone.
Which messages are then believed is :mod:`edgeops_runtime.desired`'s part.
"""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeops.enrolment import Enrolment, EnrolmentRequest
from edgeops.errors import ConfigError, EdgeOpsError, RefusedError, TransientError
from edgeops.files import make_directories, write_durably
from edgeops.selection import Attribute
from edgeops.signing import PublicKey, SigningKey
from edgeops.topics import check_name

if TYPE_CHECKING:
    from urllib.error import HTTPError

IDENTITY_FILE = "identity.json"
KEY_FILE = "device.key"
_TIMEOUT_S = 30.0
_MAX_ANSWER_BYTES = 1 << 20

Poster = Callable[[str, bytes], bytes]
"""Posts JSON to a URL and returns the answer's body."""


class Identity:
    """A device that belongs to a fleet.

    Args:
        enrolment: What the server said.
    """

    def __init__(self, enrolment: Enrolment) -> None:
        self.enrolment = enrolment
        self.director_key = PublicKey(enrolment.director_key)
        self.release_keys = tuple(PublicKey(text) for text in enrolment.release_keys)

    @property
    def device(self) -> str:
        """The id of this device."""
        return self.enrolment.device

    @property
    def fleet(self) -> str:
        """The fleet that it belongs to."""
        return self.enrolment.fleet

    @property
    def group(self) -> str:
        """The group whose desired state it follows."""
        return self.enrolment.group

    def blob_url(self, url: str) -> str:
        """A target's blob URL made absolute: one that begins with ``/`` is relative to the server."""
        return self.enrolment.url.rstrip("/") + url if url.startswith("/") else url


def load_identity(directory: Path) -> Identity:
    """Read the identity of an enrolled device.

    Raises:
        ConfigError: It is not enrolled, or the file is damaged.
    """
    path = directory / IDENTITY_FILE
    try:
        return Identity(msgspec.json.decode(path.read_bytes(), type=Enrolment))
    except OSError as error:
        raise ConfigError(
            f"{path}: this device is not enrolled; run: edgeops-agent enrol ({error.strerror})"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, EdgeOpsError) as error:
        raise ConfigError(f"{path}: expected the answer of an enrolment: {error}") from error


def is_enrolled(directory: Path) -> bool:
    """Whether there is an identity in the directory."""
    return (directory / IDENTITY_FILE).exists()


def enrol(
    directory: Path,
    *,
    server: str,
    token: str,
    device: str,
    attributes: dict[str, Attribute],
    post: Poster | None = None,
) -> Identity:
    """Join a fleet: make a key pair, send the request, keep the answer.

    A second try after a lost answer uses the same key, so that the server can recognise it.

    Args:
        directory: The data directory of the agent.
        server: Base URL of the fleet's HTTP API.
        token: One-time token.
        device: The id that the device would like.
        attributes: What it says of itself.
        post: How to post; the default uses HTTP.

    Raises:
        ConfigError: The device is enrolled already, or the server's answer is not one.
        RefusedError: The server said no; the message has its reason.
        TransientError: The server cannot be reached.
    """
    check_name("device", device)
    if is_enrolled(directory):
        known = load_identity(directory)
        raise ConfigError(
            f"{directory}: enrolled already as {known.device} in fleet {known.fleet}; use another directory"
        )
    make_directories(directory)
    key = SigningKey.load_or_generate(directory / KEY_FILE)
    request = EnrolmentRequest(
        token=token,
        device=device,
        public_key=key.public.text,
        attributes=attributes,
        proof=base64.b64encode(key.sign(token.encode())).decode(),
    )
    url = server.rstrip("/") + "/api/v1/enrol"
    answer = (post or post_json)(url, msgspec.json.encode(request))
    try:
        identity = Identity(msgspec.json.decode(answer, type=Enrolment))
    except (msgspec.DecodeError, UnicodeDecodeError, EdgeOpsError) as error:
        raise ConfigError(f"{url}: expected the answer of an enrolment: {error}") from error
    write_durably(directory / IDENTITY_FILE, answer, mode=0o600)
    return identity


def post_json(url: str, body: bytes) -> bytes:
    """Post JSON and return the body of the answer.

    Raises:
        ConfigError: The URL is none.
        RefusedError: The server answered 4xx.
        TransientError: It cannot be reached, or answered 5xx.
    """
    # Once in the life of a device, so its agent has none of it.
    from http.client import HTTPException  # noqa: PLC0415
    from urllib.error import HTTPError, URLError  # noqa: PLC0415
    from urllib.request import Request, urlopen  # noqa: PLC0415

    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"server: expected http:// or https://, got {url!r}")
    request = Request(url, data=body, headers={"Content-Type": "application/json"}, method="POST")  # noqa: S310 - checked
    try:
        with urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310 - the scheme is checked above
            return bytes(response.read(_MAX_ANSWER_BYTES))
    except HTTPError as error:
        text = f"{url}: {error.code}: {_reason(error)}"
        raise (RefusedError if error.code < 500 else TransientError)(text) from error  # noqa: PLR2004 - server errors
    except (URLError, HTTPException, OSError) as error:
        raise TransientError(f"{url}: {getattr(error, 'reason', error)}") from error


def _reason(error: "HTTPError") -> str:
    body = error.read(2000).decode(errors="replace")
    try:
        answer = json.loads(body)
    except ValueError:
        return body or str(error.reason)
    detail = answer.get("detail", answer.get("error", answer)) if isinstance(answer, dict) else answer
    return detail if isinstance(detail, str) else json.dumps(detail)
