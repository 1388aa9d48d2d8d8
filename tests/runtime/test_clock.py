"""When to believe the clock."""

import pytest

from edgeops_runtime.clock import RELEASED, ClockWatch, SystemClock, TrustedClock
from edgeops_runtime.lifetimes import read_machine_boot

YEAR = 365 * 86400.0


class FakeClock:
    def __init__(self, wall: float, uptime: float = 0.0) -> None:
        self.now, self.up = wall, uptime

    def wall(self) -> float:
        return self.now

    def uptime(self) -> float:
        return self.up


def test_1970_never_passes_as_now(tmp_path):
    assert not TrustedClock(FakeClock(0.0), tmp_path / "clock").is_trusted
    assert TrustedClock(SystemClock(), tmp_path / "clock").is_trusted


def test_floor_rises_with_signed_documents_and_monotonic_time_and_survives_a_restart(tmp_path):
    fake = FakeClock(RELEASED + YEAR)
    clock = TrustedClock(fake, tmp_path / "clock")
    clock.vouch(RELEASED + YEAR - 10)
    fake.up += 1000
    clock.save()
    again = TrustedClock(FakeClock(RELEASED + YEAR + 500), tmp_path / "clock")
    assert again.floor == RELEASED + YEAR + 990
    assert not again.is_trusted
    assert TrustedClock(FakeClock(RELEASED + YEAR + 991), tmp_path / "clock").is_trusted


def test_clock_that_jumped_into_the_future_and_back_is_trusted_again(tmp_path):
    fake = FakeClock(RELEASED + YEAR)
    clock = TrustedClock(fake, tmp_path / "clock")
    fake.now += 10 * YEAR
    fake.up += 7200
    clock.save_sometimes()
    fake.now -= 10 * YEAR
    assert clock.is_trusted
    assert TrustedClock(fake, tmp_path / "clock").is_trusted


def test_older_document_does_not_lower_the_floor(tmp_path):
    clock = TrustedClock(FakeClock(RELEASED + YEAR), tmp_path / "clock")
    clock.vouch(RELEASED + 100)
    clock.vouch(5.0)
    assert clock.floor == RELEASED + 100


def test_damaged_file_counts_as_none(tmp_path):
    (tmp_path / "clock").write_text("soon")
    assert TrustedClock(FakeClock(RELEASED), tmp_path / "clock").floor == RELEASED


@pytest.mark.parametrize("text", ["inf", "nan", "1e999"])
def test_floor_that_is_no_moment_counts_as_none(tmp_path, text):
    path = tmp_path / "clock"
    path.write_text(text)
    assert TrustedClock(SystemClock(), path).is_trusted


def test_clock_that_was_set_is_noticed_once_with_what_it_was_before(tmp_path):
    fake = FakeClock(0.0, 5.0)
    watch = ClockWatch(TrustedClock(fake, tmp_path / "clock"))
    assert watch.look() is None  # Not believed, so there is nothing to say yet.
    fake.now, fake.up = RELEASED + 100, 15.0
    step = watch.look()
    assert (step.now.wall, step.now.uptime_s, step.now.is_trusted) == (RELEASED + 100, 15.0, True)
    assert (step.before_s, step.before_trusted) == (-5.0, False)
    fake.now, fake.up = RELEASED + 3701.5, 3615.0  # An hour later, 1.5 s off: kept right, not set.
    assert watch.look() is None
    fake.now += 1.0
    assert watch.look().before_trusted


def test_clock_that_is_right_from_the_start_is_told_once(tmp_path):
    fake = FakeClock(RELEASED + 10, 10.0)
    watch = ClockWatch(TrustedClock(fake, tmp_path / "clock"))
    assert watch.look().before_s is None
    assert watch.look() is None


def test_clock_that_lost_its_trust_tells_when_it_has_it_again(tmp_path):
    fake = FakeClock(RELEASED + 10, 10.0)
    clock = TrustedClock(fake, tmp_path / "clock")
    watch = ClockWatch(clock)
    watch.look()
    clock.vouch(RELEASED + 500)  # A signed document is newer than the clock.
    assert watch.look() is None  # Nothing to date by.
    fake.now += 490
    assert watch.look().now.is_trusted


@pytest.mark.parametrize("step_s", [-50 * YEAR, 10 * YEAR, -10 * YEAR, 3600.0])
def test_moment_that_was_read_before_the_clock_was_set_is_put_right(tmp_path, step_s):
    fake = FakeClock(RELEASED + YEAR, 100.0)
    watch = ClockWatch(TrustedClock(fake, tmp_path / "clock"))
    watch.look()
    moment = fake.now + 5
    assert watch.corrected(moment) == moment
    fake.now, fake.up = fake.now + 30 + step_s, 130.0
    watch.look()
    assert watch.corrected(moment) == pytest.approx(moment + step_s)
    assert watch.corrected(fake.now - 1) == fake.now - 1
    assert watch.corrected(5e12) == pytest.approx(fake.now)  # Nobody knows what clock that was.


def test_reading_is_taken_again_when_something_came_between_the_two_clocks(tmp_path):
    class Interrupted(FakeClock):
        delays = iter([30.0])

        def wall(self) -> float:
            now = self.now
            delay = next(self.delays, 0.0)
            self.now, self.up = self.now + delay, self.up + delay
            return now

    fake = Interrupted(RELEASED + YEAR, 100.0)
    watch = ClockWatch(TrustedClock(fake, tmp_path / "clock"))
    assert watch.look().now.started == RELEASED + YEAR - 100.0


def test_machine_boot_is_short_and_the_same_until_the_machine_starts_anew(tmp_path):
    assert read_machine_boot() == read_machine_boot()
    path = tmp_path / "boot_id"
    assert read_machine_boot(path) == ""
    path.write_text("8a7b6c5d-4e3f-2a1b-0c9d-8e7f6a5b4c3d\n")
    assert read_machine_boot(path) == "8a7b6c5d4e3f"
