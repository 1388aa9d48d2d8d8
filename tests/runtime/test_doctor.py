"""The doctor: engines that are ill in every way there is, what is thought of them, what is remembered, and the report."""

import json
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from edgeops_runtime.commands import edgeops_agent
from edgeops_runtime.config import Config
from edgeops_runtime.doctor import machine
from edgeops_runtime.doctor.advisories import advisory_for
from edgeops_runtime.doctor.examiner import Cpu, Examiner
from edgeops_runtime.doctor.machine import Level
from edgeops_runtime.doctor.report import diagnose, engine_lines
from edgeops_runtime.doctor.verdicts import (
    Ending,
    EngineVerdict,
    Finished,
    Imported,
    Loaded,
    Outcome,
    Refused,
    VerdictStore,
    judge,
    read_lines,
)
from edgeops_runtime.engines import ENGINES, available_engines
from edgeops_runtime.slots import Slot, Slots, SlotStore

sys.path.insert(0, str(Path(__file__).parent))  # The folder is no package, and this module is only for its tests.

from agent_parts import Station

PI4 = Cpu(machine="aarch64", name="0x41/0xd08/3", flags=frozenset({"fp", "asimd", "crc32"}))
HERE = Cpu(machine="x86_64", name="a CPU", flags=frozenset({"avx2"}))


FINE = '{"probe":"finished","runs":360,"checked":180,"wrong":0,"difference":0,"kib_per_run":0.1,"median_us":9}'


def quick(words: str) -> tuple[str, ...]:
    """A probe without numpy and engine, for what is not about them: runs a line of Python."""
    return (sys.executable, "-IS", "-c", words)


HEALTHY = quick(f"print({FINE!r})")
DIES = quick("import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.kill(os.getpid(), 4)")


def ill(illness: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "edgeops_runtime.doctor.fakes", illness)


def verdict(engine: str = "onnxruntime", outcome: Outcome = Outcome.OK, **fields) -> EngineVerdict:
    return EngineVerdict(**{"engine": engine, "version": "1.0", "outcome": outcome, "reason": "r", **fields})


@pytest.mark.parametrize(
    ("illness", "outcome", "words", "may_serve", "is_lasting"),
    [
        ("sigill-at-import", Outcome.DIED, "SIGILL at its import", False, True),
        ("sigsegv", Outcome.DIED, "SIGSEGV after its import", False, True),
        ("system-error", Outcome.NUMPY_MISMATCH, "install 'numpy<2'", False, True),
        ("leak", Outcome.LEAKS, "kB per run", False, True),
        ("wrong", Outcome.WRONG, "180 of 180 golden rows", False, True),
    ],
)
def test_an_ill_engine_is_a_line_in_a_report(illness, outcome, words, may_serve, is_lasting):
    found = Examiner(command=ill(illness), cpu=HERE).examine("onnxruntime", "1.0")
    assert (found.outcome, found.may_serve, found.is_lasting) == (outcome, may_serve, is_lasting), found.reason
    assert words in found.reason


def test_an_engine_that_hangs_is_ended_and_tried_again_another_time(tmp_path):
    store = VerdictStore(tmp_path / "engines.json")
    found = Examiner(store, command=ill("hang"), cpu=HERE, limit_s=1.5).examine("onnxruntime", "1.0")
    assert (found.outcome, found.may_serve) == (Outcome.HANGS, False)
    assert not (tmp_path / "engines.json").exists()


def test_a_probe_that_cannot_be_started_says_nothing_of_the_engine():
    found = Examiner(command=("/nowhere/python",), cpu=HERE).examine("onnxruntime", "1.0")
    assert (found.outcome, found.may_serve) == (Outcome.UNKNOWN, True)


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine in available_engines()])
def test_the_installed_engines_are_well_and_know_the_golden_answers(engine):
    found = Examiner(cpu=HERE).examine(engine, available_engines()[engine])
    assert found.outcome is Outcome.OK, found.reason
    assert found.figures["runs"] == 360


def test_an_engine_is_tried_once_and_remembered_until_something_changes(tmp_path):
    path = tmp_path / "engines.json"
    first = Examiner(VerdictStore(path), command=DIES, cpu=HERE)
    assert not first.examine("onnxruntime", "1.0").may_serve
    again = Examiner(VerdictStore(path), command=HEALTHY, cpu=HERE)
    assert again.examine("onnxruntime", "1.0").outcome is Outcome.DIED
    assert again.examine("onnxruntime", "1.1").outcome is Outcome.OK
    other_cpu = msgspec.structs.replace(HERE, name="another")
    assert Examiner(VerdictStore(path), command=HEALTHY, cpu=other_cpu).examine("onnxruntime", "1.1").may_serve
    stored = msgspec.json.decode(path.read_bytes(), type=list[EngineVerdict])
    assert [(each.engine, each.version, each.cpu) for each in stored] == [("onnxruntime", "1.1", "x86_64 another")]


