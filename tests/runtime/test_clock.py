"""When to believe the clock."""

import pytest

from edgeops_runtime.clock import RELEASED, SystemClock, TrustedClock

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
