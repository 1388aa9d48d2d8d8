"""Swaps where memory does not hold two workers: one goes, the other comes, and whoever asks meanwhile waits."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeops.messages import Trial
from edgeops_runtime.memory import Memory

sys.path.insert(0, str(Path(__file__).parent))  # The folder is no package, and this module is only for its tests.

from agent_parts import QUICK, Hammer, Station, eventually, scripted_bundle

SCARCE = Memory(available=1 << 20, total=1 << 30)
SHADOWED = Trial(shadow_requests=4, min_agreement=0.9, probation_requests=3, probation_s=0.2, deadline_s=60)


@pytest.fixture
def station(tmp_path, release_key) -> Iterator[Station]:
    station = Station(tmp_path, release_key)
    yield station
    station.close()


@pytest.fixture
def bundle(tmp_path, release_key) -> Callable:
    return lambda version, **script: scripted_bundle(tmp_path, version, release_key, **script)


def begin(station: Station, first) -> list[int]:
    """Commit a version, on a board without memory for a second; returns how many workers were alive at each later start."""
    station.start()
    station.install(first)
    station.memory = SCARCE
    crew, alive = station.agent._crew, []
    spawn = crew.spawn

    def counted(*arguments):
        alive.append(crew.size)
        return spawn(*arguments)

    crew.spawn = counted
    return alive


def test_candidate_takes_the_place_of_an_incumbent_that_went_first_and_no_request_fails(station, bundle):
    alive = begin(station, bundle("1.0.0"))
    with Hammer(station) as hammer:
        eventually(lambda: len(hammer.answers) > SHADOWED.shadow_requests)
        station.desire(station.target(None, rollout=bundle("1.1.0"), trial=SHADOWED))
        committed = station.wait_for("1.1.0", "committed")
        eventually(lambda: hammer.answers[-1] == "1.1.0")
    assert hammer.failures == []
    assert alive == [0]
    assert committed.figures["shadow_answered"] > 0
    assert station.agent._incumbent.slot.version == "1.1.0"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ({"golden": False}, "golden test"),
        ({"shadow": {"agreement": 0.1}}, "agrees with the version before"),
        ({"load": "dies"}, "SIGABRT"),
        ({"window": {"errors": 90}}, "probation: 90 of"),
    ],
)
def test_bad_candidate_makes_way_for_the_incumbent_again_and_no_request_fails(station, bundle, script, reason):
    alive = begin(station, bundle("1.0.0"))
    with Hammer(station) as hammer:
        eventually(lambda: len(hammer.answers) > SHADOWED.shadow_requests)
        station.desire(station.target(None, rollout=bundle("1.1.0", **script), trial=SHADOWED))
        end = station.wait_for("1.1.0", "rolled_back")
        answered = len(hammer.answers)
        eventually(lambda: len(hammer.answers) > answered + 3 and hammer.answers[-1] == "1.0.0")
    assert hammer.failures == []
    assert reason in end.reason
    assert set(alive) == {0}


def test_candidate_that_does_not_serve_within_the_bound_goes_and_is_not_called_bad(station, bundle):
    station.settings["swap_hold_s"] = 0.5
    begin(station, bundle("1.0.0"))
    with Hammer(station) as hammer:
        station.desire(station.target(None, rollout=bundle("1.1.0", ends={"at": "load", "by": "hang"})))
        end = station.wait_for("1.1.0", "failed")
        answered = len(hammer.answers)
        eventually(lambda: len(hammer.answers) > answered + 3)
    assert hammer.failures == []
    assert set(hammer.answers) == {"1.0.0"}
    assert (end.reason_class, station.agent._store.slots.quarantine) == ("environment", {})
    assert "within 0.5 s" in end.reason


def test_agent_that_ends_while_requests_wait_comes_back_with_the_incumbent_and_the_attempt_counted(station, bundle):
    first = bundle("1.0.0")
    begin(station, first)
    station.desire(station.target(None, rollout=bundle("1.1.0", ends={"at": "load", "by": "hang"}), trial=QUICK))
    process = eventually(lambda: station.agent._deployer._process)
    assert station.agent._crew.size == 1
    # As a power cut leaves it: nobody is asked to drain, nothing is written.
    process.kill()
    station.agent._loop.post(station.agent._loop.stop)
    station._thread.join(timeout=20)
    slots = station.agent._store.slots
    assert (slots.current.version, slots.candidate.attempts) == ("1.0.0", 1)
    station.memory = Memory(available=None, total=None)
    station.start()
    assert station.answer() == "1.0.0"
    station.desire(station.target(first))
    station.wait_for("1.1.0", "superseded")


def test_next_version_is_not_tried_before_the_one_that_made_way_is_back(station, bundle):
    alive = begin(station, bundle("1.0.0"))
    station.desire(station.target(None, rollout=bundle("1.1.0", golden=False)))
    station.wait_for("1.1.0", "rolled_back")
    station.desire(station.target(None, rollout=bundle("1.2.0")))
    with Hammer(station) as hammer:
        station.wait_for("1.2.0", "committed")
    assert hammer.failures == []
    assert alive == [0, 0, 0]
