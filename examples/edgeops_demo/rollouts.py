"""How the demo rolls a version out: first one device, then half of them, then all, with a gate after each wave."""

from collections.abc import Iterable, Mapping
from typing import Any

from edgeops_demo.release import MODEL
from edgeops_demo.report import RolloutFigures
from edgeops_demo.stage import GROUP

SHADOW_REQUESTS = 50
"""Two frames with the sun in them, at least."""


def order(version: str) -> dict[str, Any]:
    """The order of a rollout. Eight devices prove no threshold, so a wave passes when all of it committed and none failed."""
    return {
        "group": GROUP,
        "model": MODEL,
        "version": version,
        "waves": [{"devices": 1}, {"percent": 50}, {"percent": 100}],
        "soak_s": 2.0,
        "trial": {
            "shadow_requests": SHADOW_REQUESTS,
            "probation_requests": 20,
            "probation_s": 2.0,
            "max_latency_ratio": 10.0,
            "deadline_s": 90.0,
        },
        "gate": {"when_unproven": "unanimous", "max_latency_ratio": 10.0},
    }


def figures(rollout: Mapping[str, Any], seconds: float) -> RolloutFigures:
    """What the report says of a rollout."""
    devices = rollout["deployments"]
    return RolloutFigures(
        state=rollout["state"],
        waves=[{"devices": wave["devices"], "state": wave["state"]} for wave in rollout["waves"]],
        devices_committed=count(devices, "committed"),
        devices_rolled_back=count(devices, "rolled_back"),
        devices_that_served_it=sum("probation" in device["states"] for device in devices),
        why=rollout["reason"],
        seconds=round(seconds, 1),
    )


def count(devices: Iterable[Mapping[str, Any]], state: str) -> int:
    """How many devices ended in a state."""
    return sum(device["state"] == state for device in devices)
