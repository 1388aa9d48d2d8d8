"""The monitor: slots, scopes, strata, versions, and a state that latches and clears."""

import dataclasses
import math
import random

import msgspec
import numpy as np
import pytest

from edgeops.errors import ConfigError
from edgeops.signals import Profile, Reference, Signal, Statistic
from edgeops_fleet.drift import DriftMonitor, DriftSettings, DriftState, Level, Scope, WindowObservation

BINS = 10
EDGES = tuple(np.linspace(-1.28, 1.28, BINS - 1).tolist())
SIGNALS = ("image.mean", "image.gradient", "confidence")
FLEET = Scope(level=Level.FLEET)
NORTH = Scope(level=Level.COHORT, attribute="site", name="north")
SOUTH = Scope(level=Level.COHORT, attribute="site", name="south")
SETTINGS = DriftSettings(window_s=10, detectable_shift=0.2)


def normal_shares(shift=0.0, scale=1.0):
    below = [0.5 * (1 + math.erf((edge - shift) / scale / math.sqrt(2))) for edge in EDGES]
    return np.diff([0.0, *below, 1.0])


def drawn(rng, rows, shift=0.0, scale=1.0):
    return (*map(int, rng.multinomial(rows, normal_shares(shift, scale))), 0)


def reference_of(seed=0, rows=2000, *, strata=None):
    """A reference; ``strata`` maps a site to how its mean differs by nature."""
    rng = np.random.default_rng(seed)
    signals = []
    for name in SIGNALS:
        counts = {site: drawn(rng, rows, shift) for site, shift in (strata or {"": 0.0}).items()}
        counts[""] = tuple(map(sum, zip(*counts.values(), strict=True)))
        signals.append(Signal(name=name, tensor="x", statistic=Statistic.MEAN, edges=EDGES, counts=counts))
    return Reference(rows=rows, signals=tuple(signals), stratum_attribute="site" if strata else "")


REFERENCES = {"sha256:one": reference_of(1), "sha256:two": reference_of(2)}


def site_of(device):
    return "north" if device % 2 else "south"


class Fleet:
    """Devices that report a profile in every slot."""

    def __init__(self, references=REFERENCES, settings=SETTINGS, devices=4, rows=40, seed=0):
        self.references = references
        self.monitor = DriftMonitor(settings, references.get)
        self.settings = settings
        self.devices = devices
        self.rows = rows
        self.rng = np.random.default_rng(seed)
        self.slot = 100
        self.seen = []

    def observation(self, device, *, shift=0.0, digest="sha256:one", slot=None, rows=None):
        rows = self.rows if rows is None else rows
        counts = {name: drawn(self.rng, rows, shift if name == "image.gradient" else 0.0) for name in SIGNALS}
        return WindowObservation(
            time=((self.slot if slot is None else slot) + 0.5) * self.settings.window_s,
            device=f"cam-{device}",
            attributes={"site": site_of(device), "lens": 2},
            model="fashion",
            version={"sha256:one": "1.0.0", "sha256:two": "2.0.0"}.get(digest, "?"),
            digest=digest,
            profile=Profile(reference=self.references[digest].id, rows=rows, counts=counts),
        )

    def send(self, observation):
        self.seen.append(observation)
        return self.monitor.observe(observation)

    def run(self, slots, *, shifts=None, digest="sha256:one"):
        """Let the slots pass; ``shifts`` maps a site to how much its gradient is shifted."""
        for _ in range(slots):
            for device in range(self.devices):
                self.send(self.observation(device, shift=(shifts or {}).get(site_of(device), 0.0), digest=digest))
            self.slot += 1

    def verdict(self, scope=FLEET, version="1.0.0", monitor=None):
        found = [v for v in (monitor or self.monitor).verdicts() if (v.scope, v.version) == (scope, version)]
        return found[0] if found else None


def test_it_says_not_enough_data_until_a_change_would_have_been_found_and_then_ok():
    fleet = Fleet()
    states = []
    for _ in range(30):
        fleet.run(1)
        verdict = fleet.verdict()
        states.append(verdict.state)
        if verdict.state is DriftState.OK:
            assert verdict.rows >= verdict.rows_needed
        elif verdict.windows >= fleet.settings.min_windows:
            assert verdict.rows < verdict.rows_needed
    assert states[0] is DriftState.NOT_ENOUGH_DATA
    assert states[-1] is DriftState.OK
    assert DriftState.DRIFT not in states


