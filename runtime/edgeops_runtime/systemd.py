"""Telling systemd how the agent is: the notify protocol over a datagram socket, a dozen lines rather than a library.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html; without ``NOTIFY_SOCKET`` everything here does nothing.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Mapping

logger = logging.getLogger(__name__)

_SEND_TIMEOUT_S = 1.0


class Notifier:
    """Says how it is.

    Args:
        environ: Has ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``, where systemd has set them.
        pid: Of this process; a watchdog that is meant for another is none.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, *, pid: int | None = None) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        # "@" stands for the zero byte of the abstract namespace.
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self.watchdog_s = _watchdog_s(environ, pid or os.getpid()) if path else None
        """A life sign is due within this time, in seconds; ``None``: none is."""
        self._status = ""

    def ready(self) -> None:
        """The start is over."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """All is well; within ``watchdog_s`` once more."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """For ``systemctl status``; one line."""
        line = " ".join(text.split())
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)) as sender:
            sender.settimeout(_SEND_TIMEOUT_S)
            try:
                sender.sendto(state.encode(), self._address)
            except OSError as error:
                logger.warning("systemd: %s was not taken: %s", state, error)


def _watchdog_s(environ: Mapping[str, str], pid: int) -> float | None:
    microseconds, meant_for = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", str(pid))
    if not microseconds.isdigit() or not int(microseconds) or meant_for != str(pid):
        return None
    return int(microseconds) / 1e6
