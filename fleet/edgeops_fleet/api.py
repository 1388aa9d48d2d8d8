"""The REST API: HTTP in, calls of the server's parts, JSON out. No decision is made here but who may ask.

Changing anything needs ``Authorization: Bearer <operator token>``. Reading is open to this machine; from elsewhere it needs the
token too (a browser asks for it: any user name, the token as the password), unless the settings open it. A device's way in
(enrolment), blobs (signed, and named by their digest) and the health check are open to all.
"""

import asyncio
import base64
import binascii
import hmac
import ipaddress
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from edgeops import __version__
from edgeops.enrolment import Enrolment, EnrolmentRequest
from edgeops.errors import (
    ConflictError,
    EdgeOpsError,
    InputError,
    ManifestError,
    NotFoundError,
    TransientError,
    UntrustedError,
)
from edgeops.messages import Command, CommandKind
from edgeops_fleet.blobs import Blobs
from edgeops_fleet.catalog import BundleView, Catalog
from edgeops_fleet.controller import Action, Controller
from edgeops_fleet.devices import Devices, DeviceView, PinRequest
from edgeops_fleet.enrolments import Enrolled, Enrolments, TokenRequest, TokenView
from edgeops_fleet.ingest import Ingest
from edgeops_fleet.planning import Plan, plan_rollout
from edgeops_fleet.retrain import Retraining, RetrainView, add_command
from edgeops_fleet.rollout import RolloutSpec
from edgeops_fleet.rollout_records import Rollouts, RolloutView
from edgeops_fleet.samples import LabelRequest, Samples, SampleView
from edgeops_fleet.store import LogEntry, Store
from edgeops_fleet.watch import Watch, verdict_view

_MAX_BODY_BYTES = 16 << 20
_KEEP_ALIVE_S = 15.0
_RANGE = re.compile(r"^bytes=(\d*)-(\d*)$")
_READS = {"GET", "HEAD", "OPTIONS"}

Body = TypeVar("Body")


class CommandRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Something that a device shall do once."""

    kind: CommandKind
    model: str = ""
    count: int = 0
    share: float = 1.0
    ttl_s: float = 300.0


@dataclass(frozen=True)
class Services:
    """The server's parts, as the API sees them.

    Attributes:
        operator_token: Who has it may change things.
        identity: Makes the whole answer to an enrolment, given who was let in and the host name by which it came.
        closing: Set when the server stops, so that streams end.
    """

    store: Store
    blobs: Blobs
    catalog: Catalog
    enrolments: Enrolments
    devices: Devices
    rollouts: Rollouts
    controller: Controller
    ingest: Ingest
    watch: Watch
    samples: Samples
    retraining: Retraining
    operator_token: str
    identity: Callable[[Enrolled, str], Enrolment]
    is_connected: Callable[[], bool]
    closing: asyncio.Event
    fleet: str
    open_reads: bool
    max_bundle_bytes: int


def create_app(services: Services, *, pages: Sequence[APIRouter] = ()) -> FastAPI:
    """The web application: the API, and pages such as the dashboard."""
    app = FastAPI(
        title="EdgeOps fleet",
        version=__version__,
        description=__doc__,
        docs_url="/docs",
        openapi_url="/openapi.json",
        redoc_url=None,
    )
    app.state.services = services
    app.add_middleware(Doorkeeper, services=services)
    app.add_exception_handler(EdgeOpsError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_error)
    _add_device_routes(app, services)
    _add_bundle_routes(app, services)
    _add_rollout_routes(app, services)
    _add_log_routes(app, services)
    _add_drift_routes(app, services)
    for page in pages:
        app.include_router(page)
    _describe_bodies(app)
    return app


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
        answer = _json(
            {
                "error": "expected the operator's token: Authorization: Bearer <token>, from operator.token of the server"
            },
            status=401,
        )
        answer.headers["WWW-Authenticate"] = 'Basic realm="edgeops"' if scope["method"] in _READS else "Bearer"
        await answer(scope, receive, send)

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
        return self._services.open_reads or _is_loopback(request)


def _add_device_routes(app: FastAPI, services: Services) -> None:
    @app.post("/api/v1/enrol", tags=["devices"], openapi_extra=_takes(EnrolmentRequest, gives=Enrolment))
    def enrol(body: Annotated[EnrolmentRequest, Depends(_body(EnrolmentRequest))], request: Request) -> Response:
        """A device joins with a one-time token; the same device with the same key and token gets the same answer."""
        enrolled = services.enrolments.redeem(body)
        services.controller.wake()
        return _json(services.identity(enrolled, request.url.hostname or ""))

    @app.post("/api/v1/tokens", tags=["devices"], status_code=201, openapi_extra=_takes(TokenRequest, gives=TokenView))
    def new_token(body: Annotated[TokenRequest, Depends(_body(TokenRequest))]) -> Response:
        """Make a token for new devices; it is shown once."""
        return _json(services.enrolments.new_token(body), status=201)

    @app.get("/api/v1/devices", tags=["devices"])
    def list_devices(group: str | None = None) -> Response:
        """Every device, what it runs and how it is."""
        found = services.devices.all(group=group, with_figures=True)
        return _json({"devices": [_device_json(device) for device in found]})

    @app.get("/api/v1/devices/{device}", tags=["devices"])
    def get_device(device: str) -> Response:
        """One device, with what happened to it."""
        view = services.devices.get(device)
        log = services.store.log(device=device, limit=200)
        return _json({**_device_json(view), "log": msgspec.to_builtins(log)})

    @app.post("/api/v1/devices/{device}/pin", tags=["devices"], openapi_extra=_takes(PinRequest, gives=DeviceView))
    def pin(device: str, body: Annotated[PinRequest, Depends(_body(PinRequest))]) -> Response:
        """Have a device run a version, whatever its group wants."""
        bundle = services.catalog.find(body.model, body.version)
        services.devices.pin(device, model=body.model, version=body.version, digest=bundle.digest, reason=body.reason)
        services.controller.issue()
        return _json(_device_json(services.devices.get(device)))

    @app.delete("/api/v1/devices/{device}/pin", tags=["devices"])
    def unpin(device: str, model: str | None = None) -> Response:
        """Let a device follow its group again."""
        services.devices.unpin(device, model=model)
        services.controller.issue()
        return _json(_device_json(services.devices.get(device)))

    @app.post(
        "/api/v1/devices/{device}/command", tags=["devices"], status_code=202, openapi_extra=_takes(CommandRequest)
    )
    def command(device: str, body: Annotated[CommandRequest, Depends(_body(CommandRequest))]) -> Response:
        """Tell a device to do something once; it is sent while it is valid, also when the device comes later."""
        services.devices.get(device)
        order = Command(
            id=f"c-{secrets.token_hex(6)}",
            kind=body.kind,
            expires=services.store.clock() + body.ttl_s,
            model=body.model,
            count=body.count,
            share=body.share,
        )
        with services.store.write() as connection:
            add_command(connection, device, order)
            text = f"{device}: {body.kind}" + (f" {body.count} of {body.model}" if body.count else "")
            services.store.note(connection, "device.command", text, actor="operator", device=device)
        return _json({"id": order.id, "expires": order.expires}, status=202)


def _add_bundle_routes(app: FastAPI, services: Services) -> None:
    @app.post("/api/v1/bundles", tags=["bundles"], status_code=201, openapi_extra=_takes_archive())
    async def publish(request: Request) -> Response:
        """Release a bundle: its ``.tar`` as the body, or as the first file of a form. Signature and digests are checked."""
        with services.catalog.scratch() as directory:
            archive = directory / "bundle.tar"
            await _receive_archive(request, archive, limit=services.max_bundle_bytes)
            bundle, is_new = await asyncio.to_thread(services.catalog.publish, archive)
        return _json(bundle, status=201 if is_new else 200)

    @app.get("/api/v1/bundles", tags=["bundles"], openapi_extra=_gives(BundleView, key="bundles"))
    def list_bundles(model: str | None = None) -> Response:
        """All released bundles."""
        return _json({"bundles": services.catalog.bundles(model=model)})

    @app.get("/api/v1/bundles/{digest}/manifest", tags=["bundles"])
    def get_manifest(digest: str) -> Response:
        """The manifest of a bundle."""
        return _json(services.catalog.manifest(digest))

    @app.head("/blobs/{digest}", include_in_schema=False)
    @app.get("/blobs/{digest}", tags=["bundles"], response_class=StreamingResponse)
    def blob(digest: str, request: Request) -> Response:
        """The bytes of a blob; ``Range``, ``If-Range`` and ``If-None-Match`` are understood, so downloads resume."""
        return _blob_answer(services.blobs, digest, request)


def _add_rollout_routes(app: FastAPI, services: Services) -> None:
    @app.post("/api/v1/rollouts/plan", tags=["rollouts"], openapi_extra=_takes(RolloutSpec, gives=Plan))
    def plan(body: Annotated[RolloutSpec, Depends(_body(RolloutSpec))]) -> Response:
        """What a rollout would do: who matches and why others do not, wave sizes, bytes, what the gate can prove."""
        bundle = services.catalog.find(body.model, body.version)
        made = plan_rollout(
            body,
            manifest=services.catalog.manifest(bundle.digest),
            digest=bundle.digest,
            devices=services.devices.all(),
            rotation=0,
            conflict=services.rollouts.objection(body, digest=bundle.digest),
        )
        return _json(made)

    @app.post(
        "/api/v1/rollouts", tags=["rollouts"], status_code=201, openapi_extra=_takes(RolloutSpec, gives=RolloutView)
    )
    def create(body: Annotated[RolloutSpec, Depends(_body(RolloutSpec))]) -> Response:
        """Order a rollout; it starts at once unless it is a draft."""
        bundle = services.catalog.find(body.model, body.version)
        rollout = services.rollouts.create(body, digest=bundle.digest)
        services.controller.wake()
        return _json(services.rollouts.get(rollout), status=201)

    @app.get("/api/v1/rollouts", tags=["rollouts"], openapi_extra=_gives(RolloutView, key="rollouts"))
    def list_rollouts() -> Response:
        """Every rollout, the newest last."""
        return _json({"rollouts": services.rollouts.all()})

    @app.get("/api/v1/rollouts/{rollout}", tags=["rollouts"], openapi_extra=_gives(RolloutView))
    def get_rollout(rollout: str) -> Response:
        """One rollout: waves, gates, devices, and what happened why."""
        return _json(services.rollouts.get(rollout))

    @app.post("/api/v1/rollouts/{rollout}/{action}", tags=["rollouts"], openapi_extra=_gives(RolloutView))
    def act(rollout: str, action: Action) -> Response:
        """Start a draft, pause, resume (which also approves an inconclusive gate), roll back, or abort."""
        services.controller.act(rollout, action)
        return _json(services.rollouts.get(rollout))


def _add_log_routes(app: FastAPI, services: Services) -> None:
    @app.get("/api/v1/log", tags=["records"], openapi_extra=_gives(LogEntry, key="log"))
    def log(
        after: int = 0, limit: Annotated[int, Query(ge=1, le=10_000)] = 500, rollout: str | None = None
    ) -> Response:
        """What happened and why, the newest last; without ``after``, the last lines."""
        return _json({"log": services.store.log(after=after, limit=limit, rollout=rollout)})

    @app.get("/api/v1/stream", tags=["records"], response_class=StreamingResponse)
    async def stream(request: Request, after: int | None = None) -> Response:
        """The log as server-sent events, from now on, or from a line on (``Last-Event-ID``, or ``after``)."""
        last = request.headers.get("Last-Event-ID", "")
        start = int(last) if last.isdecimal() else after
        return StreamingResponse(
            _follow_log(services, request, after=start),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )

    @app.get("/healthz", tags=["records"])
    def health() -> Response:
        """Whether the server can do its work: the database answers, the broker is there."""
        with services.store.read() as connection:
            connection.exec_driver_sql("SELECT 1")
        counters = services.ingest.counters
        is_connected = services.is_connected()
        body = {
            "status": "ok" if is_connected else "broker away",
            "fleet": services.fleet,
            "version": __version__,
            "broker": is_connected,
            "ingest": counters,
        }
        return _json(body, status=200 if is_connected else 503)


def _add_drift_routes(app: FastAPI, services: Services) -> None:
    @app.get("/api/v1/drift", tags=["drift"])
    def drift(scope: str | None = None) -> Response:
        """The detector's verdicts: the fleet first, then cohorts, then devices."""
        views = [verdict_view(verdict) for verdict in services.watch.verdicts()]
        return _json({"verdicts": [view for view in views if scope in {None, view["scope"]}]})

    @app.get("/api/v1/samples", tags=["drift"], openapi_extra=_gives(SampleView, key="samples"))
    def list_samples(
        labelled: bool | None = None,
        model: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100_000)] = 10_000,
    ) -> Response:
        """Samples, without their bytes, in the order in which they came."""
        return _json({"samples": services.samples.all(labelled=labelled, model=model, limit=limit)})

    @app.get("/api/v1/samples/{sample}/inputs", tags=["drift"])
    def sample_inputs(sample: str) -> Response:
        """The tensors of a sample; ``data`` is base64 of little-endian, row-major bytes."""
        return _json(services.samples.inputs(sample))

    @app.post("/api/v1/labels", tags=["drift"], openapi_extra=_takes(list[LabelRequest]))
    def label(body: Annotated[list[LabelRequest], Depends(_body(list[LabelRequest]))]) -> Response:
        """Say what samples show; all of them are taken, or none."""
        return _json({"labelled": services.samples.label(body)})

    @app.get("/api/v1/datasets/{dataset}", tags=["drift"])
    def dataset(dataset: str) -> Response:
        """The manifest of a data set."""
        return Response(services.samples.dataset(dataset), media_type="application/json")

    @app.get("/api/v1/datasets/{dataset}/{name}", tags=["drift"], response_class=StreamingResponse)
    def dataset_file(dataset: str, name: str) -> Response:
        """A file of a data set."""
        return StreamingResponse(_file_chunks(services.samples.dataset_file(dataset, name)))

    @app.get("/api/v1/retrains", tags=["drift"], openapi_extra=_gives(RetrainView, key="retrains"))
    def retrains(*, everything: Annotated[bool, Query(alias="all")] = False) -> Response:
        """Requests for retraining; with ``all``, also drifts that are still looked into or were found benign."""
        return _json({"retrains": services.retraining.all(only_requested=not everything)})

    @app.get("/api/v1/retrains/{retrain}/event", tags=["drift"])
    def event(retrain: str) -> Response:
        """The CloudEvent of a request for retraining."""
        data = services.retraining.event(retrain)
        if data is None:
            raise NotFoundError(f"retraining {retrain!r}: no event")
        return Response(data, media_type="application/cloudevents+json")


