"""The life sign for systemd: sent only after a golden row came out right over the socket that callers use.

The network has no part in it. What it comes down to is :func:`judge`, which is pure: an answer, what is known of the worker and
the time in, well or ill out. An agent whose loop hangs sends nothing, and is restarted for that too.
"""

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from enum import Enum
from pathlib import Path

import msgspec

from edgeops_runtime.config import parse_listen
from edgeops_runtime.loop import Loop
from edgeops_runtime.systemd import Notifier

logger = logging.getLogger(__name__)

CHECKUP_PATH = "/edgeops/checkup"
"""Answered by :mod:`edgeops_runtime.serving.checkup`, which the agent does not load."""

GRACE_S = 90.0
"""Without a right answer; a worker that is started anew loads its model within it."""

_TIMEOUT_S = 10.0
_OK, _BUSY = 200, 503


class Checkup(Enum):
    """What came back from the serving socket."""

    PASSED = "passed"
    WRONG = "wrong"
    """It answered, and not rightly."""
    SILENT = "silent"
    """No answer, or one that it has too much to do."""


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """What else is known.

    Attributes:
        is_wanted: Whether a version is there to be served.
        is_given_up: Whether the version itself is at fault, so that a new agent would do no better.
        answered: Requests that workers have answered without an error since the agent's start.
    """

    is_wanted: bool
    is_given_up: bool = False
    answered: int = 0


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How it is.

    Attributes:
        is_well: Whether to send the life sign.
        good_at: The last moment that all was in order, monotonic, in seconds.
        answered: Of the situation then.
        reason: Why it is not in order; empty when it is.
    """

    is_well: bool
    good_at: float
    answered: int = 0
    reason: str = ""


def judge(before: Health, answer: Checkup, reason: str, situation: Situation, *, now: float) -> Health:
    """How it is after one more checkup.

    Args:
        before: After the last one.
        answer: What came back.
        reason: With an answer that is not ``PASSED``.
        situation: What else is known.
        now: Monotonic time in seconds.

    >>> start = Health(is_well=True, good_at=0.0)
    >>> wanted = Situation(is_wanted=True)
    >>> [judge(start, Checkup.SILENT, "refused", wanted, now=now).is_well for now in (60.0, 91.0)]
    [True, False]
    """
    # A worker with more requests than it can take may not get to the checkup; that it answers them is proof enough.
    works = answer is Checkup.SILENT and situation.answered > before.answered
    if not situation.is_wanted or answer is Checkup.PASSED or works:
        return Health(is_well=True, good_at=now, answered=situation.answered)
    is_well = situation.is_given_up or now - before.good_at < GRACE_S
    return Health(is_well=is_well, good_at=before.good_at, answered=situation.answered, reason=reason)


class Watchdog:
    """Asks again and again, and tells systemd.

    Args:
        loop: The agent's; the life sign is sent from its thread.
        uptime: Monotonic time in seconds.
        notifier: To systemd.
        ask: Asks over the serving socket; called on a thread of its own.
        situation: What else is known; called on the loop's thread.
        count: Has the workers say how much they have answered; called after a checkup without an answer.
        notice: Takes ``(kind, text)`` for the log.
    """

    def __init__(
        self,
        *,
        loop: Loop,
        uptime: Callable[[], float],
        notifier: Notifier,
        ask: Callable[[], tuple[Checkup, str]],
        situation: Callable[[], Situation],
        count: Callable[[], None],
        notice: Callable[[str, str], None],
    ) -> None:
        self._loop, self._uptime, self._notifier = loop, uptime, notifier
        self._ask, self._situation, self._count, self._notice = ask, situation, count, notice
        self._health = Health(is_well=True, good_at=uptime())
        # Three times within the limit: one checkup may time out without costing the agent its life.
        self._every_s = notifier.watchdog_s / 3 if notifier.watchdog_s is not None else None

    def look(self) -> None:
        """Begin a checkup, where systemd waits for one."""
        if self._every_s is None:
            return
        if not self._situation().is_wanted:
            self._heard((Checkup.SILENT, "nothing is to be served"))
            return
        threading.Thread(target=self._check, name="checkup", daemon=True).start()

    def _check(self) -> None:
        answer = self._ask()
        self._loop.post(lambda: self._heard(answer))

    def _heard(self, answer: tuple[Checkup, str]) -> None:
        if self._every_s is not None:
            self._loop.call_later(self._every_s, self.look)
        before = self._health
        if answer[0] is Checkup.SILENT:
            self._count()
        self._health = judge(before, *answer, self._situation(), now=self._uptime())
        if self._health.is_well:
            self._notifier.alive()
        elif before.is_well:
            self._notice(
                "unhealthy", f"no right answer for {GRACE_S:g} s: {self._health.reason}; systemd is to start me anew"
            )


def ask(address: str, *, timeout_s: float = _TIMEOUT_S) -> tuple[Checkup, str]:
    """Ask for a golden row over the serving socket.

    Args:
        address: As :class:`edgeops_runtime.endpoint.Endpoint` has it.
        timeout_s: For each step.

    Returns:
        What came back, and a reason where that is not ``PASSED``.
    """
    place = parse_listen(address)
    family = socket.AF_UNIX if isinstance(place, Path) else socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    try:
        with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(place) if isinstance(place, Path) else place)
            connection.sendall(f"GET {CHECKUP_PATH} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n".encode())
            answer = _read_all(connection)
    except OSError as error:
        return Checkup.SILENT, f"{address}: {error}"
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    code = int(status[0]) if status and status[0].isdigit() else 0
    if code == _OK:
        return Checkup.PASSED, ""
    text = body[:300].decode(errors="replace")
    return (Checkup.SILENT if code in {0, _BUSY} else Checkup.WRONG), f"{address}: status {code}: {text}"


def _read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)
