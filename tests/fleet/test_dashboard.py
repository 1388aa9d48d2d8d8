"""The page: an empty fleet, a busy one, hostile names, and nothing from elsewhere."""

import dataclasses
import html.parser
import math
import re
import urllib.request

import numpy as np
import pytest
from device_simulator import CRASHES
from fastapi import FastAPI
from fastapi.testclient import TestClient
from fleet_rig import wait_for

from edgeops.selection import position
from edgeops.signals import Profile, Reference, Signal, Statistic
from edgeops_fleet.dashboard import Snapshot, create_router, read_snapshot, render
from edgeops_fleet.dashboard.snapshot import Labelled, Retraining
from edgeops_fleet.dashboard.view import Tone, build_view
from edgeops_fleet.devices import DeviceView, ModelOnDevice
from edgeops_fleet.drift import DriftMonitor, DriftSettings, WindowObservation
from edgeops_fleet.rollouts.gates import Check, GateResult
from edgeops_fleet.rollouts.records import DeploymentView, RolloutView, WaveView
from edgeops_fleet.rollouts.rollout import Phase, RolloutSpec, RolloutState, WaveSpec
from edgeops_fleet.settings import DriftSection
from edgeops_fleet.store import LogEntry, Store

NOW = 1_790_000_000.0
EMPTY = Snapshot(fleet="demo", broker="mqtt://127.0.0.1:1883", connected=True, now=NOW)
NAMES = [f"{site}-{number}" for site in ("north", "south") for number in range(1, 5)]
ROTATION = 1234
ORDER = sorted(NAMES, key=lambda name: position(name, rotation=ROTATION))


def device(name, version="1.0.0", **changes):
    site, number = name.rsplit("-", 1)
    engine = ("onnxruntime", "1.32.0") if int(number) % 2 else ("litert", "2.1.0")
    view = DeviceView(
        id=name,
        group="cameras",
        attributes={"site": site, "lens": "wide"},
        bucket=1,
        enrolled=NOW - 4000,
        online=True,
        last_seen=NOW - 2,
        boot=1,
        session=1,
        generation=4,
        address="127.0.0.1:9001",
        agent_version="0.1.0",
        engines=dict([engine]),
        clock_trusted=True,
        models=(
            ModelOnDevice(
                model="fashion", version=version, digest="sha256:1", variant=f"int8-{engine[0][:4]}", state="committed"
            ),
        ),
        requests=41_234 + 97 * int(number),
    )
    return view.__class__(**{field: getattr(view, field) for field in view.__struct_fields__} | changes)


def rollout(version, state, *, deployments, waves, reason="", phase=Phase.GATE, created=NOW - 600):
    return RolloutView(
        id=f"r-{version}",
        group="cameras",
        model="fashion",
        version=version,
        digest="sha256:2",
        from_version="1.0.0",
        from_digest="sha256:1",
        state=state,
        paused_by=None,
        reason=reason,
        wave=len(waves) - 1,
        phase=phase,
        phase_since=NOW - 20,
        extended=0,
        rotation=ROTATION,
        created=created,
        updated=created + 60,
        planned_waves=3,
        waves=waves,
        deployments=deployments,
        spec=RolloutSpec(
            group="cameras",
            model="fashion",
            version=version,
            waves=(WaveSpec(devices=1), WaveSpec(percent=50), WaveSpec(percent=100)),
        ),
    )


def reach(count):
    """The share of hash space that the first ``count`` devices lie in."""
    return (position(ORDER[count - 1], rotation=ROTATION) + 1) / 100


def wave(index, count, **fields):
    return WaveView(index=index, percent=reach(count), selected=count, devices=count, started=NOW - 500, **fields)


def finished(names, state="committed", **fields):
    return tuple(DeploymentView(device=name, state=state, **fields) for name in names)


