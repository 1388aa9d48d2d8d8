"""What the agent has to tell the server, as records in the outbox: transitions, notices, anchors, telemetry, samples."""

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from edgeops.errors import MessageError
from edgeops.messages import Anchor, HostMetrics, Notice, Sample, StoredRecord, Telemetry, Transition
from edgeops_runtime.clock import ClockWatch, TrustedClock
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
        stamp: Gives each record its stamp.
        watch: Knows when the clock was set.
    """

    def __init__(self, outbox: Outbox, *, stamp: Callable[[], Stamp], watch: ClockWatch) -> None:
        self._outbox = outbox
        self._stamp = stamp
        self._watch = watch

    def look_at_clock(self) -> bool:
        """Tell of a clock that was set, or is believed from now on; whether there was anything to tell."""
        step = self._watch.look()
        if step is None:
            return False
        now = step.now
        stamp = msgspec.structs.replace(
            self._stamp(), time=now.wall, uptime_s=now.uptime_s, clock_trusted=now.is_trusted
        )
        self._outbox.append(
            Stream.EVENT,
            lambda sequence: Anchor(
                **self._fields(Stream.EVENT, sequence, stamp),
                before_s=step.before_s,
                before_trusted=step.before_trusted,
            ),
        )
        return True

    def notice(self, kind: str, text: str) -> None:
        """Something that the log should have."""
        self.look_at_clock()
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
        self.look_at_clock()
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
        self.look_at_clock()
        slot = window.slot
        # A worker reads the wall clock too: a window that saw it being set has its two ends on different clocks.
        start, end = sorted((self._watch.corrected(window.start), self._watch.corrected(window.end)))

        def make(sequence: int) -> Telemetry:
            return Telemetry(
                **self._record(Stream.TELEMETRY, sequence),
                model=model,
                version=slot.version,
                digest=slot.digest,
                variant=slot.variant,
                engine=slot.engine,
                start=start,
                end=end,
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
        self.look_at_clock()

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
                sealed=sampled.sealed,
            )

        self._append_bounded(Stream.SAMPLE, make)

    def _append_bounded(self, stream: Stream, make: Callable[[int], StoredRecord]) -> None:
        try:
            self._outbox.append(stream, make)
        except MessageError as error:
            self.notice("record-too-large", str(error))

    def _record(self, stream: Stream, sequence: int) -> dict[str, Any]:
        return self._fields(stream, sequence, self._stamp())

    def _fields(self, stream: Stream, sequence: int, stamp: Stamp) -> dict[str, Any]:
        fields = msgspec.structs.asdict(stamp)
        return {"epoch": self._outbox.epoch, "stream": stream.value, "sequence": sequence, **fields}


def stamp(clock: TrustedClock, boot: int, machine_boot: str) -> Stamp:
    """Now, as records say it: in this life of the agent, on this start of the machine."""
    now = clock.read()
    return Stamp(
        boot=boot, time=now.wall, uptime_s=now.uptime_s, clock_trusted=now.is_trusted, machine_boot=machine_boot
    )


def _bounded(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]} …"
