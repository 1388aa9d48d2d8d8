"""The agent end to end, with a scripted worker in a real process, real HTTP for blobs and a broker in memory."""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgeops.errors import ConfigError, ConflictError
from edgeops.messages import Command, CommandKind, DeploymentState, Gap, ReasonClass, Sample, Trial, about_sample
from edgeops.signing import SigningKey
from edgeops_runtime.deployment import offer
from edgeops_runtime.endpoint import Endpoint
from edgeops_runtime.ladder import signals
from edgeops_runtime.slots import Candidate, SlotStore
from edgeops_runtime.systemd import Notifier
from edgeops_runtime.watchdog import Checkup, ask

sys.path.insert(0, str(Path(__file__).parent))  # The folder is no package, and this module is only for its tests.

from agent_parts import DEVICE, Hammer, Station, eventually, scripted_bundle


@pytest.fixture
def station(tmp_path: Path, release_key: SigningKey) -> Iterator[Station]:
    station = Station(tmp_path, release_key)
    yield station
    station.close()


@pytest.fixture
def bundle(tmp_path: Path, release_key: SigningKey):
    def make(version: str, **script):
        return scripted_bundle(tmp_path / "bundles", version, release_key, **script)

    return make


def test_agent_installs_what_the_group_wants(station, bundle):
    station.start()
    station.install(bundle("1.0.0"))
    assert station.answer() == "1.0.0"
    assert station.states("1.0.0") == ["offered", "downloading", "verified", "trial", "probation", "committed"]
    eventually(lambda: station.births[-1].models and station.births[-1].models[0].version == "1.0.0", station.births)
    assert station.births[-1].address == station.agent.address


def test_upgrade_under_load_fails_no_request(station, bundle):
    station.start()
    station.install(bundle("1.0.0"))
    with Hammer(station) as hammer:
        station.desire(
            station.target(
                None, rollout=bundle("1.1.0"), trial=Trial(shadow_requests=4, probation_requests=5, probation_s=0.3)
            )
        )
        station.wait_for("1.1.0", "committed")
        eventually(lambda: hammer.answers[-5:] == ["1.1.0"] * 5, hammer.answers)
    assert hammer.failures == []
    assert set(hammer.answers) == {"1.0.0", "1.1.0"}
    assert station.transitions("1.1.0")[-1].previous == "1.0.0"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ({"golden": False}, "golden test"),
        ({"load": "dies"}, "SIGABRT"),
        ({"load": "fails"}, "no such operator"),
        ({"shadow": {"not_finite": 2}}, "2 not finite"),
        ({"shadow": {"failed": 1, "reason": "boom"}}, "boom"),
        ({"shadow": {"agreement": 0.2}}, "agrees with the version before on 20.0%"),
        ({"shadow": {"latency_ms": 90.0}}, "90.00 ms against"),
    ],
)
def test_bad_candidate_is_rolled_back_and_quarantined_before_it_serves(station, bundle, script, reason):
    station.start()
    station.install(bundle("1.0.0"))
    bad = bundle("1.1.0", **script)
    trial = Trial(shadow_requests=2, min_agreement=0.9, probation_requests=3, probation_s=0.2, attempts=2)
    with Hammer(station) as hammer:
        station.desire(station.target(None, rollout=bad, trial=trial))
        end = station.wait_for("1.1.0", "rolled_back")
    assert reason in end.reason
    assert end.reason_class is ReasonClass.DEFECT
    assert hammer.failures == []
    assert set(hammer.answers) == {"1.0.0"}
    # Asked for again, also after a restart, it does not run again.
    station.desire(station.target(None, rollout=bad, trial=trial))
    station.stop()
    station.start()
    station.desire(station.target(None, rollout=bad, trial=trial))
    eventually(lambda: bad.digest in station.births[-1].models[0].quarantined, station.births)
    assert station.answer() == "1.0.0"
    assert station.states("1.1.0").count("offered") == 1


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ({"window": {"errors": 1, "not_finite": 1}}, "not finite"),
        ({"window": {"errors": 1}}, "failed"),
        ({"window": {"latency_ns": 90_000_000}}, "the version before"),
        ({"serve": "dies"}, "probation: the worker exited with code 9"),
    ],
)
def test_candidate_that_fails_on_live_requests_gives_the_traffic_back(station, bundle, script, reason):
    station.start()
    station.install(bundle("1.0.0"))
    incumbent = station.agent._incumbent.process
    with Hammer(station) as hammer:
        station.desire(station.target(None, rollout=bundle("1.1.0", **script)))
        end = station.wait_for("1.1.0", "rolled_back")
        begun = len(hammer.answers)
        eventually(lambda: len(hammer.answers) > begun + 5 and hammer.answers[-1] == "1.0.0", hammer.answers)
    assert reason in end.reason
    assert end.reason_class is ReasonClass.DEFECT
    assert station.agent._incumbent.process is incumbent  # It stayed warm.
    if "serve" not in script:
        assert hammer.failures == []


