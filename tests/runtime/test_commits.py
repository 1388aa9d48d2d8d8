import itertools

from edgeops_runtime.commits import EVERY_S, Allowance


def commits(allowance: Allowance, times) -> list[float]:
    """When records that come at these times are written, if somebody looks each second."""
    coming, done = set(times), []
    for now in range(max(coming) + int(EVERY_S) + 2):
        if now in coming:
            allowance.note_waiting(now)
        if allowance.is_due(now):
            allowance.spend()
            done.append(now)
    return done


def test_record_a_minute_is_written_at_once():
    times = [60 * number for number in range(1, 2000)]
    assert commits(Allowance(), times) == times


def test_burst_is_written_at_once_until_the_allowance_is_used_up_and_then_once_a_minute():
    done = commits(Allowance(), range(1, 86401))
    assert done[:100] == list(range(1, 101))
    assert len(done) <= 86400 / EVERY_S + 125
    assert max(after - before for before, after in itertools.pairwise(done)) <= EVERY_S + 1


def test_nothing_is_due_when_nothing_waits():
    assert not Allowance().is_due(1e9)
