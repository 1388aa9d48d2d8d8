"""Medians of interleaved calls, with a clock that the test turns."""

from edgeops_converters.timing import interleaved_latencies, interleaved_medians, median_interval


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


def test_the_interval_is_narrow_where_calls_are_alike_and_encloses_the_median():
    clock = Clock()

    def spend(index):
        clock.now += 0.001 * (1 + 0.1 * (index % 7))

    found = interleaved_latencies({"a": spend}, clock=clock, budget_s=1)["a"]
    assert 1 <= found.low <= found.value <= found.high <= 1.7
    assert found.high - found.low <= 0.3


def test_calls_of_one_turn_do_not_count_as_independent():
    values = [1.0] * 20 + [2.0] * 20 + [3.0] * 20
    assert median_interval(values, draws=60).high <= median_interval(values, draws=5).high == 3.0