def drift_verdicts():
    """Verdicts of the real monitor: the south drifts in one signal."""
    rng = np.random.default_rng(0)
    edges = tuple(np.linspace(-1.28, 1.28, 9).tolist())
    names = ("image.mean", "image.std", "image.gradient", "output.confidence", "output.entropy", "projection.1")

    def shares(shift):
        below = [0.5 * (1 + math.erf((edge - shift) / math.sqrt(2))) for edge in edges]
        return np.diff([0.0, *below, 1.0])

    def drawn(rows, shift):
        return (*map(int, rng.multinomial(rows, shares(shift))), 0)

    reference = Reference(
        rows=2000,
        signals=tuple(
            Signal(name=name, tensor="x", statistic=Statistic.MEAN, edges=edges, counts={"": drawn(2000, 0)})
            for name in names
        ),
    )
    monitor = DriftMonitor(DriftSettings(window_s=10, detectable_shift=0.2), lambda _: reference)
    for slot in range(40):
        for name in NAMES:
            shift = -1.2 if name.startswith("south") and slot > 30 else 0.0
            effects = {"image.gradient": shift, "image.std": shift / 2, "output.confidence": shift / 3}
            counts = {signal: drawn(30, effects.get(signal, 0.0)) for signal in names}
            observation = WindowObservation(
                time=NOW - 400 + 10 * slot,
                device=name,
                attributes={"site": name.split("-")[0]},
                model="fashion",
                version="1.0.0",
                digest="sha256:1",
                profile=Profile(reference=reference.id, rows=30, counts=counts),
            )
            assert monitor.observe(observation)
    return monitor.verdicts()


def busy():
    canary, second = ORDER[:1], ORDER[1:4]
    gate = (
        Check(name="failure rate", result=GateResult.PASS, text="1 committed, 0 failed: all of the wave"),
        Check(name="p95 latency", result=GateResult.INCONCLUSIVE, text="updated 1.52 ms, others 1.49 ms"),
    )
    stop = (Check(name="defects", result=GateResult.FAIL, text="1 of 1 finished devices; evidence 25, stop at 20"),)
    bad = finished(canary, "rolled_back", reason_class="defect", reason="golden test: 4 of 8 outputs are not finite")
    running = rollout(
        "1.2.0",
        RolloutState.RUNNING,
        phase=Phase.DISPATCH,
        reason="wave 1 passed",
        deployments=finished(canary) + finished(second[:1]) + finished(second[1:2], "probation"),
        waves=(
            wave(0, 1, state="pass", result="pass", reason="1 committed, 0 failed", checks=gate),
            wave(1, 4, state="dispatch"),
        ),
    )
    stopped = rollout(
        "1.1.0",
        RolloutState.ROLLED_BACK,
        reason=f"{canary[0]} rolled back 1.1.0: defect, golden test: 4 of 8 outputs are not finite",
        deployments=bad,
        waves=(wave(0, 1, state="fail", result="fail", reason="stopped", checks=stop),),
        created=NOW - 1800,
    )
    log = (
        LogEntry(id=5, time=NOW - 3, actor="controller", kind="rollout.soak", text="wave 1: 1 of 1 devices finished"),
        LogEntry(id=4, time=NOW - 20, actor="drift", kind="drift.detected", text="site=south: image.gradient fell"),
        LogEntry(id=3, time=NOW - 90, actor="south-1", kind="deployment.committed", text="south-1: fashion 1.2.0"),
        LogEntry(id=2, time=NOW - 95, actor="controller", kind="rollout.rolled_back", text="1.1.0 taken back"),
        LogEntry(id=1, time=NOW - 990, actor="operator", kind="bundle.published", text="fashion 1.0.0 published"),
    )
    labelled = (
        Labelled(cohort="north", model="fashion", version="1.0.0", correct=88, labelled=100, waiting=0),
        Labelled(cohort="south", model="fashion", version="1.0.0", correct=121, labelled=230, waiting=26),
    )
    retraining = Retraining(
        id="t-1",
        model="fashion",
        version="1.0.0",
        cohort="site=south",
        signal="image.gradient",
        state="running",
        reason="error rate 47.4% (40.1% to 54.7%) on 230 labels, 17.1% is tolerated: harmful",
        opened=NOW - 200,
    )
    devices = [device(name, "1.2.0" if name in canary + second[:1] else "1.0.0") for name in NAMES]
    devices[-1] = device(NAMES[-1], online=False, last_seen=NOW - 4000, errors=3)
    return dataclasses.replace(
        EMPTY,
        devices=tuple(devices),
        latency_p95_ms={name: 1.4 + 0.03 * index for index, name in enumerate(NAMES)},
        rollouts=(running, stopped),
        verdicts=drift_verdicts(),
        labelled=labelled,
        retrainings=(retraining,),
        log=log,
    )


@pytest.fixture(scope="module")
def busy_snapshot():
    return busy()


