"""Whether this worker answers rightly, asked over the socket that callers use: ``GET /edgeops/checkup`` runs a golden row.

The agent asks before it tells systemd that all is well (:mod:`edgeops_runtime.watchdog`); anybody else may. The row is counted
nowhere, and a worker that sheds load answers all the same.
"""

import msgspec

from edgeops.errors import EdgeOpsError
from edgeops_runtime.engines.engine import Tensors
from edgeops_runtime.serving.comparison import compare_golden, first_golden_row
from edgeops_runtime.serving.http import Handler, Request, Response, error_response
from edgeops_runtime.serving.model import LoadedModel

PATH = b"/edgeops/checkup"


class Checkup:
    """A handler before another one; may be used from several threads.

    Args:
        model: Runs the row.
        handler: Answers everything else.
    """

    def __init__(self, model: LoadedModel, handler: Handler) -> None:
        self._model = model
        self._handler = handler
        self._golden: Tensors | None = None

    def __call__(self, request: Request) -> Response:
        """Answer: 200 when the golden row came out right, 500 with the reason when it did not."""
        if request.path != PATH:
            return self._handler(request)
        try:
            self._golden = self._golden or first_golden_row(self._model)
            result = compare_golden(self._model, self._golden)
        except (EdgeOpsError, OSError) as error:
            return error_response(500, str(error))
        if not result.passed:
            return error_response(500, result.reason)
        return Response(200, (msgspec.json.encode({"passed": True, "difference": result.largest_difference}),))