def test_another_numpy_is_another_verdict(tmp_path):
    store = VerdictStore(tmp_path / "engines.json")
    store.add(verdict(numpy="2.0", cpu="c", outcome=Outcome.NUMPY_MISMATCH))
    again = VerdictStore(tmp_path / "engines.json")
    assert again.find("onnxruntime", "1.0", numpy="2.0", cpu="c").outcome is Outcome.NUMPY_MISMATCH
    assert again.find("onnxruntime", "1.0", numpy="1.26", cpu="c") is None


def test_a_damaged_memory_costs_another_try(tmp_path):
    path = tmp_path / "engines.json"
    path.write_bytes(b"[{]")
    assert Examiner(VerdictStore(path), command=HEALTHY, cpu=HERE).examine("onnxruntime", "1.0").may_serve
    assert msgspec.json.decode(path.read_bytes(), type=list[EngineVerdict])[0].outcome is Outcome.OK


def test_a_version_that_is_known_to_be_bad_is_not_even_tried():
    told = []
    examiner = Examiner(command=("/nowhere/python",), cpu=PI4)
    assert examiner.usable({"onnxruntime": "1.21.0", "litert": "2.3.0"}, told.append) == {"litert": "2.3.0"}
    assert [each.outcome for each in told] == [Outcome.DENIED]
    assert "23957" in told[0].reason


@pytest.mark.parametrize(
    ("version", "machine", "flags", "is_denied"),
    [
        ("1.21.0", "aarch64", {"asimd"}, True),
        ("1.21.0", "aarch64", {"asimd", "atomics"}, False),
        ("1.21.0", "aarch64", set(), False),  # Unknown, so the probe decides.
        ("1.21.0", "x86_64", {"avx2"}, False),
        ("1.25.1", "aarch64", {"atomics", "sme"}, True),
        ("1.25.1", "aarch64", {"atomics"}, False),
        ("1.27.0", "aarch64", {"atomics", "sme"}, False),
    ],
)
def test_the_table_speaks_of_the_cpus_that_it_means(version, machine, flags, is_denied):
    assert (advisory_for("onnxruntime", version, machine=machine, flags=flags) is not None) is is_denied


def test_chatter_of_an_engine_is_not_taken_for_a_line():
    output = b'INFO: Created delegate\n{"probe":"imported","version":"1","numpy":"2"}\n{"probe":"x"}\n\xff\n{"probe":"loaded"}'
    assert read_lines(output) == [Imported(version="1", numpy="2"), Loaded()]


@pytest.mark.parametrize(
    ("lines", "ending", "outcome"),
    [
        (
            [Finished(runs=9, checked=0, wrong=0, difference=0.0, kib_per_run=0.0, median_us=1.0)],
            Ending(code=0),
            "wrong answers",
        ),
        ([Finished(runs=9, checked=4, wrong=0, difference=0.0, kib_per_run=0.0, median_us=1.0)], Ending(code=-6), "ok"),
        ([Refused(stage="run", kind="MemoryError", reason="")], Ending(code=0), "unknown"),
        # What tflite-runtime 2.14.0 says with numpy 2.4.6, at the bottom of its SystemError.
        (
            [Refused(stage="load", kind="ImportError", reason="numpy.core.multiarray failed to import")],
            Ending(code=0),
            "numpy mismatch",
        ),
        ([Refused(stage="load", kind="RuntimeError", reason="no such operator")], Ending(code=0), "refused"),
        (
            [Imported(version="1", numpy="2"), Loaded()],
            Ending(code=-9),
            "unknown",
        ),  # The kernel's, when memory is short.
        ([Imported(version="1", numpy="2")], Ending(code=-11), "died"),
        ([], Ending(code=1, errors="Traceback\nImportError: x"), "unknown"),
    ],
)
def test_what_is_thought_of_how_it_ended(lines, ending, outcome):
    assert judge("onnxruntime", "1.0", lines, ending).outcome == outcome


# ---- the report ----------------------------------------------------------------------------------------------------


def levels(lines) -> dict[str, Level]:
    return {line.subject: line.level for line in lines}


def test_one_good_engine_is_enough_and_none_is_a_failure():
    good, bad = verdict("litert"), verdict("onnxruntime", Outcome.DIED)
    assert levels(engine_lines((good, bad))) == {"onnxruntime": "warning", "litert": "ok", "tflite": "info"}
    assert levels(engine_lines((bad,)))["engines"] is Level.FAILURE
    assert levels(engine_lines(()))["engines"] is Level.FAILURE


