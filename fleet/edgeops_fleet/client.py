"""Calls the REST API for the command line, with the standard library alone."""

import json
import os
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO

from edgeops.errors import ConfigError, EdgeOpsError, NotFoundError, RefusedError, TransientError
from edgeops_fleet.address import TOKEN_FILE, read_address, read_token

SERVER_VARIABLE = "EDGEOPS_SERVER"
TOKEN_VARIABLE = "EDGEOPS_TOKEN"  # noqa: S105 - the name of a variable
_TIMEOUT_S = 300.0
_SERVER_FAILED, _NOT_FOUND = 500, 404


class Client:
    """A server's API.

    Args:
        url: Of the server.
        token: The operator's; empty where only reading is meant.
    """

    def __init__(self, url: str, token: str = "") -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"server {url!r}: expected http:// or https://")
        self.url = url.rstrip("/")
        self.token = token

    @classmethod
    def find(cls, *, server: str | None, data: Path | None, token: str | None) -> "Client":
        """The server that options or the environment name; its folder has address and token.

        Raises:
            ConfigError: None is named, or it is not running.
        """
        server = server or (os.environ.get(SERVER_VARIABLE) if data is None else None)
        token = token or os.environ.get(TOKEN_VARIABLE) or (read_token(data / TOKEN_FILE) if data is not None else "")
        if server:
            return cls(server, token)
        if data is None:
            raise ConfigError(
                f"which server? Give --data DIR (of `edgeops fleet up`) or --server URL, or set {SERVER_VARIABLE}"
            )
        return cls(read_address(data).url, token)

    def get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """Read.

        Raises:
            RefusedError: The server says no; with its reason.
            TransientError: It cannot be reached.
        """
        return self._call("GET", path)

    def post(self, path: str, body: Any = None) -> Any:  # noqa: ANN401 - JSON
        """Ask for something to be done; raises as :meth:`get`."""
        return self._call("POST", path, json.dumps({} if body is None else body).encode())

    def delete(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """Take something away; raises as :meth:`get`."""
        return self._call("DELETE", path)

    def upload(self, path: str, stream: BinaryIO, *, size_bytes: int) -> Any:  # noqa: ANN401 - JSON
        """Send a file; raises as :meth:`get`."""
        headers = {"Content-Type": "application/x-tar", "Content-Length": str(size_bytes)}
        return self._call("POST", path, stream, headers=headers)

    def _call(
        self, method: str, path: str, body: bytes | BinaryIO | None = None, *, headers: dict[str, str] | None = None
    ) -> Any:  # noqa: ANN401 - JSON
        sent = {"Content-Type": "application/json", **(headers or {})}
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(self.url + path, data=body, headers=sent, method=method)  # noqa: S310 - checked
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - checked
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise _refusal(error, f"{method} {path}") from error
        except (urllib.error.URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            words = getattr(reason, "strerror", None) or reason
            raise TransientError(
                f"{self.url}: no answer: {words}; is the server running, and the address right?"
            ) from error
        except ValueError as error:
            raise TransientError(f"{self.url}{path}: expected JSON: {error}") from error


def _refusal(error: urllib.error.HTTPError, what: str) -> EdgeOpsError:
    try:
        reason = json.loads(error.read())["error"]
    except (ValueError, KeyError, TypeError, OSError):
        reason = f"{what}: HTTP {error.code}"
    kind: type[EdgeOpsError] = TransientError if error.code >= _SERVER_FAILED else RefusedError
    return NotFoundError(reason) if error.code == _NOT_FOUND else kind(reason)
