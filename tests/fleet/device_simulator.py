"""A device without an engine: speaks the project's own messages over a link, and does what a script says with each version."""

import contextlib
import threading
import time
from dataclasses import dataclass

import msgspec

from edgeops.enrolment import Enrolment
from edgeops.errors import LinkError
from edgeops.latency import latency_bucket
from edgeops.link import Link, Received, Will
from edgeops.messages import (
    Ack,
    Birth,
    Command,
    CommandKind,
    Death,
    DeploymentState,
    Desired,
    Gap,
    ModelState,
    ReasonClass,
    Sample,
    SampleContent,
    SampledTensor,
    Telemetry,
    Transition,
    about_sample,
    decode_json,
    encode_json,
    encode_record,
)
from edgeops.sealing import seal
from edgeops.selection import in_wave, matches
from edgeops.signing import DESIRED, PublicKey, unseal
from edgeops.topics import Topics, Upstream

_UP_TO_TRIAL = (DeploymentState.DOWNLOADING, DeploymentState.VERIFIED, DeploymentState.TRIAL)


@dataclass(frozen=True)
class Outcome:
    """What a version does on this device: how far it comes, and why it ends."""

    end: DeploymentState | None = DeploymentState.COMMITTED
    reason_class: ReasonClass | None = None
    reason: str = ""


COMMITS = Outcome()
CRASHES = Outcome(DeploymentState.ROLLED_BACK, ReasonClass.DEFECT, "shadow: 3 of 32 answers failed")
FALLS_SILENT = Outcome(end=None)
DOES_NOT_FIT = Outcome(DeploymentState.REJECTED, ReasonClass.INCOMPATIBLE, "no engine for it")
LOSES_DOWNLOAD = Outcome(DeploymentState.FAILED, ReasonClass.TRANSIENT, "download: gave up")