def test_first_version_that_fails_leaves_nothing_serving(station, bundle):
    station.start()
    station.desire(station.target(None, rollout=bundle("1.0.0", golden=False)))
    end = station.wait_for("1.0.0", "rolled_back")
    assert end.previous is None
    eventually(lambda: station.agent._crew.size == 0)
    eventually(lambda: station.births[-1].models[0].quarantined, station.births)
    assert station.births[-1].models[0].version is None


def test_without_traffic_a_version_is_committed_after_a_longer_probation(station, bundle):
    station.start()
    station.desire(station.target(None, rollout=bundle("1.0.0")))
    end = station.wait_for("1.0.0", "committed")
    assert "0 requests" in end.reason


def test_removed_rollout_goes_back_to_the_version_before_without_the_network(station, bundle):
    station.start()
    first, second = bundle("1.0.0"), bundle("1.1.0")
    station.install(first)
    with Hammer(station) as hammer:
        station.desire(station.target(first, rollout=second))
        station.wait_for("1.1.0", "committed")
        station.blobs.blobs.clear()
        asked = len(station.blobs.requests)
        station.desire(station.target(None), generation=station.generation + 1)
        target = station.target(first)
        station.blobs.blobs.clear()
        station.desire(target)
        eventually(lambda: station.states("1.0.0").count("committed") == 2, lambda: station.transitions("1.0.0"))
        eventually(lambda: hammer.answers[-5:] == ["1.0.0"] * 5, hammer.answers)
    assert hammer.failures == []
    assert len(station.blobs.requests) == asked


def test_rollout_withdrawn_in_probation_is_rolled_back_and_not_quarantined(station, bundle):
    station.start()
    first, second = bundle("1.0.0"), bundle("1.1.0")
    station.install(first)
    station.desire(
        station.target(first, rollout=second, trial=Trial(shadow_requests=0, probation_s=600, deadline_s=900))
    )
    station.wait_for("1.1.0", "probation")
    eventually(lambda: station.answer() == "1.1.0")
    station.desire(station.target(first))
    end = station.wait_for("1.1.0", "rolled_back")
    assert end.reason_class is ReasonClass.TRANSIENT
    eventually(lambda: station.answer() == "1.0.0")
    station.desire(station.target(first, rollout=second))
    with Hammer(station):
        station.wait_for("1.1.0", "committed")


def test_rollout_withdrawn_while_downloading_is_superseded(station, bundle):
    station.start()
    first, second = bundle("1.0.0"), bundle("1.1.0")
    station.install(first)
    target = station.target(first, rollout=second)
    station.blobs.blobs.pop(second.digest)
    station.desire(target)
    station.wait_for("1.1.0", "downloading")
    station.desire(station.target(first))
    station.wait_for("1.1.0", "superseded")
    assert station.answer() == "1.0.0"


def test_device_override_wins_until_it_is_removed(station, bundle):
    station.start()
    first, second = bundle("1.0.0"), bundle("1.1.0")
    station.install(first)
    station.desire(station.target(first))
    with Hammer(station):
        station.desire(station.target(None, rollout=second), device=DEVICE)
        station.wait_for("1.1.0", "committed")
        station.clear_override()
        eventually(lambda: station.states("1.0.0").count("committed") == 2, lambda: station.transitions("1.0.0"))


