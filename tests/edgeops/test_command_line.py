"""The command line as a person meets it: help, errors, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeops.__main__ import COMMANDS
from edgeops.bundle import Bundle
from edgeops.signing import SigningKey


def edgeops(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edgeops", *arguments], capture_output=True, text=True, check=False)


def test_help_lists_every_command_without_loading_a_part() -> None:
    result = edgeops("--help")
    assert result.returncode == 0
    assert all(name in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = edgeops(command, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "Usage: edgeops" in result.stdout


def test_unknown_command_is_wrong_usage() -> None:
    assert edgeops("conquer").returncode == 2


def test_inspect_shows_and_verifies(bundle: Bundle, key: SigningKey) -> None:
    result = edgeops("inspect", str(bundle.path), "--key", key.public.text)
    assert result.returncode == 0
    assert bundle.digest in result.stdout
    assert "valid" in result.stdout
    document = json.loads(edgeops("inspect", str(bundle.path), "--json").stdout)
    assert document["manifest"]["name"] == "fashion"


def test_inspect_of_a_damaged_bundle_exits_1_and_names_the_file(bundle: Bundle) -> None:
    bundle.file("model.onnx").write_bytes(b"short")
    result = edgeops("inspect", str(bundle.path))
    assert result.returncode == 1
    assert "model.onnx: expected 5000 bytes, found 5" in result.stderr
    assert "Traceback" not in result.stderr


def test_inspect_with_the_wrong_key_exits_1(bundle: Bundle) -> None:
    result = edgeops("inspect", str(bundle.path), "--key", SigningKey.generate().public.text)
    assert result.returncode == 1
    assert "expected a valid signature" in result.stderr


def test_generated_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "release.key"
    first = edgeops("keys", "generate", str(path))
    assert first.returncode == 0
    assert edgeops("keys", "show", str(path)).stdout == first.stdout
    assert edgeops("keys", "generate", str(path)).returncode == 2
    assert edgeops("keys", "show", str(path)).stdout == first.stdout


def test_key_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    result = edgeops("keys", "generate", str(tmp_path / "absent" / "release.key"))
    assert result.returncode == 1
    assert "a key cannot be written there" in result.stderr
    assert "Traceback" not in result.stderr


def test_full_disk_behind_the_output_is_a_clear_error(bundle: Bundle) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "edgeops", "inspect", str(bundle.path)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 1
    assert "No space left" in result.stderr
    assert "Traceback" not in result.stderr
