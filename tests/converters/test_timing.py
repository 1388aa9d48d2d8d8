"""Medians of interleaved calls, with a clock that the test turns."""

from edgeops_converters.timing import interleaved_medians


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_each_candidate_gets_its_own_median_in_milliseconds():
    clock = Clock()

    def call(seconds):
        def spend(_):
            clock.now += seconds

        return spend

    medians = interleaved_medians({"a": call(0.001), "b": call(0.004)}, clock=clock, budget_s=1)

    assert round(medians["a"], 6) == 1
    assert round(medians["b"], 6) == 4


def test_a_busy_spell_does_not_move_the_median():
    clock, calls = Clock(), []

    def spend(index):
        calls.append(index)
        clock.now += 0.5 if 20 < len(calls) < 30 else 0.001

    assert round(interleaved_medians({"a": spend}, clock=clock, budget_s=1)["a"], 6) == 1


def test_candidates_take_turns():
    clock, order = Clock(), []

    def call(name):
        def spend(_):
            order.append(name)
            clock.now += 0.001

        return spend

    interleaved_medians({"a": call("a"), "b": call("b")}, clock=clock, budget_s=0)

    warm = order[6:]
    assert warm[:10] == ["a"] * 5 + ["b"] * 5
    assert warm.count("a") == warm.count("b")
