"""Bytes over HTTP, from an offset on; what they should be is :mod:`edgeops_runtime.updater`'s business.

The library for it is imported by the first download: an agent that has what it serves needs none for months.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import msgspec

from edgeops.errors import DownloadError

_CHUNK_BYTES = 64 << 10
_TIMEOUT_S = 20.0


class NotThereError(DownloadError):
    """The server does not have it (404, 410); perhaps not yet."""


class Stream(msgspec.Struct, frozen=True):
    """A download under way: where it really begins, and its bytes. Reading raises :class:`DownloadError` when it breaks."""

    offset: int
    chunks: Iterator[bytes]


class Downloader(Protocol):
    """Where bytes come from."""

    def open(self, url: str, *, offset: int) -> AbstractContextManager[Stream]:
        """Begin to download.

        Args:
            url: Of a blob.
            offset: First byte that is wanted; the stream may begin at 0 all the same.

        Raises:
            NotThereError: The server does not have it.
            DownloadError: Anything else.
        """


class HttpDownloader:
    """Downloads with ``Range``."""

    def __init__(self, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s

    @contextmanager
    def open(self, url: str, *, offset: int) -> Iterator[Stream]:
        """Begin to download.

        Raises:
            NotThereError: The server does not have it.
            DownloadError: It cannot be reached, or answers anything but 200 and 206.
        """
        from http import HTTPStatus  # noqa: PLC0415 - see above, and so are those that follow
        from http.client import HTTPException  # noqa: PLC0415
        from urllib.error import HTTPError, URLError  # noqa: PLC0415
        from urllib.request import Request, urlopen  # noqa: PLC0415

        if not url.startswith(("http://", "https://")):
            raise DownloadError(f"{url}: expected http:// or https://")
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        request = Request(url, headers=headers)  # noqa: S310 - the scheme is checked above
        try:
            response = urlopen(request, timeout=self._timeout_s)  # noqa: S310 - likewise
        except HTTPError as error:
            error.close()
            kind = NotThereError if error.code in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE} else DownloadError
            raise kind(f"{url}: {error.code} {error.reason}") from error
        except (URLError, HTTPException, OSError, ValueError) as error:
            raise DownloadError(f"{url}: {getattr(error, 'reason', error)}") from error
        with response:
            if response.status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
                raise DownloadError(f"{url}: expected 200 or 206, got {response.status} {response.reason}")
            if response.headers.get_content_type() == "text/html":
                # A portal or a proxy that answers for everybody; held against the digest, it would look like an attack.
                raise DownloadError(f"{url}: expected the bytes of a blob, got a page (text/html)")
            begins = _first_byte(response.headers.get("Content-Range"), offset, url) if response.status == 206 else 0  # noqa: PLR2004 - HTTP
            yield Stream(begins, _read(response, url))


def _read(response: object, url: str) -> Iterator[bytes]:
    from http.client import HTTPException  # noqa: PLC0415 - see above

    expected = response.length  # type: ignore[attr-defined]  # urlopen is typed without HTTPResponse's attributes
    received = 0
    try:
        while chunk := response.read1(_CHUNK_BYTES):  # type: ignore[attr-defined]  # likewise
            received += len(chunk)
            yield chunk
    except (HTTPException, OSError) as error:
        raise DownloadError(f"{url}: broke off after {received} bytes: {error}") from error
    if expected is not None and received < expected:
        raise DownloadError(f"{url}: broke off after {received} of {expected} bytes")


def _first_byte(content_range: str | None, offset: int, url: str) -> int:
    first = (content_range or "").removeprefix("bytes ").partition("-")[0]
    if first != str(offset):
        raise DownloadError(f"{url}: asked for bytes from {offset}, got Content-Range {content_range!r}")
    return offset
