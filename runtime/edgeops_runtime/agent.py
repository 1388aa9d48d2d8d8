"""The agent of a device: it hears what is wanted, brings it on, keeps it serving, and tells what happened.

One thread decides (:class:`edgeops_runtime.loop.Loop`); the link, downloads and workers each have a thread that only hands over.
No engine and no numpy is loaded here. Reads from top to bottom as the life of an agent: start, messages, decisions, telling, end.
"""

import contextlib
import fcntl
import logging
import random
import threading
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec

from edgeops import __version__
from edgeops.errors import ConfigError, ConflictError, EdgeOpsError, LinkError
from edgeops.files import write_durably
from edgeops.link import Handler, Link, Received, Will
from edgeops.manifest import Manifest, Variant
from edgeops.messages import (
    Ack,
    Birth,
    Command,
    CommandKind,
    Death,
    DeploymentState,
    ModelState,
    ReasonClass,
    Trial,
    decode_json,
    encode_json,
)
from edgeops.topics import Topics, Upstream
from edgeops_runtime import admission, host
from edgeops_runtime.admission import Decision, Situation, Verdict
from edgeops_runtime.blobs import BlobStore
from edgeops_runtime.clock import Clock, SystemClock, TrustedClock
from edgeops_runtime.config import Config
from edgeops_runtime.control import Collect, Sampled
from edgeops_runtime.crew import Crew
from edgeops_runtime.deployer import Deployer
from edgeops_runtime.deployment import Deployment
from edgeops_runtime.desired import DEVICE, GROUP, DesiredState
from edgeops_runtime.downloads import Downloader, HttpDownloader
from edgeops_runtime.endpoint import Endpoint
from edgeops_runtime.identity import Identity
from edgeops_runtime.incumbent import Incumbent
from edgeops_runtime.journal import Journal, stamp
from edgeops_runtime.loop import Loop, Timer
from edgeops_runtime.outbox import Outbox, Stream
from edgeops_runtime.sender import Sender
from edgeops_runtime.slots import Candidate, Slot, Slots, SlotStore
from edgeops_runtime.telemetry import Windows
from edgeops_runtime.updater import Updater
from edgeops_runtime.worker_process import WORKER_COMMAND

logger = logging.getLogger(__name__)

ADDRESS_FILE = "address"
LOCK_FILE = "lock"
_BOOT_FILE = "boot"
_OVERRIDE_WAIT_S = 10.0
_LOOK_AGAIN_S = 30.0
_SYNC_S = 5.0
_PUMP_S = 0.05
_RESEND_LOOK_S = 1.0
_DRAIN_S = 10.0
_LAST_WORDS_S = 1.0
_FIRST_RETRY_S, _LONGEST_RETRY_S = 30.0, 3600.0
_SEEN_COMMANDS = 256


