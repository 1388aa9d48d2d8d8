"""The agent of a device: it hears what is wanted, brings it on, keeps it serving, and tells what happened.

One thread decides (:class:`edgeops_runtime.loop.Loop`); the link, downloads and workers each have a thread that only hands over.
No engine and no numpy is loaded here. Reads from top to bottom as the life of an agent: start, messages, decisions, telling, end.
"""

import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from edgeops import __version__
from edgeops.errors import ConfigError
from edgeops.link import Link
from edgeops.messages import Ack, Birth, Command, DeploymentState, ModelState, ReasonClass, Trial
from edgeops.signing import Unseal
from edgeops.topics import Topics
from edgeops_runtime import admission, host
from edgeops_runtime.admission import Decision, Situation, Verdict
from edgeops_runtime.blobs import BlobStore
from edgeops_runtime.capture_quota import CaptureQuota
from edgeops_runtime.clock import Clock, ClockWatch, SystemClock, TrustedClock
from edgeops_runtime.config import Config
from edgeops_runtime.control import CaptureEnded, Collect, Sampled
from edgeops_runtime.crew import Crew
from edgeops_runtime.deployer import Deployer
from edgeops_runtime.deployment import Deployment, Weighed
from edgeops_runtime.desired import DesiredState
from edgeops_runtime.doctor.examiner import PROBE_COMMAND, Examiner
from edgeops_runtime.doctor.verdicts import VerdictStore
from edgeops_runtime.downloads import Downloader, HttpDownloader
from edgeops_runtime.endpoint import Endpoint
from edgeops_runtime.identity import Identity
from edgeops_runtime.incumbent import Incumbent
from edgeops_runtime.journal import Journal, stamp
from edgeops_runtime.ladder import Ladder, signals
from edgeops_runtime.lifetimes import count_boot, lock_directory, read_machine_boot, volatile_directory
from edgeops_runtime.loop import Loop, Timer
from edgeops_runtime.mailbox import Mailbox, Receivers
from edgeops_runtime.memory import Memory, Scales, read_memory
from edgeops_runtime.notary import Notary
from edgeops_runtime.outbox import Outbox
from edgeops_runtime.relief import Readings, Relief, read_signals
from edgeops_runtime.retries import Retries
from edgeops_runtime.slots import Candidate, Slot, Slots, SlotStore
from edgeops_runtime.systemd import Notifier
from edgeops_runtime.telemetry import Windows
from edgeops_runtime.tuning.choice import Setting
from edgeops_runtime.tuning.idle import LOOK_S, IdleTuning
from edgeops_runtime.tuning.idle import Situation as Busy
from edgeops_runtime.tuning.known import KnownSettings
from edgeops_runtime.tuning.tuner import Subject, Tuner, TuningStore
from edgeops_runtime.updater import Updater
from edgeops_runtime.uplink import Uplink
from edgeops_runtime.variants import VariantChooser
from edgeops_runtime.watchdog import Situation as Serving
from edgeops_runtime.watchdog import Watchdog, ask
from edgeops_runtime.worker_process import WORKER_COMMAND, WorkerProcess

logger = logging.getLogger(__name__)

ADDRESS_FILE = "address"
ENGINES_FILE = "engines.json"
TUNING_FILE = "tuning.json"
_LOOK_AGAIN_S = 30.0
_COMMIT_LOOK_S = 5.0
_IDLE_S = 1.0
"""At the end: when connections without a request are closed."""
_LAST_WORDS_S = 1.0


