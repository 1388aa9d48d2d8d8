"""From drift to one request for retraining; the verdict is given, everything behind it is real."""

import dataclasses
import http.server
import json
import sys
import threading

import numpy as np
import pytest
from fleet_rig import wait_for

from edgeops.files import digest_bytes
from edgeops_fleet.drift import DriftState, Level, Scope, Verdict
from edgeops_fleet.retraining.policy import Retraining
from edgeops_fleet.retraining.trainer import Trainer
from edgeops_fleet.settings import RetrainSection
from edgeops_fleet.watch import Watch

KEEP_EVENT = (
    "import pathlib, sys; path = pathlib.Path(sys.argv[1]); "
    "path.open('a').write(sys.stdin.read() + chr(10)); print('trained'); sys.exit(int(sys.argv[2]))"
)
SAMPLES = 40


def verdict(digest, state=DriftState.DRIFT, site="south"):
    """A verdict about one site; what the policy does not look at is empty."""
    values = {
        "scope": Scope(level=Level.COHORT, attribute="site", name=site),
        "model": "digits",
        "version": "1.0.0",
        "digest": digest,
        "state": state,
        "reason": "image.gradient has moved down by 0.2",
    }
    return Verdict(**{field.name: values.get(field.name) for field in dataclasses.fields(Verdict)})


@pytest.fixture
def events(tmp_path):
    return tmp_path / "events.jsonl"


@pytest.fixture
def make_fleet(make_rig, make_bundle, events, monkeypatch):
    def make(*, code=0, **section):
        section = {
            "command": (sys.executable, "-c", KEEP_EVENT, str(events), str(code)),
            "samples": SAMPLES,
            "min_labels": 20,
            **section,
        }
        answers = []
        monkeypatch.setattr(Watch, "verdicts", lambda _: tuple(answers))
        # What the reference promises; the bundle of the tests has no labels.
        monkeypatch.setattr(Retraining, "_baseline", lambda *_: (950, 1000))
        rig = make_rig(retrain=RetrainSection(**section))
        rig.answers = answers
        bundle = make_bundle("1.0.0")
        for name, site in (("south-1", "south"), ("south-2", "south"), ("north-1", "north")):
            rig.add_device(name, site=site)
        rig.wait_for_state(rig.roll_out(bundle, waves=[{"percent": 100}]), "completed")
        rig.digest = bundle.digest
        return rig

    return make


def collect(rig, *, wrong, start=0):
    """Every device answers its commands; ``wrong`` of its samples were predicted wrongly, evenly spread."""
    truth = {}
    for device in (rig.devices["south-1"], rig.devices["south-2"]):
        wait_for(lambda device=device: device.commands, "a command to collect")
        command = device.commands[-1]
        for number in range(start, start + command.count):
            row = np.full(784, number, dtype="<f4").tobytes()
            sample = device.sample(number, command=command.id, data=row, predicted=3)
            truth[sample.id] = 4 if (number + 1) * wrong % command.count < wrong else 3
    wait_for(lambda: len(rig.api.get("/api/v1/samples?labelled=false")["samples"]) == len(truth), "all samples")
    return truth


def label(rig, truth):
    return rig.api.post("/api/v1/labels", [{"sample": sample, "label": value} for sample, value in truth.items()])


def retrains(rig, *, everything=False):
    return rig.api.get(f"/api/v1/retrains{'?all=true' if everything else ''}")["retrains"]