class Agent:
    """One agent, in this process.

    Args:
        config: Its settings.
        identity: Who it is.
        link: To the broker; opened and closed by the agent.
        clock: The machine's clocks.
        downloader: Where blobs come from.
        worker_command: How to start a worker.
        rng: For the pauses between tries.

    Raises:
        ConflictError: Another agent runs on the same data directory, or something else has the address.
        ConfigError: The data directory belongs to another model, or cannot be used.
    """

    def __init__(
        self,
        config: Config,
        identity: Identity,
        link: Link,
        clock: Clock | None = None,
        *,
        downloader: Downloader | None = None,
        worker_command: Sequence[str] = WORKER_COMMAND,
        rng: random.Random | None = None,
    ) -> None:
        self.config, self.identity = config, identity
        with contextlib.ExitStack() as held:
            directory = config.directory
            held.enter_context(lock_directory(directory))
            self._rng = rng or random.Random()  # noqa: S311 - not a secret
            self._link = link
            self._clock = TrustedClock(clock or SystemClock(), directory / "clock")
            self._boot = _next_boot(directory / _BOOT_FILE)
            self._session = 0
            self._topics = Topics(identity.fleet)
            self._engines = host.installed_engines()
            self._store = SlotStore(directory)
            self._set_model(config.model)
            self._endpoint = Endpoint(config.listen, address_file=directory / ADDRESS_FILE)
            held.callback(self._endpoint.close)
            self.address = self._endpoint.address
            """Where inferences are served."""

            self._loop = Loop(self._clock.uptime)
            self._windows = Windows()
            self._blobs = BlobStore(directory)
            self._crew = Crew(
                loop=self._loop,
                uptime=self._clock.uptime,
                listen_fd=self._endpoint.fileno(),
                bundle_path=self._blobs.bundle_path,
                windows=self._windows,
                on_sample=self._sampled,
                threads=config.threads,
                memory_bytes=config.worker_memory_mb << 20 if config.worker_memory_mb else None,
                command=worker_command,
            )
            held.callback(self._crew.kill_all)
            self._incumbent = Incumbent(
                loop=self._loop,
                crew=self._crew,
                uptime=self._clock.uptime,
                notice=lambda kind, text: self._loop.post(partial(self._notice, kind, text)),
                on_crash_loop=self._fall_back,
                on_change=self._state_changed,
            )
            # The worker first: whatever else takes time, inferences are served again.
            if self._store.slots.current is not None:
                self._incumbent.run(self._store.slots.current)

            self._outbox = Outbox(
                directory / "outbox", quota_bytes=config.outbox_bytes, stamp=partial(stamp, self._clock, self._boot)
            )
            self._journal = Journal(self._outbox, clock=self._clock, boot=self._boot)
            self._sender = Sender(self._outbox, self._publish_record)
            self._desired = DesiredState(directory, identity)
            updater = Updater(
                self._blobs,
                downloader or HttpDownloader(),
                keys=identity.release_keys,
                choose=self._choose_variant,
                rng=self._rng,
            )
            self._deployer = Deployer(
                loop=self._loop,
                uptime=self._clock.uptime,
                store=self._store,
                updater=updater,
                crew=self._crew,
                incumbent=self._incumbent,
                windows=self._windows,
                journal=self._journal,
                blob_url=identity.blob_url,
                scratch=directory,
                on_change=self._deployment_changed,
            )
            self._retries: dict[str, _Retry] = {}
            self._reported: set[tuple[str | None, str]] = set()
            self._seen_commands: deque[str] = deque(maxlen=_SEEN_COMMANDS)
            self._look_at: Timer | None = None
            self._pump_at: Timer | None = None
            self._resend_at: Timer | None = None
            self._override_session = 0
            self._birth_due = False
            self._is_stopping = self._is_leaving = False
            self._held = held.pop_all()

    def run(self) -> None:
        """Live until :meth:`stop`; then drain the workers, say goodbye and return."""
        if self._store.damaged:
            self._notice("slots-damaged", f"{self._store.damaged} of the two files could not be read")
        self._deployer.tell_end()
        if self._store.slots.candidate is not None:
            self._deployer.offer(self._store.slots.candidate)
        self._subscribe()
        self._link.open(will=self._next_will, on_connect=lambda: self._loop.post(self._connected))
        self._loop.call_later(self.config.telemetry_window_s, self._window_ends)
        self._loop.call_later(_SYNC_S, self._sync)
        self._look()
        try:
            self._loop.run()
        finally:
            self._close()

    def stop(self) -> None:
        """End in good order; from any thread or a signal handler."""
        self._loop.post(self._begin_to_stop)

    # ---- messages -------------------------------------------------------------------------------------------------

    def _subscribe(self) -> None:
        device = self.identity.device
        handlers: dict[str, Handler] = {
            self._topics.group_desired(self.identity.group): partial(self._desired_came, GROUP),
            self._topics.device_desired(device): partial(self._desired_came, DEVICE),
            self._topics.command(device): self._command_came,
            self._topics.ack(device): self._ack_came,
        }
        for topic, handler in handlers.items():
            self._link.subscribe(topic, partial(self._hand_over, handler))

    def _hand_over(self, handler: Handler, message: Received) -> None:
        self._loop.post(lambda: handler(message))

    def _connected(self) -> None:
        self._sender.reconnected()
        self._birth_due = True
        self._pump()

    def _desired_came(self, source: str, message: Received) -> None:
        if not message.payload:
            if source == DEVICE and self._desired.withdraw_override():
                self._look()
            return
        seen = self._store.slots.generations.get(source, 0)
        try:
            desired = self._desired.accept(source, message.payload, seen=seen)
        except EdgeOpsError as error:
            self._notice("desired-refused", str(error))
            return
        self._clock.vouch(desired.issued)
        if desired.generation > seen:
            self._remember(generations={**self._store.slots.generations, source: desired.generation})
            self._birth_due = True
        if source == DEVICE:
            self._override_session = self._session
        elif message.retained and self._desired.has(DEVICE):
            self._expect_override(self._session)
        self._look()

    def _expect_override(self, session: int) -> None:
        """A retained override comes with the group's document; where it does not, it was removed while we were away."""

        def give_up() -> None:
            if self._override_session < session == self._session and self._desired.withdraw_override():
                self._look()

        self._loop.call_later(_OVERRIDE_WAIT_S, give_up)

    def _ack_came(self, message: Received) -> None:
        try:
            ack = decode_json(message.payload, Ack, where="ack")
        except EdgeOpsError as error:
            logger.warning("%s", error)
            return
        if self._outbox.acknowledge(ack.epoch, ack.sequences):
            self._sender.acknowledged()
            self._pump_soon()
            self._leave_when_heard()

    def _command_came(self, message: Received) -> None:
        try:
            command = decode_json(message.payload, Command, where="command")
        except EdgeOpsError as error:
            self._notice("command-refused", str(error))
            return
        is_late = self._clock.is_trusted and self._clock.now() >= command.expires
        is_meant = command.model in {"", self._store.slots.model}
        if is_late or not is_meant or command.id in self._seen_commands:
            return
        self._seen_commands.append(command.id)
        if command.kind is CommandKind.REPORT:
            self._crew.ask_windows(self._report)
        else:
            self._collect(command)

    def _collect(self, command: Command) -> None:
        if not self.config.capture:
            self._notice("command-refused", f"{command.id}: samples may not leave this device (capture = false)")
            return
        process = self._deployer.serving_process or self._incumbent.process
        if process is None:
            self._notice("command-refused", f"{command.id}: nothing serves")
            return
        process.send(Collect(command=command.id, count=command.count, share=command.share))

    # ---- decisions ------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Hold what is wanted against what is there, and act on the difference."""
        if self._is_stopping:
            return
        if self._look_at is not None:
            self._look_at.cancel()
        self._look_at = self._loop.call_later(_LOOK_AGAIN_S, self._look)
        desired = self._desired.effective
        if desired is None:
            return
        if not self._store.slots.model and desired.targets:
            self._set_model(desired.targets[0].model)
        target = self._desired.target(self._store.slots.model)
        if target is None:
            self._deployer.withdraw("the desired state no longer names this model")
            return
        situation = Situation(
            device=self.identity.device,
            attributes=self.identity.enrolment.attributes,
            slots=self._store.slots,
            now=self._clock.now(),
            clock_trusted=self._clock.is_trusted,
            expires=desired.expires,
        )
        self._act(admission.decide(target, situation), url=target.url, generation=desired.generation)

    def _act(self, decision: Decision, *, url: str, generation: int) -> None:
        active = self._deployer.active
        goes_on = decision.verdict in {Verdict.DEPLOY, Verdict.HOLD}
        if active is not None and not (goes_on and active.digest == decision.digest):
            self._deployer.withdraw(f"superseded: {decision.version or 'nothing'}: {decision.reason}")
            self._retries.pop(active.digest, None)  # It did not fail, so it need not wait when it is wanted again.
        match decision.verdict:
            case Verdict.DEPLOY:
                self._deploy(decision, url=url, generation=generation)
            case Verdict.HOLD if decision.at is not None:
                self._look_within(decision.at - self._clock.now())
            case Verdict.REJECT:
                self._reject(decision, generation=generation)
            case Verdict.STOP:
                self._notice("stopped", decision.reason)
                self._incumbent.stop()
                self._remember(current=None)
            case _:
                pass

    def _deploy(self, decision: Decision, *, url: str, generation: int) -> None:
        if self._deployer.active is not None:
            return
        retry = self._retries.get(decision.digest)
        if retry is not None and retry.rollout == decision.rollout:
            wait_s = retry.at - self._clock.uptime()
            if wait_s > 0:
                self._look_within(wait_s)
                return
        candidate = Candidate(
            version=decision.version,
            digest=decision.digest,
            url=url,
            rollout=decision.rollout,
            generation=generation,
            trial=decision.trial,
        )
        self._deployer.offer(candidate)

    def _look_within(self, delay_s: float) -> None:
        if delay_s < _LOOK_AGAIN_S and self._look_at is not None:
            self._look_at.cancel()
            self._look_at = self._loop.call_later(max(delay_s, 0.01), self._look)

    def _reject(self, decision: Decision, *, generation: int) -> None:
        key = (decision.rollout, decision.digest)
        if key in self._reported or decision.digest in self._store.slots.quarantine:
            return  # Told already, or its end was: whoever quarantined it said so then.
        self._reported.add(key)
        current = self._store.slots.current
        now = self._clock.uptime()
        rejected = Deployment(
            version=decision.version,
            digest=decision.digest,
            url="",
            rollout=decision.rollout,
            generation=generation,
            trial=decision.trial,
            began=now,
            step_began=now,
            previous=current.version if current is not None else None,
            state=DeploymentState.REJECTED,
            reason_class=decision.reason_class,
            reason=decision.reason,
        )
        self._journal.transition(self._store.slots.model, rejected)
        self._state_changed()

    def _choose_variant(self, manifest: Manifest) -> tuple[Variant, str] | str:
        return admission.choose_variant(
            manifest,
            engines=self._engines,
            preference=self.config.engines,
            cpu=host.cpu_flags(),
            memory_bytes=host.available_memory_bytes(),
        )

    def _deployment_changed(self, deployment: Deployment) -> None:
        self._state_changed()
        if not deployment.state.is_final:
            return
        self._note_retry(deployment)
        if deployment.state is DeploymentState.COMMITTED:
            self._windows.forget_all_but(self._store.slots.kept_digests)
        if self._store.slots.candidate is None:
            try:
                self._blobs.collect(self._store.slots.kept_digests)
            except OSError as error:
                logger.warning("blobs: %s", error)
        self._loop.post(self._look)

    def _note_retry(self, deployment: Deployment) -> None:
        """When to try a version again that failed: never for the same order where it cannot help, else later and later."""
        if deployment.state in {DeploymentState.COMMITTED, DeploymentState.SUPERSEDED}:
            self._retries.pop(deployment.digest, None)
            return
        before = self._retries.get(deployment.digest)
        count = before.count + 1 if before is not None and before.rollout == deployment.rollout else 1
        if deployment.reason_class in {ReasonClass.INCOMPATIBLE, ReasonClass.SECURITY}:
            wait_s = float("inf")
        else:
            longest_s = min(_FIRST_RETRY_S * 2 ** (count - 1), _LONGEST_RETRY_S)
            wait_s = self._rng.uniform(longest_s / 2, longest_s)
        self._retries[deployment.digest] = _Retry(deployment.rollout, self._clock.uptime() + wait_s, count)

    def _fall_back(self, reason: str) -> bool:
        """The current version dies again and again: back to the one before, if there is one; it needs no network."""
        slots = self._store.slots
        if slots.current is None or slots.previous is None or self._deployer.active is not None:
            return False
        fallen = slots.current
        self._remember_all(slots.fallen_back(f"crashes again and again: {reason}"))
        self._incumbent.run(slots.previous)
        now = self._clock.uptime()
        told = Deployment(
            version=fallen.version,
            digest=fallen.digest,
            url="",
            rollout=None,
            generation=self._desired.generation,
            trial=Trial(),
            began=now,
            step_began=now,
            previous=slots.previous.version,
            state=DeploymentState.ROLLED_BACK,
            variant=fallen.variant,
            engine=fallen.engine,
            reason_class=ReasonClass.DEFECT,
            reason=f"after its commit it crashed again and again: {reason}",
        )
        self._journal.transition(slots.model, told)
        self._state_changed()
        return True

    def _set_model(self, model: str) -> None:
        known = self._store.slots.model
        if model and known and model != known:
            raise ConfigError(
                f"{self.config.directory}: belongs to the model {known!r}, not {model!r}; use another data directory"
            )
        if model and not known:
            self._remember(model=model)

    def _remember(self, **changes: object) -> None:
        self._remember_all(msgspec.structs.replace(self._store.slots, **changes))

    def _remember_all(self, slots: Slots) -> None:
        try:
            self._store.save(slots)
        except OSError as error:
            logger.warning("slots: %s", error)

    # ---- telling --------------------------------------------------------------------------------------------------

    def _notice(self, kind: str, text: str) -> None:
        self._journal.notice(kind, text)
        self._pump_soon()

    def _sampled(self, slot: Slot, sampled: Sampled) -> None:
        if self.config.capture:
            self._journal.sample(self._store.slots.model, slot, sampled)
            self._pump_soon()

    def _window_ends(self) -> None:
        self._loop.call_later(self.config.telemetry_window_s, self._window_ends)
        self._crew.ask_windows(self._report)

    def _report(self) -> None:
        for window in self._windows.close():
            metrics = host.read_metrics(
                self.config.directory, worker_rss_bytes=window.rss_bytes, outbox_bytes=self._outbox.size_bytes
            )
            self._journal.telemetry(self._store.slots.model, window, metrics)
        self._clock.save_sometimes()
        self._pump_soon()

    def _sync(self) -> None:
        self._loop.call_later(_SYNC_S, self._sync)
        self._outbox.sync()

    def _state_changed(self) -> None:
        self._birth_due = True
        self._pump_soon()

    def _pump_soon(self) -> None:
        if self._pump_at is None or not self._pump_at.is_pending:
            self._pump_at = self._loop.call_later(_PUMP_S, self._pump)

    def _pump(self) -> None:
        if self._resend_at is not None:
            self._resend_at.cancel()
        if not self._link.connected:
            return
        self._publish_birth()
        still_waits = self._sender.pump(self._clock.uptime())
        if still_waits or self._birth_due:
            self._resend_at = self._loop.call_later(_RESEND_LOOK_S, self._pump)

    def _publish_record(self, stream: Stream, payload: bytes) -> None:
        self._link.publish(self._topics.upstream(self.identity.device, Upstream(stream.value)), payload)

    def _publish_birth(self) -> None:
        if not self._birth_due:
            return
        try:
            self._link.publish(self._topics.upstream(self.identity.device, Upstream.BIRTH), encode_json(self._birth()))
            self._birth_due = False
        except LinkError as error:
            logger.debug("%s", error)

    def _birth(self) -> Birth:
        return Birth(
            device=self.identity.device,
            boot=self._boot,
            session=self._session,
            epoch=self._outbox.epoch,
            time=self._clock.now(),
            clock_trusted=self._clock.is_trusted,
            agent_version=__version__,
            attributes=self.identity.enrolment.attributes,
            engines=self._engines,
            generation=self._desired.generation,
            models=self._model_states(),
            address=self.address,
        )

    def _model_states(self) -> tuple[ModelState, ...]:
        slots, active = self._store.slots, self._deployer.active
        if not slots.model:
            return ()
        current = slots.current
        state = active.state if active is not None else DeploymentState.COMMITTED if current is not None else None
        return (
            ModelState(
                model=slots.model,
                version=current.version if current else None,
                digest=current.digest if current else None,
                variant=current.variant if current else None,
                previous=slots.previous.version if slots.previous else None,
                candidate=active.version if active is not None else None,
                state=state,
                quarantined=slots.quarantine,
            ),
        )

    def _next_will(self) -> Will:
        self._session += 1
        return Will(self._topics.upstream(self.identity.device, Upstream.DEATH), encode_json(self._death()))

    def _death(self) -> Death:
        return Death(device=self.identity.device, boot=self._boot, session=self._session)

    # ---- the end --------------------------------------------------------------------------------------------------

    def _begin_to_stop(self) -> None:
        if self._is_stopping:
            return
        self._is_stopping = True
        self._deployer.cancel_fetch()
        self._crew.drain_all(self._drained, timeout_s=_DRAIN_S)

    def _drained(self) -> None:
        self._report()
        self._is_leaving = True
        self._pump()
        self._loop.call_later(_LAST_WORDS_S if self._link.connected else 0, self._loop.stop)
        self._leave_when_heard()

    def _leave_when_heard(self) -> None:
        if self._is_leaving and not any(self._outbox.counts().values()):
            self._loop.stop()

    def _close(self) -> None:
        self._outbox.close()
        self._clock.save()
        if self._link.connected:
            with contextlib.suppress(LinkError):
                self._link.publish(
                    self._topics.upstream(self.identity.device, Upstream.DEATH), encode_json(self._death())
                )
        self._link.close()
        self._held.close()


class _Retry(msgspec.Struct, frozen=True):
    """When a version may be tried again under the same order, by monotonic time in seconds."""

    rollout: str | None
    at: float
    count: int


def lock_directory(directory: Path) -> BinaryIO:
    """Hold a data directory as long as the returned file is open, so that no two agents share it.

    Raises:
        ConflictError: Another agent has it.
        ConfigError: It cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / LOCK_FILE).open("ab")
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be written: {error.strerror}") from error
    waiter = threading.Event()
    for _ in range(20):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            waiter.wait(0.05)  # The agent before may be on its last moments.
        else:
            return lock
    lock.close()
    raise ConflictError(f"{directory}: another agent runs on it")


def _next_boot(path: Path) -> int:
    try:
        boot = int(path.read_text()) + 1
    except (OSError, ValueError):
        boot = 1
    try:
        write_durably(path, f"{boot}\n".encode())
    except OSError as error:
        logger.warning("%s: %s", path, error)
    return boot
