"""How a device joins a fleet: the request it sends with a one-time token, and the answer that gives it its identity.

The private half of the device's key never leaves the device. The answer names the keys that the device will trust from then on.
"""

import msgspec

from edgeops.selection import Attribute


class EnrolmentRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``POST {server}/api/v1/enrol``.

    Attributes:
        token: One-time token from ``edgeops fleet token``.
        device: Id that the device would like.
        public_key: Base64 of its Ed25519 public key.
        attributes: What it says of itself (hardware, engine); those of the token win.
        proof: Base64 of the signature over ``token`` by that key: the sender has the private half.
    """

    token: str
    device: str
    public_key: str
    attributes: dict[str, Attribute] = {}
    proof: str


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """The answer; the device keeps it in ``identity.json``.

    Attributes:
        attributes: As the server has them; the same on both sides, so that both select alike.
        director_key: Public key of the server, which signs the desired state.
        release_keys: Public keys, one of which must have signed a bundle.
        broker_host: MQTT broker; likewise ``broker_port``.
        username: For the broker; likewise ``password``. ``None`` where the broker asks for none.
        sealing_key: Captured rows are sealed to it (:mod:`edgeops.sealing`); empty: this device has to enrol anew before any may
            leave it.
        url: Base of the server's HTTP API; a target's blob URL that begins with ``/`` is relative to it.
    """

    fleet: str
    group: str
    device: str
    attributes: dict[str, Attribute]
    director_key: str
    release_keys: tuple[str, ...]
    broker_host: str
    broker_port: int
    username: str | None = None
    password: str | None = None
    sealing_key: str = ""
    url: str
