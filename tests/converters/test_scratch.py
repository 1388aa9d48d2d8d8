"""However a command ends, nothing of it stays behind."""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from edgeops_converters.cli.scratch import scratch


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


WORK = textwrap.dedent("""
    import signal, sys, tempfile
    from edgeops_converters.cli.scratch import scratch

    with scratch():
        tempfile.mkdtemp(prefix="library-")
        print("working", flush=True)
        signal.pause()
""")


@pytest.fixture
def worker(folder):
    """A process that works in a scratch folder until a signal comes."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORK],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == b"working\n"
    yield process
    process.kill()
    process.communicate()


def left(folder):
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_leaves_nothing(folder, worker, number, code):
    worker.send_signal(number)
    assert worker.wait() == code
    assert left(folder) == []


def test_what_a_killed_command_left_goes_with_the_next(folder, worker):
    worker.kill()
    worker.wait()
    assert len(left(folder)) == 1
    with scratch():
        pass
    assert left(folder) == []


def test_a_command_that_still_works_keeps_its_folder(folder, worker):
    (theirs,) = left(folder)
    with scratch():
        assert Path(tempfile.gettempdir()).parent == folder
    assert left(folder) == [theirs]


def test_the_temporary_folder_and_the_signal_are_what_they_were_afterwards(folder):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), scratch():
        1 / 0  # noqa: B018 - the error is what is wanted
    assert tempfile.gettempdir() == str(folder)
    assert signal.getsignal(signal.SIGTERM) is before