def _body(kind: Any) -> Callable[[Request], Awaitable[Any]]:  # noqa: ANN401 - a type
    """A dependency that reads the body as JSON of a type."""
    decoder = msgspec.json.Decoder(kind)

    async def read(request: Request) -> Any:  # noqa: ANN401 - what the decoder gives
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > _MAX_BODY_BYTES:
                raise InputError(f"body: at most {_MAX_BODY_BYTES} bytes")
        try:
            return decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, EdgeOpsError) as error:
            raise InputError(f"body: {error}") from error

    return read


def _device_json(device: DeviceView) -> dict[str, Any]:
    view: dict[str, Any] = msgspec.to_builtins(device)
    first = next((model for model in device.models if model.digest is not None), None)
    view.update(model=first.model if first else None, version=first.version if first else None)
    return view


def _json(value: Any, *, status: int = 200) -> Response:  # noqa: ANN401 - anything that msgspec encodes
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


async def _answer_error(_request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return _json({"error": str(error.detail)}, status=error.status_code)
    if isinstance(error, RequestValidationError):
        texts = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()]
        return _json({"error": "; ".join(texts)}, status=400)
    statuses: tuple[tuple[type[Exception], int], ...] = (
        (NotFoundError, 404),
        (ConflictError, 409),
        (UntrustedError, 403),
        (ManifestError, 422),
        (InputError, 400),
        (TransientError, 503),
    )
    status = next((code for kind, code in statuses if isinstance(error, kind)), 500)
    return _json({"error": str(error)}, status=status)


