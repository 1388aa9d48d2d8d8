"""Tokens, and what they buy: a device's identity. One-time by default, with an end; only their digests are kept."""

import base64
import binascii
import hashlib
import secrets
from typing import Any

import msgspec
import sqlalchemy as sa

from edgeops.enrolment import EnrolmentRequest
from edgeops.errors import ConfigError, ConflictError, InputError, UntrustedError
from edgeops.selection import Attribute, bucket
from edgeops.signing import PublicKey
from edgeops.topics import check_name
from edgeops_fleet.schema import devices, tokens
from edgeops_fleet.store import Store

_TOKEN_PREFIX = "eo_"  # noqa: S105 - a prefix


class TokenRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a token shall allow.

    Attributes:
        attributes: The server's word on every device that comes with it; wins over what the device says.
        uses: How many devices may enrol with it.
        ttl_s: Valid for this many seconds.
    """

    group: str = "default"
    attributes: dict[str, Attribute] = {}
    uses: int = 1
    ttl_s: float = 3600.0

    def __post_init__(self) -> None:
        check_name("group", self.group)
        if self.uses < 1 or not self.ttl_s > 0:
            raise ValueError("token: uses is at least 1, ttl_s above 0")


class TokenView(msgspec.Struct, frozen=True, kw_only=True):
    """A new token; shown once."""

    token: str
    group: str
    attributes: dict[str, Attribute]
    uses: int
    expires: float


class Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    """Who was let in; the addresses of the answer are the server's to add."""

    device: str
    group: str
    attributes: dict[str, Attribute]
    is_new: bool


class Enrolments:
    """Makes tokens and redeems them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def new_token(self, request: TokenRequest) -> TokenView:
        """Make a token."""
        token = _TOKEN_PREFIX + secrets.token_urlsafe(24)
        now = self._store.clock()
        with self._store.write() as connection:
            connection.execute(
                tokens.insert().values(
                    digest=_digest(token),
                    group=request.group,
                    attributes=request.attributes,
                    uses=request.uses,
                    used=0,
                    created=now,
                    expires=now + request.ttl_s,
                )
            )
            text = f"token for {request.uses} device(s) of group {request.group}, valid for {request.ttl_s:.0f} s"
            self._store.note(connection, "token.made", text, actor="operator")
        return TokenView(
            token=token,
            group=request.group,
            attributes=request.attributes,
            uses=request.uses,
            expires=now + request.ttl_s,
        )

    def redeem(self, request: EnrolmentRequest) -> Enrolled:
        """Let a device in.

        A device that comes again with the same token and the same key, because an answer was lost, gets the same answer.

        Raises:
            MessageError: The device's name does not fit into a topic.
            InputError: The key is none.
            UntrustedError: The token is unknown, expired or used up, or the proof is not by that key.
            ConflictError: The device id belongs to another key.
        """
        check_name("device", request.device)
        _check_proof(request)
        with self._store.write() as connection:
            token = (
                connection.execute(sa.select(tokens).where(tokens.c.digest == _digest(request.token)))
                .mappings()
                .first()
            )
            if token is None:
                raise UntrustedError("token: unknown; ask the operator for a new one (edgeops fleet token)")
            known = connection.execute(sa.select(devices).where(devices.c.id == request.device)).mappings().first()
            if known is not None and known["public_key"] != request.public_key:
                raise ConflictError(f"device {request.device!r} is enrolled with another key; choose another id")
            if known is not None and known["token"] == token["digest"]:
                return _enrolled(known, is_new=False)
            self._check_valid(token)
            return self._admit(connection, request, token, known)

    def _check_valid(self, token: sa.RowMapping) -> None:
        if self._store.clock() >= token["expires"]:
            raise UntrustedError("token: expired; ask the operator for a new one")
        if token["used"] >= token["uses"]:
            raise UntrustedError(f"token: used up ({token['uses']} of {token['uses']}); ask the operator for a new one")

    def _admit(
        self,
        connection: sa.Connection,
        request: EnrolmentRequest,
        token: sa.RowMapping,
        known: sa.RowMapping | None,
    ) -> Enrolled:
        values: dict[str, Any] = {
            "group": token["group"],
            "attributes": {**request.attributes, **token["attributes"]},
            "token": token["digest"],
        }
        if known is None:
            values.update(
                id=request.device,
                public_key=request.public_key,
                bucket=bucket(request.device),
                enrolled=self._store.clock(),
                online=False,
                boot=0,
                session=0,
                generation=0,
                address="",
                agent_version="",
                engines={},
                clock_trusted=True,
            )
            connection.execute(devices.insert().values(values))
        else:
            connection.execute(devices.update().where(devices.c.id == request.device).values(values))
        connection.execute(tokens.update().where(tokens.c.digest == token["digest"]).values(used=tokens.c.used + 1))
        told = ", ".join(f"{key}={value}" for key, value in sorted(values["attributes"].items()))
        text = f"{request.device} enrolled in group {token['group']}" + (f" ({told})" if told else "")
        self._store.note(connection, "device.enrolled", text, actor=request.device, device=request.device)
        row = connection.execute(sa.select(devices).where(devices.c.id == request.device)).mappings().one()
        return _enrolled(row, is_new=True)


def _enrolled(row: sa.RowMapping, *, is_new: bool) -> Enrolled:
    return Enrolled(device=row["id"], group=row["group"], attributes=row["attributes"], is_new=is_new)


def _check_proof(request: EnrolmentRequest) -> None:
    try:
        key = PublicKey(request.public_key)
        proof = base64.b64decode(request.proof, validate=True)
    except ConfigError as error:
        raise InputError(f"enrolment: {error}") from error
    except binascii.Error as error:
        raise InputError(f"enrolment: proof: expected base64: {error}") from error
    if not key.has_signed(request.token.encode(), proof):
        raise UntrustedError("enrolment: the proof is not a signature over the token by the public key that was sent")


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
