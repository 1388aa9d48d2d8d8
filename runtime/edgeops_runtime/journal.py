"""What the agent has to tell the server, as records in the outbox: transitions, notices, telemetry, samples."""

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from edgeops.errors import MessageError
from edgeops.messages import HostMetrics, Notice, Sample, StoredRecord, Telemetry, Transition
from edgeops_runtime.clock import TrustedClock
from edgeops_runtime.control import Sampled
from edgeops_runtime.deployment import Deployment
from edgeops_runtime.outbox import Outbox, Stamp, Stream
from edgeops_runtime.slots import Slot
from edgeops_runtime.telemetry import Window

logger = logging.getLogger(__name__)

_MAX_TEXT = 2000
"""An engine may say as much as it likes; a record that is too large for the broker would never be told."""


class Journal:
    """Writes records into the outbox, each with its stamp.

    Args:
        outbox: Where they go.
        clock: For the stamps; likewise ``boot``.
    """

    def __init__(self, outbox: Outbox, *, clock: TrustedClock, boot: int) -> None:
        self._outbox = outbox
        self._clock = clock
        self._boot = boot

    def notice(self, kind: str, text: str) -> None:
        """Something that the log should have."""
        logger.warning("%s: %s", kind, text)
        self._outbox.append(
            Stream.EVENT,
            lambda sequence: Notice(**self._record(Stream.EVENT, sequence), kind=kind, text=_bounded(text)),
        )

    def transition(self, model: str, deployment: Deployment) -> None:
        """A deployment is in a new state."""
        logger.info(
            "%s %s: %s%s",
            model,
            deployment.version,
            deployment.state,
            f" ({deployment.reason})" if deployment.reason else "",
        )
        self._outbox.append(
            Stream.EVENT,
            lambda sequence: Transition(
                **self._record(Stream.EVENT, sequence),
                model=model,
                version=deployment.version,
                digest=deployment.digest,
                state=deployment.state,
                rollout=deployment.rollout,
                generation=deployment.generation,
                attempt=deployment.attempt,
                previous=deployment.previous,
                variant=deployment.variant or None,
                reason_class=deployment.reason_class,
                reason=_bounded(deployment.reason),
                figures=deployment.figures,
            ),
        )

    def telemetry(self, model: str, window: Window, host: HostMetrics) -> None:
        """A window has closed."""
        slot = window.slot

        def make(sequence: int) -> Telemetry:
            return Telemetry(
                **self._record(Stream.TELEMETRY, sequence),
                model=model,
                version=slot.version,
                digest=slot.digest,
                variant=slot.variant,
                engine=slot.engine,
                start=window.start,
                end=window.end,
                requests=window.requests,
                rows=window.rows,
                errors=window.errors,
                not_finite=window.not_finite,
                latency=window.latency,
                profile=window.profile,
                host=host,
            )

        self._append_bounded(Stream.TELEMETRY, make)

    def sample(self, model: str, slot: Slot, sampled: Sampled) -> None:
        """A row was captured."""

        def make(sequence: int) -> Sample:
            return Sample(
                **self._record(Stream.SAMPLE, sequence),
                id=f"{self._outbox.epoch}-{sequence}",
                model=model,
                version=slot.version,
                digest=slot.digest,
                command=sampled.command,
                request=sampled.request,
                probability=sampled.probability,
                inputs=sampled.inputs,
                predicted=sampled.predicted,
                confidence=sampled.confidence,
            )

        self._append_bounded(Stream.SAMPLE, make)

    def _append_bounded(self, stream: Stream, make: Callable[[int], StoredRecord]) -> None:
        try:
            self._outbox.append(stream, make)
        except MessageError as error:
            self.notice("record-too-large", str(error))

    def _record(self, stream: Stream, sequence: int) -> dict[str, Any]:
        stamp = msgspec.structs.asdict(self.stamp())
        return {"epoch": self._outbox.epoch, "stream": stream.value, "sequence": sequence, **stamp}

    def stamp(self) -> Stamp:
        """Now, in this life of the agent."""
        return stamp(self._clock, self._boot)


def stamp(clock: TrustedClock, boot: int) -> Stamp:
    """Now, as records say it."""
    return Stamp(boot=boot, time=clock.now(), uptime_s=clock.uptime(), clock_trusted=clock.is_trusted)


def _bounded(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]} …"