def test_override_that_was_removed_while_the_device_was_away_is_forgotten(station, bundle, monkeypatch):
    monkeypatch.setattr("edgeops_runtime.mailbox._OVERRIDE_WAIT_S", 0.3)
    station.start()
    first, second = bundle("1.0.0"), bundle("1.1.0")
    station.install(first)
    station.desire(station.target(first))
    with Hammer(station):
        station.desire(station.target(None, rollout=second), device=DEVICE)
        station.wait_for("1.1.0", "committed")
    station.stop()
    station.clear_override()
    station.start()
    with Hammer(station):
        eventually(lambda: station.states("1.0.0").count("committed") == 2, lambda: station.transitions("1.0.0"))


def test_document_that_may_not_be_believed_changes_nothing_and_is_told(station, bundle):
    station.start()
    first, second = bundle("1.0.0"), bundle("1.1.0")
    station.install(first)
    seen = station.generation
    target = station.target(None, rollout=second)
    station.desire(target, key=SigningKey.generate())
    station.desire(target, generation=seen - 1)
    station.desire(target, generation=seen + 1, fleet="south")
    station.desire(target, generation=seen + 2, group="doors")
    station.desire(target, generation=seen + 3, expires_s=-1)
    refused = eventually(lambda: len(found := station.notices("desired-refused")) == 4 and found, station.records)
    assert [
        word
        for text, word in zip(refused, ["valid signature", "older than", "south", "doors"], strict=True)
        if word in text
    ]
    station.stop()
    assert station.states("1.1.0") == []


def test_older_generation_is_refused_after_a_restart_too(station, bundle):
    station.start()
    station.install(bundle("1.0.0"))
    seen = station.generation
    station.stop()
    station.broker.retained.clear()
    station.start()
    station.desire(station.target(None, rollout=bundle("1.1.0")), generation=seen - 1)
    eventually(lambda: station.notices("desired-refused"))
    assert station.states("1.1.0") == []


def test_bundle_that_somebody_else_signed_is_rejected(station, bundle, tmp_path):
    station.start()
    station.install(bundle("1.0.0"))
    foreign = scripted_bundle(tmp_path, "1.1.0", SigningKey.generate())
    station.desire(station.target(None, rollout=foreign))
    end = station.wait_for("1.1.0", "rejected")
    assert end.reason_class is ReasonClass.SECURITY
    assert station.answer() == "1.0.0"


def test_wrong_bytes_in_a_download_are_rejected_and_never_touch_what_runs(station, bundle):
    station.start()
    station.install(bundle("1.0.0"))
    second = bundle("1.1.0")
    target = station.target(None, rollout=second)
    model = second.manifest.files["golden.npz"].digest
    station.blobs.blobs[model] = bytes(len(station.blobs.blobs[model]))
    with Hammer(station) as hammer:
        station.desire(target)
        end = station.wait_for("1.1.0", "rejected")
    assert end.reason_class is ReasonClass.SECURITY
    assert model in end.reason
    assert hammer.failures == []
    assert set(hammer.answers) == {"1.0.0"}


def test_version_below_the_floor_is_rejected(station, bundle):
    station.start()
    station.desire(station.target(None, rollout=bundle("1.0.0"), floor="1.1.0"))
    assert station.wait_for("1.0.0", "rejected").reason_class is ReasonClass.SECURITY


def test_forbidden_current_version_gives_way_to_the_one_before(station, bundle):
    station.start()
    first, second = bundle("1.0.0"), bundle("1.1.0")
    station.install(first)
    station.install(second)
    station.desire(station.target(None, quarantine=(second.digest,)))
    with Hammer(station) as hammer:
        eventually(lambda: station.states("1.0.0").count("committed") == 2, lambda: station.transitions("1.0.0"))
    assert hammer.failures == []


def test_restart_without_broker_and_blobs_serves_the_current_version(station, bundle):
    station.start()
    station.install(bundle("1.0.0"))
    address = station.agent.address
    station.stop()
    assert station.deaths[-1].boot == 1
    station.broker.reachable = False
    station.blobs.blobs.clear()
    station.start()
    assert station.agent.address == address
    assert station.answer() == "1.0.0"
    station.broker.mend(station.link)
    eventually(lambda: station.births[-1].boot == 2, station.births)


