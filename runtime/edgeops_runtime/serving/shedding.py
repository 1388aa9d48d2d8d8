"""Turning a share of the inference requests away while the board is too hot or short of memory: 503, and come again.

When and how many is decided by the agent (:mod:`edgeops_runtime.ladder`).
"""

import itertools
import math

from edgeops_runtime.serving.http import Handler, Request, Response, error_response

_MESSAGE = "this device is too hot or short of memory; try again"
_INFERENCES = (b"/infer", b":predict")
_HEADERS = (("Retry-After", "2"),)


class Shedder:
    """A handler before another one; may be used from several threads.

    Args:
        handler: Answers what is not turned away.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._count = itertools.count(1)
        self.share = 0.0
        """Of the inference requests, from 0 to 1, evenly spread: one of two for 0.5."""

    def __call__(self, request: Request) -> Response:
        """Answer, or turn away; what does not ask for an inference costs nothing and is answered."""
        share = self.share
        if share and request.method == b"POST" and request.path.endswith(_INFERENCES):
            number = next(self._count)
            if math.floor(number * share) > math.floor((number - 1) * share):
                return error_response(503, _MESSAGE, headers=_HEADERS)
        return self._handler(request)
