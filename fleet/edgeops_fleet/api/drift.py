"""Drift, samples, labels, data sets, and requests for retraining."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, Query, Response
from fastapi.responses import StreamingResponse

from edgeops.errors import NotFoundError
from edgeops_fleet.api.answers import answer
from edgeops_fleet.api.bodies import body_of, gives, takes
from edgeops_fleet.api.services import Services
from edgeops_fleet.retraining.records import RetrainView
from edgeops_fleet.retraining.samples import LabelRequest, SampleView
from edgeops_fleet.watch import verdict_view


def add_drift_routes(app: FastAPI, services: Services) -> None:
    """Add the routes."""

    @app.get("/api/v1/drift", tags=["drift"])
    def drift(scope: str | None = None) -> Response:
        """The detector's verdicts: the fleet first, then cohorts, then devices."""
        views = [verdict_view(verdict) for verdict in services.watch.verdicts()]
        return answer({"verdicts": [view for view in views if scope in {None, view["scope"]}]})

    @app.get("/api/v1/samples", tags=["drift"], openapi_extra=gives(SampleView, key="samples"))
    def list_samples(
        labelled: bool | None = None,
        model: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100_000)] = 10_000,
    ) -> Response:
        """Samples, without their bytes, in the order in which they came."""
        return answer({"samples": services.samples.all(labelled=labelled, model=model, limit=limit)})

    @app.get("/api/v1/samples/{sample}/inputs", tags=["drift"])
    def sample_inputs(sample: str) -> Response:
        """The tensors of a sample; ``data`` is base64 of little-endian, row-major bytes."""
        return answer(services.samples.inputs(sample))

    @app.post("/api/v1/labels", tags=["drift"], openapi_extra=takes(list[LabelRequest]))
    def label(body: Annotated[list[LabelRequest], Depends(body_of(list[LabelRequest]))]) -> Response:
        """Say what samples show; all of them are taken, or none."""
        return answer({"labelled": services.samples.label(body)})

    @app.get("/api/v1/datasets/{dataset}", tags=["drift"])
    def dataset(dataset: str) -> Response:
        """The manifest of a data set."""
        return Response(services.samples.dataset(dataset), media_type="application/json")

    @app.get("/api/v1/datasets/{dataset}/{name}", tags=["drift"], response_class=StreamingResponse)
    def dataset_file(dataset: str, name: str) -> Response:
        """A file of a data set."""
        return StreamingResponse(_file_chunks(services.samples.dataset_file(dataset, name)))

    @app.get("/api/v1/retrains", tags=["drift"], openapi_extra=gives(RetrainView, key="retrains"))
    def retrains(*, everything: Annotated[bool, Query(alias="all")] = False) -> Response:
        """Requests for retraining; with ``all``, also drifts that are still looked into or were found benign."""
        return answer({"retrains": services.retraining.all(only_requested=not everything)})

    @app.get("/api/v1/retrains/{retrain}/event", tags=["drift"])
    def event(retrain: str) -> Response:
        """The CloudEvent of a request for retraining."""
        data = services.retraining.event(retrain)
        if data is None:
            raise NotFoundError(f"retraining {retrain!r}: no event")
        return Response(data, media_type="application/cloudevents+json")


def _file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            yield chunk
