"""The Debian package, with a small tree in the place of the wheels; ``scripts/deb --check`` installs the real one."""

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import msgspec
import pytest

from edgeops_runtime.config import Config, load_config

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "packaging" / "debian"
FIELDS = {
    "package": "edgeops-agent",
    "version": "0.1.0",
    "arch": "arm64",
    "engine": "onnxruntime",
    "python": "3.11",
    "next_python": "3.12",
    "libc": "2.34",
    "maintainer": "Somebody <somebody@example.invalid>",
    "installed_kib": "7",
}
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")


@pytest.fixture
def tree(deb, tmp_path):
    tree = tmp_path / "tree"
    deb.install_files(tree, "3.11", "edgeops-agent")
    return tree


def test_environment_leads_to_the_interpreter_of_the_distribution_alone(deb, tree):
    home = tree / deb.HOME
    assert str((home / "bin" / "python3").readlink()) == "../../../bin/python3.11"
    assert os.path.normpath(home / "bin" / (home / "bin" / "python3").readlink()) == str(tree / "usr/bin/python3.11")
    assert "include-system-site-packages = false" in (home / "pyvenv.cfg").read_text()


def test_settings_that_it_brings_are_settings_of_the_agent(tree):
    path = tree / "etc" / "edgeops" / "agent.toml"
    assert load_config(path).data == "/var/lib/edgeops"
    # What is commented out is a setting, too.
    lines = [
        line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# [") or " = " in line
    ]
    for line in lines:
        if line.startswith("["):
            break
        msgspec.convert({"data": "x", **tomllib.loads(line)}, Config)


@needs_dpkg
def test_package_says_what_it_is_and_keeps_what_people_edit(deb, tree, tmp_path):
    (tree / deb.HOME / "lib").mkdir()
    (tree / deb.HOME / "lib" / "module.py").write_text("x = 1\n")
    (tree / deb.HOME / "lib" / "module.py").chmod(0o777)
    package = deb.pack(tree, FIELDS, 3, tmp_path / "out", compression="none")
    assert package.name == "edgeops-agent_0.1.0-3_arm64.deb"

    def ask(*words):
        return subprocess.run(["dpkg-deb", *words], capture_output=True, text=True, check=True).stdout

    assert ask("--field", str(package), "Architecture", "Version").split("\n")[:2] == [
        "Architecture: arm64",
        "Version: 0.1.0-3",
    ]
    assert "python3 (>= 3.11~), python3 (<< 3.12~), libc6 (>= 2.34)" in ask("--field", str(package), "Depends")
    assert ask("--info", str(package), "conffiles").split() == ["/etc/edgeops/agent.toml"]
    modes = {line.split()[-1]: line.split()[:2] for line in ask("--contents", str(package)).splitlines()}
    assert modes["./etc/edgeops/agent.toml"] == ["-rw-r-----", "root/root"]
    assert modes["./usr/bin/edgeops-agent"] == ["-rwxr-xr-x", "root/root"]
    assert modes["./usr/lib/edgeops-agent/lib/module.py"] == ["-rw-r--r--", "root/root"]
    assert "./usr/lib/systemd/system/edgeops-agent.service" in modes
    sums = ask("--info", str(package), "md5sums")
    assert "usr/bin/edgeops-agent" in sums
    assert "agent.toml" not in sums


@needs_dpkg
def test_same_tree_gives_the_same_package(deb, tree, tmp_path):
    one = deb.pack(tree, FIELDS, 1, tmp_path / "one", compression="none").read_bytes()
    assert deb.pack(tree, FIELDS, 1, tmp_path / "two", compression="none").read_bytes() == one


def test_every_engine_is_an_extra_with_a_lock_and_a_package_of_its_own(deb):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {engine.extra for engine in deb.ENGINES.values()} <= set(extras)
    assert all((ROOT / engine.lock).is_file() for engine in deb.ENGINES.values())
    assert len({engine.package for engine in deb.ENGINES.values()}) == len(deb.ENGINES)


@pytest.mark.parametrize("name", ["check", "edgeops-agent", "postinst", "postrm", "prerm"])
def test_scripts_are_shell(name):
    subprocess.run(["sh", "-n", str(TEMPLATES / name)], check=True)


def test_service_runs_what_is_installed_with_settings_that_are_there(tree):
    unit = (tree / "usr/lib/systemd/system/edgeops-agent.service").read_text()
    start = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    assert start == "ExecStart=/usr/bin/edgeops-agent run --config /var/lib/edgeops/agent.toml"
    assert "ln -s /etc/edgeops/agent.toml /var/lib/edgeops/agent.toml" in (TEMPLATES / "postinst").read_text()
    assert "\nUser=edgeops\n" in unit
    assert "\nu edgeops " in (tree / "usr/lib/sysusers.d/edgeops.conf").read_text()
