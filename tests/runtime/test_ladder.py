"""The ladder, by property: it climbs for a reason, never skips a rung on its way down, and stays between its thresholds."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeops_runtime.ladder import Ladder, Rung, Standing, advance, signals

TABLE = signals(85.0)
READINGS = st.one_of(st.none(), st.floats(min_value=-110, max_value=130, allow_nan=False))
STEPS = st.lists(st.tuples(st.floats(min_value=0.1, max_value=90, allow_nan=False), READINGS), max_size=40)


@pytest.mark.parametrize("name", TABLE)
def test_thresholds_rise_and_each_rung_is_left_below_where_it_is_entered(name):
    signal = TABLE[name]
    assert list(signal.enter) == sorted(signal.enter)
    assert list(signal.leave) == sorted(signal.leave)
    assert all(leave < enter for leave, enter in zip(signal.leave, signal.enter, strict=True))
    assert signal.fall_s > signal.rise_s > 0


@pytest.mark.parametrize("name", TABLE)
@settings(max_examples=60)
@given(steps=STEPS)
def test_a_signal_moves_only_as_its_thresholds_and_dwells_allow(name, steps):
    signal, standing, now = TABLE[name], Standing(), 0.0
    history: list[tuple[float, float | None]] = []
    moved_at = 0.0
    for pause, value in steps:
        now += pause
        before, standing = standing, advance(standing, signal, value, now)
        history.append((now, value))
        if standing.rung > before.rung:
            # Every reading of the last rise_s, and one at its beginning or before, was at the threshold of the new rung.
            since = next(at for at, _ in history if at >= now - signal.rise_s)
            earlier = [at for at, _ in history if at <= now - signal.rise_s]
            begin = max(earlier, default=since)
            assert earlier
            assert all(v is not None and v >= signal.enter[standing.rung - 1] for at, v in history if at >= begin)
        elif standing.rung < before.rung:
            assert standing.rung == before.rung - 1
            assert now - moved_at >= signal.fall_s
            recent = [v for at, v in history if at >= now - signal.fall_s and at > moved_at]
            assert all(v is None or v <= signal.leave[before.rung - 1] for v in recent)
        if standing.rung is not before.rung:
            moved_at = now


@settings(max_examples=20)
@given(
    rung=st.sampled_from([Rung.NO_SHADOW, Rung.NO_CAPTURE, Rung.FEWER_THREADS, Rung.SHED_LOAD]),
    share=st.floats(0.01, 0.99),
)
def test_between_the_thresholds_nothing_changes_however_long(rung, share):
    signal = TABLE["temperature"]
    low, high = signal.leave[rung - 1], signal.enter[rung - 1]
    standing = Standing(rung=rung)
    for second in range(0, 10_000, 50):
        standing = advance(standing, signal, low + share * (high - low), float(second))
    assert standing.rung is rung


def climb(ladder: Ladder, seconds: range, **readings: float | None) -> list[str]:
    named = {name.replace("_", " "): value for name, value in readings.items()}
    return [ladder.read(named, now=float(second)).words for second in seconds]


def test_the_worst_signal_decides_and_is_named():
    ladder = Ladder()
    assert ladder.reason == ""
    assert climb(ladder, range(0, 15, 5), temperature=72.0, available_memory=-50.0)[-1] == "no-shadow"
    assert climb(ladder, range(15, 30, 5), temperature=72.0, available_memory=-3.0)[-1] == "shed-load"
    assert ladder.reason == "available memory 3 %"
    # A minute without want of memory a rung; the temperature keeps the first.
    words = climb(ladder, range(30, 600, 5), temperature=72.0, available_memory=-50.0)
    assert [word for index, word in enumerate(words) if index == 0 or word != words[index - 1]] == [
        "shed-load",
        "fewer-threads",
        "no-capture",
        "no-shadow",
    ]
    assert ladder.reason == "temperature 72 °C"


def test_a_moment_of_pressure_is_none():
    ladder = Ladder()
    for second in range(0, 300, 5):
        spike = 90.0 if second % 10 else 0.0
        assert ladder.read({"memory pressure": spike}, now=float(second)) is Rung.NORMAL


def test_firmware_that_throttles_takes_threads_and_never_requests():
    ladder = Ladder()
    assert climb(ladder, range(0, 100, 5), throttling=3.0)[-1] == "fewer-threads"


def test_a_sensor_that_is_lost_leads_down_one_rung_after_the_other():
    ladder = Ladder()
    climb(ladder, range(0, 20, 5), temperature=82.0)
    assert ladder.rung is Rung.FEWER_THREADS
    words = climb(ladder, range(20, 500, 5), temperature=None)
    assert words.count("no-capture") >= 12
    assert words[-1] == "normal"


def test_the_guide_has_the_thresholds_of_the_ladder():
    guide = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "device.md").read_text()
    for rung in list(Rung)[1:]:
        row = next(line for line in guide.splitlines() if line.startswith(f"| `{rung.words}` |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")][2:]
        expected = []
        for signal in TABLE.values():
            enter, leave = signal.enter[rung - 1], signal.leave[rung - 1]
            words = f"{abs(enter):g} ({abs(leave):g}){signal.unit}"
            expected.append("never" if enter == float("inf") else words)
        assert cells == expected
