from benchmarks.runtime.phases import Phases, take_turns


class Clock:
    """A clock that only sleep and work move."""

    def __init__(self) -> None:
        self.now = 1000
        self.slept: list[float] = []

    def __call__(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += round(seconds * 1e9)


def turns(times: int) -> tuple[list[int], Clock, Phases]:
    clock, done = Clock(), []

    def act(number: int) -> None:
        done.append(number)
        clock.now += 1_000_000

    return done, clock, take_turns(act, times, clock=clock, sleep=clock.sleep)


def test_everything_is_done_once_and_in_order() -> None:
    for times in (1, 7, 10, 25, 1000):
        done, _, _ = turns(times)
        assert done == list(range(times))


def test_quiet_follows_each_block_and_is_half_as_long() -> None:
    _, clock, phases = turns(20)

    assert clock.slept == [0.001] * 10  # two turns of a millisecond each before it
    assert len(phases.changes) == 21
    assert [after - before for before, after in zip(phases.changes, phases.changes[1:], strict=False)] == [
        2_000_000,
        1_000_000,
    ] * 10


def test_requests_belong_to_the_phase_in_which_they_began() -> None:
    phases = Phases([10, 20, 30, 40, 50])
    quiet, busy = phases.split([(9, 1), (10, 2), (19, 3), (20, 4), (29, 5), (30, 6), (45, 7), (50, 8)])

    assert busy == [2, 3, 6]
    assert quiet == [4, 5, 7]