def test_harmful_drift_makes_one_request_with_its_data_set(make_fleet, events, make_bundle):
    rig = make_fleet()
    rig.answers[:] = [verdict(rig.digest)]
    truth = collect(rig, wrong=15)
    assert [command.count for command in rig.devices["south-1"].commands] == [SAMPLES // 2]
    assert rig.devices["north-1"].commands == []
    assert label(rig, truth) == {"labelled": SAMPLES}
    wait_for(lambda: retrains(rig) and retrains(rig)[0]["state"] == "done", "the command ended")
    (view,) = retrains(rig)
    assert (view["exit_code"], view["log"], view["samples"], view["labels"]) == (0, "trained\n", SAMPLES, SAMPLES)
    assert view["error_rate"] == 0.75
    (line,) = events.read_text().splitlines()
    event = json.loads(line)
    assert (event["specversion"], event["type"]) == ("1.0", "org.edgeops.retrain.requested")
    assert event["data"]["cohort"] == "site=south"
    assert event == json.loads(json.dumps(rig.api.get(f"/api/v1/retrains/{view['id']}/event")))

    dataset = event["data"]["dataset"]
    manifest = rig.api.get(dataset["url"])
    assert (
        digest_bytes((rig.directory / "datasets" / dataset["id"] / "manifest.json").read_bytes()) == dataset["digest"]
    )
    assert manifest["digest"] == make_bundle("1.0.0").digest
    assert {sample["id"]: sample["label"] for sample in manifest["samples"]} == truth
    path = rig.directory / "datasets" / dataset["id"] / "samples.npz"
    assert digest_bytes(path.read_bytes()) == manifest["files"]["samples.npz"]["digest"]
    with np.load(path) as arrays:
        assert arrays["image"].shape == (SAMPLES, 784)
        expected = [int(sample["id"].rpartition("-")[2]) for sample in manifest["samples"]]
        assert arrays["image"][:, 0].tolist() == expected
        assert arrays["labels"].tolist() == [sample["label"] for sample in manifest["samples"]]


def test_the_request_is_made_once_over_restarts_and_lasting_drift(make_fleet, events):
    rig = make_fleet()
    rig.answers[:] = [verdict(rig.digest)]
    label(rig, collect(rig, wrong=15))
    wait_for(lambda: retrains(rig) and retrains(rig)[0]["state"] == "done", "the command ended")
    for _ in range(2):
        rig.restart()
        rig.server.retraining.look()
    assert len(events.read_text().splitlines()) == 1
    assert len(retrains(rig, everything=True)) == 1


def test_a_kill_between_the_decision_and_the_act_does_not_lose_the_request(make_fleet, events):
    rig = make_fleet()
    killed = pytest.MonkeyPatch()
    killed.setattr(Retraining, "_act", lambda *_: None)
    rig.answers[:] = [verdict(rig.digest)]
    label(rig, collect(rig, wrong=15))
    wait_for(lambda: retrains(rig) and retrains(rig)[0]["state"] == "requested", "decided")
    assert not events.exists()
    killed.undo()
    rig.restart()
    wait_for(lambda: retrains(rig)[0]["state"] == "done", "done after the restart")
    assert len(events.read_text().splitlines()) == 1


def test_a_kill_after_the_act_does_not_repeat_it(make_fleet, events):
    rig = make_fleet()
    killed = pytest.MonkeyPatch()
    # Killed when the act had begun, and whether the command was started was not written down.
    killed.setattr(Trainer, "_run", lambda *_: None)
    rig.answers[:] = [verdict(rig.digest)]
    label(rig, collect(rig, wrong=15))
    wait_for(lambda: retrains(rig) and retrains(rig)[0]["state"] == "interrupted", "it is not repeated")
    killed.undo()
    rig.restart()
    rig.server.retraining.look()
    assert retrains(rig)[0]["state"] == "interrupted"
    assert not events.exists()


def test_a_command_that_outlives_the_server_is_found_again(make_fleet, tmp_path):
    gate = tmp_path / "gate"
    program = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\nraise SystemExit(7)"
    rig = make_fleet(command=(sys.executable, "-c", program))
    rig.answers[:] = [verdict(rig.digest)]
    label(rig, collect(rig, wrong=15))
    wait_for(lambda: retrains(rig) and retrains(rig)[0]["state"] == "running", "running")
    children = rig.server.retraining._trainer._children
    rig.restart()
    assert retrains(rig)[0]["state"] == "running"
    gate.touch()
    (child,) = children.values()
    child.wait(timeout=10)
    wait_for(lambda: retrains(rig)[0]["state"] == "failed", "its exit code was read")
    assert retrains(rig)[0]["exit_code"] == 7


def test_a_running_command_can_be_ended_with_the_server(make_fleet):
    program = "import time; print('begun', flush=True); time.sleep(60)"
    rig = make_fleet(command=(sys.executable, "-c", program), stop_with_server=True)
    rig.answers[:] = [verdict(rig.digest)]
    label(rig, collect(rig, wrong=15))
    wait_for(lambda: retrains(rig) and "begun" in retrains(rig)[0]["log"], "running")
    (child,) = rig.server.retraining._trainer._children.values()
    rig.restart()
    assert child.returncode is not None
    assert retrains(rig)[0]["state"] == "interrupted"


def test_benign_drift_requests_nothing(make_fleet, events):
    rig = make_fleet(samples=400, min_labels=300)
    rig.answers[:] = [verdict(rig.digest)]
    label(rig, collect(rig, wrong=2))
    wait_for(lambda: retrains(rig, everything=True)[0]["state"] == "benign", "judged")
    assert retrains(rig) == []
    assert not events.exists()


def test_too_few_labels_decide_nothing(make_fleet, events):
    rig = make_fleet()
    rig.answers[:] = [verdict(rig.digest)]
    truth = collect(rig, wrong=20)
    label(rig, dict(list(truth.items())[:19]))
    rig.server.retraining.look()
    assert retrains(rig, everything=True)[0]["state"] == "collecting"
    label(rig, dict(list(truth.items())[19:20]))
    wait_for(lambda: retrains(rig), "requested with the twentieth")


def test_missing_samples_are_asked_for_again_when_a_command_expired(make_fleet):
    rig = make_fleet(collect_ttl_s=60.0)
    rig.answers[:] = [verdict(rig.digest)]
    wait_for(lambda: rig.devices["south-1"].commands, "a command")
    rig.clock.advance(61)
    wait_for(lambda: len(rig.devices["south-1"].commands) == 2, "another command")
    assert len({command.id for command in rig.devices["south-1"].commands}) == 2


def test_drift_that_goes_and_comes_again_is_another_cause_after_the_cooldown(make_fleet, events):
    rig = make_fleet(cooldown_s=600.0)
    rig.answers[:] = [verdict(rig.digest)]
    label(rig, collect(rig, wrong=15))
    wait_for(lambda: retrains(rig) and retrains(rig)[0]["state"] == "done", "done")
    rig.answers[:] = [verdict(rig.digest, DriftState.OK)]
    wait_for(lambda: retrains(rig)[0]["closed"] is not None, "closed")
    rig.answers[:] = [verdict(rig.digest)]
    rig.server.retraining.look()
    assert len(retrains(rig, everything=True)) == 1
    rig.clock.advance(601)
    wait_for(lambda: len(retrains(rig, everything=True)) == 2, "a second cause")


class Hook(http.server.HTTPServer):
    """A webhook that answers with the given statuses, the last one for good; ``received`` has what came."""

    def __init__(self, *statuses):
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.statuses, self.received = list(statuses), []
        self.url = f"http://127.0.0.1:{self.server_port}/"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.received.append((self.headers["Content-Type"], json.loads(body)))
            statuses = self.server.statuses
            self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
            self.end_headers()

        def log_message(self, *_):
            pass


@pytest.fixture
def make_hook():
    made = []

    def make(*statuses):
        made.append(Hook(*statuses))
        return made[-1]

    yield make
    for hook in made:
        hook.shutdown()
        hook.server_close()


@pytest.fixture
def quickly(monkeypatch):
    """Deliveries that fail are tried again at once."""
    monkeypatch.setattr("edgeops_fleet.retraining.trainer.RETRY_AFTER_S", (0.0, 0.0))


def ask_by_webhook(make_fleet, url):
    rig = make_fleet(command=(), webhook=url)
    rig.answers[:] = [verdict(rig.digest)]
    label(rig, collect(rig, wrong=15))
    return rig


def ended(rig):
    wait_for(lambda: retrains(rig) and retrains(rig)[0]["state"] in {"done", "failed"}, "the request has ended")
    return retrains(rig)[0]["state"], retrains(rig)[0]["exit_code"]


def test_a_webhook_gets_the_event_once(make_fleet, make_hook):
    hook = make_hook(202)
    rig = ask_by_webhook(make_fleet, hook.url)
    assert ended(rig) == ("done", 202)
    rig.restart()
    rig.server.retraining.look()
    ((kind, event),) = hook.received
    assert kind == "application/cloudevents+json"
    assert event["data"]["model"] == "digits"


def test_a_webhook_that_fails_for_a_while_gets_the_same_event_again(make_fleet, make_hook, quickly):
    hook = make_hook(503, 429, 200)
    rig = ask_by_webhook(make_fleet, hook.url)
    assert ended(rig) == ("done", 200)
    assert [event["id"] for _, event in hook.received] == [retrains(rig)[0]["id"]] * 3


@pytest.mark.parametrize(("status", "tries"), [(500, 3), (404, 1)])
def test_a_webhook_that_goes_on_failing_is_given_up_and_that_is_on_record(
    make_fleet, make_hook, quickly, status, tries
):
    hook = make_hook(status)
    rig = ask_by_webhook(make_fleet, hook.url)
    assert ended(rig) == ("failed", status)
    assert len(hook.received) == tries
    assert f"webhook answered {status}" in rig.api.get("/api/v1/log")["log"][-1]["text"]


def test_a_webhook_that_nobody_listens_to_is_given_up(make_fleet, make_hook, quickly):
    hook = make_hook(200)
    hook.shutdown()
    hook.server_close()
    rig = ask_by_webhook(make_fleet, hook.url)
    assert ended(rig) == ("failed", 0)


def test_a_server_that_stops_between_two_deliveries_tries_again_when_it_is_back(make_fleet, make_hook):
    hook = make_hook(503, 200)
    rig = ask_by_webhook(make_fleet, hook.url)
    wait_for(lambda: hook.received, "the first delivery")
    rig.restart()
    assert ended(rig) == ("done", 200)
    assert len(hook.received) == 2


def test_a_command_that_does_not_exist_has_failed_and_says_so(make_fleet):
    rig = make_fleet(command=("/nowhere/train",))
    rig.answers[:] = [verdict(rig.digest)]
    label(rig, collect(rig, wrong=15))
    assert ended(rig) == ("failed", 127)
    assert "not found" in retrains(rig)[0]["log"]


@pytest.mark.parametrize(
    ("labels", "status"),
    [
        ([{"sample": "nobody", "label": 1}], 404),
        ([{"label": 1}], 400),
        ([{"sample": "x", "label": 1.5}], 400),
        ({}, 400),
    ],
)
def test_labels_that_make_no_sense_are_refused(shared_rig, labels, status):
    assert shared_rig.api.call("POST", "/api/v1/labels", labels)[0] == status


def test_labels_are_taken_together_or_not_at_all(make_fleet):
    rig = make_fleet()
    rig.answers[:] = [verdict(rig.digest)]
    truth = collect(rig, wrong=0)
    requests = [*({"sample": sample, "label": 1} for sample in truth), {"sample": "nobody", "label": 1}]
    assert rig.api.call("POST", "/api/v1/labels", requests)[0] == 404
    assert rig.api.get("/api/v1/samples?labelled=true")["samples"] == []
