"""Desired documents: what each group and each pinned device is told; signed by the director's key, kept until published.

A document is issued anew, with the next generation, only when what it wants has changed or half of its validity is over. It is
written in the transaction that changed it, and published afterwards; one that was not published is found again after a crash.
"""

import msgspec
import sqlalchemy as sa

from edgeops.messages import Desired, RolloutOrder, Target, encode_json
from edgeops.signing import DESIRED, SigningKey, seal
from edgeops.topics import Topics
from edgeops_fleet.devices import DeviceView, read_devices
from edgeops_fleet.rollouts.rollout import RolloutSpec, RolloutState
from edgeops_fleet.schema import devices, documents, pins, rollouts, targets, waves
from edgeops_fleet.store import get_setting, set_setting, upsert

BLOBS_URL = "/blobs"
"""Relative to the server that a device enrolled with."""

NEVER = 4_102_444_800.0
"""The year 2100: a paused rollout's ``not_before``. What a device has begun it finishes; nobody begins."""

_CARRIED = (RolloutState.RUNNING, RolloutState.PAUSED)


class Director:
    """Builds and signs documents.

    Args:
        fleet: Its name.
        key: The director's key, which devices were told to trust at enrolment.
        ttl_s: Validity of a document, in seconds.
    """

    def __init__(self, fleet: str, key: SigningKey, *, ttl_s: float) -> None:
        self._fleet = fleet
        self._topics = Topics(fleet)
        self._key = key
        self._ttl_s = ttl_s

    def issue(self, connection: sa.Connection, *, now: float) -> int:
        """Write the documents that changed; returns how many."""
        issued = 0
        pinned = {row["device"] for row in connection.execute(sa.select(pins.c.device)).mappings()}
        groups = set(connection.execute(sa.select(devices.c.group).distinct()).scalars())
        groups |= set(connection.execute(sa.select(targets.c.group)).scalars())
        wanted = {group: _group_targets(connection, group) for group in groups}
        for group, group_targets in wanted.items():
            if group_targets:
                issued += self._issue_one(
                    connection, self._topics.group_desired(group), group, None, group_targets, now=now
                )
        for device in (each for each in read_devices(connection) if each.id in pinned):
            override = _override(device, wanted[device.group])
            topic = self._topics.device_desired(device.id)
            issued += self._issue_one(connection, topic, device.group, device.id, override, now=now)
        return issued + self._withdraw(connection, keep=pinned)

    def _issue_one(
        self,
        connection: sa.Connection,
        topic: str,
        group: str,
        device: str | None,
        wanted: tuple[Target, ...],
        *,
        now: float,
    ) -> int:
        content = msgspec.json.encode(wanted)
        known = connection.execute(sa.select(documents).where(documents.c.topic == topic)).mappings().first()
        if known is not None and known["content"] == content and known["expires"] - now > self._ttl_s / 2:
            return 0
        generation = _next_generation(connection, now=now)
        desired = Desired(
            fleet=self._fleet,
            group=group,
            device=device,
            generation=generation,
            issued=now,
            expires=now + self._ttl_s,
            targets=wanted,
        )
        payload = seal(encode_json(desired), kind=DESIRED, keys=[self._key])
        values = {
            "group": group,
            "device": device,
            "generation": generation,
            "expires": desired.expires,
            "content": content,
            "payload": payload,
            "published": False,
        }
        upsert(connection, documents, {"topic": topic}, values)
        return 1

    @staticmethod
    def _withdraw(connection: sa.Connection, *, keep: set[str]) -> int:
        """Overrides of devices that are no longer pinned become empty, which clears the retained message."""
        stale = connection.execute(
            documents.update()
            .where(documents.c.device.is_not(None), documents.c.device.not_in(keep), documents.c.payload != b"")
            .values(payload=b"", content=b"", published=False)
        )
        return stale.rowcount


def _group_targets(connection: sa.Connection, group: str) -> tuple[Target, ...]:
    query = sa.select(targets).where(targets.c.group == group).order_by(targets.c.model)
    orders = _orders(connection, group)
    return tuple(
        Target(
            model=row["model"],
            version=row["version"],
            digest=row["digest"],
            url=BLOBS_URL,
            floor=row["floor"],
            rollout=orders.get(row["model"]),
            quarantine=tuple(row["quarantine"]),
        )
        for row in connection.execute(query).mappings().all()
    )


def _orders(connection: sa.Connection, group: str) -> dict[str, RolloutOrder]:
    query = sa.select(rollouts).where(
        rollouts.c.group == group, rollouts.c.state.in_([state.value for state in _CARRIED])
    )
    orders = {}
    for row in connection.execute(query).mappings().all():
        spec = msgspec.json.decode(row["spec"], type=RolloutSpec)
        wave = (
            connection.execute(sa.select(waves).where(waves.c.rollout == row["id"], waves.c.index == row["wave"]))
            .mappings()
            .one()
        )
        # A spread counts from the start of the wave; without one, nothing has to wait for the clock.
        begins = max(spec.not_before, wave["started"]) if spec.spread_s else spec.not_before
        orders[row["model"]] = RolloutOrder(
            id=row["id"],
            version=row["version"],
            digest=row["digest"],
            percent=wave["percent"],
            rotation=row["rotation"],
            where=spec.where,
            not_before=NEVER if row["state"] == RolloutState.PAUSED else begins,
            spread_s=spec.spread_s,
            trial=spec.trial,
        )
    return orders


def _override(device: DeviceView, group_targets: tuple[Target, ...]) -> tuple[Target, ...]:
    """The whole of what a pinned device is told: an override replaces its group's document."""
    by_model = {target.model: target for target in group_targets}
    for pin in device.pins:
        base = by_model.get(pin.model) or Target(model=pin.model, url=BLOBS_URL)
        allowed = tuple(digest for digest in base.quarantine if digest != pin.digest)
        by_model[pin.model] = msgspec.structs.replace(
            base, version=pin.version, digest=pin.digest, rollout=None, quarantine=allowed
        )
    return tuple(by_model[model] for model in sorted(by_model))


def _next_generation(connection: sa.Connection, *, now: float) -> int:
    """Grows by one at least, and keeps up with the clock, so that a database restored from a backup does not fall behind."""
    generation = max(int(get_setting(connection, "generation") or 0) + 1, int(now))
    set_setting(connection, "generation", str(generation))
    return generation
