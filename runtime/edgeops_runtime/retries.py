"""When a version that failed may be tried again: never for the same order where it cannot help, else later and later."""

import random
from collections.abc import Callable

import msgspec

from edgeops.messages import DeploymentState, ReasonClass
from edgeops_runtime.deployment import Deployment

_FIRST_S, _LONGEST_S = 30.0, 3600.0


class _Retry(msgspec.Struct, frozen=True):
    rollout: str | None
    at: float
    count: int


class Retries:
    """What failed, and until when it rests; not kept over a restart, which is a good reason to try again.

    Args:
        uptime: Monotonic time in seconds.
        rng: Spreads the tries of a fleet.
    """

    def __init__(self, uptime: Callable[[], float], rng: random.Random) -> None:
        self._uptime, self._rng = uptime, rng
        self._known: dict[str, _Retry] = {}

    def wait_s(self, digest: str, rollout: str | None) -> float:
        """How long a version still rests, in seconds; 0 where it may be tried, also when another rollout asks."""
        retry = self._known.get(digest)
        if retry is None or retry.rollout != rollout:
            return 0.0
        return max(retry.at - self._uptime(), 0.0)

    def note(self, ended: Deployment) -> None:
        """A deployment has ended."""
        if ended.state in {DeploymentState.COMMITTED, DeploymentState.SUPERSEDED}:
            self.forget(ended.digest)
            return
        before = self._known.get(ended.digest)
        count = before.count + 1 if before is not None and before.rollout == ended.rollout else 1
        if ended.reason_class in {ReasonClass.INCOMPATIBLE, ReasonClass.SECURITY}:
            wait_s = float("inf")
        else:
            longest_s = min(_FIRST_S * 2 ** min(count - 1, 10), _LONGEST_S)
            wait_s = self._rng.uniform(longest_s / 2, longest_s)
        self._known[ended.digest] = _Retry(ended.rollout, self._uptime() + wait_s, count)

    def forget(self, digest: str) -> None:
        """It did not fail, so it need not wait when it is wanted again."""
        self._known.pop(digest, None)
