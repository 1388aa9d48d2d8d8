"""The data folder: one server at a time, and clear words when it cannot be used."""

import os
import subprocess
import sys

import pytest
from fleet_rig import Rig

from edgeops.errors import ConfigError
from edgeops_fleet.server import FleetServer
from edgeops_fleet.settings import Settings
from edgeops_fleet.store import Store


def settings(data):
    return Settings(data=data, listen="127.0.0.1:0", mqtt_port=0)


def test_a_second_server_on_the_same_folder_is_refused_and_disturbs_nothing(rig: Rig):
    before = sorted(path.name for path in rig.directory.iterdir())
    with pytest.raises(ConfigError, match="another server has it"):
        FleetServer(settings(rig.directory))
    assert sorted(path.name for path in rig.directory.iterdir()) == before
    assert "server.json" in before


def test_the_folder_is_free_again_after_the_server(rig: Rig):
    rig.restart()
    assert rig.api.get("/healthz")["status"] == "ok"


@pytest.mark.parametrize("content", [b"this is no database, and long enough to be looked at\n" * 30, b"\0" * 8192])
def test_a_file_that_is_no_database_is_told(tmp_path, content):
    (tmp_path / "fleet.db").write_bytes(content)
    with pytest.raises(ConfigError, match=r"fleet.db: database: file is not a database"):
        FleetServer(settings(tmp_path))


def test_a_damaged_database_is_told(tmp_path):
    store = Store(tmp_path / "fleet.db")
    store.close()
    content = bytearray((tmp_path / "fleet.db").read_bytes())
    content[100 : len(content)] = b"\xff" * (len(content) - 100)
    (tmp_path / "fleet.db").write_bytes(content)
    with pytest.raises(ConfigError, match=r"fleet.db: database: .*malformed"):
        FleetServer(settings(tmp_path))


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "edgeops", "fleet", "up", "--data", str(tmp_path / "file" / "data")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "expected a folder that can be written" in done.stderr