class DeviceSimulator:
    """A device; ``outcomes`` says what each version does, and everything else commits."""

    def __init__(self, link: Link, enrolment: Enrolment, *, epoch: str = "e1") -> None:
        self.link = link
        self.enrolment = enrolment
        self.name = enrolment.device
        self.outcomes: dict[str, Outcome] = {}
        self.offered: list[str] = []
        self.generations: list[int] = []
        self.commands: list[Command] = []
        self.current: dict[str, tuple[str, str]] = {}
        self.acked: dict[str, int] = {}
        self.epoch = epoch
        self.boot, self.session = 1, 0
        self._sequences: dict[str, int] = {}
        self._outbox: list[tuple[Upstream, Transition | Telemetry | Sample | Gap]] = []
        self._topics = Topics(enrolment.fleet)
        self._override: Desired | None = None
        self._group: Desired | None = None
        self._lock = threading.RLock()

    def start(self) -> None:
        self.link.subscribe(self._topics.group_desired(self.enrolment.group), self._group_changed)
        self.link.subscribe(self._topics.device_desired(self.name), self._override_changed)
        self.link.subscribe(self._topics.ack(self.name), self._acknowledged)
        self.link.subscribe(self._topics.command(self.name), self._commanded)
        self.link.open(will=self._will, on_connect=self._greet)

    def stop(self) -> None:
        self.link.close()

    def report(
        self, model: str, state: DeploymentState, *, version: str, digest: str, rollout: str | None, **more
    ) -> None:
        """Send a transition."""
        self.send(
            Upstream.EVENT,
            Transition(
                **self.stamp("event"), model=model, version=version, digest=digest, state=state, rollout=rollout, **more
            ),
        )

    def window(
        self, *, requests: int = 100, errors: int = 0, latency_ms: float = 1.0, profile=None, **more
    ) -> Telemetry:
        """Send a telemetry window of the first model."""
        model, (version, digest) = next(iter(self.current.items()))
        record = Telemetry(
            **self.stamp("telemetry"),
            **{
                "model": model,
                "version": version,
                "digest": digest,
                "variant": "onnx",
                "engine": "onnxruntime",
                "start": time.time() - 1,
                "end": time.time(),
                "requests": requests,
                "rows": requests,
                "errors": errors,
                "latency": {latency_bucket(int(latency_ms * 1e6)): requests},
                "profile": profile,
                **more,
            },
        )
        self.send(Upstream.TELEMETRY, record)
        return record

    def sample(self, number: int, *, command: str, data: bytes, predicted: int = 0) -> Sample:
        """Send a sample of one float32 row."""
        model, (version, digest) = next(iter(self.current.items()))
        tensor = SampledTensor(dtype="FP32", shape=(len(data) // 4,), data=data)
        content = SampleContent(inputs={"image": tensor}, predicted=predicted, confidence=0.5)
        sealed = seal(msgspec.msgpack.encode(content), to=self.enrolment.sealing_key, about=about_sample(command))
        record = Sample(
            **self.stamp("sample"),
            id=f"{self.name}-{number}",
            model=model,
            version=version,
            digest=digest,
            command=command,
            sealed=sealed,
        )
        self.send(Upstream.SAMPLE, record)
        return record

    def gap(self, stream: str, first: int, last: int) -> Gap:
        """A record that stands for others; not sent yet."""
        return Gap(**{**self.stamp(stream, sequence=last), "first": first, "count": last - first + 1, "reason": "full"})

    def send(self, kind: Upstream, record: Transition | Telemetry | Sample | Gap) -> None:
        """Keep a record, and send it when there is a connection."""
        self._outbox.append((kind, record))
        self._publish(kind, record)

    def resend(self) -> None:
        """Send everything that was not acknowledged again."""
        for kind, record in list(self._outbox):
            self._publish(kind, record)

    def stamp(self, stream: str, sequence: int | None = None) -> dict:
        if sequence is None:
            sequence = self._sequences[stream] = self._sequences.get(stream, 0) + 1
        return {
            "epoch": self.epoch,
            "stream": stream,
            "sequence": sequence,
            "boot": self.boot,
            "time": time.time(),
            "uptime_s": 1.0,
        }

    def birth(self) -> None:
        """Tell the whole state."""
        states = tuple(
            ModelState(model=model, version=version, digest=digest, state=DeploymentState.COMMITTED)
            for model, (version, digest) in self.current.items()
        )
        message = Birth(
            device=self.name,
            boot=self.boot,
            session=self.session,
            epoch=self.epoch,
            time=time.time(),
            clock_trusted=True,
            agent_version="simulated",
            attributes=self.enrolment.attributes,
            engines={"onnxruntime": "1.20"},
            generation=max(self.generations, default=0),
            models=states,
            address="http://127.0.0.1:1",
        )
        self._try_publish(self._topics.upstream(self.name, Upstream.BIRTH), encode_json(message))

    def _will(self) -> Will:
        self.session += 1
        death = Death(device=self.name, boot=self.boot, session=self.session)
        return Will(self._topics.upstream(self.name, Upstream.DEATH), encode_json(death))

    def _greet(self) -> None:
        self.birth()
        self.resend()

    def _publish(self, kind: Upstream, record) -> None:
        self._try_publish(self._topics.upstream(self.name, kind), encode_record(record))

    def _try_publish(self, topic: str, payload: bytes) -> None:
        with contextlib.suppress(LinkError):
            self.link.publish(topic, payload)

    def _acknowledged(self, message: Received) -> None:
        ack = decode_json(message.payload, Ack, where=message.topic)
        if ack.epoch == self.epoch:
            self.acked.update(ack.sequences)
            self._outbox = [
                (kind, record) for kind, record in self._outbox if record.sequence > self.acked.get(record.stream, 0)
            ]

    def _commanded(self, message: Received) -> None:
        command = decode_json(message.payload, Command, where=message.topic)
        if command.kind is CommandKind.REPORT:
            self.birth()
        else:
            self.commands.append(command)

    def _read(self, message: Received) -> Desired | None:
        if not message.payload:
            return None
        key = PublicKey(self.enrolment.director_key)
        desired = decode_json(unseal(message.payload, kind=DESIRED, keys=[key]), Desired, where=message.topic)
        self.generations.append(desired.generation)
        return desired

    def _group_changed(self, message: Received) -> None:
        self._group = self._read(message)
        self._converge()

    def _override_changed(self, message: Received) -> None:
        self._override = self._read(message)
        self._converge()

    def _converge(self) -> None:
        desired = self._override or self._group
        if desired is None:
            return
        with self._lock:
            for target in desired.targets:
                version, digest, rollout = target.version, target.digest, None
                order = target.rollout
                barred = self.current.get(target.model, ("", ""))[1] in target.quarantine
                if (
                    order is not None
                    and order.not_before <= time.time()
                    and in_wave(self.name, percent=order.percent, rotation=order.rotation)
                    and matches(order.where, self.enrolment.attributes)
                ):
                    version, digest, rollout = order.version, order.digest, order.id
                if digest is None and barred:
                    self.current.pop(target.model)
                    self.birth()
                if digest is not None and digest not in {
                    self.current.get(target.model, ("", ""))[1],
                    *target.quarantine,
                }:
                    self._deploy(target.model, version, digest, rollout)

    def _deploy(self, model: str, version: str, digest: str, rollout: str | None) -> None:
        if rollout is not None:
            if f"{rollout}/{version}" in self.offered:
                return
            self.offered.append(f"{rollout}/{version}")
        outcome = self.outcomes.get(version, COMMITS)
        about = {"version": version, "digest": digest, "rollout": rollout}
        if outcome.end is DeploymentState.REJECTED:
            states = ()
        elif outcome.end is DeploymentState.FAILED:
            states = _UP_TO_TRIAL[:1]
        else:
            states = _UP_TO_TRIAL
        for state in (DeploymentState.OFFERED, *states):
            self.report(model, state, **about)
        if outcome.end is None:
            return
        if outcome.end is DeploymentState.COMMITTED:
            self.report(model, DeploymentState.PROBATION, **about)
            self.current[model] = (version, digest)
        self.report(model, outcome.end, reason_class=outcome.reason_class, reason=outcome.reason, **about)
        self.birth()
