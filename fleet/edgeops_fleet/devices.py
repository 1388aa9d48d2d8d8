"""What the server knows of each device: births and deaths, what it runs, and pins.

Births and deaths come in any order; ``(boot, session)`` says which is newer, so a late will never buries a newer birth.
"""

from typing import Any

import msgspec
import sqlalchemy as sa

from edgeops.errors import NotFoundError
from edgeops.messages import Birth, Death, DeploymentState, Transition
from edgeops.selection import Attribute
from edgeops_fleet.schema import device_models, devices, pins, windows
from edgeops_fleet.store import Store, read_row, upsert


class ModelOnDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one device, as last reported."""

    model: str
    version: str | None = None
    digest: str | None = None
    previous: str | None = None
    candidate: str | None = None
    variant: str | None = None
    state: str | None = None
    quarantined: dict[str, str] = {}
    updated: float = 0.0


class PinView(msgspec.Struct, frozen=True, kw_only=True):
    """An override: this device runs this version, whatever its group wants."""

    device: str
    model: str
    version: str
    digest: str
    reason: str
    created: float


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """A device as the operator sees it; times are Unix seconds."""

    id: str
    group: str
    attributes: dict[str, Attribute]
    bucket: int
    enrolled: float
    online: bool
    last_seen: float | None
    boot: int
    session: int
    generation: int
    address: str
    agent_version: str
    engines: dict[str, str]
    clock_trusted: bool
    models: tuple[ModelOnDevice, ...] = ()
    pins: tuple[PinView, ...] = ()
    requests: int = 0
    errors: int = 0
    host: dict[str, Any] = {}

    def holds(self, model: str) -> str | None:
        """Digest of the version of a model that it runs."""
        return next((each.digest for each in self.models if each.model == model), None)

    def is_pinned(self, model: str) -> bool:
        """Whether an override decides what it runs."""
        return any(pin.model == model for pin in self.pins)


class PinRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a device shall run."""

    model: str
    version: str
    reason: str = ""


class Devices:
    """Reads devices, and pins them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self, *, group: str | None = None, with_figures: bool = False) -> tuple[DeviceView, ...]:
        """Every device, by id."""
        with self._store.read() as connection:
            views = read_devices(connection, group=group)
            figures = _figures(connection) if with_figures else {}
        return tuple(msgspec.structs.replace(view, **figures.get(view.id, {})) for view in views)

    def get(self, device: str) -> DeviceView:
        """One device.

        Raises:
            NotFoundError: It is not enrolled.
        """
        with self._store.read() as connection:
            found = read_devices(connection, device=device)
            figures = _figures(connection, device=device)
        if not found:
            raise NotFoundError(f"device {device!r}: not enrolled")
        return msgspec.structs.replace(found[0], **figures.get(device, {}))

    def pin(self, device: str, *, model: str, version: str, digest: str, reason: str) -> None:
        """Have a device run a version, whatever its group wants; its document follows with the controller's next step.

        Raises:
            NotFoundError: It is not enrolled.
        """
        self.get(device)
        values = {"version": version, "digest": digest, "reason": reason, "created": self._store.clock()}
        with self._store.write() as connection:
            upsert(connection, pins, {"device": device, "model": model}, values)
            text = f"{device} pinned to {model} {version}" + (f": {reason}" if reason else "")
            self._store.note(connection, "device.pinned", text, actor="operator", device=device, model=model)

    def unpin(self, device: str, *, model: str | None = None) -> None:
        """Let a device follow its group again.

        Raises:
            NotFoundError: It was not pinned.
        """
        condition = pins.c.device == device
        if model is not None:
            condition = sa.and_(condition, pins.c.model == model)
        with self._store.write() as connection:
            if not connection.execute(pins.delete().where(condition)).rowcount:
                raise NotFoundError(f"device {device!r}: no pin" + (f" of {model!r}" if model else ""))
            self._store.note(
                connection,
                "device.unpinned",
                f"{device} follows its group",
                actor="operator",
                device=device,
                model=model,
            )


def read_devices(
    connection: sa.Connection, *, group: str | None = None, device: str | None = None
) -> tuple[DeviceView, ...]:
    """Devices with their models and pins, by id."""
    query = sa.select(devices).order_by(devices.c.id)
    if group is not None:
        query = query.where(devices.c.group == group)
    if device is not None:
        query = query.where(devices.c.id == device)
    models: dict[str, list[ModelOnDevice]] = {}
    pinned: dict[str, list[PinView]] = {}
    model_query = sa.select(device_models).order_by(device_models.c.model)
    pin_query = sa.select(pins)
    if device is not None:
        model_query = model_query.where(device_models.c.device == device)
        pin_query = pin_query.where(pins.c.device == device)
    for row in connection.execute(model_query).mappings():
        models.setdefault(row["device"], []).append(read_row(row, ModelOnDevice))
    for row in connection.execute(pin_query).mappings():
        pinned.setdefault(row["device"], []).append(read_row(row, PinView))
    return tuple(
        msgspec.structs.replace(
            read_row(row, DeviceView), models=tuple(models.get(row["id"], ())), pins=tuple(pinned.get(row["id"], ()))
        )
        for row in connection.execute(query).mappings().all()
    )


def apply_birth(connection: sa.Connection, birth: Birth, *, now: float) -> bool:
    """Take a device's report of its state; ``False`` when a newer session is known."""
    known = connection.execute(sa.select(devices.c.boot, devices.c.session).where(devices.c.id == birth.device)).one()
    if (birth.boot, birth.session) < tuple(known):
        return False
    connection.execute(
        devices.update()
        .where(devices.c.id == birth.device)
        .values(
            online=True,
            last_seen=now,
            boot=birth.boot,
            session=birth.session,
            epoch=birth.epoch,
            generation=birth.generation,
            address=birth.address,
            agent_version=birth.agent_version,
            engines=birth.engines,
            clock_trusted=birth.clock_trusted,
        )
    )
    connection.execute(device_models.delete().where(device_models.c.device == birth.device))
    for state in birth.models:
        values = {key: value for key, value in msgspec.to_builtins(state).items() if key != "model"}
        upsert(connection, device_models, {"device": birth.device, "model": state.model}, {**values, "updated": now})
    return True