def test_records_are_kept_while_the_broker_is_away_and_come_once_it_is_back(station, bundle):
    station.start()
    station.install(bundle("1.0.0"))
    station.cut()
    assert station.deaths[-1].session == station.births[-1].session
    sent = len(station.telemetry())
    last = eventually(
        lambda: station.agent._outbox.last("telemetry") > sent + 2 and station.agent._outbox.last("telemetry")
    )
    station.link.reconnect()
    eventually(lambda: len(station.telemetry()) >= last, station.telemetry)
    sequences = [record.sequence for record in station.telemetry()]
    assert sequences == list(range(1, len(sequences) + 1))
    assert not any(isinstance(record, Gap) for record in station.records.values())
    assert station.births[-1].session > station.births[0].session


def test_telemetry_adds_up_to_the_requests(station, bundle):
    station.start()
    first, second = bundle("1.0.0"), bundle("1.1.0")
    with Hammer(station) as hammer:
        station.desire(station.target(None, rollout=first))
        station.wait_for("1.0.0", "committed")
        station.desire(station.target(None, rollout=second))
        station.wait_for("1.1.0", "committed")
    station.stop()
    assert sum(record.requests for record in station.telemetry()) == len(hammer.answers)
    assert {record.version for record in station.telemetry()} == {"1.0.0", "1.1.0"}
    assert station.telemetry()[-1].host.agent_rss_bytes


def test_report_command_closes_the_window_once(station, bundle):
    station.settings["telemetry_window_s"] = 3600.0
    station.start()
    station.install(bundle("1.0.0"))
    assert station.telemetry() == []
    for _ in range(2):
        station.command_device(Command(id="now", kind=CommandKind.REPORT, expires=time.time() + 60))
    station.command_device(Command(id="late", kind=CommandKind.REPORT, expires=time.time() - 60))
    eventually(station.telemetry)
    station.command_device(Command(id="again", kind=CommandKind.REPORT, expires=time.time() + 60))
    eventually(lambda: len(station.telemetry()) == 2)


def test_samples_do_not_leave_a_device_that_does_not_allow_it(station, bundle):
    station.start()
    station.install(bundle("1.0.0"))
    station.command_device(Command(id="c", kind=CommandKind.COLLECT, expires=time.time() + 60, count=1))
    assert "capture" in eventually(lambda: station.notices("command-refused"))[0]


def test_samples_leave_sealed_and_no_more_than_a_days_quota(station, bundle):
    station.settings |= {"capture": True, "capture_bytes_per_day": 10_000}
    station.start()
    station.install(bundle("1.0.0"))
    station.command_device(Command(id="c", kind=CommandKind.COLLECT, expires=time.time() + 60, count=30))
    assert "10,000 bytes of rows may leave in a day" in eventually(lambda: station.notices("capture-ended"))[0]
    samples = eventually(lambda: [record for record in station.records.values() if isinstance(record, Sample)])
    assert 5 <= len(eventually(lambda: samples)) <= 10
    assert all(not sample.inputs for sample in samples)
    assert station.sealing_key.open(samples[0].sealed, about=about_sample("c")) == b"x" * 1000
    for path in (station.data / "outbox").rglob("*"):
        assert b"x" * 100 not in path.read_bytes()


def test_a_device_that_cannot_seal_sends_no_samples(station, bundle):
    station.settings["capture"] = True
    station.sealing_key.public = ""
    station.start()
    station.install(bundle("1.0.0"))
    station.command_device(Command(id="c", kind=CommandKind.COLLECT, expires=time.time() + 60, count=1))
    assert "sealing key" in eventually(lambda: station.notices("command-refused"))[0]


def test_worker_that_is_killed_serves_again(station, bundle):
    station.start()
    station.install(bundle("1.0.0"))
    os.kill(station.agent._incumbent.process.pid, signal.SIGKILL)
    assert station.answer() == "1.0.0"
    assert "SIGKILL" in eventually(lambda: station.notices("worker-died"))[0]


