"""Every protocol behind one handler: the first part of the path says which."""

from edgeops_runtime.serving import v1, v2
from edgeops_runtime.serving.http import Request, Response
from edgeops_runtime.serving.replies import wrong_method
from edgeops_runtime.serving.repository import Repository
from edgeops_runtime.serving.shared_memory import Regions
from edgeops_runtime.serving.statistics import PROMETHEUS_TYPE, Metrics, metrics_text


class Protocols:
    """Answers the requests of all protocols for the models of a repository; may be used from several threads.

    Args:
        repository: Its models.
        regions: Where tensors in shared memory are.

    Attributes:
        metrics: Who is asked for what else ``/metrics`` is to tell, by name.
    """

    def __init__(self, repository: Repository, regions: Regions | None = None) -> None:
        self._repository = repository
        regions = regions or Regions()
        self.metrics: dict[str, Metrics] = {"shared memory": regions.metrics}
        self._v1 = v1.Service(repository)
        self.v2 = v2.Service(repository, regions)

    def __call__(self, request: Request) -> Response:
        """Answer any request; never raises."""
        path = request.path
        if path.startswith(b"/v1/"):
            return self._v1(request)
        if path == b"/metrics":
            if request.method not in {b"GET", b"HEAD"}:
                return wrong_method("GET")
            text = metrics_text(self._repository.served, [one for source in self.metrics.values() for one in source()])
            return Response(200, (text.encode(),), content_type=PROMETHEUS_TYPE)
        return self.v2(request)