async def _receive_archive(request: Request, archive: Path, *, limit: int) -> None:
    """Write the upload to a file; a form's first file, or the body itself.

    Raises:
        InputError: It is empty or too large, or the form has no file.
    """
    size = 0
    with archive.open("wb") as stream:
        async for chunk in _upload_chunks(request):
            size += len(chunk)
            if size > limit:
                raise InputError(f"bundle: at most {limit} bytes are taken (max_bundle_bytes)")
            await asyncio.to_thread(stream.write, chunk)
    if not size:
        raise InputError("bundle: expected the .tar of a bundle as the body")


async def _upload_chunks(request: Request) -> AsyncIterator[bytes]:
    if not request.headers.get("Content-Type", "").startswith("multipart/form-data"):
        async for chunk in request.stream():
            yield chunk
        return
    async with request.form() as form:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if not files:
            raise InputError("bundle: the form has no file")
        while chunk := await files[0].read(1 << 20):
            yield chunk


def _blob_answer(blobs: Blobs, digest: str, request: Request) -> Response:
    size = blobs.size(digest)
    if size is None:
        raise NotFoundError(f"blob {digest!r}: there is none")
    etag = f'"{digest}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "public, max-age=31536000, immutable"}
    if etag in request.headers.get("If-None-Match", ""):
        return Response(status_code=304, headers=headers)
    start, end, status = 0, size, 200
    if request.headers.get("If-Range", etag) == etag:
        wanted = parse_range(request.headers.get("Range", ""), size)
        if wanted is not None:
            start, end = wanted
            if start >= end:
                return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type="application/octet-stream")
    return StreamingResponse(
        blobs.chunks(digest, start=start, end=end),
        status_code=status,
        headers=headers,
        media_type="application/octet-stream",
    )


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """First byte and end of a single byte range; ``None`` where the whole is to be sent; an empty range cannot be satisfied.

    >>> parse_range("bytes=5-", 10), parse_range("bytes=-3", 10), parse_range("bytes=2-3", 10), parse_range("bytes=12-", 10)
    ((5, 10), (7, 10), (2, 4), (10, 10))
    >>> parse_range("bytes=0-1,4-5", 10) is None
    True
    """
    match = _RANGE.match(header.strip())
    if match is None or match.group() == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        return max(size - int(last), 0), size
    if last and int(last) < int(first):
        return None
    return min(int(first), size), min(int(last) + 1, size) if last else size