def test_version_that_crashes_after_its_commit_gives_way_to_the_one_before(station, bundle):
    station.start()
    station.install(bundle("1.0.0"))
    station.install(bundle("1.1.0"))
    for _ in range(3):
        process = eventually(lambda: station.agent._incumbent.process)
        eventually(lambda: station.agent._incumbent.is_serving)
        os.kill(process.pid, signal.SIGKILL)
        eventually(lambda gone=process: station.agent._incumbent.process is not gone)
    end = station.wait_for("1.1.0", "rolled_back")
    assert "again and again" in end.reason
    assert station.answer() == "1.0.0"
    assert station.states("1.1.0").count("offered") == 1


def test_start_that_takes_the_agent_with_it_is_counted_and_ends_in_a_rollback(station, bundle):
    station.start()
    station.install(bundle("1.0.0"))
    bad = bundle("1.1.0")
    trial = Trial(shadow_requests=0, probation_s=600, deadline_s=900, attempts=2)
    station.desire(station.target(None, rollout=bad, trial=trial))
    station.wait_for("1.1.0", "probation")
    for attempt in (2, None):
        # Stopping leaves the candidate where it stands, as a power cut would.
        station.stop()
        station.start()
        assert station.answer() == "1.0.0" if attempt is None else station.answer()
        if attempt is not None:
            eventually(
                lambda: station.transitions("1.1.0")[-1].attempt == 2 and station.states("1.1.0")[-1] == "probation"
            )
    end = station.wait_for("1.1.0", "rolled_back")
    assert "2 starts" in end.reason
    assert bad.digest in station.agent._store.slots.quarantine


def test_untrusted_clock_keeps_serving_and_installs_nothing_new(station, bundle):
    class Clock:
        def wall(self):
            return 1000.0

        def uptime(self):
            return time.monotonic()

    station.start()
    station.install(bundle("1.0.0"))
    station.stop()
    station.start(clock=Clock())
    station.desire(station.target(None, rollout=bundle("1.1.0")))
    eventually(lambda: station.births[-1].generation == station.generation and not station.births[-1].clock_trusted)
    assert station.answer() == "1.0.0"
    assert station.states("1.1.0") == []


def test_end_that_was_not_told_before_a_kill_is_told_after_it(station, bundle):
    station.start()
    station.install(bundle("1.0.0"))
    store = station.agent._store
    station.stop()
    committed = station.transitions("1.0.0")[-1]
    ended = offer(
        Candidate(version="1.0.0", digest=committed.digest, rollout="r-1.0.0"), now=0.0, previous=None, is_known=False
    )[0]
    ended = msgspec.structs.replace(ended, state=DeploymentState.COMMITTED)
    store.change(unreported=msgspec.json.encode(ended).decode())
    station.start()
    eventually(lambda: station.states("1.0.0")[-2:] == ["committed", "committed"], lambda: station.states("1.0.0"))
    assert station.agent._store.slots.unreported == ""


def test_two_agents_do_not_share_a_data_directory(station):
    station.start()
    with pytest.raises(ConflictError, match="another agent"):
        Station.start(station)


def test_data_directory_of_another_model_is_refused(station, bundle):
    station.start()
    station.install(bundle("1.0.0"))
    station.stop()
    station.settings["model"] = "faces"
    with pytest.raises(ConfigError, match="belongs to the model 'digits'"):
        station.start()
    station.agent = None


def test_birth_that_nobody_heard_is_repeated(station, bundle, monkeypatch):
    monkeypatch.setattr("edgeops_runtime.uplink._BIRTHS_AFTER_S", (0.05, 0.05))
    monkeypatch.setattr("edgeops_runtime.uplink._BIRTH_EVERY_S", 0.1)
    station.start()
    eventually(lambda: len(station.births) >= 6, station.births)
    assert {birth.session for birth in station.births} == {1}


def test_report_is_a_window_and_a_birth(station, bundle):
    station.settings["telemetry_window_s"] = 3600
    station.start()
    station.install(bundle("1.0.0"))
    eventually(lambda: station.births[-1].models[0].state == "committed", station.births)
    births = len(station.births)
    station.command_device(Command(id="c", kind=CommandKind.REPORT, expires=time.time() + 60))
    eventually(lambda: len(station.births) > births)
    eventually(station.telemetry)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_current_version_whose_files_are_damaged_is_fetched_anew(station, bundle, damage):
    station.start()
    first = bundle("1.0.0")
    station.install(first)
    path = station.agent._blobs.bundle_path(first.digest) / "model.onnx"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1])
    else:
        path.unlink()
    os.kill(station.agent._incumbent.process.pid, signal.SIGKILL)
    eventually(lambda: station.states("1.0.0").count("committed") == 2, lambda: station.transitions("1.0.0"))
    assert station.answer() == "1.0.0"
    (text,) = station.notices("bundle-damaged")
    assert "model.onnx" in text
    assert not station.agent._store.slots.quarantine


