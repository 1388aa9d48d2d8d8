"""The socket on which inferences are served: bound once by the agent, inherited by every worker.

The agent never accepts on it. While no worker does, connections wait in its backlog.
"""

import contextlib
import errno
import logging
import os
import socket
import threading
from pathlib import Path

from edgeops.errors import ConfigError, ConflictError
from edgeops.files import write_durably
from edgeops_runtime.config import parse_listen

logger = logging.getLogger(__name__)

_BACKLOG = 512
_RETRY_S = 0.05
_TRIES = 40
_LONGEST_PATH = 107


class Endpoint:
    """A bound socket that listens.

    Args:
        listen: ``host:port`` or ``unix:/path``. Port 0 takes the port of the last time, so that callers find it again after a
            restart; where that is taken or was never given, any free one.
        address_file: The real address is written here.

    Raises:
        ConfigError: The address is not one of this machine.
        ConflictError: Something else listens there.
    """

    def __init__(self, listen: str, *, address_file: Path) -> None:
        place = parse_listen(listen)
        self._unix_path = place if isinstance(place, Path) else None
        self._socket = _listen_unix(place) if isinstance(place, Path) else _listen_tcp(*place, address_file)
        self._socket.listen(_BACKLOG)
        if self._unix_path is not None:
            self.address = f"unix:{self._unix_path}"
        else:
            host, port = self._socket.getsockname()[:2]
            self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            write_durably(address_file, f"{self.address}\n".encode())
        except OSError as error:
            # A full disk is no reason not to serve; who looks for a port that was drawn anew will not find it there.
            logger.warning("%s: not written: %s; inferences are served at %s", address_file, error, self.address)

    def fileno(self) -> int:
        """The descriptor that workers inherit."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
        if self._unix_path is not None:
            self._unix_path.unlink(missing_ok=True)


def _listen_tcp(host: str, port: int, address_file: Path) -> socket.socket:
    if port:
        return _bind_tcp(host, port, tries=_TRIES)
    with contextlib.suppress(OSError, ValueError, ConflictError, ConfigError):
        last = address_file.read_text().strip()
        if last.rpartition(":")[0].strip("[]") == host:
            return _bind_tcp(host, int(last.rpartition(":")[2]), tries=_TRIES // 4)
    return _bind_tcp(host, 0, tries=1)


def _bind_tcp(host: str, port: int, *, tries: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    waiter = threading.Event()
    for attempt in range(1, tries + 1):
        candidate = socket.socket(family, socket.SOCK_STREAM)
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(address)
            candidate.listen(_BACKLOG)
        except OSError as error:
            candidate.close()
            if not isinstance(error, PermissionError) and attempt < tries:
                # A worker of the agent before holds it for the moments that it takes to notice that it is alone.
                waiter.wait(_RETRY_S)
                continue
            raise ConflictError(
                f"listen {host}:{port}: {error.strerror}; is another agent or program there?"
            ) from error
        return candidate
    raise ConflictError(f"listen {host}:{port}: taken")


def _listen_unix(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            _wait_until_left(path)
            path.unlink(missing_ok=True)
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise ConfigError(f"listen unix:{path}: {error.strerror or error}{_hint(path)}") from error
    except ConflictError:
        listening.close()
        raise
    return listening


def _hint(path: Path) -> str:
    size = len(os.fsencode(path))
    if size <= _LONGEST_PATH:
        return ""
    return (
        f": {size} bytes, at most {_LONGEST_PATH} are possible; set listen to a shorter unix:/path, or to address:port"
    )


def _wait_until_left(path: Path) -> None:
    """A socket file stays when its owner is killed; one that somebody listens on is not taken away from them."""
    waiter = threading.Event()
    for _ in range(_TRIES):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            if probe.connect_ex(str(path)) in {errno.ECONNREFUSED, errno.ENOENT}:
                return
        waiter.wait(_RETRY_S)  # As above.
    raise ConflictError(f"listen unix:{path}: somebody listens there; is another agent or program there?")
