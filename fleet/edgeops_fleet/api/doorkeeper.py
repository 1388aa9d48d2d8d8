"""Who may ask: the operator's token for changes, this machine for reading; enrolment, blobs and the health check are open."""

import base64
import binascii
import hmac
import ipaddress

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from edgeops_fleet.api.answers import answer
from edgeops_fleet.api.services import Services

_READS = {"GET", "HEAD", "OPTIONS"}


class Doorkeeper:
    """Lets in who may ask."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] != "http" or self._is_allowed(Request(scope)):
            await self._app(scope, receive, send)
            return
        refusal = answer(
            {
                "error": "expected the operator's token: Authorization: Bearer <token>, from operator.token of the server"
            },
            status=401,
        )
        refusal.headers["WWW-Authenticate"] = 'Basic realm="edgeops"' if scope["method"] in _READS else "Bearer"
        await refusal(scope, receive, send)

    def _is_allowed(self, request: Request) -> bool:
        path, method = request.url.path, request.method
        if path == "/healthz" or path.startswith("/blobs/") or (method, path) == ("POST", "/api/v1/enrol"):
            return True
        kind, _, credentials = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return _same(credentials.strip(), self._services.operator_token)
        if method not in _READS:
            return False
        if kind.lower() == "basic":
            return _same(_password(credentials), self._services.operator_token)
        return self._services.open_reads or is_loopback(request)


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _password(credentials: str) -> str:
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def is_loopback(request: Request) -> bool:
    """Whether a request comes from this machine."""
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
