"""Whether this worker answers rightly, asked over the socket that callers use: ``GET /edgeops/checkup`` runs a golden row.

The agent asks before it tells systemd that all is well (:mod:`edgeops_runtime.watchdog`); anybody else may. The row waits for its
turn as requests do, so that lanes which hang are found; it is counted nowhere, and a worker that sheds load answers all the same.
"""

import time

import msgspec

from edgeops.errors import EdgeOpsError, TransientError
from edgeops_runtime.engines.engine import Tensors
from edgeops_runtime.serving.comparison import compare_golden, first_golden_row
from edgeops_runtime.serving.http import Handler, Request, Response, error_response
from edgeops_runtime.serving.repository import Served

PATH = b"/edgeops/checkup"
_PATIENCE_S = 8.0
"""For its turn; less than the agent's for the answer."""


class Checkup:
    """A handler before another one; may be used from several threads.

    Args:
        served: Runs the row.
        handler: Answers everything else.
        patience_s: How long the row waits for its turn.
    """

    def __init__(self, served: Served, handler: Handler, *, patience_s: float = _PATIENCE_S) -> None:
        self._served = served
        self._handler = handler
        self._patience_s = patience_s
        self._golden: Tensors | None = None

    def __call__(self, request: Request) -> Response:
        """Answer: 200 when the golden row came out right, 500 with the reason when it did not, 503 when its turn did not come."""
        if request.path != PATH:
            return self._handler(request)
        try:
            self._golden = self._golden or first_golden_row(self._served.model)
            result = compare_golden(self._served.model, self._golden, answer=self._answer)
        except TransientError as error:
            return error_response(503, str(error), headers=(("Retry-After", "1"),))
        except (EdgeOpsError, OSError) as error:
            return error_response(500, str(error))
        if not result.passed:
            return error_response(500, result.reason)
        return Response(200, (msgspec.json.encode({"passed": True, "difference": result.largest_difference}),))

    def _answer(self, feeds: Tensors) -> Tensors:
        deadline = time.perf_counter_ns() + int(self._patience_s * 1e9)
        return self._served.batcher.answer(feeds, deadline=deadline).outputs
