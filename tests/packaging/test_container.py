"""The recipe of the image holds together; that an image can be built from it is not tested here."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

import device_wheel
from edgeops_runtime.commands import edgeops_agent
from edgeops_runtime.config import load_config, parse_listen

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "packaging" / "container" / "Containerfile"


@pytest.fixture(scope="module")
def stages() -> list[list[tuple[str, str]]]:
    """Instructions with their words, stage by stage; what stands before the first stage counts as one."""
    text = re.sub(r"^\s*#.*\n", "", RECIPE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[list[tuple[str, str]]] = [[]]
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            found.append([])
        found[-1].append((instruction, rest))
    return found


def of(stage: list[tuple[str, str]], instruction: str) -> list[str]:
    return [rest for name, rest in stage if name == instruction]


def test_everything_that_is_copied_is_there(stages):
    copied = [words.split() for stage in stages for words in of(stage, "COPY") if not words.startswith("--from=")]
    assert copied
    assert [source for words in copied for source in words[:-1] if not (ROOT / source).exists()] == []


def test_build_arguments_are_an_extra_of_the_devices_wheel_and_a_lock(stages):
    arguments = dict(words.split("=", 1) for words in of(stages[1], "ARG"))
    assert arguments["EXTRA"] in device_wheel.EXTRAS
    assert (ROOT / arguments["LOCK"]).is_file()
    named = set(re.findall(r"EXTRA=([\w-]+)", RECIPE.read_text()))
    assert named == {"device", "device-litert", "device-tflite"} <= set(device_wheel.EXTRAS)
    assert all((ROOT / lock).is_file() for lock in re.findall(r"LOCK=(\S+)", RECIPE.read_text()))


def test_the_build_stage_has_what_the_wheel_is_built_from(stages):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = {source for words in of(stages[1], "COPY") for source in words.split()[:-1]}
    needed = [*project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"], *project["project"]["license-files"]]
    needed += [project["project"]["readme"], "pyproject.toml", "scripts/device_wheel.py"]
    missing = [name for name in needed if not any(name == source or name.startswith(f"{source}/") for source in copied)]
    assert missing == []


def test_the_image_runs_the_agent_as_nobody_special_and_lets_it_end(stages):
    last = stages[-1]
    entry, words = (json.loads(of(last, name)[0]) for name in ("ENTRYPOINT", "CMD"))
    assert entry[0] in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    parse(words)
    assert of(last, "USER") == ["edgeops"]
    assert any("useradd" in run and " edgeops" in run for run in of(last, "RUN"))
    assert of(last, "STOPSIGNAL") == ["SIGTERM"]
    order = [name for name, _ in last]
    assert order.index("USER") > max(index for index, name in enumerate(order) if name in {"RUN", "COPY"})


def test_settings_keep_the_data_in_the_volume_and_serve_at_the_exposed_port(stages):
    last = stages[-1]
    source, target = next(words.split() for words in of(last, "COPY") if words.endswith("agent.toml"))
    assert target in json.loads(of(last, "CMD")[0])
    config = load_config(ROOT / source)
    assert [config.data] == of(last, "VOLUME")
    host, port = parse_listen(config.listen)
    assert (host, [str(port)]) == ("0.0.0.0", of(last, "EXPOSE"))


def test_health_is_asked_of_a_command_that_there_is(stages):
    (check,) = of(stages[-1], "HEALTHCHECK")
    command = check.split(" CMD ")[1] if " CMD " in check else check.split("CMD ")[1]
    program, *words = shlex.split(command.split("|")[0])
    assert program == "edgeops-agent"
    parse(words)
    assert '"running": true' in command


def parse(words: list[str]) -> None:
    command = edgeops_agent.get_command(click.Context(edgeops_agent), words[0])
    assert command is not None
    command.make_context("x", words[1:], resilient_parsing=False)
