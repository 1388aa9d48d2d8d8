"""Clients that ask in a closed loop and note how long each answer took.

    python -m benchmarks.runtime.load ADDRESS REQUEST_FILE OUTPUT CLIENTS

A process of its own for all of them, which shares no lock with what it measures. A connection on which the server said that it
closes is followed by a new one, as with any HTTP client. It goes on until its standard input ends. Then it writes ``OUTPUT``, two
int64 for each request that was answered, its beginning and how long it took, in nanoseconds of the monotonic clock; and prints as
JSON what failed.
"""

import json
import sys
import threading
import time
from array import array
from pathlib import Path

from benchmarks.runtime.exchange import Exchange

_PAUSE_S = 0.001
"""Between two requests of a client: some 800 a second each, which leaves two cores room for a worker that loads."""


class Client(threading.Thread):
    """One that asks.

    Attributes:
        taken: Beginning and length of each answered request.
        failures: What happened to the others.
    """

    def __init__(self, address: str, request: bytes) -> None:
        super().__init__(daemon=True)
        self._address, self._request = address, request
        self._over = threading.Event()
        self.taken = array("q")
        self.failures: list[str] = []

    def run(self) -> None:
        """Ask until it is over."""
        exchange: Exchange | None = None
        while not self._over.wait(_PAUSE_S):
            begun = time.perf_counter_ns()
            try:
                exchange = exchange or Exchange(self._address, self._request)
                answer = exchange()
            except (OSError, RuntimeError) as error:
                self.failures.append(f"{begun}: {error!r}")
                exchange = None
                continue
            self.taken.extend((begun, time.perf_counter_ns() - begun))
            if b"connection: close" in answer[: answer.index(b"\r\n\r\n")].lower():
                exchange.close()
                exchange = None

    def stop(self) -> None:
        """End after the request that is under way."""
        self._over.set()
        self.join()


def main(address: str, request_file: Path, output: Path, clients: int) -> None:
    """Ask until standard input ends."""
    asking = [Client(address, request_file.read_bytes()) for _ in range(clients)]
    for client in asking:
        client.start()
    sys.stdin.read()
    for client in asking:
        client.stop()
    with output.open("wb") as stream:
        for client in asking:
            client.taken.tofile(stream)
    print(json.dumps([failure for client in asking for failure in client.failures]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
