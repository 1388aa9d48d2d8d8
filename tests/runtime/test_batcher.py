"""Turns, batches and deadlines, with an engine that waits until it is told to go on."""

import queue
import threading
import time

import numpy as np
import pytest

from edgeops.errors import DeadlineError, EngineError, NotFiniteError, OverloadedError, TensorError
from edgeops_runtime.serving.batcher import Batcher, Knee
from edgeops_runtime.serving.budget import Queue, ThreadBudget, Ticket
from edgeops_runtime.serving.pipeline import Pipeline


class Gated:
    """A session that sums its rows, once for each time that it is let."""

    def __init__(self):
        self.asked = queue.SimpleQueue()
        self._go = threading.Semaphore(0)

    def run(self, feeds):
        self.asked.put(feeds["image"][:, 0, 0, 0].tolist())
        assert self._go.acquire(timeout=60)
        total = feeds["image"].sum(axis=(1, 2, 3), dtype=np.float32)
        return {"logits": np.stack([total] * 10, axis=1)}

    def go(self, times=1):
        self._go.release(times)


def image(value, rows=1):
    return {"image": np.full((rows, 1, 28, 28), value, np.float32)}


class Caller(threading.Thread):
    """Asks once, and keeps what came."""

    def __init__(self, batcher, feeds, deadline=None):
        super().__init__(daemon=True)
        self.answer = self.error = None
        self._ask = lambda: batcher.answer(feeds, deadline=deadline)
        self.start()

    def run(self):
        try:
            self.answer = self._ask()
        except Exception as error:  # noqa: BLE001 - looked at by the test
            self.error = error

    def top(self):
        self.join(60)
        assert self.error is None
        return self.answer.outputs["logits"][:, 0].tolist()


class Rig:
    """A batcher over a gated session, and the means to wait until requests are queued."""

    def __init__(self, manifest, *, lanes=1, budget=None, **queue_options):
        self.session = Gated()
        self.budget = budget or ThreadBudget(lanes)
        self.queue = Queue(manifest.name, **queue_options)
        self.batcher = Batcher(
            manifest, manifest.variants[0], Pipeline(manifest, self.session), budget=self.budget, queue=self.queue
        )

    def ask(self, value, rows=1, deadline=None):
        return Caller(self.batcher, image(value, rows), deadline)

    def queued(self, count):
        until = time.monotonic() + 60
        while len(self.queue.tickets) != count:
            assert time.monotonic() < until, f"{len(self.queue.tickets)} are queued, not {count}"
            time.sleep(0.001)


@pytest.fixture
def manifest(make_bundle):
    return make_bundle("1.0.0").manifest


def test_what_queued_while_the_engine_was_busy_is_answered_together(manifest):
    rig = Rig(manifest)
    rig.batcher.knee = Knee(8)
    first = rig.ask(1.0)
    assert rig.session.asked.get(timeout=60) == [1.0]
    others = []
    for number, rows in enumerate((1, 2, 1), 2):
        others.append(rig.ask(float(number), rows))
        rig.queued(number - 1)
    rig.session.go(2)
    assert first.top() == [784.0]
    assert [caller.top() for caller in others] == [[784.0 * 2], [784.0 * 3] * 2, [784.0 * 4]]
    assert rig.session.asked.get(timeout=60) == [2.0, 3.0, 3.0, 4.0]
    assert rig.session.asked.empty()


def test_a_batch_has_no_more_rows_than_are_worth_it(manifest):
    rig = Rig(manifest)
    first = rig.ask(1.0)
    rig.session.asked.get(timeout=60)
    others = []
    for number in range(3):
        others.append(rig.ask(float(number)))
        rig.queued(number + 1)
    rig.session.go(3)
    assert [caller.top() for caller in (first, *others)] == [[784.0], [0.0], [784.0], [2 * 784.0]]
    assert [rig.session.asked.get(timeout=60) for _ in range(2)] == [[0.0, 1.0], [2.0]]


def test_one_bad_request_spoils_nobody_elses(manifest):
    rig = Rig(manifest)
    rig.batcher.knee = Knee(8)
    first = rig.ask(1.0)
    rig.session.asked.get(timeout=60)
    good, bad = rig.ask(2.0), None
    rig.queued(1)
    bad = Caller(rig.batcher, image(np.nan))
    rig.queued(2)
    rig.session.go(4)  # Alone, together, and then each by itself.
    assert first.top() == [784.0]
    assert good.top() == [784.0 * 2]
    bad.join(60)
    assert isinstance(bad.error, TensorError)
    with pytest.raises(TensorError, match="expected shape"):
        rig.batcher.answer({"image": np.zeros((1, 1, 2, 2), np.float32)})


def test_a_request_whose_turn_does_not_come_in_time_is_not_asked(manifest):
    rig = Rig(manifest)
    first = rig.ask(1.0)
    rig.session.asked.get(timeout=60)
    late = rig.ask(2.0, deadline=time.perf_counter_ns() + 1)
    late.join(60)
    assert isinstance(late.error, DeadlineError)
    rig.session.go()
    assert first.top() == [784.0]
    assert rig.session.asked.empty()
    rig.session.go()
    assert rig.ask(3.0).top() == [784.0 * 3]


