"""A disk that is full, broken or read-only under a living agent: inference does not notice, and what is lost is counted."""

import contextlib
import errno
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from edgeops.messages import Gap, ReasonClass
from edgeops_runtime.slots import SlotStore

sys.path.insert(0, str(Path(__file__).parent))  # The folder is no package, and this module is only for its tests.

from agent_parts import Hammer, Station, eventually, scripted_bundle
from power_cut import Recorder

FAULTS = {
    "full": {"write": errno.ENOSPC},
    "no room for names": {"create": errno.ENOSPC, "names": errno.ENOSPC},
    "write error": {"write": errno.EIO},
    "failing fsync": {"sync": errno.EIO},
    "read-only": {"create": errno.EROFS, "write": errno.EROFS, "names": errno.EROFS},
    "read error": {"read": errno.EIO},
}


@pytest.fixture
def bundle(tmp_path: Path, release_key) -> Callable:
    return partial(scripted_bundle, tmp_path / "bundles", key=release_key)


@pytest.fixture
def station(tmp_path: Path, release_key) -> Iterator[Station]:
    (tmp_path / "disk").mkdir()
    station = Station(tmp_path / "disk", release_key, telemetry_window_s=0.1)
    yield station
    station.close()


@pytest.fixture
def disk(station: Station) -> Iterator[Recorder]:
    """The station's disk, whose calls can be made to fail."""
    with Recorder(station.directory) as recorder:
        yield recorder
        station.stop()


def say(station: Station, text: str) -> None:
    """Have the agent record an event."""
    station.agent._loop.post(partial(station.agent._notice, "test", text))


def noise(rng: random.Random, size: int) -> str:
    return "".join(chr(rng.randrange(33, 127)) for _ in range(size))


def check_all_is_told(station: Station) -> dict[str, int]:
    """Every sequence came once: as its record, or counted by a gap; returns how many each stream's gaps count."""
    eventually(lambda: not any(station.agent._outbox.counts().values()), station.agent._outbox.counts)
    counted = {}
    for stream in ("event", "telemetry"):
        records = [record for (name, _), record in sorted(station.records.items()) if name == stream]
        covered = []
        for record in records:
            covered.extend(range(getattr(record, "first", 0) or record.sequence, record.sequence + 1))
            assert not isinstance(record, Gap) or record.count == record.sequence - record.first + 1
        assert covered == list(range(1, len(covered) + 1))
        counted[stream] = sum(record.count for record in records if isinstance(record, Gap))
    return counted


@pytest.mark.parametrize(
    "fault",
    [name if name == "failing fsync" else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS],
)
def test_disk_that_fails_is_not_noticed_by_callers_and_costs_nothing_once_it_is_well(station, disk, bundle, fault):
    station.start()
    station.install(bundle("1.0.0"))
    with Hammer(station) as hammer:
        disk.faults.update(FAULTS[fault])
        say(station, "during")
        station.desire(station.target(None, rollout=bundle("1.1.0")))
        live_for_a_while(station, hammer)
        disk.faults.clear()
        say(station, "after")
        station.desire(station.target(None, rollout=bundle("1.2.0")))
        station.wait_for("1.2.0", "committed")
    assert hammer.failures == []
    assert set(hammer.answers) == {"1.0.0", "1.2.0"}
    lost = check_all_is_told(station)
    if fault != "read error":  # What cannot be read when it is to be sent is given up, and counted.
        assert lost == {"event": 0, "telemetry": 0}
        assert station.notices("test") == ["during", "after"]
        # Whatever came of the version that was offered meanwhile, it is the disk's fault and no defect of it.
        assert station.transitions("1.1.0")[-1].reason_class is not ReasonClass.DEFECT
    assert SlotStore(station.data).slots.quarantine == {}
    assert SlotStore(station.data).slots.current.version == "1.2.0"


def test_what_memory_cannot_hold_while_the_disk_refuses_is_counted_exactly(station, disk, bundle):
    rng = random.Random(3)
    station.start()
    station.install(bundle("1.0.0"))
    with Hammer(station) as hammer:
        disk.faults.update(FAULTS["full"])
        for _ in range(400):
            say(station, noise(rng, 1500))
        say(station, "last")
        live_for_a_while(station, hammer)
        assert station.agent._outbox.size_bytes < 2 << 20
        disk.faults.clear()
        say(station, "after")
        eventually(lambda: station.notices("test")[-1:] == ["after"])
    assert hammer.failures == []
    lost = check_all_is_told(station)
    # 401 notices were given while nothing could be written; what did not come is in the gaps, no more and no less.
    assert lost == {"event": 402 - len(station.notices("test")), "telemetry": 0}
    assert lost["event"] > 100
    assert station.notices("test")[-2:] == ["last", "after"]


@pytest.mark.parametrize("fault", ["full", pytest.param("failing fsync", marks=pytest.mark.slow)])
def test_agent_that_starts_on_a_bad_disk_serves(station, disk, bundle, fault):
    station.start()
    station.install(bundle("1.0.0"))
    station.stop()
    disk.faults.update(FAULTS[fault])
    for _ in range(2):
        station.start()
        with Hammer(station) as hammer:
            live_for_a_while(station, hammer)
        assert hammer.failures == []
        station.stop()
    station.start()
    with Hammer(station) as hammer:
        live_for_a_while(station, hammer)
        disk.faults.clear()
        station.desire(station.target(None, rollout=bundle("1.1.0")))
        station.wait_for("1.1.0", "committed")
    assert set(hammer.answers) == {"1.0.0", "1.1.0"}
    check_all_is_told(station)


def test_real_disk_that_fills_up_is_not_noticed_by_callers(small_disk, tmp_path, release_key, bundle):
    station = Station(small_disk, release_key, telemetry_window_s=0.1)
    try:
        station.start()
        station.install(bundle("1.0.0"))
        with Hammer(station) as hammer:
            fill(small_disk / "ballast")
            say(station, "during")
            station.desire(station.target(None, rollout=bundle("1.1.0")))
            live_for_a_while(station, hammer)
            (small_disk / "ballast").unlink()
            say(station, "after")
            station.desire(station.target(None, rollout=bundle("1.2.0")))
            station.wait_for("1.2.0", "committed")
        assert hammer.failures == []
        assert check_all_is_told(station) == {"event": 0, "telemetry": 0}
        assert station.notices("test") == ["during", "after"]
        assert station.transitions("1.1.0")[-1].reason_class is not ReasonClass.DEFECT
    finally:
        station.close()


def live_for_a_while(station: Station, hammer: Hammer) -> None:
    """Some telemetry windows and answers."""
    given, answered = station.agent._outbox.last("telemetry"), len(hammer.answers)
    eventually(lambda: station.agent._outbox.last("telemetry") > given + 3)
    eventually(lambda: len(hammer.answers) > answered + 20)


def fill(path: Path) -> None:
    """Write until the disk is full to the last byte."""
    with path.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    assert os.statvfs(path).f_bavail == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)
