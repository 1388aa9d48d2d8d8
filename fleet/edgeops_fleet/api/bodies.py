"""Bodies of requests as msgspec structs, and what the API's documentation says of them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI, Request

from edgeops.errors import EdgeOpsError, InputError
from edgeops_fleet.catalog import BundleView

_MAX_BODY_BYTES = 16 << 20


def body_of(kind: Any) -> Callable[[Request], Awaitable[Any]]:  # noqa: ANN401 - a type
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


# OpenAPI: bodies and answers are msgspec structs, whose schemas are added to FastAPI's document.

_DESCRIBED: list[Any] = []


def takes(kind: Any, *, and_gives: Any = None) -> dict[str, Any]:  # noqa: ANN401 - types
    """What the documentation says of a route with a body of this type."""
    extra = {"requestBody": {"required": True, "content": {"application/json": {"schema": _schema_of(kind)}}}}
    return {**extra, **(gives(and_gives) if and_gives is not None else {})}


def takes_archive() -> dict[str, Any]:
    """The same for an upload of a bundle."""
    schema = {"schema": {"type": "string", "format": "binary"}}
    content = {"application/x-tar": schema, "multipart/form-data": {"schema": {"type": "object"}}}
    return {"requestBody": {"required": True, "content": content}, **gives(BundleView)}


def gives(kind: Any, *, key: str | None = None) -> dict[str, Any]:  # noqa: ANN401 - types
    """What the documentation says of a route that answers with this type, or with a list of it under ``key``."""
    schema = _schema_of(kind)
    if key is not None:
        schema = {"type": "object", "properties": {key: {"type": "array", "items": schema}}}
    return {"responses": {"2XX": {"description": "Done", "content": {"application/json": {"schema": schema}}}}}


def _schema_of(kind: Any) -> dict[str, Any]:  # noqa: ANN401 - types
    _DESCRIBED.append(kind)
    (schema,), _ = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
    return schema


def describe_bodies(app: FastAPI) -> None:
    """Add the schemas of all bodies and answers to the document."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        kinds: Sequence[Any] = list(dict.fromkeys(_DESCRIBED))
        _, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
        document.setdefault("components", {}).setdefault("schemas", {}).update(components)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