def test_a_reference_that_is_too_small_never_says_ok_and_says_why():
    fleet = Fleet({"sha256:one": reference_of(3, rows=40)})
    fleet.run(60)
    verdict = fleet.verdict()
    assert verdict.state is DriftState.NOT_ENOUGH_DATA
    assert verdict.rows_needed is None
    assert "too few rows" in verdict.reason


def test_drift_of_one_site_is_found_there_named_and_not_found_at_the_other():
    fleet = Fleet()
    fleet.run(25)
    fleet.run(10, shifts={"north": -1.5})
    north, south = fleet.verdict(NORTH), fleet.verdict(SOUTH)
    assert north.state is DriftState.DRIFT
    assert north.signal == "image.gradient"
    assert north.effect.score == "mean rank"
    truth = float(np.append(normal_shares(-1.5), 0.0) @ _ranks("sha256:one")) - 0.5
    assert north.effect.low < truth < north.effect.high < 0
    assert north.windows_to_detect <= 3
    assert abs(north.onset - 125 * 10) <= 20
    assert "image.gradient: mean rank fell by" in north.reason
    assert (south.state, south.signal) == (DriftState.OK, None)
    assert fleet.verdict(FLEET).state is DriftState.DRIFT
    devices = {v.scope.name: v.state for v in fleet.monitor.verdicts() if v.scope.level is Level.DEVICE}
    assert devices["cam-1"] is DriftState.DRIFT
    assert devices["cam-0"] is not DriftState.DRIFT


def _ranks(digest):
    counts = np.array(REFERENCES[digest].signals[1].counts[""], dtype=float)
    return np.append((np.cumsum(counts[:-1]) - counts[:-1] / 2) / counts.sum(), 0.5)


def test_drift_stays_while_it_lasts_and_clears_when_it_is_gone():
    fleet = Fleet()
    fleet.run(25)
    fleet.run(20, shifts={"north": 1.5})
    before = fleet.verdict(NORTH)
    assert before.alarms > 5
    fleet.run(2)
    assert fleet.verdict(NORTH).state is DriftState.DRIFT
    fleet.run(20)
    after = fleet.verdict(NORTH)
    assert after.state is DriftState.OK
    assert after.onset is after.windows_to_detect is None
    assert after.since > before.since
    assert abs(after.effect.shift) < 0.1
    fleet.run(5, shifts={"north": 1.5})
    assert fleet.verdict(NORTH).state is DriftState.DRIFT


def test_drift_that_shrinks_below_what_fires_but_is_still_there_does_not_flutter():
    fleet = Fleet(rows=100)
    fleet.run(10)
    fleet.run(5, shifts={"north": 1.5})
    changes = set()
    for _ in range(40):
        fleet.run(1, shifts={"north": 0.3})
        changes.add(fleet.verdict(NORTH).state)
    assert changes == {DriftState.DRIFT}


def test_any_order_within_a_slot_and_any_split_of_a_profile_give_the_same_verdicts():
    fleet = Fleet()
    fleet.run(12)
    fleet.run(6, shifts={"north": 1.0})
    again = DriftMonitor(SETTINGS, REFERENCES.get)
    order = random.Random(0)
    by_slot = {}
    for observation in fleet.seen:
        by_slot.setdefault(observation.time, []).append(observation)
    for time in sorted(by_slot):
        halves = [half for observation in by_slot[time] for half in halved(observation)]
        order.shuffle(halves)
        for half in halves:
            assert again.observe(half)
    assert again.verdicts() == fleet.monitor.verdicts()
    assert fleet.verdict(NORTH).state is DriftState.DRIFT


def halved(observation):
    """Two profiles that add up to one; the first has the low bins, so neither is a fair sample, which must not matter."""
    profile = observation.profile
    half = profile.rows // 2
    low, high = {}, {}
    for name, counts in profile.counts.items():
        below = np.minimum(np.cumsum(counts), half)
        low[name] = tuple(int(count) for count in np.diff(below, prepend=0))
        high[name] = tuple(count - taken for count, taken in zip(counts, low[name], strict=True))
    parts = ((half, low), (profile.rows - half, high))
    return [
        dataclasses.replace(observation, profile=Profile(reference=profile.reference, rows=rows, counts=counts))
        for rows, counts in parts
    ]


def test_replaying_the_stored_observations_gives_the_same_verdicts():
    fleet = Fleet()
    fleet.run(10)
    fleet.run(10, shifts={"south": 1.0})
    fleet.run(5, digest="sha256:two")
    again = DriftMonitor(SETTINGS, REFERENCES.get)
    for observation in fleet.seen:
        again.observe(observation)
    assert again.verdicts() == fleet.monitor.verdicts()