class Agent:
    """One agent, in this process.

    Args:
        config: Its settings.
        identity: Who it is.
        link: Makes the link to the broker, once the worker has been started; opened and closed by the agent.
        clock: The machine's clocks.
        downloader: Where blobs come from.
        worker_command: How to start a worker.
        probe_command: How to try an engine before its first use; ``None``: engines are taken as they are.
        make_tuner: Makes what tries settings on the model that serves.
        read_signals: What the ladder reads.
        notifier: To systemd; by default as the environment says.
        unseal: Checks signatures; by default in a process of its own.
        read_memory: What memory there is for a second worker.
        rng: For the pauses between tries.

    Raises:
        ConflictError: Another agent runs on the same data directory, or something else has the address.
        ConfigError: The data directory belongs to another model, or cannot be used.
    """

    def __init__(
        self,
        config: Config,
        identity: Identity,
        link: Callable[[], Link],
        clock: Clock | None = None,
        *,
        downloader: Downloader | None = None,
        worker_command: Sequence[str] = WORKER_COMMAND,
        probe_command: Sequence[str] | None = PROBE_COMMAND,
        make_tuner: Callable[[], Tuner] = partial(Tuner, is_idle_only=True),  # noqa: B008 - called for each tuning
        read_signals: Callable[[], Readings] = read_signals,
        notifier: Notifier | None = None,
        unseal: Unseal | None = None,
        read_memory: Callable[[], Memory] = read_memory,
        rng: random.Random | None = None,
    ) -> None:
        self.config, self.identity = config, identity
        with contextlib.ExitStack() as held:
            directory = config.directory
            held.enter_context(lock_directory(directory))
            self._rng = rng or random.Random()  # noqa: S311 - not a secret
            self._clock = TrustedClock(clock or SystemClock(), directory / "clock")
            self._boot = count_boot(directory, now=self._clock.now())
            examiner = (
                Examiner(VerdictStore(directory / ENGINES_FILE), command=probe_command) if probe_command else None
            )
            self._blobs = BlobStore(directory)
            self._scales = Scales(self._blobs.bundle_path, read_memory)
            tunings = TuningStore(directory / TUNING_FILE)
            self._settings = KnownSettings(
                tunings,
                bundle_path=self._blobs.bundle_path,
                engines=lambda: self._variants.engines,
                threads=config.threads,
                is_used=config.tune,
            )
            self._variants = VariantChooser(
                config.engines, examiner, self._engine_failed, measured=self._settings.best_variant
            )
            self._notifier = notifier or Notifier()
            self._store = SlotStore(directory)
            self._set_model(config.model)
            self._endpoint = Endpoint(config.serving_address(), address_file=directory / ADDRESS_FILE)
            held.callback(self._endpoint.close)
            self.address = self._endpoint.address
            """Where inferences are served."""

            self._loop = Loop(self._clock.uptime)
            self._windows = Windows()
            self._crew = Crew(
                loop=self._loop,
                uptime=self._clock.uptime,
                listen_fd=self._endpoint.fileno(),
                bundle_path=self._blobs.bundle_path,
                windows=self._windows,
                on_sample=self._sampled,
                tuned=self._setting,
                threads=config.threads or 1,
                mqtt_url=config.mqtt_requests,
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
                on_change=self._serving_changed,
            )
            # The worker first: whatever else takes time, inferences are served again.
            if self._store.slots.current is not None:
                self._incumbent.run(self._store.slots.current)

            stamp_now = partial(stamp, self._clock, self._boot, read_machine_boot())
            self._outbox = Outbox(directory / "outbox", quota_bytes=config.outbox_bytes, stamp=stamp_now)
            self._journal = Journal(self._outbox, stamp=stamp_now, watch=ClockWatch(self._clock))
            self._link = link()
            topics = Topics(identity.fleet)
            self._uplink = Uplink(
                loop=self._loop,
                uptime=self._clock.uptime,
                link=self._link,
                topics=topics,
                device=identity.device,
                boot=self._boot,
                outbox=self._outbox,
                describe=self._birth,
            )
            unseal = unseal or Notary()
            self._desired = DesiredState(directory, identity, unseal=unseal)
            self._mailbox = Mailbox(
                loop=self._loop,
                clock=self._clock,
                desired=self._desired,
                store=self._store,
                session=lambda: self._uplink.session,
                receivers=Receivers(
                    wanted=self._wanted_changed,
                    acknowledged=self._acknowledged,
                    report=self._report_now,
                    collect=self._collect,
                    notice=self._notice,
                ),
            )
            self._mailbox.subscribe(self._link, topics, identity)
            updater = Updater(
                self._blobs,
                downloader or HttpDownloader(),
                keys=identity.release_keys,
                choose=self._variants.choose,
                rng=self._rng,
                unseal=unseal,
            )
            self._scratch = volatile_directory(directory)
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
                scratch=self._scratch,
                weigh=self._weigh,
                hold_s=config.swap_hold_s,
                on_change=self._deployment_changed,
            )
            self._relief = Relief(
                loop=self._loop,
                uptime=self._clock.uptime,
                read=read_signals,
                ladder=Ladder(signals(config.hot_c)),
                ease=self._crew.ease,
                strain=self._strained,
                notice=self._notice,
            )
            self._idle_tuning = IdleTuning(
                loop=self._loop,
                store=tunings,
                make_tuner=make_tuner,
                subject=self._to_tune,
                situation=self._how_busy,
                notice=self._notice,
            )
            self._watchdog = Watchdog(
                loop=self._loop,
                uptime=self._clock.uptime,
                notifier=self._notifier,
                ask=partial(ask, self.address),
                situation=self._how_it_serves,
                count=partial(self._crew.ask_windows, lambda: None),
                notice=self._notice,
            )
            self._retries = Retries(self._clock.uptime, self._rng)
            self._capture_quota = CaptureQuota(
                directory / "capture", bytes_per_day=config.capture_bytes_per_day, now=self._clock.uptime()
            )
            self._over_quota: set[str] = set()
            self._reported: set[tuple[str | None, str]] = set()
            self._look_at: Timer | None = None
            self._is_stopping = self._is_leaving = False
            self._held = held.pop_all()

    def run(self) -> None:
        """Live until :meth:`stop`; then drain the workers, say goodbye and return."""
        self._journal.look_at_clock()
        if self._store.damaged:
            self._notice("slots-damaged", f"{self._store.damaged} of the two files could not be read")
        self._deployer.tell_end()
        if self._store.slots.candidate is not None:
            self._deployer.offer(self._store.slots.candidate)
        self._link.open(will=self._uplink.next_will, on_connect=self._uplink.connected)
        self._loop.call_later(self.config.telemetry_window_s, self._window_ends)
        self._loop.call_later(_COMMIT_LOOK_S, self._commit)
        if self._store.slots.current is not None:
            self._variants.examine_beside(self._store.slots.current.engine)
        if self.config.shed_load:
            self._relief.look()
        if self.config.tune:
            self._loop.call_later(LOOK_S, self._idle_tuning.look)
        self._look()
        self._notifier.ready()
        self._tell_systemd()
        self._watchdog.look()
        try:
            self._loop.run()
        finally:
            self._close()

    def stop(self) -> None:
        """End in good order; from any thread or a signal handler."""
        self._loop.post(self._begin_to_stop)

    # ---- what the server says -------------------------------------------------------------------------------------

    def _wanted_changed(self, is_new: bool) -> None:
        if is_new:
            self._uplink.state_changed()  # The server hears that its document has arrived.
        self._look()

    def _acknowledged(self, ack: Ack) -> None:
        if self._outbox.acknowledge(ack.epoch, ack.sequences):
            self._uplink.acknowledged()
            self._leave_when_heard()

    def _report_now(self) -> None:
        self._uplink.state_changed()
        self._crew.ask_windows(self._report_at_once)

    def _collect(self, command: Command) -> None:
        if not self.config.capture:
            self._notice("command-refused", f"{command.id}: samples may not leave this device (capture = false)")
            return
        process = self._deployer.serving_process or self._incumbent.process
        if process is None:
            self._notice("command-refused", f"{command.id}: nothing serves")
            return
        seal_to = self.identity.enrolment.sealing_key
        if not seal_to:
            self._notice("command-refused", f"{command.id}: the enrolment has no sealing key; enrol this device anew")
            return
        process.send(
            Collect(
                command=command.id,
                count=command.count,
                share=command.share,
                seal_to=seal_to,
                redact=self.config.redact,
            )
        )

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
            self._retries.forget(active.digest)
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
        wait_s = self._retries.wait_s(decision.digest, decision.rollout)
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
        self._uplink.state_changed()

    def _engine_failed(self, text: str) -> None:
        """From any thread."""

        def tell() -> None:
            self._notice("engine-failed", text)
            self._uplink.state_changed()

        self._loop.post(tell)

    def _weigh(self, candidate: Slot, incumbent: WorkerProcess | None) -> Weighed:
        return self._scales.weigh(
            candidate, self._store.slots.current, worker_pid=incumbent.pid if incumbent is not None else None
        )

    def _setting(self, slot: Slot) -> Setting | None:
        """For a worker that is started now; one that died of something is started as usual, whatever it died of."""
        return None if self._incumbent.has_died else self._settings.find(slot)

    def _to_tune(self) -> Subject | None:
        current = self._store.slots.current
        return self._settings.subject(current) if current is not None else None

    def _how_busy(self) -> Busy:
        slot, process = self._incumbent.slot, self._incumbent.process
        return Busy(
            rung=self._relief.rung,
            is_deploying=self._deployer.active is not None or self._is_stopping,
            is_serving=self._incumbent.is_serving,
            has_room=slot is not None and self._weigh(slot, process).is_enough,
            load=host.load_average(),
            cores=self._settings.board.cores,
        )

    def _deployment_changed(self, deployment: Deployment) -> None:
        self._idle_tuning.interrupt()
        self._uplink.state_changed()
        if not deployment.state.is_final:
            return
        self._retries.note(deployment)
        if deployment.state is DeploymentState.COMMITTED:
            self._windows.forget_all_but(self._store.slots.kept_digests)
        if self._store.slots.candidate is None:
            try:
                self._blobs.collect(self._store.slots.kept_digests)
            except OSError as error:
                logger.warning("blobs: %s", error)
        self._loop.post(self._look)

    def _fall_back(self, reason: str) -> bool:
        """The current version dies again and again: back to the one before, if there is one; it needs no network."""
        slots = self._store.slots
        if slots.current is None or self._deployer.active is not None:
            return False
        if damage := self._blobs.damage(slots.current.digest, slots.current.variant):
            self._fetch_anew(slots, damage)
            return True
        if slots.previous is None:
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
        self._uplink.state_changed()
        return True

    def _fetch_anew(self, slots: Slots, damage: str) -> None:
        """The files of the current version are damaged, which is not its fault: the one before serves until it has come again."""
        damaged = slots.current
        if damaged is None:
            return
        self._notice("bundle-damaged", f"{damaged.version}: {damage}")
        self._remember_all(slots.without_current())
        if slots.previous is not None:
            self._incumbent.run(slots.previous)
        else:
            self._incumbent.stop()
        self._blobs.discard_bundle(damaged.digest)
        self._retries.forget(damaged.digest)
        self._uplink.state_changed()
        self._loop.post(self._look)

    def _serving_changed(self) -> None:
        self._uplink.state_changed()
        self._tell_systemd()

    def _strained(self, is_strained: bool) -> None:
        self._deployer.strain(is_strained)
        if is_strained:
            self._idle_tuning.interrupt()
        self._tell_systemd()

    def _tell_systemd(self) -> None:
        slot = self._incumbent.slot
        serving = "no model to serve" if slot is None else f"{self._store.slots.model} {slot.version}"
        self._notifier.status(f"{serving} at {self.address}, load {self._relief.rung.words}")

    def _how_it_serves(self) -> Serving:
        return Serving(
            is_wanted=self._incumbent.slot is not None and not self._is_stopping,
            is_given_up=self._incumbent.is_given_up,
            answered=self._windows.answered,
        )

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
        self._uplink.pump_soon()

    def _sampled(self, process: WorkerProcess, slot: Slot, line: Sampled | CaptureEnded) -> None:
        if isinstance(line, CaptureEnded):
            self._notice("capture-ended", f"{line.command}: {line.reason}")
        elif self.config.capture and self._capture_quota.take(len(line.sealed), now=self._clock.uptime()):
            self._journal.sample(self._store.slots.model, slot, line)
            self._uplink.pump_soon()
        elif line.command not in self._over_quota:
            self._over_quota.add(line.command)
            process.send(Collect(command=line.command, count=0, share=0.0, seal_to=""))
            limit = f"{self.config.capture_bytes_per_day:,} bytes of rows may leave in a day"
            self._notice("capture-ended", f"{line.command}: {limit}")

    def _window_ends(self) -> None:
        self._loop.call_later(self.config.telemetry_window_s, self._window_ends)
        self._crew.ask_windows(self._report)

    def _report(self) -> None:
        for window in self._windows.close():
            metrics = host.read_metrics(
                self.config.directory,
                worker_rss_bytes=window.rss_bytes,
                outbox_bytes=self._outbox.size_bytes,
                rung=self._relief.rung.words if self.config.shed_load else None,
            )
            self._journal.telemetry(self._store.slots.model, window, metrics)
        self._clock.save_sometimes()
        self._uplink.pump_soon()

    def _report_at_once(self) -> None:
        self._report()
        self._outbox.sync()

    def _commit(self) -> None:
        self._loop.call_later(_COMMIT_LOOK_S, self._commit)
        if self._journal.look_at_clock() or self._outbox.commit():
            self._uplink.pump_soon()

    def _birth(self, session: int) -> Birth:
        return Birth(
            device=self.identity.device,
            boot=self._boot,
            session=session,
            epoch=self._outbox.epoch,
            time=self._clock.now(),
            clock_trusted=self._clock.is_trusted,
            agent_version=__version__,
            attributes=self.identity.enrolment.attributes,
            engines=self._variants.engines,
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

    # ---- the end --------------------------------------------------------------------------------------------------

    def _begin_to_stop(self) -> None:
        if self._is_stopping:
            return
        self._is_stopping = True
        self._notifier.stopping()
        self._deployer.cancel_fetch()
        self._idle_tuning.interrupt()
        self._crew.drain_all(self._drained, idle_s=_IDLE_S)

    def _drained(self) -> None:
        self._report_at_once()
        self._is_leaving = True
        self._uplink.pump()
        self._loop.call_later(_LAST_WORDS_S if self._uplink.is_connected else 0, self._loop.stop)
        self._leave_when_heard()

    def _leave_when_heard(self) -> None:
        if self._is_leaving and not any(self._outbox.counts().values()):
            self._loop.stop()

    def _close(self) -> None:
        self._outbox.close()
        self._capture_quota.save()
        self._clock.save()
        self._uplink.close()
        with contextlib.suppress(OSError):
            self._scratch.rmdir()  # Nothing is left in it, unless it is more than ours.
        self._held.close()
