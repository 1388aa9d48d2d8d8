"""Names of MQTT topics: build and parse.

All live below ``edgeops/v1/{fleet}/``. At most seven slashes, so that the same topics are legal on the large cloud brokers.
"""

import re
from enum import StrEnum

from edgeops.errors import MessageError

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Upstream(StrEnum):
    """What a device publishes."""

    BIRTH = "birth"
    DEATH = "death"
    EVENT = "event"
    TELEMETRY = "telemetry"
    SAMPLE = "sample"


def check_name(kind: str, name: str) -> str:
    """Return a fleet, group, device or model name that fits into a topic.

    Raises:
        MessageError: It has other characters than letters, digits, ``_``, ``.`` and ``-``, or more than 64.
    """
    if not _NAME.fullmatch(name):
        raise MessageError(
            f"{kind} {name!r}: expected 1 to 64 letters, digits, '_', '.' or '-', a letter or digit first"
        )
    return name


class Topics:
    """The topics of one fleet."""

    def __init__(self, fleet: str) -> None:
        self.fleet = check_name("fleet", fleet)
        self._root = f"edgeops/v1/{fleet}"

    def group_desired(self, group: str) -> str:
        """Retained: the signed desired state of a group."""
        return f"{self._root}/group/{check_name('group', group)}/desired"

    def device_desired(self, device: str) -> str:
        """Retained: the signed override of one device; empty means none."""
        return self._device(device, "desired")

    def command(self, device: str) -> str:
        """Not retained: something to do once, now."""
        return self._device(device, "command")

    def ack(self, device: str) -> str:
        """Not retained: what the server has stored."""
        return self._device(device, "ack")

    def upstream(self, device: str, kind: Upstream) -> str:
        """Where a device publishes."""
        return self._device(device, kind.value)

    def upstream_filter(self, kind: Upstream) -> str:
        """What the server subscribes to for one kind of message of every device."""
        return f"{self._root}/device/+/{kind.value}"

    def parse_upstream(self, topic: str) -> tuple[str, Upstream]:
        """The device and the kind of message of an upstream topic.

        Raises:
            MessageError: It is not an upstream topic of this fleet.
        """
        prefix = f"{self._root}/device/"
        device, _, kind = topic.removeprefix(prefix).partition("/")
        if not topic.startswith(prefix) or kind not in set(Upstream):
            raise MessageError(f"topic {topic!r}: expected {prefix}<device>/<{'|'.join(Upstream)}>")
        return check_name("device", device), Upstream(kind)

    def _device(self, device: str, kind: str) -> str:
        return f"{self._root}/device/{check_name('device', device)}/{kind}"
