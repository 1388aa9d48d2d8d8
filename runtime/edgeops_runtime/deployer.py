"""Carries out one deployment after the other: does what :mod:`edgeops_runtime.deployment` says, with workers, disk and log.

Which version is to be deployed is decided in :mod:`edgeops_runtime.admission`; the current version's worker belongs to
:mod:`edgeops_runtime.incumbent`.
"""

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgeops.errors import EdgeOpsError
from edgeops.messages import DeploymentState, ReasonClass
from edgeops_runtime import control, deployment
from edgeops_runtime.control import FromWorker
from edgeops_runtime.crew import IDLE_S, Crew
from edgeops_runtime.deployment import Action, Deployment, Event, Step
from edgeops_runtime.incumbent import Incumbent
from edgeops_runtime.journal import Journal
from edgeops_runtime.loop import Loop, Timer
from edgeops_runtime.slots import Candidate, Slot, Slots, SlotStore
from edgeops_runtime.telemetry import LiveFigures, Windows
from edgeops_runtime.updater import Brought, NotBrought, Order, Updater
from edgeops_runtime.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

_TICK_S = 1.0
_WATCH_S = 0.2
_PAUSE_S = 1.0


class Deployer:
    """Has at most one deployment under way.

    Args:
        loop: Everything happens in its thread.
        uptime: Monotonic time in seconds.
        store: The slots.
        updater: Brings bundles; runs in a thread for each.
        crew: Starts and ends workers.
        incumbent: The worker of the current version.
        windows: The incumbent's usual latency.
        journal: Transitions go here.
        blob_url: Makes a target's URL absolute.
        scratch: Directory for the requests that are shown to the candidate.
        weigh: What memory there is, and what a worker of the slot would take beside the incumbent's.
        hold_s: How long requests may wait where two copies do not fit.
        on_change: Told of every new state.
    """

    def __init__(
        self,
        *,
        loop: Loop,
        uptime: Callable[[], float],
        store: SlotStore,
        updater: Updater,
        crew: Crew,
        incumbent: Incumbent,
        windows: Windows,
        journal: Journal,
        blob_url: Callable[[str], str],
        scratch: Path,
        weigh: Callable[[Slot, WorkerProcess | None], deployment.Weighed],
        hold_s: float,
        on_change: Callable[[Deployment], None],
    ) -> None:
        self._loop, self._uptime = loop, uptime
        self._store, self._updater = store, updater
        self._crew, self._incumbent = crew, incumbent
        self._windows, self._journal = windows, journal
        self._blob_url = blob_url
        self._recent_path = scratch / "recent.npz"
        self._recent_path.unlink(missing_ok=True)  # Of an agent that was killed.
        self._read_memory, self._hold_s = weigh, hold_s
        self._on_change = on_change
        self._deployment: Deployment | None = None
        self._process: WorkerProcess | None = None
        self._cancelled = threading.Event()
        self._live = LiveFigures()
        self._is_exposed = False
        self._is_strained = False
        self._last_words = ""
        self._timers: list[Timer] = []
        incumbent.on_recent = lambda count: self._apply(deployment.RecentDone(count))
        self._do: dict[Action, Callable[[Deployment], None]] = {
            Action.FETCH: self._fetch,
            Action.WEIGH: self._weigh,
            Action.STAND_DOWN: self._stand_down,
            Action.START: self._start,
            Action.ASK_GOLDEN: self._ask_golden,
            Action.ASK_RECENT: self._ask_recent,
            Action.ASK_RECENT_AGAIN: self._ask_recent_again,
            Action.ASK_SHADOW: self._ask_shadow,
            Action.SWITCH: self._switch,
            Action.WATCH: self._watch,
            Action.WATCH_ANEW: self._watch_anew,
            Action.COMMIT: self._commit,
            Action.PUT_BACK: self._put_back,
            Action.DROP: self._drop,
        }

    @property
    def active(self) -> Deployment | None:
        """What is under way."""
        return self._deployment

    @property
    def serving_process(self) -> WorkerProcess | None:
        """The candidate's worker, where it is the one that serves."""
        return self._process if self._deployment is not None and self._deployment.step is Step.PROBATION else None

    def offer(self, candidate: Candidate) -> None:
        """Begin with a version, or go on with it after a restart."""
        slots = self._store.slots
        offered, actions = deployment.offer(
            candidate,
            now=self._uptime(),
            previous=slots.current.version if slots.current is not None else None,
            is_known=slots.previous is not None and slots.previous.digest == candidate.digest,
            is_strained=self._is_strained,
            hold_s=self._hold_s,
        )
        self._live, self._cancelled = LiveFigures(), threading.Event()
        self._is_exposed, self._last_words = False, ""
        if slots.candidate is None or slots.candidate.digest != candidate.digest:
            self._enter(msgspec.structs.replace(offered, state=DeploymentState.OFFERED))
        self._deployment = offered
        self._tick()
        self._carry_out(actions)

    def tell_end(self) -> None:
        """After a restart: the end of a deployment may be in the slots and not yet in the outbox; better twice than never."""
        if self._store.slots.unreported:
            with contextlib.suppress(msgspec.DecodeError):
                self._tell(msgspec.json.decode(self._store.slots.unreported, type=Deployment))
            self._all_is_told()

    def withdraw(self, reason: str) -> None:
        """It is no longer wanted."""
        self._apply(deployment.Withdrawn(reason))

    def strain(self, is_strained: bool) -> None:
        """The board is hot or short of memory, or no longer is."""
        if is_strained is not self._is_strained:
            self._is_strained = is_strained
            self._apply(deployment.Strained() if is_strained else deployment.Relieved())

    def cancel_fetch(self) -> None:
        """The agent stops: let the download go, and keep its bytes."""
        self._cancelled.set()

    def on_line(self, process: WorkerProcess, line: FromWorker) -> None:
        """The candidate's worker said something."""
        active = self._deployment
        if process is not self._process or active is None:
            return
        match line:
            case control.Ready():
                self._apply(deployment.Ready())
            case control.GoldenResult():
                reason = line.reason or f"largest difference {line.largest_difference:g}, allowed {line.tolerance:g}"
                self._apply(deployment.GoldenDone(line.passed, reason))
            case control.ShadowResult():
                self._shadowed(line)
            case control.Serving():
                self._apply(deployment.Switched())
            case control.WindowClosed() if active.step is Step.PROBATION:
                self._live.add(line)
                self._judge()
            case control.Failed():
                self._failed(active, line)
            case _:
                pass

    def on_gone(self, process: WorkerProcess, reason: str) -> None:
        """The candidate's worker has ended, and nobody asked it to."""
        if process is not self._process:
            return
        self._process = None
        words, self._last_words = self._last_words, ""
        self._apply(deployment.Died(words or reason))

    def _failed(self, active: Deployment, line: control.Failed) -> None:
        reason = f"{line.what}: {line.reason}"
        if active.step is Step.GOLDEN:
            self._apply(deployment.GoldenDone(passed=False, reason=reason))
        elif active.step is Step.SHADOW:
            shadow = control.ShadowResult(answered=0, failed=1, not_finite=0, reason=reason)
            self._shadowed(shadow)
        else:
            self._last_words = reason
            if self._process is not None:
                self._process.kill()

    def _shadowed(self, line: control.ShadowResult) -> None:
        median, _ = self._usual_latency_ms()
        event = deployment.ShadowDone(
            answered=line.answered,
            failed=line.failed,
            not_finite=line.not_finite,
            agreement=line.agreement,
            latency_ms=line.latency_ms,
            incumbent_ms=median,
            reason=line.reason,
        )
        self._apply(event)

    def _judge(self) -> None:
        _, p95 = self._usual_latency_ms()
        live = self._live
        event = deployment.Figures(
            requests=live.requests,
            errors=live.errors,
            not_finite=live.not_finite,
            latency_ms=live.p95_ms,
            incumbent_ms=p95,
            busy_s=live.busy_s,
        )
        self._apply(event)

    def _usual_latency_ms(self) -> tuple[float | None, float | None]:
        current = self._store.slots.current
        return self._windows.usual_latency_ms(current.digest) if current is not None else (None, None)

    def _apply(self, event: Event) -> None:
        before = self._deployment
        if before is None:
            return
        after, actions = deployment.step(before, event, now=self._uptime())
        self._deployment = after
        if after.state is not before.state and not after.state.is_final:
            self._enter(after)
        self._carry_out(actions)

    def _carry_out(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            if self._deployment is not None:
                self._do[action](self._deployment)

    def _enter(self, entered: Deployment) -> None:
        """A new state that is not final: remember it, then tell."""
        self._deployment = entered
        try:
            self._store.change(candidate=entered.as_candidate(self._uptime()))
        except OSError as error:
            logger.warning("slots: %s", error)
        self._tell(entered)

    def _tell(self, told: Deployment) -> None:
        self._journal.transition(self._store.slots.model, told)
        self._on_change(told)

    def _fetch(self, wanted: Deployment) -> None:
        if not self._updater.is_here(wanted.digest):
            self._enter(deployment.downloading(wanted))
        order = Order(
            model=self._store.slots.model,
            version=wanted.version,
            digest=wanted.digest,
            url=self._blob_url(wanted.url),
        )
        cancelled = self._cancelled

        def bring() -> None:
            result = self._updater.bring(order, cancelled=cancelled)
            self._loop.post(lambda: self._brought(cancelled, result))

        threading.Thread(target=bring, name=f"download {wanted.version}", daemon=True).start()

    def _brought(self, cancelled: threading.Event, result: Brought | NotBrought | None) -> None:
        if cancelled is not self._cancelled or result is None:
            return
        if isinstance(result, Brought):
            self._apply(deployment.Fetched(result.variant, result.engine))
        else:
            self._apply(deployment.FetchEnded(result.reason_class, result.reason))

    def _weigh(self, ready: Deployment) -> None:
        if self._incumbent.is_away:
            # It comes back from the deployment before this one; how large it is cannot be seen yet.
            self._once_more(ready, self._weigh)
            return
        self._apply(self._read_memory(_slot(ready), self._incumbent.process))

    def _stand_down(self, _: Deployment) -> None:
        cancelled = self._cancelled

        def gone() -> None:
            if cancelled is self._cancelled and not cancelled.is_set():
                self._apply(deployment.StoodDown())

        self._incumbent.stand_down(gone, idle_s=self._idle_s)

    @property
    def _idle_s(self) -> float:
        """When idle connections are closed while requests wait: most of the wait is for the load."""
        return min(IDLE_S, self._hold_s / 4)

    def _start(self, ready: Deployment) -> None:
        if self._process is not None:
            self._crew.kill(self._process)
            self._process = None
        try:
            # On disk before anything is loaded: a model that takes the board down must find its attempt counted.
            self._store.change(candidate=ready.as_candidate(self._uptime()))
        except OSError as error:
            self._apply(deployment.Impossible(f"the attempt cannot be counted on disk: {error}"))
            return
        try:
            self._process = self._crew.spawn(_slot(ready), self)
        except EdgeOpsError as error:
            self._apply(deployment.Impossible(str(error)))

    def _ask_golden(self, _: Deployment) -> None:
        self._say(control.Golden())
        if self._incumbent.process is not None:
            self._crew.ask_window(self._incumbent.process)  # Its latency, to compare with.

    def _ask_recent(self, wanted: Deployment) -> None:
        process = self._incumbent.process
        request = control.Recent(count=wanted.trial.shadow_requests, path=str(self._recent_path))
        if process is None or not process.send(request):
            self._apply(deployment.RecentDone(0))

    def _ask_recent_again(self, asked: Deployment) -> None:
        self._once_more(asked, self._ask_recent)

    def _once_more(self, asked: Deployment, ask: Callable[[Deployment], None]) -> None:
        def again() -> None:
            if self._deployment is not None and self._deployment.step_began == asked.step_began:
                ask(self._deployment)

        self._later(_PAUSE_S, again)

    def _ask_shadow(self, asked: Deployment) -> None:
        line = control.Shadow(path=str(self._recent_path))
        if asked.is_sequential:
            line = msgspec.structs.replace(line, budget_s=min(line.budget_s, self._hold_s / 4))
        self._say(line)

    def _say(self, line: control.FromAgent) -> None:
        if self._process is not None:
            self._process.send(line)

    def _switch(self, _: Deployment) -> None:
        self._is_exposed = True
        self._say(control.Serve())

    def _watch(self, _: Deployment) -> None:
        self._incumbent.pause()
        self._look()

    def _watch_anew(self, _: Deployment) -> None:
        self._live = LiveFigures()

    def _put_back(self, held: Deployment) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._crew.kill(process)
        try:
            self._store.change(candidate=held.as_candidate(self._uptime()))
        except OSError as error:
            logger.warning("slots: %s", error)

    def _look(self) -> None:
        if self._process is not None and self._deployment is not None and self._deployment.step is Step.PROBATION:
            self._crew.ask_window(self._process)
            self._later(_WATCH_S, self._look)

    def _tick(self) -> None:
        if self._deployment is not None:
            self._later(_TICK_S, self._tick)
            self._apply(deployment.Tick())

    def _commit(self, committed: Deployment) -> None:
        process = self._process
        try:
            self._store.save(_with_end(self._store.slots.committed(), committed))
        except OSError as error:
            failed = msgspec.structs.replace(
                committed,
                state=DeploymentState.ROLLED_BACK,
                reason_class=ReasonClass.ENVIRONMENT,
                reason=f"the commit cannot be written: {error}",
            )
            self._deployment = failed
            self._drop(failed)
            return
        slot = self._store.slots.current
        if process is not None and slot is not None:
            self._incumbent.replace(process, slot)
        self._process = None
        self._finish(committed)

    def _drop(self, dropped: Deployment) -> None:
        """The incumbent first, so that somebody accepts; then the candidate goes. Where two do not fit, the other way round."""
        self._cancelled.set()
        process, self._process = self._process, None
        if not self._incumbent.is_away:
            self._incumbent.resume()
        if process is not None and self._is_exposed:
            self._crew.drain(process, idle_s=self._idle_s if self._incumbent.is_away else IDLE_S)
        elif process is not None:
            self._crew.kill(process)
        if self._incumbent.is_away:
            self._crew.when_empty(self._incumbent.resume)
        try:
            reason = dropped.reason if dropped.is_defect else ""
            self._store.save(_with_end(self._store.slots.without_candidate(quarantine=reason), dropped))
        except OSError as error:
            # The candidate stays on disk with its attempts counted, so it still meets its end after a restart.
            logger.warning("slots: %s", error)
        self._finish(dropped)

    def _finish(self, finished: Deployment) -> None:
        self._deployment = None
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._recent_path.unlink(missing_ok=True)
        self._tell(finished)
        self._all_is_told()

    def _all_is_told(self) -> None:
        try:
            self._store.change(unreported="")
        except OSError as error:
            logger.warning("slots: %s", error)

    def _later(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._timers = [timer for timer in self._timers if timer.is_pending]
        self._timers.append(self._loop.call_later(delay_s, callback))


def _slot(ready: Deployment) -> Slot:
    return Slot(version=ready.version, digest=ready.digest, variant=ready.variant, engine=ready.engine)


def _with_end(slots: Slots, ended: Deployment) -> Slots:
    """The slots, together with the end that is to be told: both are on disk or neither."""
    return msgspec.structs.replace(slots, unreported=msgspec.json.encode(ended).decode())
