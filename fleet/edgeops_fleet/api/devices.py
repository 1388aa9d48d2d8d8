"""Devices: enrolment, tokens, what they run, pins and commands."""

import secrets
from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, Request, Response

from edgeops.enrolment import Enrolment, EnrolmentRequest
from edgeops.messages import Command, CommandKind
from edgeops_fleet.api.answers import answer
from edgeops_fleet.api.bodies import body_of, takes
from edgeops_fleet.api.services import Services
from edgeops_fleet.devices import DeviceView, PinRequest
from edgeops_fleet.enrolments import TokenRequest, TokenView
from edgeops_fleet.retraining.policy import add_command

_MOST_SAMPLES = 100_000
_LONGEST_S = 30 * 86400.0


class CommandRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Something that a device shall do once."""

    kind: CommandKind
    model: str = ""
    count: int = 0
    share: float = 1.0
    ttl_s: float = 300.0

    def __post_init__(self) -> None:
        if not (0 <= self.count <= _MOST_SAMPLES and 0 < self.share <= 1 and 0 < self.ttl_s <= _LONGEST_S):
            raise ValueError(
                f"command: count lies in 0 to {_MOST_SAMPLES}, share above 0 and at most at 1, ttl_s above 0 and at most at "
                f"{_LONGEST_S:.0f}"
            )


def add_device_routes(app: FastAPI, services: Services) -> None:
    """Add the routes."""

    @app.post("/api/v1/enrol", tags=["devices"], openapi_extra=takes(EnrolmentRequest, and_gives=Enrolment))
    def enrol(body: Annotated[EnrolmentRequest, Depends(body_of(EnrolmentRequest))], request: Request) -> Response:
        """A device joins with a one-time token; the same device with the same key and token gets the same answer."""
        enrolled = services.enrolments.redeem(body)
        services.controller.wake()
        return answer(services.identity(enrolled, request.url.hostname or ""))

    @app.post(
        "/api/v1/tokens", tags=["devices"], status_code=201, openapi_extra=takes(TokenRequest, and_gives=TokenView)
    )
    def new_token(body: Annotated[TokenRequest, Depends(body_of(TokenRequest))]) -> Response:
        """Make a token for new devices; it is shown once."""
        return answer(services.enrolments.new_token(body), status=201)

    @app.get("/api/v1/devices", tags=["devices"])
    def list_devices(group: str | None = None) -> Response:
        """Every device, what it runs and how it is."""
        found = services.devices.all(group=group, with_figures=True)
        return answer({"devices": [_device_json(device) for device in found]})

    @app.get("/api/v1/devices/{device}", tags=["devices"])
    def get_device(device: str) -> Response:
        """One device, with what happened to it."""
        view = services.devices.get(device)
        log = services.store.log(device=device, limit=200)
        return answer({**_device_json(view), "log": msgspec.to_builtins(log)})

    @app.post("/api/v1/devices/{device}/pin", tags=["devices"], openapi_extra=takes(PinRequest, and_gives=DeviceView))
    def pin(device: str, body: Annotated[PinRequest, Depends(body_of(PinRequest))]) -> Response:
        """Have a device run a version, whatever its group wants."""
        bundle = services.catalog.find(body.model, body.version)
        services.devices.pin(device, model=body.model, version=body.version, digest=bundle.digest, reason=body.reason)
        services.controller.issue()
        return answer(_device_json(services.devices.get(device)))

    @app.delete("/api/v1/devices/{device}/pin", tags=["devices"])
    def unpin(device: str, model: str | None = None) -> Response:
        """Let a device follow its group again."""
        services.devices.unpin(device, model=model)
        services.controller.issue()
        return answer(_device_json(services.devices.get(device)))

    @app.post(
        "/api/v1/devices/{device}/command", tags=["devices"], status_code=202, openapi_extra=takes(CommandRequest)
    )
    def command(device: str, body: Annotated[CommandRequest, Depends(body_of(CommandRequest))]) -> Response:
        """Tell a device to do something once; it is sent while it is valid, also when the device comes later."""
        services.devices.get(device)
        order = Command(
            id=f"c-{secrets.token_hex(6)}",
            kind=body.kind,
            expires=services.store.clock() + body.ttl_s,
            model=body.model,
            count=body.count,
            share=body.share,
        )
        with services.store.write() as connection:
            add_command(connection, device, order)
            text = f"{device}: {body.kind}" + (f" {body.count} of {body.model}" if body.count else "")
            services.store.note(connection, "device.command", text, actor="operator", device=device)
        return answer({"id": order.id, "expires": order.expires}, status=202)


def _device_json(device: DeviceView) -> dict[str, Any]:
    view: dict[str, Any] = msgspec.to_builtins(device)
    first = next((model for model in device.models if model.digest is not None), None)
    view.update(model=first.model if first else None, version=first.version if first else None)
    return view