def test_a_late_profile_counts_in_the_oldest_open_slot_and_nothing_is_lost():
    fleet = Fleet(devices=1)
    fleet.run(5)
    assert fleet.send(fleet.observation(0, slot=90, rows=7))
    fleet.run(5)
    counted = fleet.verdict(Scope(level=Level.DEVICE, name="cam-0"))
    # Ten slots of 40 rows and the late ones; the last two slots are still open.
    assert (counted.rows, counted.windows) == (8 * 40 + 7, 8)


def test_slots_without_rows_are_no_windows():
    fleet = Fleet(devices=1)
    fleet.run(2)
    fleet.slot += 50
    fleet.send(fleet.observation(0, rows=0))
    fleet.slot += 1
    fleet.run(3)
    assert fleet.verdict().windows == 3


def test_a_new_version_starts_anew_and_the_old_one_drops_out():
    fleet = Fleet()
    fleet.run(15)
    fleet.run(8, shifts={"north": 2.0})
    assert fleet.verdict(NORTH).state is DriftState.DRIFT
    fleet.run(3, digest="sha256:two")
    assert fleet.verdict(NORTH, "1.0.0").state is DriftState.DRIFT
    assert fleet.verdict(NORTH, "2.0.0").state is DriftState.NOT_ENOUGH_DATA
    fleet.run(SETTINGS.forget_slots, digest="sha256:two")
    assert fleet.verdict(NORTH, "1.0.0") is None
    assert fleet.verdict(NORTH, "2.0.0").state is DriftState.OK


def test_a_silent_scope_keeps_its_verdict():
    fleet = Fleet()
    fleet.run(15)
    fleet.run(8, shifts={"north": 2.0})
    for _ in range(50):
        fleet.send(fleet.observation(0))
        fleet.slot += 1
    assert fleet.verdict(NORTH).state is DriftState.DRIFT


def test_sites_that_differ_by_nature_are_held_against_their_own_rows():
    references = {"sha256:one": reference_of(5, strata={"north": 1.5, "south": -1.5})}
    fleet = Fleet(references)
    for _ in range(30):
        for device in range(4):
            observation = fleet.observation(device)
            counts = {name: drawn(fleet.rng, 40, 1.5 if device % 2 else -1.5) for name in SIGNALS}
            profile = Profile(reference=observation.profile.reference, rows=40, counts=counts)
            fleet.send(dataclasses.replace(observation, profile=profile))
        fleet.slot += 1
    for scope in (FLEET, NORTH, SOUTH):
        assert fleet.verdict(scope).state is DriftState.OK
    fleet.run(5)
    for scope in (FLEET, NORTH, SOUTH):
        assert fleet.verdict(scope).state is DriftState.DRIFT


def test_a_site_that_the_reference_does_not_have_is_held_against_all_rows():
    references = {"sha256:one": reference_of(5, strata={"east": 0.0, "west": 0.0})}
    fleet = Fleet(references)
    fleet.run(30)
    assert fleet.verdict(NORTH).state is DriftState.OK


def test_cohorts_of_several_attributes_are_watched_and_values_may_be_numbers():
    fleet = Fleet(settings=dataclasses.replace(SETTINGS, cohort_attributes=("site", "lens", "altitude")))
    fleet.run(5)
    names = {(v.scope.attribute, v.scope.name) for v in fleet.monitor.verdicts() if v.scope.level is Level.COHORT}
    assert names == {("site", "north"), ("site", "south"), ("lens", "2")}


def test_the_promise_is_shared_by_all_devices_together():
    fleet = Fleet(devices=8)
    fleet.run(5)
    device = fleet.verdict(Scope(level=Level.DEVICE, name="cam-3"))
    assert 10**device.threshold == pytest.approx(8 * SETTINGS.false_alarm_windows)
    assert 10 ** fleet.verdict(NORTH).threshold == pytest.approx(2 * SETTINGS.false_alarm_windows)


@pytest.mark.parametrize(
    "profile",
    [
        {"reference": "sha256:another"},
        {"counts": {"image.mean": (1, 2)}},
        {"counts": {"unheard": (1,) * 11}},
        {"counts": {"image.mean": (500,) * 11}},
    ],
)
def test_counts_that_cannot_be_are_not_counted(profile):
    fleet = Fleet()
    good = fleet.observation(0)
    fields = {"reference": good.profile.reference, "rows": 40, "counts": good.profile.counts} | profile
    assert not fleet.send(dataclasses.replace(good, profile=Profile(**fields)))
    assert fleet.monitor.verdicts() == ()