def test_damaged_files_of_an_upgrade_give_way_to_the_version_before_and_are_no_defect(station, bundle):
    station.start()
    station.install(bundle("1.0.0"))
    second = bundle("1.1.0", window={"latency_ns": 1_000_001})  # Files that are alike are one file on the device.
    station.install(second)
    station.blobs.blobs.clear()  # The server is gone.
    (station.agent._blobs.bundle_path(second.digest) / "model.onnx").write_bytes(b"")
    os.kill(station.agent._incumbent.process.pid, signal.SIGKILL)
    eventually(lambda: station.notices("bundle-damaged"), station.records)
    eventually(lambda: station.agent._incumbent.is_serving)
    assert station.answer() == "1.0.0"
    assert not station.agent._store.slots.quarantine


def test_what_an_engine_says_at_length_is_cut_and_told(station, bundle):
    station.start()
    station.install(bundle("1.0.0"))
    with Hammer(station):
        station.desire(
            station.target(
                None,
                rollout=bundle("1.2.0", shadow={"failed": 1, "reason": "x" * 300_000}),
                trial=Trial(shadow_requests=2, deadline_s=60),
            )
        )
        assert len(station.wait_for("1.2.0", "rolled_back").reason) < 3000


def test_socket_file_is_taken_from_the_dead_and_not_from_the_living(tmp_path, monkeypatch):
    monkeypatch.setattr("edgeops_runtime.endpoint._TRIES", 2)
    listen = f"unix:{tmp_path / 'socket'}"
    living = Endpoint(listen, address_file=tmp_path / "one")
    with pytest.raises(ConflictError, match="somebody listens there"):
        Endpoint(listen, address_file=tmp_path / "two")
    living._socket.close()  # As when it is killed: the file stays.
    again = Endpoint(listen, address_file=tmp_path / "two")
    again.close()
    assert not (tmp_path / "socket").exists()


@pytest.mark.parametrize("listen", [f"unix:/tmp/{'x' * 200}", "unix:/nowhere/socket", "unix:/tmp/a\0b"])
def test_socket_that_cannot_be_is_named(tmp_path, listen):
    with pytest.raises(ConfigError, match="listen"):
        Endpoint(listen, address_file=tmp_path / "address")


def test_address_that_cannot_be_written_down_is_served_all_the_same(tmp_path):
    endpoint = Endpoint("127.0.0.1:0", address_file=tmp_path / "not there" / "address")
    assert not endpoint.address.endswith(":0")
    endpoint.close()


# ---- engines that are ill, heat, systemd ----------------------------------------------------------------------------


def test_engine_that_fails_its_probe_is_told_and_nothing_is_loaded_with_it(station, bundle):
    station.probe_command = (sys.executable, "-IS", "-c", "import os; os.kill(os.getpid(), 11)")
    station.start()
    station.desire(station.target(bundle("1.0.0")))
    end = station.wait_for("1.0.0", "rejected")
    assert end.reason_class is ReasonClass.INCOMPATIBLE
    assert "SIGSEGV" in end.reason
    told = eventually(lambda: station.notices("engine-failed"), "a notice")
    assert any(text.startswith("engine onnxruntime") for text in told)
    eventually(lambda: "onnxruntime" not in station.births[-1].engines, station.births)
    assert (station.data / "engines.json").exists()


def test_engine_that_passes_is_used_and_not_tried_again(station, bundle, tmp_path):
    count = tmp_path / "count"
    line = '{"probe":"finished","runs":9,"checked":9,"wrong":0,"difference":0,"kib_per_run":0,"median_us":1}'
    words = f"open({str(count)!r}, 'a').write('x'); print({line!r})"
    station.probe_command = (sys.executable, "-IS", "-c", words)
    station.start()
    station.install(bundle("1.0.0"))
    tried = count.read_text()
    station.stop()
    station.start()
    station.install(bundle("1.1.0"))
    assert count.read_text() == tried


