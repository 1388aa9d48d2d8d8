import json
import subprocess
import sys

import pytest
from fleet_rig import GROUP, wait_for

from edgeops.errors import ConfigError
from edgeops_fleet.settings import Settings, load_settings


def run(rig, *arguments, code=0):
    command = [sys.executable, "-m", "edgeops", "fleet", *arguments, "--data", str(rig.directory)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == code, result.stderr
    return result.stdout if code == 0 else result.stderr


def test_a_rollout_from_the_command_line(rig, make_bundle):
    token = run(rig, "token", "--group", GROUP, "--attribute", "site=north", "--attribute", "lens=2").strip()
    assert token.startswith("eo_")
    rig.add_device("camera-1", site="north")
    assert "published digits 1.0.0" in run(rig, "publish", str(make_bundle("1.0.0").path))
    order = ["digits", "1.0.0", "--group", GROUP, "--waves", "1d,100", "--soak", "0", "--when-unproven", "ask"]
    assert "pauses and asks a person" in run(rig, "rollout", "plan", *order)
    started = json.loads(run(rig, "rollout", "start", *order, "--json"))
    rig.wait_for_state(started["id"], "paused")
    assert "inconclusive" in run(rig, "rollout", "status", started["id"])
    run(rig, "rollout", "rollback", started["id"])
    rig.wait_for_state(started["id"], "rolled_back")
    assert "rolled_back" in run(rig, "rollout", "status")
    devices = json.loads(run(rig, "devices", "--json"))
    assert devices[0]["attributes"] == {"site": "north"}
    assert run(rig, "devices").splitlines()[0].startswith("DEVICE")
    assert "nothing to judge yet" in run(rig, "drift")


def test_refusals_come_with_their_reason(rig, make_bundle, tmp_path):
    assert "not in the catalog" in run(rig, "rollout", "start", "digits", "9.9.9", code=1)
    assert "expected a bundle directory" in run(rig, "publish", str(tmp_path), code=1)
    assert "Usage" in run(rig, "rollout", "start", "digits", code=2)
    labels = tmp_path / "labels.json"
    labels.write_text('[{"sample": "nobody", "label": 1}]')
    assert "nobody" in run(rig, "label", str(labels), code=1)


def test_following_a_rollout_ends_with_it(rig, make_bundle):
    rig.add_device("camera-1")
    rig.publish(make_bundle("1.0.0"))
    order = ["digits", "1.0.0", "--group", GROUP, "--waves", "100", "--soak", "0", "--when-unproven", "ask"]
    output = run(rig, "rollout", "start", *order, "--follow")
    assert "camera-1: digits 1.0.0 committed" in output
    wait_for(lambda: "paused" in output, "the last line")


def test_following_with_json_gives_one_document(rig, make_bundle):
    rig.add_device("camera-1")
    rig.publish(make_bundle("1.0.0"))
    order = ["digits", "1.0.0", "--group", GROUP, "--waves", "100", "--soak", "0", "--when-unproven", "ask"]
    assert json.loads(run(rig, "rollout", "start", *order, "--follow", "--json"))["state"] == "paused"
    assert f"rollout resume {rig.api.get('/api/v1/rollouts')['rollouts'][0]['id']}" in run(
        rig, "rollout", "status", rig.api.get("/api/v1/rollouts")["rollouts"][0]["id"]
    )


def test_settings_come_from_a_file_and_options_win(tmp_path):
    file = tmp_path / "fleet.toml"
    file.write_text('fleet = "a"\nlisten = "127.0.0.1:1"\n[retrain]\ncommand = ["train", "--fast"]\nsamples = 7\n')
    settings = load_settings(file, data=tmp_path, listen="127.0.0.1:2", broker=None)
    assert (settings.fleet, settings.listen, settings.broker) == ("a", "127.0.0.1:2", "embedded")
    assert settings.retrain.command == ("train", "--fast")


@pytest.mark.parametrize(
    "text",
    [
        "port = 1",
        "listen = 3",
        'listen = "nowhere"',
        "[drift]\nwindows = 3",
        'broker = "http://x"',
        "not toml",
        'fleet = "a b"',
    ],
)
def test_settings_that_make_no_sense_are_refused_with_the_file(tmp_path, text):
    file = tmp_path / "fleet.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"fleet\.toml"):
        load_settings(file, data=tmp_path)


def test_every_setting_is_in_the_guide():
    from pathlib import Path

    import msgspec

    guide = (Path(__file__).parents[2] / "docs" / "guides" / "fleet.md").read_text()
    for section in (
        Settings,
        *(type(getattr(Settings(data=Path()), name)) for name in ("controller", "drift", "retrain")),
    ):
        for field in msgspec.structs.fields(section):
            assert f"`{field.name}`" in guide or f"[{field.name}]" in guide, f"{section.__name__}.{field.name}"
