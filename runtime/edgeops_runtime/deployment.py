"""The life of one deployment, from the offer to its end, as a pure state machine.

A deployment and an event go in, the next deployment and what to do come out. Doing it is left to
:mod:`edgeops_runtime.deployer`.

::

    offered → downloading → verified → trial (start → golden → recent → shadow) → probation → committed
                  │             ▲        │ dies: started again, until the attempts are used up
                  │             └ held ──│ the board is hot or short of memory: put back until it is not
                  ▼                      ▼                                            │
        failed, rejected, expired     rolled_back  ◀───────────────────────────────────

Before the switch (the step into probation) the incumbent has all the traffic and a failure costs nothing; after it, the incumbent
waits, paused and warm, until the commit.

Before each start beside an incumbent the memory is weighed. Where it does not hold two copies, one makes way for the other::

    recent → stand down → trial (start → golden → shadow) → probation
                 └────────── requests wait in the socket ──────────┘

They wait no longer than ``hold_s``; a candidate that does not serve by then is ended like one that failed, and the incumbent is
started again. The shadow compares with what the incumbent answered before it went.

A strained board (hot, or short of memory) starts no trial beside an incumbent and puts back one that has begun, whose start is
not counted then; a probation goes on, is judged by errors alone, and begins anew after the strain. The deadline runs on.
"""

from enum import StrEnum

import msgspec

from edgeops.messages import DeploymentState, ReasonClass, Trial
from edgeops_runtime.slots import Candidate

STEP_TIMEOUT_S = 60.0
"""A worker that has not answered for so long hangs, and counts as dead."""

RECENT_WAIT_S = 10.0
"""How long the incumbent may take to have seen enough requests for the shadow; then those that it has are taken."""

QUIET_FACTOR = 6.0
"""Without enough traffic, probation lasts this many times ``probation_s``; then the golden test and the silence have to do."""

HELD_UP_S = 1.0
"""While a request has been under way for so long, nothing is committed: that few have failed may be since none has ended."""

KNOWN_PROBATION_S = 1.0
"""Probation of a version that was committed here before: it has proved itself, and whoever goes back is in a hurry."""

HOLD_S = 10.0
"""How long requests may wait while one copy makes way for the other."""

LATENCY_SLACK_MS = 5.0
"""A candidate that is slower by less than this is not called slow, whatever the ratio: below it the machine's noise decides."""


HELD = "the board is hot or short of memory"
"""Why a trial waits."""


class Step(StrEnum):
    """What is under way."""

    FETCH = "fetch"
    HELD = "held"
    """Ready to start, on a board that is strained."""
    WEIGH = "weigh"
    START = "start"
    GOLDEN = "golden"
    RECENT = "recent"
    STAND_DOWN = "stand_down"
    """The incumbent finishes what it has and goes; from here on requests wait."""
    SHADOW = "shadow"
    SWITCH = "switch"
    PROBATION = "probation"
    DONE = "done"


class Action(StrEnum):
    """What the shell has to do."""

    FETCH = "fetch"
    WEIGH = "weigh"
    """Read what memory there is, and estimate what a second worker takes."""
    STAND_DOWN = "stand_down"
    """Have the incumbent's worker finish what it has and exit."""
    START = "start"
    """Count the attempt on disk, then start the candidate's worker."""
    ASK_GOLDEN = "ask_golden"
    ASK_RECENT = "ask_recent"
    ASK_RECENT_AGAIN = "ask_recent_again"
    """In a second."""
    ASK_SHADOW = "ask_shadow"
    SWITCH = "switch"
    """The candidate serves; once it does, the incumbent pauses."""
    WATCH = "watch"
    """Pause the incumbent, and ask the candidate for figures again and again."""
    WATCH_ANEW = "watch_anew"
    """Forget the figures so far."""
    COMMIT = "commit"
    PUT_BACK = "put_back"
    """End the candidate's worker, which nobody has asked anything, and remember that its start does not count."""
    DROP = "drop"
    """Stop the candidate; the incumbent serves, as it did or again."""


