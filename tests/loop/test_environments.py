"""What a device really installs: an environment with one extra only runs the agent, and loads nothing of the other parts."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

FORBIDDEN = ("torch", "onnx", "jax", "tensorflow", "edgeops_fleet", "edgeops_converters", "sqlalchemy", "fastapi")


@pytest.mark.parametrize("extra", ["device", "device-tflite"])
def test_agent_of_a_bare_device_serves_and_loads_nothing_else(
    extra: str, request: pytest.FixtureRequest, *, new_fleet: Callable, new_caller: Callable, small_bundle, monkeypatch
) -> None:
    python: Path = request.getfixturevalue("device_python" if extra == "device" else "tflite_python")
    fleet = new_fleet("embedded")
    # Every import of the agent and of its worker is written to the log.
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    agent = fleet.start_device("board", python=python)
    monkeypatch.delenv("PYTHONPROFILEIMPORTTIME")
    fleet.wait_online()
    found = fleet.wait_rollout(fleet.roll_out(small_bundle), "completed", "paused", "rolled_back")
    assert found["state"] == "completed", found["reason"]
    new_caller(fleet.address("board")).serves_within(10)

    engine = {"device": "onnxruntime", "device-tflite": "tflite_runtime"}[extra]
    loaded = set(re.findall(r"^import time:.*\|\s+([\w.]+)$", agent.log.read_text(), flags=re.MULTILINE))
    assert "edgeops_runtime.agent" in loaded
    assert {name for name in loaded if name.split(".")[0] in FORBIDDEN} == set()
    mapped = {pid: Path(f"/proc/{pid}/maps").read_text() for pid in [agent.pid, *agent.children]}
    assert engine not in mapped[agent.pid]
    assert "numpy" not in mapped[agent.pid]
    assert any(engine in text for pid, text in mapped.items() if pid != agent.pid)
    assert os.path.realpath(f"/proc/{agent.pid}/exe") == os.path.realpath(python)
