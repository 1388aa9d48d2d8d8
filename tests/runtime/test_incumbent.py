"""When a worker that dies again and again is its version's fault, with a clock of our own."""

import pytest

from edgeops_runtime.control import Ready, Serving
from edgeops_runtime.incumbent import QUICK_DEATH_S, QUICK_DEATHS, Incumbent
from edgeops_runtime.slots import Slot


class Clock:
    """Time that passes when it is told to, and calls that are made when it has."""

    def __init__(self):
        self.now, self.pauses, self._calls = 100.0, [], []

    def __call__(self):
        return self.now

    def call_later(self, pause_s, call):
        self.pauses.append(pause_s)
        self._calls.append(call)
        return self

    def cancel(self):
        self._calls.clear()

    def ring(self):
        calls, self._calls = self._calls, []
        for call in calls:
            call()


class Crew:
    """Workers that do nothing."""

    def __init__(self):
        self.spawned = []

    def spawn(self, slot, owner):
        self.spawned.append(Process())
        return self.spawned[-1]

    def drain(self, process):
        pass


class Process:
    def send(self, order):
        return True


class Story:
    """An incumbent whose workers live as long as a test says."""

    def __init__(self):
        self.clock, self.crew, self.loops = Clock(), Crew(), []
        self.incumbent = Incumbent(
            loop=self.clock,
            crew=self.crew,
            uptime=self.clock,
            notice=lambda kind, text: None,
            on_crash_loop=self._gives_up,
            on_change=lambda: None,
        )
        self.incumbent.run(Slot(version="1.0.0", digest="sha256:0", variant="onnx", engine="onnxruntime"))

    def _gives_up(self, reason):
        self.loops.append(reason)
        return False

    def live(self, *, start_s, serve_s=None):
        """One worker: it takes so long to start, then serves for so long, or dies in its start."""
        self.clock.ring()
        process = self.crew.spawned[-1]
        self.clock.now += start_s
        if serve_s is not None:
            self.incumbent.on_line(
                process, Ready(engine="onnxruntime", engine_version="1", pid=1, rss_bytes=1, load_s=0.0)
            )
            self.incumbent.on_line(process, Serving())
            self.clock.now += serve_s
        self.incumbent.on_gone(process, "it died")


@pytest.mark.parametrize("start_s", [0.1, 60.0])
def test_worker_that_never_gets_ready_is_the_versions_fault_however_slow_the_board(start_s):
    story = Story()
    for _ in range(QUICK_DEATHS):
        assert not story.incumbent.is_given_up
        story.live(start_s=start_s)
    assert story.incumbent.is_given_up
    assert len(story.loops) == 1
    assert "it died" in story.loops[0]


@pytest.mark.parametrize("start_s", [0.1, 60.0])
def test_worker_that_dies_soon_after_it_is_ready_is_the_versions_fault(start_s):
    story = Story()
    for _ in range(QUICK_DEATHS):
        story.live(start_s=start_s, serve_s=QUICK_DEATH_S / 2)
    assert story.incumbent.is_given_up


def test_worker_that_served_for_a_while_is_started_again_at_once():
    story = Story()
    for _ in range(QUICK_DEATHS * 3):
        story.live(start_s=0.1, serve_s=QUICK_DEATH_S * 2)
    assert not story.incumbent.is_given_up
    assert story.loops == []
    assert story.clock.pauses == []


def test_pauses_grow_while_it_dies():
    story = Story()
    for _ in range(6):
        story.live(start_s=30.0)
    assert story.clock.pauses == sorted(story.clock.pauses)
    assert story.clock.pauses[0] < story.clock.pauses[-1]
