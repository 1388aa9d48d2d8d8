import pytest

from edgeops_runtime.capture_quota import CaptureQuota

DAY_S = 86400


@pytest.fixture
def path(tmp_path):
    return tmp_path / "capture"


def test_a_days_allowance_is_used_up_and_fills_up_evenly(path):
    quota = CaptureQuota(path, bytes_per_day=1000, now=0)
    assert [quota.take(400, now=0) for _ in range(3)] == [True, True, False]
    assert quota.take(200, now=0)
    assert not quota.take(500, now=DAY_S / 4)
    assert quota.take(500, now=DAY_S / 2)
    assert [quota.take(1000, now=9 * DAY_S) for _ in range(2)] == [True, False]
    assert not quota.take(1001, now=99 * DAY_S)


def test_a_restart_gives_nothing_back(path):
    quota = CaptureQuota(path, bytes_per_day=1600, now=500)
    for _ in range(15):
        assert quota.take(100, now=500)
    again = CaptureQuota(path, bytes_per_day=1600, now=3)  # Not closed in order: the power was cut.
    assert again.take(100, now=3)
    assert not again.take(100, now=3)
    again.save()
    assert not CaptureQuota(path, bytes_per_day=1600, now=3).take(100, now=3)


@pytest.mark.parametrize("text", ["", "many", "-5"])
def test_what_is_damaged_counts_as_used_up(path, text):
    path.write_text(text)
    quota = CaptureQuota(path, bytes_per_day=1000, now=0)
    assert not quota.take(1, now=0)
    assert quota.take(500, now=DAY_S / 2)
