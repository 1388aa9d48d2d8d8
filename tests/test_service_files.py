"""The files for systemd: what they name is what the agent has, and systemd's own checks pass where it is installed."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from edgeops_runtime import agent, crew, deployer
from edgeops_runtime.commands import edgeops_agent
from edgeops_runtime.config import Config
from edgeops_runtime.identity import KEY_FILE
from edgeops_runtime.watchdog import GRACE_S

DIRECTORY = Path(__file__).resolve().parent.parent / "packaging" / "systemd"
UNIT = DIRECTORY / "edgeops-agent.service"
MOST_EXPOSED = 2.0


def settings() -> dict[str, list[str]]:
    """Key → its values, of all sections."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def only(key: str) -> str:
    (value,) = settings()[key]
    return value


def words_of(name: str) -> list[list[str]]:
    lines = (DIRECTORY / name).read_text().splitlines()
    return [shlex.split(line) for line in lines if line and not line.startswith("#")]


def test_what_is_started_is_a_command_of_ours_on_the_directories_that_are_made():
    program, name, *arguments = shlex.split(only("ExecStart"))
    assert Path(program).name == "edgeops-agent"
    command = edgeops_agent.get_command(click.Context(edgeops_agent), name)
    context = command.make_context(name, arguments)
    config: Path = context.params["config_path"]
    state = Path("/var/lib") / only("StateDirectory")
    # `enrol --data` writes agent.toml there.
    assert config == state / "agent.toml"
    assert only("ConditionPathExists") == str(config)
    runtime = Path("/run") / only("RuntimeDirectory")
    address = Config(data=str(state)).serving_address({"RUNTIME_DIRECTORY": str(runtime)})
    assert address == f"unix:{runtime}/serve.sock"
    assert f"{runtime}/serve.sock" in (DIRECTORY / "edgeops.sysusers").read_text()


def test_user_and_directories_are_the_same_in_all_three_files():
    user, state = only("User"), f"/var/lib/{only('StateDirectory')}"
    assert [words[:2] + words[-1:] for words in words_of("edgeops.sysusers")] == [["u", user, state]]
    tmpfiles = {words[1]: words for words in words_of("edgeops.tmpfiles")}
    assert tmpfiles[state] == ["d", state, only("StateDirectoryMode"), user, only("Group"), "-"]
    assert tmpfiles[f"{state}/{KEY_FILE}"][2] == "0600"
    removed = [Path(path).name for path, words in tmpfiles.items() if words[0].startswith("r")]
    assert removed
    assert all(f'"{name}"' in Path(deployer.__file__).read_text() for name in removed)


def test_the_sandbox_leaves_what_the_agent_and_its_engines_need():
    found = settings()
    # Engines read /proc/cpuinfo, the ladder /proc/pressure.
    assert "ProcSubset" not in found
    assert "MemoryDenyWriteExecute" not in found
    assert "PrivateNetwork" not in found
    assert set(only("RestrictAddressFamilies").split()) == {"AF_UNIX", "AF_INET", "AF_INET6"}
    # The shadow's priority and the cores of a hot board.
    assert found["SystemCallFilter"][0] == "@system-service"
    assert not any("@resources" in value for value in found["SystemCallFilter"])
    # The group of the socket may write to it, which is what connecting takes; nobody else may.
    assert 0o777 & ~int(only("UMask"), 8) == 0o770


def test_the_times_fit_those_of_the_agent():
    assert (only("Type"), only("NotifyAccess"), only("Restart")) == ("notify", "main", "always")
    assert 3 < float(only("WatchdogSec")) <= GRACE_S
    assert float(only("TimeoutStopSec")) > agent._IDLE_S + crew._BUSY_S + agent._LAST_WORDS_S + 10


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_and_little_exposed(tmp_path):
    # The program is not installed where the tests run.
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/bin/edgeops-agent", "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )
    # Whatever else is wrong with this machine's units is not ours.
    complaints = [line for line in verified.stderr.splitlines() if copy.name in line]
    assert (verified.returncode, complaints) == (0, [])
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    level = re.search(r"exposure level for \S+: ([0-9.]+)", rated.stdout)
    if level is None:
        pytest.skip(f"this systemd-analyze does not rate files: {rated.stderr.strip()}")
    assert float(level.group(1)) <= MOST_EXPOSED