def apply_death(connection: sa.Connection, death: Death, *, now: float) -> bool:
    """Take note that a session ended; ``False`` when a newer one is known."""
    result = connection.execute(
        devices.update()
        .where(
            devices.c.id == death.device,
            devices.c.online,
            sa.or_(
                devices.c.boot < death.boot,
                sa.and_(devices.c.boot == death.boot, devices.c.session <= death.session),
            ),
        )
        .values(online=False, last_seen=now, boot=death.boot, session=death.session)
    )
    return bool(result.rowcount)


def apply_transition(connection: sa.Connection, device: str, record: Transition, *, now: float) -> None:
    """What a transition says of the version that a device runs."""
    values: dict[str, Any] = {"state": record.state.value, "updated": now}
    key = {"device": device, "model": record.model}
    condition = sa.and_(device_models.c.device == device, device_models.c.model == record.model)
    known = connection.execute(sa.select(device_models).where(condition)).mappings().first()
    if record.state is DeploymentState.COMMITTED:
        values.update(version=record.version, digest=record.digest, variant=record.variant, candidate=None)
        if known is not None and known["digest"] not in {None, record.digest}:
            values["previous"] = known["digest"]
    elif record.state.is_final:
        values["candidate"] = None
        if record.state is DeploymentState.ROLLED_BACK and known is not None and known["digest"] == record.digest:
            values.update(version=None, digest=None)
    else:
        values["candidate"] = record.digest
    if known is None:
        values.setdefault("quarantined", {})
    upsert(connection, device_models, key, values)


def _figures(connection: sa.Connection, *, device: str | None = None) -> dict[str, dict[str, Any]]:
    query = sa.select(
        windows.c.device,
        sa.func.sum(windows.c.requests).label("requests"),
        sa.func.sum(windows.c.errors).label("errors"),
        sa.func.max(windows.c.id).label("last"),
    ).group_by(windows.c.device)
    if device is not None:
        query = query.where(windows.c.device == device)
    figures: dict[str, dict[str, Any]] = {}
    last: dict[int, str] = {}
    for row in connection.execute(query).mappings():
        figures[row["device"]] = {"requests": row["requests"], "errors": row["errors"]}
        last[row["last"]] = row["device"]
    for row in connection.execute(sa.select(windows.c.id, windows.c.host).where(windows.c.id.in_(last))).mappings():
        figures[last[row["id"]]]["host"] = row["host"]
    return figures
