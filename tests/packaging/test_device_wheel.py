"""The wheel of a device: what is in it, what it weighs, and that it runs."""

import base64
import csv
import hashlib
import io
import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import device_wheel
import wheels


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return device_wheel.build(tmp_path_factory.mktemp("wheel"), "--no-build-isolation")


def test_it_has_the_parts_of_a_device_and_weighs_little(wheel):
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        assert archive.testzip() is None
    version = device_wheel.version_of(wheel)
    assert tops == {"edgeops", "edgeops_runtime", f"edgeops-{version}+device.dist-info"}
    assert wheel.name == f"edgeops-{version}+device-py3-none-any.whl"
    assert wheel.stat().st_size <= device_wheel.MAX_BYTES


def test_it_records_every_file_that_it_has(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        record = next(name for name in names if name.endswith("/RECORD"))
        rows = {name: (digest, size) for name, digest, size in csv.reader(io.StringIO(archive.read(record).decode()))}
        assert set(rows) == names
        for name, (digest, size) in rows.items():
            if name != record:
                data = archive.read(name)
                found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                assert (digest, size) == (f"sha256={found}", str(len(data)))


def test_it_offers_what_a_device_can_use_and_asks_for_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        text = next(archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    metadata = Parser().parsestr(text)
    assert metadata["Version"] == f"{device_wheel.version_of(wheel)}+device"
    assert set(metadata.get_all("Provides-Extra")) == set(device_wheel.EXTRAS)
    required = metadata.get_all("Requires-Dist")
    assert any(line.startswith("onnxruntime") and "device" in line for line in required)
    assert not [line for line in required if line.startswith(("torch", "fastapi", "pytest"))]


def test_the_agent_runs_from_it(wheel, tmp_path):
    code = (
        "import edgeops, edgeops_runtime.__main__ as main; print(edgeops.__file__); print(main.__file__); main.main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    command = [sys.executable, "-c", code, "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    first, second, said = done.stdout.splitlines()
    assert first.startswith(str(wheel))
    assert second.startswith(str(wheel))
    assert said == f"edgeops-agent, version {device_wheel.version_of(wheel)}"


def test_pip_is_told_of_every_wheel_that_the_machine_can_run():
    options = wheels.target_options("aarch64", "3.11")
    pairs = set(zip(options[::2], options[1::2], strict=True))
    assert {("--only-binary", ":all:"), ("--abi", "cp311"), ("--abi", "abi3"), ("--abi", "none")} <= pairs
    platforms = {value for name, value in pairs if name == "--platform"}
    assert {"manylinux_2_17_aarch64", "manylinux_2_34_aarch64", "manylinux2014_aarch64"} <= platforms
    assert not [platform for platform in platforms if not platform.endswith("_aarch64")]


def test_the_newest_c_library_that_a_wheel_asks_for_counts(tmp_path):
    tags = {
        "old": "Tag: cp311-cp311-manylinux2014_x86_64",
        "either": "Tag: cp311-cp311-manylinux_2_27_x86_64\nTag: cp311-cp311-manylinux_2_28_x86_64",
        "pure": "Tag: py3-none-any",
    }
    for name, tag in tags.items():
        (tmp_path / f"{name}.dist-info").mkdir()
        (tmp_path / f"{name}.dist-info" / "WHEEL").write_text(tag)
    assert wheels.needed_libc(tmp_path) == "2.27"