class _Checker(html.parser.HTMLParser):
    """Collects tags and attributes, and insists that elements are closed in order."""

    VOID = frozenset({"meta", "link", "br", "wbr"})

    def __init__(self):
        super().__init__()
        self.stack, self.attributes, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def parsed(page):
    checker = _Checker()
    checker.feed(page)
    assert checker.stack == []
    return checker


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.replace("<wbr>", "")))


def test_the_page_of_an_empty_fleet_says_how_to_begin():
    page = render(EMPTY)
    parsed(page)
    text = text_of(page)
    assert "0 / 0 none is enrolled" in text
    assert "edgeops fleet token" in text
    assert "No device has sent a drift profile yet" in text


def test_the_page_of_a_busy_fleet_tells_what_goes_on(busy_snapshot):
    page = render(busy_snapshot)
    parsed(page)
    text = text_of(page)
    for expected in (
        "7 / 8",
        "south-4",
        "1 h ago",
        "1.43 ms",
        "golden test: 4 of 8 outputs are not finite",
        "1 committed, 1 probation, 1 waiting",
        "rolled back",
        "not started",
        "image.gradient",
        "DRIFT",
        "harmful",
        "52.6% of 230 labelled, 26 wait for a label",
        "1.1.0 taken back",
    ):
        assert expected in text
    assert text.index("wave 1: 1 of 1 devices finished") < text.index("fashion 1.0.0 published")


def test_the_drift_cards_name_site_state_and_signal(busy_snapshot):
    cards = {card.title: card for card in build_view(busy_snapshot).drift}
    assert cards["site south"].state.text == "DRIFT"
    assert cards["site south"].signals[0].name == "image.gradient"
    assert cards["site south"].signals[0].is_leading
    assert cards["site south"].signals[0].high < 50
    assert cards["site north"].state.text == "OK"
    assert not any(signal.is_leading for signal in cards["site north"].signals)


def test_a_device_stands_under_the_wave_that_reached_it_first(busy_snapshot):
    running = build_view(busy_snapshot).rollouts[0]
    assert [one.counts for one in running.waves] == [
        "1 committed",
        "1 committed, 1 probation, 1 waiting",
        "not started",
    ]
    assert [segment.tone for segment in running.waves[1].segments] == [Tone.GOOD, Tone.BUSY]
    assert sum(segment.width for segment in running.waves[1].segments) == pytest.approx(200 / 3)


HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}"


def test_hostile_names_are_shown_as_text(busy_snapshot):
    hurt = device(
        "north-1", HOSTILE, id=HOSTILE, attributes={"site": HOSTILE, HOSTILE: HOSTILE}, engines={HOSTILE: "1"}
    )
    entry = LogEntry(id=1, time=NOW, actor=HOSTILE, kind=HOSTILE, text=HOSTILE)
    verdicts = tuple(
        dataclasses.replace(
            verdict,
            scope=dataclasses.replace(verdict.scope, name=HOSTILE),
            version=HOSTILE,
            reason=HOSTILE,
            signals=tuple(
                dataclasses.replace(one, effect=dataclasses.replace(one.effect, signal=HOSTILE))
                for one in verdict.signals
            ),
        )
        for verdict in busy_snapshot.verdicts
    )
    failed = finished([ORDER[0]], "failed", reason=HOSTILE, reason_class=HOSTILE)
    stopped = rollout(
        "1.1.0", RolloutState.PAUSED, reason=HOSTILE, deployments=failed, waves=(wave(0, 1, state="gate"),)
    )
    page = render(
        dataclasses.replace(
            EMPTY, fleet=HOSTILE, broker=HOSTILE, devices=(hurt,), verdicts=verdicts, rollouts=(stopped,), log=(entry,)
        )
    )
    checker = parsed(page)
    assert checker.tags.count("script") == 1
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "49" not in text_of(page)


def test_nothing_on_the_page_comes_from_elsewhere_or_is_inline(busy_snapshot):
    checker = parsed(render(busy_snapshot))
    links = [value for name, value in checker.attributes if name in {"src", "href"}]
    assert sorted(links) == ["static/dashboard.css", "static/dashboard.js", "static/favicon.svg"]
    assert not [name for name, _ in checker.attributes if name == "style" or name.startswith("on")]


@pytest.fixture
def client(busy_snapshot):
    app = FastAPI()
    app.include_router(create_router(lambda: busy_snapshot))
    with TestClient(app) as client:
        yield client


