"""The embedded MQTT broker: rumqttd from the iotcore wheel, in a child process that ends with us and is restarted when it dies.

It keeps nothing over a restart; whoever connects to it publishes retained messages anew.
"""

import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import iotcore

from edgeops.errors import LinkError

logger = logging.getLogger(__name__)

MAX_PAYLOAD_BYTES = 512 << 10
"""Four times the largest message of the contract; rumqttd's default of 20 kB would cut off devices that send a profile."""

_CONFIG = """\
# Written by edgeops at every start.
id = 0

[router]
id = 0
max_connections = 10010
# A subscriber that falls behind by more than this many messages at once waits for the next round; nothing is dropped.
max_outgoing_packet_count = 10000
# What the router holds for slow subscribers of one filter, at most: segments of this size, this many of them.
max_segment_size = 16777216
max_segment_count = 10

[v4.1]
name = "edgeops"
listen = "{host}:{port}"
next_connection_delay_ms = 1

[v4.1.connections]
connection_timeout_ms = 20000
max_payload_size = {payload}
max_inflight_count = 1000
dynamic_filters = true
"""

_PORT_WAIT_S = 10.0
_RESTART_S = 1.0


class EmbeddedBroker:
    """A broker in a child process.

    Args:
        directory: Where its configuration is written.
        host: Address to bind to.
        port: Port to bind to; must be free, or become free within a few seconds (of a predecessor that was killed).
    """

    def __init__(self, directory: Path, *, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._config = directory / "broker.toml"
        self._broker: iotcore.Broker | None = None
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="broker", daemon=True)

    def start(self) -> None:
        """Start it and wait until it accepts connections.

        Raises:
            LinkError: The port is taken, or it does not start.
        """
        config = _CONFIG.format(host=self.host, port=self.port, payload=MAX_PAYLOAD_BYTES)
        self._config.write_text(config)
        if not self._until(self._try_start, timeout_s=_PORT_WAIT_S):
            raise LinkError(f"embedded broker: {self.host}:{self.port} is taken; choose another with --mqtt-port")
        self._watcher.start()

    def stop(self) -> None:
        """End the child process."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join(timeout=10)
        if self._broker is not None:
            self._broker.stop()

    @property
    def pid(self) -> int | None:
        """The process id of the child; ``None`` when it does not run."""
        process = self._broker._process if self._broker is not None else None  # noqa: SLF001 - iotcore does not show it
        return process.pid if process is not None else None

    def _try_start(self) -> bool:
        try:
            self._broker = iotcore.Broker(config_path=str(self._config)).start()
        except OSError as error:
            logger.debug("embedded broker: %s", error)
            return False
        except RuntimeError as error:
            logger.warning("embedded broker: %s", error)
            return False
        return True

    def _watch(self) -> None:
        while not self._stopping.wait(_RESTART_S):
            if self._broker is not None and not self._broker.is_running:
                logger.error("embedded broker: its process ended; starting it again")
                self._broker.stop()
                self._try_start()

    def _until(self, attempt: Callable[[], bool], *, timeout_s: float) -> bool:
        pause_s = 0.1
        for _ in range(int(timeout_s / pause_s)):
            if attempt():
                return True
            if self._stopping.wait(pause_s):
                return False
        return False


def free_port(host: str) -> int:
    """A port that is free right now."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        port: int = listener.getsockname()[1]
        return port