class Fetched(msgspec.Struct, frozen=True):
    """The bundle is there and verified."""

    variant: str
    engine: str


class FetchEnded(msgspec.Struct, frozen=True):
    """It will not come."""

    reason_class: ReasonClass
    reason: str


class Weighed(msgspec.Struct, frozen=True, kw_only=True):
    """What a second worker would take, what can be had, and what of it has to stay free; ``None``: unknown, all in bytes."""

    needed: int | None = None
    available: int | None = None
    reserve: int = 0

    @property
    def is_enough(self) -> bool:
        """Whether two copies fit; where nothing is known they do.

        >>> Weighed(needed=70, available=100, reserve=30).is_enough, Weighed(needed=71, available=100, reserve=30).is_enough
        (True, False)
        >>> Weighed(needed=70).is_enough
        True
        """
        return self.needed is None or self.available is None or self.available - self.needed >= self.reserve


class StoodDown(msgspec.Struct, frozen=True):
    """The incumbent's worker is gone, and its memory is free."""


class Ready(msgspec.Struct, frozen=True):
    """The candidate's worker has loaded and warmed up."""


class Died(msgspec.Struct, frozen=True):
    """The candidate's worker is gone, or could not load."""

    reason: str


class GoldenDone(msgspec.Struct, frozen=True):
    """The golden inputs came out."""

    passed: bool
    reason: str = ""


class RecentDone(msgspec.Struct, frozen=True):
    """The incumbent wrote so many of its last requests."""

    count: int


class ShadowDone(msgspec.Struct, frozen=True, kw_only=True):
    """The candidate answered what the incumbent had answered; ``incumbent_ms`` is the incumbent's live median."""

    answered: int
    failed: int
    not_finite: int
    agreement: float | None
    latency_ms: float | None
    incumbent_ms: float | None
    reason: str = ""


class Switched(msgspec.Struct, frozen=True):
    """The candidate accepts requests."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Live figures since the switch; latencies are p95 in milliseconds, ``busy_s`` is the age of the oldest open request."""

    requests: int = 0
    errors: int = 0
    not_finite: int = 0
    latency_ms: float | None = None
    incumbent_ms: float | None = None
    busy_s: float = 0.0


class Withdrawn(msgspec.Struct, frozen=True):
    """The desired state no longer wants it."""

    reason: str


class Impossible(msgspec.Struct, frozen=True):
    """The device cannot go on with it, for example because its disk is full."""

    reason: str


class Strained(msgspec.Struct, frozen=True):
    """The board is hot or short of memory."""


class Relieved(msgspec.Struct, frozen=True):
    """It no longer is."""


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