@pytest.fixture
def quick_ladder(monkeypatch):
    """The ladder without its dwells, looked at all the time."""
    quick = {name: signal._replace(rise_s=0, fall_s=0) for name, signal in signals().items()}
    monkeypatch.setattr("edgeops_runtime.agent.signals", lambda _: quick)
    monkeypatch.setattr("edgeops_runtime.relief.EVERY_S", 0.05)


def test_trial_waits_while_the_board_is_hot_and_goes_on_when_it_is_not(station, bundle, quick_ladder):
    station.start()
    station.install(bundle("1.0.0"))
    station.signals = {"temperature": 72.0}
    eventually(lambda: any("-> no-shadow" in text for text in station.notices("load")), station.records)
    station.desire(station.target(None, rollout=bundle("1.1.0")))
    station.wait_for("1.1.0", "verified")
    with Hammer(station) as hammer:
        eventually(lambda: len(hammer.answers) > 20, hammer.answers)
        assert station.states("1.1.0")[-1] == "verified"
        station.signals = {"temperature": 40.0}
        station.wait_for("1.1.0", "committed")
    assert hammer.failures == []


def test_trial_that_has_begun_is_put_back_without_costing_an_attempt(station, bundle, quick_ladder):
    station.start()
    station.install(bundle("1.0.0"))
    trial = Trial(shadow_requests=1000, attempts=1, deadline_s=60)
    station.desire(station.target(None, rollout=bundle("1.1.0"), trial=trial))
    station.wait_for("1.1.0", "trial")  # It waits for a thousand requests to show to the candidate.
    station.signals = {"memory pressure": 15.0}
    eventually(lambda: station.states("1.1.0")[-2:] == ["trial", "verified"], lambda: station.states("1.1.0"))
    eventually(lambda: SlotStore(station.data).slots.candidate.attempts == 0, "the attempt is given back")
    assert station.answer() == "1.0.0"
    station.signals = {}
    eventually(lambda: station.states("1.1.0")[-2:] == ["verified", "trial"], lambda: station.states("1.1.0"))


def test_rung_is_told_with_the_telemetry_and_workers_hear_of_it(station, bundle, quick_ladder):
    station.start()
    station.install(bundle("1.0.0"))
    station.signals = {"available memory": -3.0}
    eventually(lambda: station.telemetry() and station.telemetry()[-1].host.rung == "shed-load", station.telemetry)
    assert station.telemetry()[-1].host.total_memory_bytes > 0
    assert "available memory 3 %" in station.notices("load")[-1]


def test_systemd_hears_of_the_start_the_end_and_of_answers_over_the_socket(station, bundle, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)

        def hear(word: str) -> str:
            while not (said := systemd.recv(1000).decode()).startswith(word):
                pass
            return said

        station.notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"})
        station.start()
        hear("READY=1")
        assert "no model to serve" in hear("STATUS=")
        hear("WATCHDOG=1")  # Nothing is wanted, and all is well.
        station.install(bundle("1.0.0"))
        before = len(station.telemetry())
        assert "digits 1.0.0 at 127.0.0.1" in hear("STATUS=digits 1.0.0")
        hear("WATCHDOG=1")
        eventually(lambda: sum(each.requests for each in station.telemetry()[before:]), station.telemetry)
        station.stop()
        hear("STOPPING=1")


def test_default_address_is_a_socket_in_the_data_directory(station, bundle):
    station.settings["listen"] = ""
    agent = station.start()
    assert agent.address == f"unix:{station.data / 'serve.sock'}"
    station.desire(station.target(None, rollout=bundle("1.0.0")))
    station.wait_for("1.0.0", "committed")  # By time, since nobody asks.
    assert ask(agent.address)[0] is Checkup.PASSED
    station.stop()
    assert not (station.data / "serve.sock").exists()


def test_agent_that_ends_leaves_nothing_in_memory(station, bundle):
    agent = station.start()
    station.install(bundle("1.0.0"))
    assert agent._scratch.is_dir()
    station.stop()
    assert not agent._scratch.exists()