def test_a_bundle_without_a_reference_and_a_time_that_is_none_are_not_counted():
    fleet = Fleet()
    assert not fleet.send(dataclasses.replace(fleet.observation(0), digest="sha256:none"))
    assert not fleet.send(dataclasses.replace(fleet.observation(0), time=math.nan))
    assert fleet.monitor.verdicts() == ()


def test_verdicts_can_be_written_as_json_without_infinities():
    fleet = Fleet()
    fleet.run(1)
    fleet.send(fleet.observation(0, slot=110))
    for slots in (0, 5):
        fleet.run(slots)
        text = msgspec.json.encode(fleet.monitor.verdicts())
        assert b'"state":"not_enough_data"' in text
        assert b"null" in text


@pytest.mark.parametrize(
    "wrong", [{"tolerance": -0.1}, {"window_s": 0}, {"design_effect": 0.5}, {"tolerance": math.nan}]
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=f"drift.{next(iter(wrong))}"):
        DriftSettings(**wrong)


def test_a_change_of_the_inputs_is_named_before_the_change_of_the_answers_that_follows_from_it():
    statistics = {"image.gradient": Statistic.GRADIENT, "logits.entropy": Statistic.ENTROPY}
    rng = np.random.default_rng(0)
    signals = tuple(
        Signal(name=name, tensor="x", statistic=statistic, edges=EDGES, counts={"": drawn(rng, 2000)})
        for name, statistic in statistics.items()
    )
    reference = Reference(rows=2000, signals=signals)

    both = observed(reference, {"image.gradient": (-1.0, 1.0), "logits.entropy": (2.0, 1.0)})
    assert both.signal == "image.gradient"
    assert both.signals[1].effect.evidence > both.signals[0].effect.evidence > both.threshold
    assert observed(reference, {"logits.entropy": (2.0, 1.0)}).signal == "logits.entropy"


@pytest.mark.parametrize(
    ("change", "score"), [((3.0, 0.1), "mean rank"), ((0.0, 3.0), "spread"), ((0.2, 3.0), "spread")]
)
def test_a_location_is_named_before_a_spread_where_both_have_changed_much(change, score):
    verdict = observed(REFERENCES["sha256:one"], {"image.gradient": change})
    assert (verdict.state, verdict.signal, verdict.effect.score) == (DriftState.DRIFT, "image.gradient", score)
    assert -1 <= verdict.effect.low <= verdict.effect.high <= 1


def observed(reference, changes):
    """The fleet's verdict after ten windows of 200 rows; ``changes`` maps a signal to its shift and scale."""
    monitor, rng = DriftMonitor(SETTINGS, lambda _: reference), np.random.default_rng(3)
    for slot in range(10):
        counts = {signal.name: drawn(rng, 200, *changes.get(signal.name, ())) for signal in reference.signals}
        profile = Profile(reference=reference.id, rows=200, counts=counts)
        monitor.observe(
            WindowObservation(
                time=10.0 * slot,
                device="cam-1",
                attributes={},
                model="m",
                version="1.0.0",
                digest="sha256:1",
                profile=profile,
            )
        )
    return monitor.verdicts()[0]


@pytest.mark.parametrize("cut", [1, 7, 12, 40])
def test_a_monitor_that_loads_a_kept_state_goes_on_exactly_where_the_other_stood(cut):
    fleet = Fleet(settings=dataclasses.replace(SETTINGS, forget_slots=5))
    fleet.run(10)
    fleet.run(20, shifts={"south": 0.8})
    fleet.run(10, digest="sha256:two")
    fleet.run(20, digest="sha256:two")
    first = DriftMonitor(fleet.settings, REFERENCES.get)
    for observation in fleet.seen[: cut * 4 + 1]:
        first.observe(observation)
    kept = msgspec.msgpack.encode(first.dump())
    second = DriftMonitor(fleet.settings, REFERENCES.get)
    assert second.load(msgspec.msgpack.decode(kept))
    assert second.verdicts() == first.verdicts()
    for observation in fleet.seen[cut * 4 + 1 :]:
        second.observe(observation)
    assert second.verdicts() == fleet.monitor.verdicts()
    assert second.dump() == fleet.monitor.dump()


def test_a_kept_state_of_other_settings_or_references_is_not_taken():
    fleet = Fleet()
    fleet.run(5)
    kept = fleet.monitor.dump()
    other = DriftMonitor(dataclasses.replace(SETTINGS, tolerance=0.05), REFERENCES.get)
    assert not other.load(kept)
    assert other.verdicts() == ()
    assert not DriftMonitor(SETTINGS, {}.get).load(kept)
    assert not DriftMonitor(SETTINGS, {"sha256:one": reference_of(9)}.get).load(kept)