Event = (
    Fetched
    | FetchEnded
    | Weighed
    | StoodDown
    | Ready
    | Died
    | GoldenDone
    | RecentDone
    | ShadowDone
    | Switched
    | Figures
    | Withdrawn
    | Impossible
    | Strained
    | Relieved
    | Tick
)


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment.

    Attributes:
        began: Monotonic time of the offer, in seconds; ``step_began`` of the step.
        previous: The version that serves meanwhile, the incumbent; ``None`` when there is none.
        is_known: It has been committed here before, so going back to it is not held to what the newer one could do.
        is_strained: The board is hot or short of memory, and this is a trial beside an incumbent.
        hold_s: How long requests may wait while one copy makes way for the other.
        is_sequential: Two copies do not fit, so the incumbent makes way.
        held_since: Since when requests wait; ``None``: they do not.
        recent: Requests of the incumbent that the shadow can compare with.
        attempt: Starts of its worker so far.
        figures: What was measured, for the log.
    """

    version: str
    digest: str
    url: str
    rollout: str | None
    generation: int
    trial: Trial
    began: float
    step_began: float
    previous: str | None = None
    is_known: bool = False
    is_strained: bool = False
    hold_s: float = HOLD_S
    is_sequential: bool = False
    held_since: float | None = None
    recent: int = 0
    state: DeploymentState = DeploymentState.OFFERED
    step: Step = Step.FETCH
    variant: str = ""
    engine: str = ""
    attempt: int = 0
    reason_class: ReasonClass | None = None
    reason: str = ""
    figures: dict[str, float] = {}

    @property
    def is_switched(self) -> bool:
        """Whether the candidate has the traffic, or is about to get it."""
        return self.step in {Step.SWITCH, Step.PROBATION}

    @property
    def can_wait(self) -> bool:
        """Whether a strained board is reason to wait: not for a first version, nor for the way back."""
        return self.previous is not None and not self.is_known

    @property
    def has_worker(self) -> bool:
        """Whether a worker of the candidate was started, and is there."""
        if self.step is Step.RECENT:
            return not self.is_sequential
        return self.step in {Step.START, Step.GOLDEN, Step.SHADOW, Step.SWITCH, Step.PROBATION}

    @property
    def has_shadow(self) -> bool:
        """Whether it is shown what the incumbent answered."""
        return self.previous is not None and self.trial.shadow_requests > 0 and not self.is_known

    @property
    def is_defect(self) -> bool:
        """Whether it ended because the model is bad, and must not be tried again."""
        return self.state is DeploymentState.ROLLED_BACK and self.reason_class is ReasonClass.DEFECT

    def as_candidate(self, now: float) -> Candidate:
        """What is kept on disk."""
        return Candidate(
            version=self.version,
            digest=self.digest,
            url=self.url,
            rollout=self.rollout,
            generation=self.generation,
            trial=self.trial,
            variant=self.variant,
            engine=self.engine,
            phase=self.state,
            attempts=self.attempt,
            elapsed_s=now - self.began,
        )


Outcome = tuple[Deployment, tuple[Action, ...]]

_TRIAL_STEPS = frozenset({Step.WEIGH, Step.START, Step.GOLDEN, Step.RECENT, Step.SHADOW})
"""Those that a strained board puts back."""


def offer(
    candidate: Candidate,
    *,
    now: float,
    previous: str | None,
    is_known: bool,
    is_strained: bool = False,
    hold_s: float = HOLD_S,
) -> Outcome:
    """Begin, or begin again after a restart: attempts and time go on from what is on disk.

    A candidate whose starts are used up took the agent or the board with it each time; it is rolled back unseen.
    """
    deployment = Deployment(
        version=candidate.version,
        digest=candidate.digest,
        url=candidate.url,
        rollout=candidate.rollout,
        generation=candidate.generation,
        trial=candidate.trial,
        began=now - candidate.elapsed_s,
        step_began=now,
        previous=previous,
        is_known=is_known,
        is_strained=is_strained and previous is not None and not is_known,
        hold_s=hold_s,
        attempt=candidate.attempts,
    )
    if candidate.attempts >= max(candidate.trial.attempts, 1):
        return _roll_back(deployment, f"{candidate.attempts} starts ended without a commit")
    return deployment, (Action.FETCH,)


def step(deployment: Deployment, event: Event, *, now: float) -> Outcome:  # noqa: C901, PLR0912 - one line for each event
    """What an event makes of a deployment."""
    if deployment.step is Step.DONE:
        return deployment, ()
    match event:
        case Withdrawn():
            return _withdrawn(deployment, event.reason)
        case Impossible():
            return _end(deployment, DeploymentState.FAILED, ReasonClass.ENVIRONMENT, event.reason)
        case Died():
            return _died(deployment, event.reason, now)
        case Tick():
            return _tick(deployment, now)
        case Strained():
            return _strained(deployment, now)
        case Relieved():
            return _relieved(deployment, now)
        case Fetched() | FetchEnded() if deployment.step is Step.FETCH:
            return _fetched(deployment, event, now)
        case Weighed() if deployment.step is Step.WEIGH:
            return _weighed(deployment, event, now)
        case StoodDown() if deployment.step is Step.STAND_DOWN:
            return _load(deployment, now)
        case Ready() if deployment.step is Step.START:
            return _go(deployment, Step.GOLDEN, now), (Action.ASK_GOLDEN,)
        case GoldenDone() if deployment.step is Step.GOLDEN:
            return _golden(deployment, event, now)
        case RecentDone() if deployment.step is Step.RECENT:
            return _recent(deployment, event, now)
        case ShadowDone() if deployment.step is Step.SHADOW:
            return _shadow(deployment, event, now)
        case Switched() if deployment.step is Step.SWITCH:
            served = msgspec.structs.replace(deployment, held_since=None)
            return _go(served, Step.PROBATION, now, state=DeploymentState.PROBATION), (Action.WATCH,)
        case Figures() if deployment.step is Step.PROBATION:
            return _probation(deployment, event, now)
        case _:
            return deployment, ()  # An answer to a question that is no longer asked.


def downloading(deployment: Deployment) -> Deployment:
    """Bytes are needed: the bundle is not on the device yet."""
    return msgspec.structs.replace(deployment, state=DeploymentState.DOWNLOADING)


def _fetched(deployment: Deployment, event: Fetched | FetchEnded, now: float) -> Outcome:
    if isinstance(event, FetchEnded):
        refused = event.reason_class in {ReasonClass.INCOMPATIBLE, ReasonClass.SECURITY}
        state = DeploymentState.REJECTED if refused else DeploymentState.FAILED
        return _end(deployment, state, event.reason_class, event.reason)
    ready = msgspec.structs.replace(deployment, variant=event.variant, engine=event.engine)
    return _start(_go(ready, Step.START, now, state=DeploymentState.VERIFIED), now)


def _start(deployment: Deployment, now: float) -> Outcome:
    """Start it, however often it was: beside an incumbent only after a look at the memory."""
    if deployment.held_since is not None:
        return _load(deployment, now)  # Whoever waits is not kept waiting for the board to cool.
    if deployment.is_strained:
        return _hold(deployment, now), ()
    if deployment.previous is not None:
        return _go(deployment, Step.WEIGH, now), (Action.WEIGH,)
    return _load(deployment, now)


def _weighed(deployment: Deployment, event: Weighed, now: float) -> Outcome:
    weighed = msgspec.structs.replace(deployment, is_sequential=not event.is_enough, recent=0)
    if event.is_enough:
        return _load(weighed, now)
    if weighed.has_shadow:
        return _go(weighed, Step.RECENT, now), (Action.ASK_RECENT,)
    return _stand_down(weighed, now)


def _stand_down(deployment: Deployment, now: float) -> Outcome:
    return _go(msgspec.structs.replace(deployment, held_since=now), Step.STAND_DOWN, now), (Action.STAND_DOWN,)


def _load(deployment: Deployment, now: float) -> Outcome:
    counted = msgspec.structs.replace(deployment, attempt=deployment.attempt + 1)
    return _go(counted, Step.START, now), (Action.START,)


def _strained(deployment: Deployment, now: float) -> Outcome:
    if deployment.is_strained or not deployment.can_wait:
        return deployment, ()
    strained = msgspec.structs.replace(deployment, is_strained=True)
    if deployment.held_since is not None or deployment.step not in _TRIAL_STEPS:
        return strained, ()
    uncounted = msgspec.structs.replace(strained, attempt=max(deployment.attempt - deployment.has_worker, 0))
    return _hold(uncounted, now), (Action.PUT_BACK,)


def _hold(deployment: Deployment, now: float) -> Deployment:
    held = msgspec.structs.replace(deployment, reason=HELD)
    return _go(held, Step.HELD, now, state=DeploymentState.VERIFIED)


def _relieved(deployment: Deployment, now: float) -> Outcome:
    relieved = msgspec.structs.replace(deployment, is_strained=False, reason="")
    if deployment.step is Step.HELD:
        return _start(relieved, now)
    if deployment.is_strained and deployment.step is Step.PROBATION:
        return _go(relieved, Step.PROBATION, now, state=DeploymentState.PROBATION), (Action.WATCH_ANEW,)
    return relieved, ()


def _golden(deployment: Deployment, event: GoldenDone, now: float) -> Outcome:
    if not event.passed:
        return _roll_back(deployment, f"golden test: {event.reason or 'failed'}")
    if deployment.is_sequential:
        return _shadow_or_switch(deployment, now)
    if deployment.has_shadow:
        return _go(deployment, Step.RECENT, now), (Action.ASK_RECENT,)
    return _go(deployment, Step.SWITCH, now), (Action.SWITCH,)


def _recent(deployment: Deployment, event: RecentDone, now: float) -> Outcome:
    is_late = now - deployment.step_began >= RECENT_WAIT_S
    if event.count < deployment.trial.shadow_requests and not is_late:
        return deployment, (Action.ASK_RECENT_AGAIN,)
    known = msgspec.structs.replace(deployment, recent=event.count)
    return _stand_down(known, now) if deployment.is_sequential else _shadow_or_switch(known, now)


def _shadow_or_switch(deployment: Deployment, now: float) -> Outcome:
    if deployment.recent == 0:
        return _go(deployment, Step.SWITCH, now), (Action.SWITCH,)
    return _go(deployment, Step.SHADOW, now), (Action.ASK_SHADOW,)


def _shadow(deployment: Deployment, event: ShadowDone, now: float) -> Outcome:
    trial = deployment.trial
    measured = {"shadow_answered": float(event.answered), "shadow_failed": float(event.failed)}
    if event.agreement is not None:
        measured["agreement"] = event.agreement
    if event.latency_ms is not None:
        measured["shadow_ms"] = event.latency_ms
    known = _with_figures(deployment, measured)
    if event.failed or event.not_finite:
        asked = event.answered + event.failed + event.not_finite
        return _roll_back(
            known,
            f"shadow: {event.failed} failed and {event.not_finite} not finite of {asked} live requests: {event.reason}",
        )
    if event.agreement is not None and event.agreement < trial.min_agreement:
        return _roll_back(
            known, f"shadow: agrees with the version before on {event.agreement:.1%}, needs {trial.min_agreement:.1%}"
        )
    if _is_slow(event.latency_ms, event.incumbent_ms, trial.max_latency_ratio):
        return _roll_back(known, f"shadow: {_slowness(event.latency_ms, event.incumbent_ms, trial)}")
    return _go(known, Step.SWITCH, now), (Action.SWITCH,)


def _probation(deployment: Deployment, event: Figures, now: float) -> Outcome:
    trial = deployment.trial
    measured = {
        "requests": float(event.requests),
        "errors": float(event.errors),
        "not_finite": float(event.not_finite),
    }
    latencies = {"p95_ms": event.latency_ms, "incumbent_p95_ms": event.incumbent_ms}
    measured |= {name: value for name, value in latencies.items() if value is not None}
    known = _with_figures(deployment, measured)
    # As soon as the errors of a whole probation are used up, waiting cannot change the verdict.
    allowed = trial.max_error_rate * max(event.requests, trial.probation_requests)
    if event.errors > allowed:
        return _roll_back(
            known,
            f"probation: {event.errors} of {event.requests} requests failed, {event.not_finite} of them not finite",
        )
    if event.busy_s >= STEP_TIMEOUT_S:
        return _roll_back(known, f"probation: a request has been under way for {event.busy_s:.0f} s")
    if deployment.is_strained or event.busy_s >= HELD_UP_S:
        return known, ()  # On a strained board its latency would be the board's; what it gets wrong is its own.
    elapsed_s = now - deployment.step_began
    is_enough = event.requests >= trial.probation_requests and elapsed_s >= trial.probation_s
    is_enough = is_enough or (deployment.is_known and elapsed_s >= KNOWN_PROBATION_S)
    if not is_enough and elapsed_s < QUIET_FACTOR * trial.probation_s:
        return known, ()
    if event.errors > trial.max_error_rate * event.requests:
        return _roll_back(known, f"probation: {event.errors} of {event.requests} requests failed")
    if not deployment.is_known and _is_slow(event.latency_ms, event.incumbent_ms, trial.max_latency_ratio):
        return _roll_back(known, f"probation: {_slowness(event.latency_ms, event.incumbent_ms, trial)}")
    reason = "" if is_enough else f"probation: {event.requests} requests in {elapsed_s:.0f} s, none of them bad"
    done = msgspec.structs.replace(known, state=DeploymentState.COMMITTED, step=Step.DONE, reason=reason)
    return done, (Action.COMMIT,)


def _died(deployment: Deployment, reason: str, now: float) -> Outcome:
    if not deployment.has_worker:
        return deployment, ()
    if deployment.is_switched:
        # It had live requests in its hands: no second chance with them.
        return _roll_back(deployment, f"probation: {reason}")
    if deployment.attempt >= deployment.trial.attempts:
        return _roll_back(deployment, f"trial: {reason}, at start {deployment.attempt} of {deployment.trial.attempts}")
    return _start(deployment, now)


def _tick(deployment: Deployment, now: float) -> Outcome:
    if now - deployment.began >= deployment.trial.deadline_s:
        text = f"not committed within {deployment.trial.deadline_s:g} s, at step {deployment.step}"
        text += f": {HELD}" if deployment.is_strained else ""
        state = DeploymentState.ROLLED_BACK if deployment.is_switched else DeploymentState.EXPIRED
        return _end(deployment, state, ReasonClass.TRANSIENT, text)
    if deployment.held_since is not None and now - deployment.held_since >= deployment.hold_s:
        text = f"two copies do not fit in memory, and it did not serve within {deployment.hold_s:g} s: "
        return _end(deployment, DeploymentState.FAILED, ReasonClass.ENVIRONMENT, f"{text}at step {deployment.step}")
    waits_for_worker = deployment.step not in {Step.FETCH, Step.HELD, Step.WEIGH, Step.PROBATION}
    if waits_for_worker and now - deployment.step_began >= STEP_TIMEOUT_S:
        if not deployment.has_worker:  # It is the incumbent that hangs; without its requests there is no shadow.
            return _stand_down(deployment, now) if deployment.step is Step.RECENT else (deployment, ())
        return _died(deployment, f"no answer for {STEP_TIMEOUT_S:g} s at step {deployment.step}", now)
    return deployment, ()


def _withdrawn(deployment: Deployment, reason: str) -> Outcome:
    if deployment.is_switched:
        return _end(deployment, DeploymentState.ROLLED_BACK, ReasonClass.TRANSIENT, reason)
    return _end(deployment, DeploymentState.SUPERSEDED, None, reason)


def _roll_back(deployment: Deployment, reason: str) -> Outcome:
    return _end(deployment, DeploymentState.ROLLED_BACK, ReasonClass.DEFECT, reason.strip())


def _end(deployment: Deployment, state: DeploymentState, reason_class: ReasonClass | None, reason: str) -> Outcome:
    ended = msgspec.structs.replace(deployment, state=state, step=Step.DONE, reason_class=reason_class, reason=reason)
    return ended, (Action.DROP,)


def _go(deployment: Deployment, next_step: Step, now: float, *, state: DeploymentState | None = None) -> Deployment:
    if state is None:
        state = deployment.state if next_step in {Step.FETCH, Step.WEIGH, Step.START} else DeploymentState.TRIAL
    return msgspec.structs.replace(deployment, step=next_step, step_began=now, state=state)


def _with_figures(deployment: Deployment, measured: dict[str, float]) -> Deployment:
    return msgspec.structs.replace(deployment, figures={**deployment.figures, **measured})


def _is_slow(latency_ms: float | None, incumbent_ms: float | None, ratio: float) -> bool:
    if latency_ms is None or incumbent_ms is None or ratio <= 0:
        return False
    return latency_ms > ratio * incumbent_ms and latency_ms - incumbent_ms > LATENCY_SLACK_MS


def _slowness(latency_ms: float | None, incumbent_ms: float | None, trial: Trial) -> str:
    ratio = f"allowed is {trial.max_latency_ratio:g} times"
    return f"{latency_ms:.2f} ms against {incumbent_ms:.2f} ms of the version before; {ratio}"
