"""The notify protocol, spoken to a socket of our own in systemd's place."""

import os
import socket

import pytest

from edgeops_runtime.systemd import Notifier


@pytest.fixture(params=["path", "abstract"])
def listener(request, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        name = str(tmp_path / "notify") if request.param == "path" else f"@edgeops-test-{os.getpid()}"
        server.bind(name.replace("@", "\0"))
        server.settimeout(20)
        yield name, server


def test_each_word_arrives_and_a_status_only_when_it_changes(listener):
    name, server = listener
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready()
    notifier.status("serving m 1.0.0")
    notifier.status("serving m 1.0.0")
    notifier.status("two\nlines")
    notifier.alive()
    notifier.stopping()
    words = [server.recv(1000).decode() for _ in range(5)]
    assert words == ["READY=1", "STATUS=serving m 1.0.0", "STATUS=two lines", "WATCHDOG=1", "STOPPING=1"]


def test_without_systemd_nothing_is_said(tmp_path):
    notifier = Notifier({})
    notifier.ready()
    assert notifier.watchdog_s is None


def test_a_socket_that_is_gone_costs_a_line_in_the_log(tmp_path, caplog):
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).alive()
    assert "WATCHDOG=1 was not taken" in caplog.text


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_ours_or_none(environ, expected):
    assert Notifier({"NOTIFY_SOCKET": "/x", **environ}, pid=7).watchdog_s == expected
