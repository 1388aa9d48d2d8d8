"""Answers that every protocol gives: JSON, the wrong method, and what an error of ours is called in HTTP."""

import math
from typing import Any

import msgspec

from edgeops.errors import (
    ConflictError,
    DeadlineError,
    EdgeOpsError,
    InputError,
    NotFoundError,
    OverloadedError,
    RefusedError,
)
from edgeops_runtime.serving.http import Response, error_response

_ENCODER = msgspec.json.Encoder()


def json_reply(value: Any) -> Response:  # noqa: ANN401 - whatever JSON can say
    """An answer that is JSON."""
    return Response(200, (_ENCODER.encode(value),))


def wrong_method(allowed: str) -> Response:
    """The answer to a method that the path does not have."""
    return error_response(405, f"expected the method {allowed}", headers=(("Allow", allowed),))


def refusal(error: EdgeOpsError) -> Response:
    """The answer to a request that ended in an error: whose fault it is says the status."""
    match error:
        case NotFoundError():
            return error_response(404, str(error))
        case InputError():
            return error_response(400, str(error))
        case ConflictError():
            return error_response(409, str(error))
        case RefusedError():
            return error_response(403, str(error))
        case OverloadedError():
            wait = str(max(1, math.ceil(error.retry_after_s)))
            return error_response(503, str(error), headers=(("Retry-After", wait),))
        case DeadlineError():
            return error_response(504, str(error))
    return error_response(500, str(error))


def breakdown(error: Exception) -> Response:
    """The answer to a request that met a fault of ours: it must not look like a broken network."""
    return error_response(500, f"internal error: {type(error).__name__}: {error}")