def test_the_engine_that_serves_or_is_asked_for_must_be_good():
    good, bad = verdict("litert"), verdict("onnxruntime", Outcome.LEAKS)
    assert levels(engine_lines((good, bad), current="onnxruntime"))["onnxruntime"] is Level.FAILURE
    asked = levels(engine_lines((good, bad), preference=("onnxruntime", "tflite")))
    assert (asked["engines"], asked["tflite"]) == (Level.FAILURE, Level.WARNING)


def test_a_cpu_that_a_sandbox_hides_is_a_failure(tmp_path):
    assert machine.cpu_line().level is Level.OK
    hidden = machine.cpu_line(tmp_path / "proc", tmp_path / "sys")
    assert hidden.level is Level.FAILURE
    assert "cpuinfo" in hidden.text


def test_memory_is_what_the_machine_and_the_control_group_leave(tmp_path):
    proc, sys_ = tmp_path / "proc", tmp_path / "sys"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 1024000 kB\nMemAvailable: 512000 kB\n")
    assert machine.memory_line(proc, sys_).level is Level.OK
    (proc / "self" / "cgroup").write_text("0::/system.slice/edgeops-agent.service\n")
    group = sys_ / "fs" / "cgroup" / "system.slice" / "edgeops-agent.service"
    group.mkdir(parents=True)
    (group / "memory.current").write_text(f"{190 << 20}\n")
    (group / "memory.max").write_text(f"{200 << 20}\n")
    (group / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    line = machine.memory_line(proc, sys_)
    assert line.level is Level.FAILURE
    assert "10 of 200 MB left, 2 killed for memory" in line.text


def test_heat_and_throttling_are_said(tmp_path):
    assert machine.heat_line(tmp_path, hot_c=85).level is Level.INFO
    (tmp_path / "class" / "thermal" / "thermal_zone0").mkdir(parents=True)
    (tmp_path / "class" / "thermal" / "thermal_zone0" / "temp").write_text("61000\n")
    assert machine.heat_line(tmp_path, hot_c=85).level is Level.OK
    firmware = tmp_path / "devices" / "platform" / "soc" / "soc:firmware"
    firmware.mkdir(parents=True)
    (firmware / "get_throttled").write_text("50005\n")
    line = machine.heat_line(tmp_path, hot_c=85)
    assert line.level is Level.WARNING
    assert "now: under-voltage, throttled; since the boot: under-voltage, throttled" in line.text


def test_the_data_directory_is_written_and_nothing_is_left(tmp_path):
    assert machine.disk_line(tmp_path).level is Level.OK
    assert list(tmp_path.iterdir()) == []
    assert machine.disk_line(tmp_path / "not-yet").level is Level.INFO
    assert not (tmp_path / "not-yet").exists()
    (tmp_path / "file").write_text("")
    assert machine.disk_line(tmp_path / "file").level is not Level.OK


def test_the_network_is_information_only(tmp_path, release_key):
    assert levels(machine.network_lines(tmp_path)) == {"network": Level.INFO}
    station = Station(tmp_path, release_key)
    station.write_identity()
    found = {line.subject: line for line in machine.network_lines(station.data)}
    station.close()
    assert found["broker"].level is Level.INFO
    assert "cannot be reached" in found["broker"].text
    assert "can be reached" in found["server"].text


def test_a_report_fails_when_the_engine_of_the_version_that_serves_is_ill(tmp_path):
    config = Config(data=str(tmp_path))
    SlotStore(tmp_path).save(
        Slots(model="m", current=Slot(version="1.0.0", digest="sha256:a", variant="v", engine="onnxruntime"))
    )
    report = diagnose(config, Examiner(command=DIES, cpu=HERE))
    assert not report.can_serve
    assert {line.subject for line in report.lines} >= {
        "onnxruntime",
        "cpu",
        "memory",
        "heat",
        "disk",
        "clock",
        "network",
    }


def test_the_command_prints_lines_or_json_and_its_exit_code_says_whether_a_model_can_be_served(tmp_path, monkeypatch):
    monkeypatch.setattr("edgeops_runtime.commands.Examiner", lambda: Examiner(command=HEALTHY, cpu=HERE))
    config = tmp_path / "agent.toml"
    config.write_text(f'data = "{tmp_path / "data"}"\n')
    said = CliRunner().invoke(edgeops_agent, ["doctor", "--config", str(config), "--json"], standalone_mode=False)
    answer = json.loads(said.output)
    assert said.return_value == (0 if answer["can_serve"] else 1)
    assert {"subject": "onnxruntime", "level": "ok"}.items() <= next(
        line for line in answer["lines"] if line["subject"] == "onnxruntime"
    ).items()
    monkeypatch.setattr(
        "edgeops_runtime.commands.Examiner",
        lambda: Examiner(
            command=quick("import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.abort()"), cpu=HERE
        ),
    )
    said = CliRunner().invoke(edgeops_agent, ["doctor"], standalone_mode=False)
    assert said.return_value == 1
    assert "SIGABRT" in said.output
    assert "cannot be served" in said.output
