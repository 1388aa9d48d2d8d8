"""Which settings are tried, which is taken, what is remembered; and when the agent tunes by itself."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from edgeops.bundle import open_bundle
from edgeops_runtime.commands import edgeops_agent
from edgeops_runtime.engines.options import SessionOptions
from edgeops_runtime.ladder import Rung
from edgeops_runtime.slots import Slot
from edgeops_runtime.tuning.choice import Measured, Setting, choose, next_setting, option_flips
from edgeops_runtime.tuning.idle import Situation
from edgeops_runtime.tuning.known import KnownSettings
from edgeops_runtime.tuning.measurement import measure
from edgeops_runtime.tuning.tuner import Board, Order, Remembered, Subject, Tuner, TuningStore
from edgeops_runtime.variants import VariantChooser

sys.path.insert(0, str(Path(__file__).parent))  # The folder is no package, and this module is only for its tests.

from agent_parts import Station, eventually, scripted_bundle

USUAL = Setting(variant="onnx", engine="onnxruntime")
TWO = msgspec.structs.replace(USUAL, threads=2)
LEAN = msgspec.structs.replace(USUAL, options=SessionOptions(prepack=False))
BOARD = Board(cpu="board", cores=4)
SCRIPT = """
import json, sys
order = json.loads(sys.argv[1])
options = order["setting"].get("options", {})
lean = not options.get("prepack", True)
figures = {"latency_ms": 9.0 / order["setting"].get("threads", 1), "rss_bytes": 60_000_000 if lean else 90_000_000}
print("chatter of an engine")
print(json.dumps({"setting": order["setting"], **figures}))
"""


def says(program: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", program)


def tried(setting: Setting, latency_ms: float = 5.0, **figures) -> Measured:
    usual = {"batch_ms": 20.0, "cpu_ms": 5.0, "rss_bytes": 100_000_000, "load_ms": 50.0}
    return Measured(setting=setting, latency_ms=latency_ms, **(usual | figures))


# ---- the choice -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "taken", "reason"),
    [
        (tried(TWO, 4.0, cpu_ms=9.0), TWO, "latency: 4 ms against 5 ms as usual"),
        (tried(TWO, 4.8), USUAL, "nothing that was tried is better"),
        (tried(LEAN, 5.2, rss_bytes=70_000_000), LEAN, "memory: 70 MB against 100 MB as usual"),
        (tried(LEAN, 5.2, rss_bytes=96_000_000), USUAL, "nothing"),
        (tried(LEAN, 5.2, rss_bytes=70_000_000, batch_ms=40.0), USUAL, "nothing"),
        (tried(LEAN, 5.0, batch_ms=10.0), LEAN, "latency of 8 rows: 10 ms against 20 ms"),
        (tried(TWO, 5.0, cpu_ms=2.0), TWO, "CPU time: 2 ms against 5 ms"),
        (tried(LEAN, 1.0, objection="golden row 0: differs"), USUAL, "nothing"),
    ],
)
def test_choice_is_by_latency_then_batch_then_memory_then_cpu_and_within_noise_as_usual(other, taken, reason):
    choice = choose([tried(USUAL), other])
    assert choice.setting == taken
    assert reason in choice.reason
    assert len(choice.measured) == 2


def test_microseconds_decide_nothing():
    tiny = {"batch_ms": 0.09, "cpu_ms": 0.03}
    choice = choose([tried(USUAL, 0.05, **tiny), tried(LEAN, 0.02, **(tiny | {"rss_bytes": 60_000_000}))])
    assert choice.reason.startswith("memory")


def test_nothing_is_chosen_of_what_is_wrong():
    assert choose([tried(USUAL, objection="wrong"), tried(TWO, objection="died")]) is None
    assert choose([]) is None


def everything(usual, measure, *, threads=(1, 2, 4), flips=lambda setting: option_flips(setting, fixed_rows=False)):
    """All that would be tried, where ``measure`` makes the figures."""
    measured: list[Measured] = []
    while (setting := next_setting(usual, measured, threads=threads, flips=flips)) is not None:
        measured.append(measure(setting))
        assert len(measured) < 20
    return [each.setting for each in measured]


def test_threads_come_before_options_and_what_helped_is_kept():
    def figures(setting: Setting) -> Measured:
        return tried(
            setting, 12.0 / min(setting.threads, 2), rss_bytes=100_000_000 - 30_000_000 * (not setting.options.prepack)
        )

    found = everything([USUAL], figures)
    assert [each.threads for each in found] == [1, 2, 4, 2, 2]
    assert [each.options for each in found[3:]] == [
        SessionOptions(prepack=False),
        SessionOptions(prepack=False, arena=False),
    ]


def test_fast_model_is_not_tried_on_more_threads():
    found = everything([USUAL], lambda setting: tried(setting, 0.4))
    assert {each.threads for each in found} == {1}


def test_only_the_best_variant_is_refined_and_litert_has_no_options():
    lite = Setting(variant="tflite", engine="litert")

    def figures(setting: Setting) -> Measured:
        return tried(setting, 3.0 if setting.engine == "litert" else 6.0)

    assert [(each.engine, each.threads) for each in everything([USUAL, lite], figures)] == [
        ("onnxruntime", 1),
        ("litert", 1),
        ("litert", 2),
        ("litert", 4),
    ]


def test_memory_is_planned_ahead_only_for_a_fixed_number_of_rows():
    assert SessionOptions(memory_pattern=False) in option_flips(USUAL, fixed_rows=True)
    assert SessionOptions(memory_pattern=False) not in option_flips(USUAL, fixed_rows=False)


def test_nothing_more_is_tried_where_nothing_answers_rightly():
    assert everything([USUAL], lambda setting: tried(setting, objection="wrong")) == [USUAL]


# ---- measuring ------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(make_bundle):
    return open_bundle(make_bundle("1.0.0").path)


def test_settings_are_measured_in_processes_and_the_best_is_taken(bundle):
    told = []
    choice = Tuner(says(SCRIPT), board=BOARD).tune(bundle, [USUAL], tell=told.append)
    assert choice.setting == Setting(
        variant="onnx", engine="onnxruntime", threads=4, options=SessionOptions(prepack=False)
    )
    assert tuple(told) == choice.measured


def test_configured_number_of_threads_is_the_only_one(bundle):
    choice = Tuner(says(SCRIPT), board=BOARD).tune(bundle, [TWO], threads=(2,))
    assert {each.setting.threads for each in choice.measured} == {2}


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os; os.abort()", "ended with -6"),
        ("raise SystemExit('no such engine')", "no such engine"),
        ("print('{}')", "ended with 0"),
        ('print(\'{"setting": {"variant": "x", "engine": "y"}}\')', "another one"),
        ("import time; time.sleep(60)", "not measured within"),
    ],
)
def test_process_that_says_nothing_is_an_objection(bundle, program, words):
    told = []
    assert Tuner(says(program), board=BOARD, limit_s=1.0).tune(bundle, [USUAL], tell=told.append) is None
    assert words in told[0].objection


def test_nothing_is_begun_after_the_limit(bundle):
    times = iter([0.0, 0.0, 19.0, 21.0])
    choice = Tuner(says(SCRIPT), board=BOARD, limit_s=20.0, clock=lambda: next(times)).tune(bundle, [USUAL])
    assert len(choice.measured) == 2


def test_cancelled_tuning_has_no_result(bundle):
    tuner = Tuner(says(SCRIPT), board=BOARD)
    assert tuner.tune(bundle, [USUAL], tell=lambda _: tuner.cancel()) is None


def test_measurement_answers_the_golden_inputs_and_times_what_is_right(make_bundle):
    options = SessionOptions(prepack=False, arena=False, memory_pattern=False)
    setting = msgspec.structs.replace(USUAL, options=options)
    order = Order(bundle=str(make_bundle("1.0.0").path), setting=setting, seconds=0.01)
    right = measure(order)
    assert (right.setting, right.objection) == (setting, "")
    assert min(right.latency_ms, right.batch_ms, right.cpu_ms, right.load_ms, right.rss_bytes) > 0
    wrong = measure(msgspec.structs.replace(order, bundle=str(make_bundle("1.0.1", "wrong").path)))
    assert "golden row 0" in wrong.objection
    refused = measure(msgspec.structs.replace(order, bundle="/nonexistent"))
    assert "expected a bundle" in refused.objection


def test_command_shows_what_was_tried_and_remembers(make_bundle, tmp_path):
    config = tmp_path / "agent.toml"
    config.write_text(f"data = '{tmp_path}'\nthreads = 1\n")
    arguments = ["tune", "--config", str(config), "--bundle", str(make_bundle("1.0.0").path)]
    done = CliRunner().invoke(edgeops_agent, arguments, catch_exceptions=False)
    assert "onnx on onnxruntime, 1 thread, no prepacking" in done.output
    assert "chosen: onnx on onnxruntime" in done.output
    (remembered,) = json.loads((tmp_path / "tuning.json").read_text())
    assert remembered["setting"]["variant"] == "onnx"
    assert CliRunner().invoke(edgeops_agent, arguments[:3]).exit_code == 1


def test_choice_holds_for_one_bundle_engine_and_board_and_what_the_settings_allow(tmp_path):
    path = tmp_path / "tuning.json"
    slot = Slot(version="1.0.0", digest="sha256:a", variant="onnx", engine="onnxruntime")
    subject = Subject(slot=slot, bundle=tmp_path, engine_version="1.32")
    store = TuningStore(path)
    assert store.find(subject, board=BOARD) is None
    store.add(Remembered(digest="sha256:a", engine_version="1.32", board=BOARD, setting=TWO, reason=""))
    again = TuningStore(path)
    assert again.find(subject, board=BOARD) == TWO
    replace = msgspec.structs.replace
    for other in (
        replace(subject, slot=replace(slot, digest="sha256:b")),
        replace(subject, slot=replace(slot, variant="x")),
        replace(subject, slot=replace(slot, engine="litert")),
        replace(subject, engine_version="1.33"),
        replace(subject, threads=1, may_vary=False),
    ):
        assert again.find(other, board=BOARD) is None
    assert again.find(subject, board=Board(cpu="another", cores=4)) is None
    store.add(Remembered(digest="sha256:a", engine_version="1.32", board=BOARD, setting=LEAN, reason=""))
    assert again.find(subject, board=BOARD) == LEAN
    path.write_bytes(b"\xff")
    assert again.find(subject, board=BOARD) is None


def test_only_the_last_choices_are_kept(tmp_path):
    store = TuningStore(tmp_path / "tuning.json")
    for number in range(20):
        store.add(Remembered(digest=f"sha256:{number}", engine_version="1", board=BOARD, setting=TWO, reason=""))
    engines = {"onnxruntime": "1"}
    assert store.preferred("sha256:19", engines=engines, board=BOARD) == TWO
    assert store.preferred("sha256:1", engines=engines, board=BOARD) is None
    assert store.preferred("sha256:19", engines={"onnxruntime": "2"}, board=BOARD) is None


def test_variant_that_was_measured_best_is_taken_where_it_can_run(small_bundle):
    best = {"a": ("onnx-int8", "onnxruntime"), "b": ("onnx-int8", "abacus")}
    chooser = VariantChooser((), None, lambda _: None, measured=lambda digest, _: best.get(digest))
    assert [chooser.choose(small_bundle.manifest, digest)[0].name for digest in "abc"] == [
        "onnx-int8",
        "onnx-float",
        "onnx-float",
    ]


# ---- the agent ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"rung": Rung.NO_SHADOW}, {"is_deploying": True}, {"is_serving": False}, {"has_room": False}, {"load": 3.0}],
)
def test_board_is_idle_only_when_everything_says_so(change):
    calm = {"rung": Rung.NORMAL, "is_deploying": False, "is_serving": True, "has_room": True, "load": 0.1, "cores": 4}
    assert Situation(**calm).is_idle
    assert not Situation(**(calm | change)).is_idle


@pytest.fixture
def station(tmp_path, release_key, monkeypatch) -> Iterator[Station]:
    monkeypatch.setattr("edgeops_runtime.host.load_average", lambda *_: 0.0)
    station = Station(tmp_path, release_key)
    station.make_tuner = lambda: Tuner(says(SCRIPT))
    yield station
    station.close()


def look(station: Station) -> None:
    station.agent._loop.post(station.agent._idle_tuning.look)


def test_idle_agent_tunes_once_and_the_next_start_of_the_worker_has_it_unless_it_died(station, tmp_path, release_key):
    station.start()
    station.install(scripted_bundle(tmp_path, "1.0.0", release_key))
    before = station.agent._incumbent.process
    look(station)
    (text,) = eventually(lambda: station.notices("tuned"))
    assert "no prepacking" in text
    assert "next start" in text
    assert station.agent._incumbent.process is before
    look(station)
    station.stop()
    station.start()
    tuned = eventually(lambda: station.agent._incumbent.is_serving and station.agent._incumbent.process)
    assert tuned.order.options == SessionOptions(prepack=False)
    os.kill(tuned.pid, signal.SIGKILL)
    usual = eventually(lambda: (now := station.agent._incumbent.process) is not tuned and now)
    assert (usual.order.options, usual.order.threads) == (SessionOptions(), 1)
    assert len(station.notices("tuned")) == 1


def test_deployment_ends_a_tuning(station, tmp_path, release_key):
    station.make_tuner = lambda: Tuner(says("import time; time.sleep(60)"))
    station.start()
    station.install(scripted_bundle(tmp_path, "1.0.0", release_key))
    look(station)
    tuner = eventually(lambda: station.agent._idle_tuning._under_way)
    station.install(scripted_bundle(tmp_path, "1.1.0", release_key))
    eventually(lambda: station.agent._idle_tuning._under_way is None)
    assert tuner.is_cancelled
    assert station.notices("tuned") == []


def test_settings_of_the_agent_win(tmp_path):
    slot = Slot(version="1.0.0", digest="sha256:a", variant="onnx", engine="onnxruntime")
    store = TuningStore(tmp_path / "tuning.json")

    def known(**settings) -> KnownSettings:
        usual = {"threads": None, "is_used": True, "engines": lambda: {"onnxruntime": "1.32"}}
        return KnownSettings(store, bundle_path=lambda _: tmp_path, **(usual | settings))

    store.add(Remembered(digest="sha256:a", engine_version="1.32", board=known().board, setting=TWO, reason=""))
    engines = {"onnxruntime": "1.32"}
    assert known().find(slot) == known(threads=2).find(slot) == TWO
    assert known().best_variant("sha256:a", engines) == ("onnx", "onnxruntime")
    assert known(threads=1).find(slot) is None
    assert known(is_used=False).find(slot) is known(is_used=False).best_variant("sha256:a", engines) is None
    assert known(engines=dict).subject(slot) is None
    assert known(threads=3).subject(slot).usual.threads == 3
