from hypothesis import given
from hypothesis import strategies as st

from edgeops_fleet.sequences import Stored


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3)), max_size=40))
def test_marks_agree_with_a_set_in_any_order(ranges):
    stored, expected = Stored(), set()
    for first, more in ranges:
        stored = stored.with_range(first, first + more)
        expected |= set(range(first, first + more + 1))
    assert {sequence for sequence in range(1, 40) if sequence in stored} == expected
    contiguous = next(number for number in range(1, 60) if number not in expected) - 1
    assert stored.contiguous == contiguous
    assert all(first > stored.contiguous + 1 for first, _ in stored.ahead)
