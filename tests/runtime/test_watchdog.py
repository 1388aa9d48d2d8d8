"""The life sign: who is well, who is not, and what is asked over the socket."""

import socket
import threading

import pytest

from edgeops_runtime.loop import Loop
from edgeops_runtime.systemd import Notifier
from edgeops_runtime.watchdog import GRACE_S, Checkup, Health, Situation, Watchdog, ask, judge

GOOD = Health(is_well=True, good_at=100.0, answered=5)
LATE = 100.0 + GRACE_S


@pytest.mark.parametrize(
    ("answer", "situation", "now", "is_well", "good_at"),
    [
        (Checkup.PASSED, Situation(is_wanted=True, answered=5), LATE + 999, True, LATE + 999),
        (Checkup.SILENT, Situation(is_wanted=True, answered=5), LATE - 1, True, 100.0),  # A worker may be starting.
        (Checkup.SILENT, Situation(is_wanted=True, answered=5), LATE, False, 100.0),
        (Checkup.WRONG, Situation(is_wanted=True, answered=5), LATE, False, 100.0),
        (Checkup.SILENT, Situation(is_wanted=True, answered=6), LATE, True, LATE),  # Busy, and it works.
        (Checkup.WRONG, Situation(is_wanted=True, answered=6), LATE, False, 100.0),  # Busy with wrong answers.
        (Checkup.SILENT, Situation(is_wanted=False, answered=5), LATE, True, LATE),
        (Checkup.SILENT, Situation(is_wanted=True, is_given_up=True), LATE, True, 100.0),
    ],
)
def test_who_is_well(answer, situation, now, is_well, good_at):
    after = judge(GOOD, answer, "why", situation, now=now)
    assert (after.is_well, after.good_at) == (is_well, good_at)


class Server:
    """Gives one answer to every connection; ``None`` none at all."""

    def __init__(self, listening: socket.socket, answer: bytes | None) -> None:
        self.listening, self.answer, self.requests = listening, answer, []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(1000))
                if self.answer is None:
                    connection.recv(1000)  # Until the other side gives up.
                else:
                    connection.sendall(self.answer)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", Checkup.PASSED),
        (b'HTTP/1.1 500 Internal Server Error\r\n\r\n{"error":"differs by 9"}', Checkup.WRONG),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", Checkup.WRONG),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", Checkup.SILENT),
        (b"", Checkup.SILENT),
        (b"nonsense", Checkup.SILENT),
        (None, Checkup.SILENT),
    ],
)
@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_what_the_answer_says(kind, answer, expected, tmp_path):
    if kind == "unix":
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        address = f"unix:{tmp_path / 'socket'}"
    else:
        listening = socket.create_server(("127.0.0.1", 0))
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    with listening:
        server = Server(listening, answer)
        found, reason = ask(address, timeout_s=0.3 if answer is None else 20)
    assert found is expected, reason
    if answer is not None:  # Else the server may be slower than our patience.
        assert server.requests[0].startswith(b"GET /edgeops/checkup HTTP/1.1\r\n")


def test_nobody_at_the_address_is_silence(tmp_path):
    assert ask(f"unix:{tmp_path / 'nobody'}")[0] is Checkup.SILENT


class Kennel:
    def __init__(self, environ: dict[str, str]) -> None:
        self.now = 0.0
        self.answer = (Checkup.PASSED, "")
        self.situation = Situation(is_wanted=True)
        self.signs, self.notices, self.counted = [], [], 0
        self.loop = Loop(lambda: self.now)
        notifier = Notifier(environ)
        notifier.alive = lambda: self.signs.append(self.now)
        self.dog = Watchdog(
            loop=self.loop,
            uptime=lambda: self.now,
            notifier=notifier,
            ask=lambda: self.answer,
            situation=lambda: self.situation,
            count=self.count,
            notice=lambda kind, text: self.notices.append(f"{kind}: {text}"),
        )

    def count(self) -> None:
        self.counted += 1

    def check(self) -> None:
        """One checkup, and its answer in the loop's thread."""
        self.dog.look()
        callback = self.loop._queue.get(timeout=20) if self.situation.is_wanted else lambda: None
        callback()


WATCHED = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "60000000"}


def test_the_life_sign_follows_the_answer_and_stops_with_it():
    kennel = Kennel(WATCHED)
    kennel.check()
    kennel.answer = (Checkup.WRONG, "differs")
    for kennel.now in (20.0, 40.0, 60.0, 80.0, 100.0, 120.0):
        kennel.check()
    assert kennel.signs == [0.0, 20.0, 40.0, 60.0, 80.0]
    assert len(kennel.notices) == 1
    assert "differs" in kennel.notices[0]
    kennel.answer = (Checkup.PASSED, "")
    kennel.check()
    assert kennel.signs[-1] == 120.0


def test_without_a_model_there_is_nothing_to_ask_and_all_is_well():
    kennel = Kennel(WATCHED)
    kennel.answer = (Checkup.WRONG, "nobody may ask")
    kennel.situation = Situation(is_wanted=False)
    kennel.check()
    assert kennel.signs == [0.0]


def test_silence_has_the_workers_say_what_they_did():
    kennel = Kennel(WATCHED)
    kennel.answer = (Checkup.SILENT, "busy")
    kennel.check()
    assert kennel.counted == 1


def test_where_nobody_waits_for_a_life_sign_nothing_is_asked():
    kennel = Kennel({})
    kennel.dog.look()
    assert kennel.loop._queue.empty()