async def _follow_log(services: Services, request: Request, *, after: int | None) -> AsyncIterator[bytes]:
    """Lines of the log as they are written, with a comment now and then so that a dead connection is noticed."""
    loop, news = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        loop.call_soon_threadsafe(news.set)

    services.store.add_listener(tell)
    try:
        if after is None:
            newest = await asyncio.to_thread(services.store.log, limit=1)
            after = newest[-1].id if newest else 0
        yield b": edgeops\n\n"
        while not services.closing.is_set() and not await request.is_disconnected():
            news.clear()
            # A look at what comes after line 0 would be the last lines; lines count from 1.
            for entry in await asyncio.to_thread(_lines_after, services.store, after):
                after = entry.id
                yield f"id: {entry.id}\nevent: log\ndata: {msgspec.json.encode(entry).decode()}\n\n".encode()
            if await _waited_in_vain(news, services.closing):
                yield b": still here\n\n"
    finally:
        services.store.remove_listener(tell)


def _lines_after(store: Store, after: int) -> tuple[LogEntry, ...]:
    return store.log(after=after) if after else store.log(limit=500)


async def _waited_in_vain(*events: asyncio.Event) -> bool:
    """Wait for one of the events; ``True`` when none came for a while."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    done, pending = await asyncio.wait(waits, timeout=_KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
    for wait in pending:
        wait.cancel()
    return not done


def _file_chunks(path: Path) -> Any:  # noqa: ANN401 - a generator of bytes
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            yield chunk


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _password(credentials: str) -> str:
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _is_loopback(request: Request) -> bool:
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


# OpenAPI: bodies and answers are msgspec structs, whose schemas are added to FastAPI's document.

_DESCRIBED: list[Any] = []


def _takes(kind: Any, *, gives: Any = None) -> dict[str, Any]:  # noqa: ANN401 - types
    extra = {"requestBody": {"required": True, "content": {"application/json": {"schema": _schema_of(kind)}}}}
    return {**extra, **(_gives(gives) if gives is not None else {})}


def _takes_archive() -> dict[str, Any]:
    schema = {"schema": {"type": "string", "format": "binary"}}
    content = {"application/x-tar": schema, "multipart/form-data": {"schema": {"type": "object"}}}
    return {"requestBody": {"required": True, "content": content}, **_gives(BundleView)}


def _gives(kind: Any, *, key: str | None = None) -> dict[str, Any]:  # noqa: ANN401 - types
    schema = _schema_of(kind)
    if key is not None:
        schema = {"type": "object", "properties": {key: {"type": "array", "items": schema}}}
    return {"responses": {"2XX": {"description": "Done", "content": {"application/json": {"schema": schema}}}}}


def _schema_of(kind: Any) -> dict[str, Any]:  # noqa: ANN401 - types
    _DESCRIBED.append(kind)
    (schema,), _ = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
    return schema


def _describe_bodies(app: FastAPI) -> None:
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        kinds: Sequence[Any] = list(dict.fromkeys(_DESCRIBED))
        _, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
        document.setdefault("components", {}).setdefault("schemas", {}).update(components)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
