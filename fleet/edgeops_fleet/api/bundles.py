"""Bundles and their blobs: uploads to a file, downloads by range."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.datastructures import UploadFile

from edgeops.errors import InputError, NotFoundError
from edgeops_fleet.api.answers import answer
from edgeops_fleet.api.bodies import gives, takes_archive
from edgeops_fleet.api.services import Services
from edgeops_fleet.blobs import Blobs
from edgeops_fleet.catalog import BundleView

_RANGE = re.compile(r"^bytes=([0-9]{0,18})-([0-9]{0,18})$")


def add_bundle_routes(app: FastAPI, services: Services) -> None:
    """Add the routes."""

    @app.post("/api/v1/bundles", tags=["bundles"], status_code=201, openapi_extra=takes_archive())
    async def publish(request: Request) -> Response:
        """Release a bundle: its ``.tar`` as the body, or as the first file of a form. Signature and digests are checked."""
        with services.catalog.scratch() as directory:
            archive = directory / "bundle.tar"
            await _receive_archive(request, archive, limit=services.max_bundle_bytes)
            bundle, is_new = await asyncio.to_thread(services.catalog.publish, archive)
        return answer(bundle, status=201 if is_new else 200)

    @app.get("/api/v1/bundles", tags=["bundles"], openapi_extra=gives(BundleView, key="bundles"))
    def list_bundles(model: str | None = None) -> Response:
        """All released bundles."""
        return answer({"bundles": services.catalog.bundles(model=model)})

    @app.get("/api/v1/bundles/{digest}/manifest", tags=["bundles"])
    def get_manifest(digest: str) -> Response:
        """The manifest of a bundle."""
        return answer(services.catalog.manifest(digest))

    @app.head("/blobs/{digest}", include_in_schema=False)
    @app.get("/blobs/{digest}", tags=["bundles"], response_class=StreamingResponse)
    def blob(digest: str, request: Request) -> Response:
        """The bytes of a blob; ``Range``, ``If-Range`` and ``If-None-Match`` are understood, so downloads resume."""
        return _blob_answer(services.blobs, digest, request)


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
