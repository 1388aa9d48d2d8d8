"""Answers as JSON, and errors as answers: ``{"error": …}`` with the status that the error's place in the tree gives."""

import errno
import logging
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from edgeops.errors import (
    ConflictError,
    EdgeOpsError,
    InputError,
    ManifestError,
    NotFoundError,
    TransientError,
    UntrustedError,
)

logger = logging.getLogger(__name__)


def answer(value: Any, *, status: int = 200) -> Response:  # noqa: ANN401 - anything that msgspec encodes
    """A value as JSON."""
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


async def answer_error(_request: Request, error: Exception) -> Response:
    """An error as JSON; the log, not the answer, has what only we can mend."""
    if isinstance(error, HTTPException):
        return answer({"error": str(error.detail)}, status=error.status_code)
    if isinstance(error, RequestValidationError):
        texts = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()]
        return answer({"error": "; ".join(texts)}, status=400)
    if isinstance(error, OSError):
        logger.error("request: %s", error)
        status = 507 if error.errno in {errno.ENOSPC, errno.EDQUOT} else 503
        return answer({"error": f"the server's disk: {error.strerror or error}; nothing was changed"}, status=status)
    statuses: tuple[tuple[type[Exception], int], ...] = (
        (NotFoundError, 404),
        (ConflictError, 409),
        (UntrustedError, 403),
        (ManifestError, 422),
        (InputError, 400),
        (TransientError, 503),
    )
    status = next((code for kind, code in statuses if isinstance(error, kind)), 500)
    if not isinstance(error, EdgeOpsError):
        return answer({"error": "the server failed at this; its log has the reason"}, status=500)
    return answer({"error": str(error)}, status=status)
