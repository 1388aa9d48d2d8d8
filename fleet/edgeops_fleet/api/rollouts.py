"""Rollouts: plan, order, look, act."""

from typing import Annotated

from fastapi import Depends, FastAPI, Response

from edgeops_fleet.api.answers import answer
from edgeops_fleet.api.bodies import body_of, gives, takes
from edgeops_fleet.api.services import Services
from edgeops_fleet.rollouts.controller import Action
from edgeops_fleet.rollouts.planning import Plan, plan_rollout
from edgeops_fleet.rollouts.records import RolloutView
from edgeops_fleet.rollouts.rollout import RolloutSpec


def add_rollout_routes(app: FastAPI, services: Services) -> None:
    """Add the routes."""

    @app.post("/api/v1/rollouts/plan", tags=["rollouts"], openapi_extra=takes(RolloutSpec, and_gives=Plan))
    def plan(body: Annotated[RolloutSpec, Depends(body_of(RolloutSpec))]) -> Response:
        """What a rollout would do: who matches and why others do not, wave sizes, bytes, what the gate can prove."""
        bundle = services.catalog.find(body.model, body.version)
        made = plan_rollout(
            body,
            manifest=services.catalog.manifest(bundle.digest),
            digest=bundle.digest,
            devices=services.devices.all(),
            rotation=0,
            conflict=services.rollouts.objection(body, digest=bundle.digest),
        )
        return answer(made)

    @app.post(
        "/api/v1/rollouts", tags=["rollouts"], status_code=201, openapi_extra=takes(RolloutSpec, and_gives=RolloutView)
    )
    def create(body: Annotated[RolloutSpec, Depends(body_of(RolloutSpec))]) -> Response:
        """Order a rollout; it starts at once unless it is a draft."""
        bundle = services.catalog.find(body.model, body.version)
        rollout = services.rollouts.create(body, digest=bundle.digest)
        services.controller.wake()
        return answer(services.rollouts.get(rollout), status=201)

    @app.get("/api/v1/rollouts", tags=["rollouts"], openapi_extra=gives(RolloutView, key="rollouts"))
    def list_rollouts() -> Response:
        """Every rollout, the newest last."""
        return answer({"rollouts": services.rollouts.all()})

    @app.get("/api/v1/rollouts/{rollout}", tags=["rollouts"], openapi_extra=gives(RolloutView))
    def get_rollout(rollout: str) -> Response:
        """One rollout: waves, gates, devices, and what happened why."""
        return answer(services.rollouts.get(rollout))

    @app.post("/api/v1/rollouts/{rollout}/{action}", tags=["rollouts"], openapi_extra=gives(RolloutView))
    def act(rollout: str, action: Action) -> Response:
        """Start a draft, pause, resume (which also approves an inconclusive gate), roll back, or abort."""
        services.controller.act(rollout, action)
        return answer(services.rollouts.get(rollout))