def test_the_queue_is_bounded_and_says_when_to_come_again(manifest):
    rig = Rig(manifest, length=1)
    first = rig.ask(1.0)
    rig.session.asked.get(timeout=60)
    second = rig.ask(2.0)
    rig.queued(1)
    with pytest.raises(OverloadedError, match="1 requests wait already") as caught:
        rig.batcher.answer(image(3.0))
    assert 1.0 <= caught.value.retry_after_s <= 30.0
    rig.session.go(2)
    assert (first.top(), second.top()) == ([784.0], [784.0 * 2])


def test_a_failing_engine_gives_its_lane_back(manifest):
    class Failing:
        def run(self, feeds):
            raise EngineError("cannot")

    budget = ThreadBudget(1)
    batcher = Batcher(manifest, manifest.variants[0], Pipeline(manifest, Failing()), budget=budget)
    for _ in range(3):
        with pytest.raises(EngineError, match="cannot"):
            batcher.answer(image(1.0))
    assert budget.enter()


def test_an_answer_that_is_not_finite_reaches_its_own_caller_only(manifest):
    class Poisoned(Gated):
        def run(self, feeds):
            answer = super().run(feeds)
            answer["logits"][feeds["image"][:, 0, 0, 0] > 5] = np.inf
            return answer

    rig = Rig(manifest)
    rig.session = Poisoned()
    rig.batcher = Batcher(
        manifest, manifest.variants[0], Pipeline(manifest, rig.session), budget=rig.budget, queue=rig.queue
    )
    first = rig.ask(1.0)
    rig.session.asked.get(timeout=60)
    good = rig.ask(2.0)
    rig.queued(1)
    bad = rig.ask(9.0)
    rig.queued(2)
    rig.session.go(4)
    assert (first.top(), good.top()) == ([784.0], [784.0 * 2])
    bad.join(60)
    assert isinstance(bad.error, NotFiniteError)


def test_models_share_the_lanes_by_weight():
    """While two models want the only lane, turns go to who had the least of it, for its weight; silence saves nothing up."""
    budget = ThreadBudget(1)
    heavy, light, late = Queue("heavy", weight=3.0), Queue("light"), Queue("late")
    assert budget.enter()
    waiting = {}

    def queue_up(target, count):
        for _ in range(count):
            ticket = Ticket({}, 1, None)
            waiting[ticket] = target
            budget.queue_up(target, ticket)

    def turns(count):
        names = []
        for _ in range(count):
            budget.leave()
            (ticket,) = [one for one in waiting if one.has_turn]
            target = waiting.pop(ticket)
            target.spent(1000)
            names.append(target.name)
        return names

    queue_up(heavy, 60)
    queue_up(light, 60)
    first = turns(40)
    assert (first.count("heavy"), first.count("light")) == (30, 10)
    queue_up(late, 60)
    second = turns(50)
    assert (second.count("heavy"), second.count("light"), second.count("late")) == (30, 10, 10)


def test_many_callers_get_their_own_answers(make_bundle):
    """Real engine, many threads, two lanes: nobody gets another's answer."""
    import edgeops_runtime

    with edgeops_runtime.load(make_bundle("1.0.0").path) as model:
        manifest = model.manifest
        batcher = Batcher(manifest, model.variant, model.loaded.pipeline, budget=ThreadBudget(2))
        wrong = []

        def ask(seed):
            rng = np.random.default_rng(seed)
            for _ in range(60):
                feeds = {"image": rng.random((int(rng.integers(1, 4)), 1, 28, 28)).astype(np.float32)}
                answer = batcher.answer(feeds)
                expected = model.loaded.quietly(feeds)["logits"]
                if answer.rows != len(feeds["image"]) or not np.allclose(answer.outputs["logits"], expected, atol=1e-4):
                    wrong.append(seed)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert wrong == []


def test_the_knee_goes_back_when_more_rows_do_not_pay():
    knee = Knee(8)
    for rows, microseconds in [(4, 400), (8, 900)] * 4:
        knee.add(rows, microseconds * 1000)
    assert knee.limit == 4


def test_a_file_that_takes_a_fixed_number_of_rows_is_asked_for_each_request(manifest):
    import msgspec

    fixed = msgspec.structs.replace(manifest.variants[0], batch=1)
    session = Gated()
    rig = Rig(manifest)
    rig.session, rig.batcher = (
        session,
        Batcher(manifest, fixed, Pipeline(manifest, session), budget=rig.budget, queue=rig.queue),
    )
    first = rig.ask(1.0)
    session.asked.get(timeout=60)
    others = []
    for number in (1, 2):
        others.append(rig.ask(float(number)))
        rig.queued(number)
    session.go(3)
    assert [caller.top() for caller in (first, *others)] == [[784.0], [784.0], [784.0 * 2]]
    assert [session.asked.get(timeout=60) for _ in range(2)] == [[1.0], [2.0]]
