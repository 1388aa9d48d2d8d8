"""The admin socket: everything that the serving socket answers, and Triton's extension ``model_repository``.

Whoever reaches it decides what is served, so it is a socket of its own: a Unix socket that only its user may open, or the
loopback interface where that was asked for. The extension:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md.
"""

import ipaddress
import logging
from typing import Annotated, TypeVar

import msgspec

from edgeops.errors import ConfigError, EdgeOpsError, MessageError, NotFoundError
from edgeops_runtime.serving.http import Request, Response, error_response
from edgeops_runtime.serving.loader import Loader
from edgeops_runtime.serving.model import give_memory_back
from edgeops_runtime.serving.protocols import Protocols
from edgeops_runtime.serving.replies import breakdown, json_reply, refusal, wrong_method
from edgeops_runtime.serving.repository import Label

logger = logging.getLogger(__name__)

_Kind = TypeVar("_Kind")
_Text = Annotated[str, msgspec.Meta(max_length=255)]


class _IndexRequest(msgspec.Struct):
    ready: bool = False


class Choice(msgspec.Struct):
    """Which version of a model to load, and as what.

    Attributes:
        version: Otherwise the newest.
        bundle: Name of its directory; otherwise any.
        label: ``stable`` or ``canary``.
        config: The same three as JSON text, since that is the one parameter that the official client lets its callers set.
    """

    version: _Text | None = None
    bundle: _Text | None = None
    label: Label = Label.STABLE
    config: str | None = None


class _LoadRequest(msgspec.Struct):
    parameters: Choice = msgspec.field(default_factory=Choice)


class Admin:
    """Answers the requests of the admin socket; may be used from several threads."""

    def __init__(self, protocols: Protocols, loader: Loader) -> None:
        self._protocols = protocols
        self._loader = loader

    def __call__(self, request: Request) -> Response:
        """Answer any request; never raises."""
        parts = request.path.decode("latin-1").strip("/").split("/")
        try:
            match parts:
                case ["v2"] if request.method in {b"GET", b"HEAD"}:
                    return json_reply(self._protocols.v2.metadata(request.peer_uid, "model_repository"))
                case ["v2", "repository", *rest]:
                    return self._manage(request, rest)
        except EdgeOpsError as error:
            response = refusal(error)
            response.after = give_memory_back  # Not before: the error's traceback still holds a model that was tried.
            return response
        except Exception as error:
            logger.exception("%s", request.path.decode("latin-1"))
            return breakdown(error)
        return self._protocols(request)

    def _manage(self, request: Request, rest: list[str]) -> Response:
        if request.method != b"POST":
            return wrong_method("POST")
        if b"origin" in request.headers:
            return error_response(403, "a browser asks, for a page; the admin socket is not for pages")
        match rest:
            case ["index"]:
                return json_reply(self._loader.index(only_ready=_decoded(request.body, _IndexRequest).ready))
            case ["models", name, "load"]:
                choice = read_choice(request.body)
                self._loader.load(name, version=choice.version, bundle=choice.bundle, label=choice.label)
                return json_reply({})
            case ["models", name, "unload"]:
                self._loader.unload(name, read_choice(request.body).label)
                return json_reply({})
        raise NotFoundError("no such path below repository; there are index, models/NAME/load and models/NAME/unload")


def read_choice(body: bytes | memoryview) -> Choice:
    """What a load or unload request asks for.

    Raises:
        MessageError: It is no such request.
    """
    choice = _decoded(body, _LoadRequest).parameters
    return choice if choice.config is None else _decoded(choice.config.encode(), Choice)


def check_address(address: str) -> str:
    """The address of an admin socket.

    Raises:
        ConfigError: Other machines could reach it.
    """
    host = address.rpartition(":")[0].strip("[]")
    try:
        is_local = address.startswith("unix:") or host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = False
    if not is_local:
        raise ConfigError(f"admin address {address!r}: expected unix:/path, or a port of the loopback interface")
    return address


def _decoded(body: bytes | memoryview, kind: type[_Kind]) -> _Kind:
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"expected a request of the model repository extension in JSON: {error}") from error
