"""The REST API: HTTP in, calls of the server's parts, JSON out. No decision is made here but who may ask.

Changing anything needs ``Authorization: Bearer <operator token>``. Reading is open to this machine; from elsewhere it needs the
token too (a browser asks for it: any user name, the token as the password), unless the settings open it. A device's way in
(enrolment), blobs (signed, and named by their digest) and the health check are open to all.
"""

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from edgeops import __version__
from edgeops.errors import EdgeOpsError
from edgeops_fleet.api.answers import answer_error
from edgeops_fleet.api.bodies import describe_bodies
from edgeops_fleet.api.bundles import add_bundle_routes
from edgeops_fleet.api.devices import add_device_routes
from edgeops_fleet.api.doorkeeper import Doorkeeper
from edgeops_fleet.api.drift import add_drift_routes
from edgeops_fleet.api.records import add_record_routes
from edgeops_fleet.api.rollouts import add_rollout_routes
from edgeops_fleet.api.services import Services

__all__ = ["Services", "create_app"]


def create_app(services: Services, *, pages: Sequence[APIRouter] = ()) -> FastAPI:
    """The web application: the API, and pages such as the dashboard."""
    app = FastAPI(
        title="EdgeOps fleet",
        version=__version__,
        description=__doc__,
        docs_url="/docs",
        openapi_url="/openapi.json",
        redoc_url=None,
    )
    app.state.services = services
    app.add_middleware(Doorkeeper, services=services)
    for kind in (EdgeOpsError, HTTPException, RequestValidationError, OSError, Exception):
        app.add_exception_handler(kind, answer_error)
    add_device_routes(app, services)
    add_bundle_routes(app, services)
    add_rollout_routes(app, services)
    add_record_routes(app, services)
    add_drift_routes(app, services)
    for page in pages:
        app.include_router(page)
    describe_bodies(app)
    return app