def test_the_server_gives_the_page_its_fragment_and_its_files(client):
    page, fragment = client.get("/"), client.get("/fragment")
    assert page.status_code == fragment.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert fragment.text.strip() in page.text
    assert "<html" not in fragment.text
    for name, kind in (
        ("dashboard.css", "text/css"),
        ("dashboard.js", "text/javascript"),
        ("favicon.svg", "image/svg"),
    ):
        answer = client.get(f"/static/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        assert "http" not in answer.text.replace("http://www.w3.org/2000/svg", "")
    assert client.get("/static/view.py").status_code == 404
    assert client.get("/static/..%2Fview.py").status_code == 404


def test_a_snapshot_of_a_new_database_renders(tmp_path):
    store = Store(tmp_path / "fleet.sqlite", clock=lambda: NOW)
    with store.write() as connection:
        store.note(connection, "server.started", "the server is up")
    snapshot = read_snapshot(store, fleet="demo", broker="embedded", connected=False, verdicts=())
    store.close()
    text = text_of(render(snapshot))
    assert "the server is up" in text
    assert "broker away" in text


def test_the_page_of_a_server_shows_a_rollout_that_was_stopped_and_a_site_that_drifts(make_rig, make_bundle):
    rig = make_rig(drift=DriftSection(window_s=10.0))
    for number in range(4):
        rig.add_device(f"device-{number}", wait=False, site="north" if number % 2 else "south")
    good, bad = make_bundle("1.0.0"), make_bundle("1.1.0")
    rig.wait_for_state(rig.roll_out(good), "completed")
    for simulated in rig.devices.values():
        simulated.outcomes["1.1.0"] = CRASHES
    stopped = rig.wait_for_state(rig.roll_out(bad), "rolled_back")
    reference = rig.server.catalog.reference(good.digest)
    counters = rig.server.ingest.counters
    rng = np.random.default_rng(0)
    for _ in range(8):
        expected = counters.records + len(rig.devices)
        for number, simulated in enumerate(rig.devices.values()):
            simulated.window(requests=60, profile=profile_of(rng, reference, rows=60, is_off=number % 2 == 0))
        wait_for(lambda expected=expected: counters.records >= expected, "the windows are stored")
        rig.clock.advance(10.0)
    south = wait_for(
        lambda: [v for v in rig.server.watch.verdicts() if v.scope.name == "south" and v.state == "drift"], "drift"
    )
    with urllib.request.urlopen(rig.server.url + "/", timeout=30) as answer:
        page = answer.read().decode()
    parsed(page)
    text = text_of(page)
    assert "4 / 4" in text
    assert stopped["reason"] in text
    assert south[0].reason in text
    assert "site north" in text
    assert text.count("DRIFT") == 2  # The south and, with it, the fleet.
    assert text.index("rolled back") < text.index("first version")


def test_labelled_samples_are_counted_by_site_and_version(rig, make_bundle):
    for number in range(3):
        rig.add_device(f"device-{number}", wait=False, site="north" if number % 2 else "south")
    rig.wait_for_state(rig.roll_out(make_bundle("1.0.0")), "completed")
    for simulated in rig.devices.values():
        for number in range(4):
            simulated.sample(number, command="c", data=np.zeros(784, np.float32).tobytes(), predicted=number)
    names = [f"device-{device}-{number}" for device in range(3) for number in range(3)]
    wait_for(lambda: len(rig.server.samples.all()) == 12, "the samples are stored")
    rig.api.post("/api/v1/labels", [{"sample": name, "label": 1} for name in names])
    rows = {row.cohort: row for row in rig.server.snapshot().labelled}
    assert (rows["south"].correct, rows["south"].labelled, rows["south"].waiting) == (2, 6, 2)
    assert (rows["north"].correct, rows["north"].labelled, rows["north"].waiting) == (1, 3, 1)
    assert "33.3% of 6 labelled, 2 wait for a label" in text_of(render(rig.server.snapshot()))


def profile_of(rng, reference, *, rows, is_off):
    """Rows as the reference's, or all of them in the first bin."""
    counts = {}
    for signal in reference.signals:
        shares = np.array(signal.counts[""], dtype=float) / sum(signal.counts[""])
        first = np.eye(1, signal.bins)[0]
        counts[signal.name] = tuple(map(int, rng.multinomial(rows, first if is_off else shares)))
    return Profile(reference=reference.id, rows=rows, counts=counts)
