"""The two people that the demo stands in for: the operator who uses the server's API, and the one who labels samples."""

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edgeops.bundle import Bundle, pack
from edgeops.errors import EdgeOpsError
from edgeops_demo.images import Labels
from edgeops_fleet.client import Client


class Operator(Client):
    """Uses the server's REST API, as the command line does."""

    def publish(self, bundle: Bundle) -> None:
        """Upload a bundle.

        Raises:
            EdgeOpsError: The server is away, or refuses it; with its answer.
        """
        with tempfile.TemporaryDirectory() as directory:
            archive = Path(directory) / "bundle.tar"
            pack(bundle, archive)
            with archive.open("rb") as stream:
                self.upload("/api/v1/bundles", stream, size_bytes=archive.stat().st_size)


class Labeller(threading.Thread):
    """Somebody who looks at every sample that comes in and says what it shows.

    The id of a sample's request names the image, so the truth can be looked up. Nobody can tell what a picture of the sun shows.
    """

    def __init__(self, operator: Operator, truth: Labels) -> None:
        super().__init__(name="labeller", daemon=True)
        self.labelled = 0
        self.failure: EdgeOpsError | None = None
        self._operator, self._truth = operator, truth
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End after the batch that is under way."""
        self._stopped.set()

    def run(self) -> None:
        """Label what has no label, until stopped."""
        while not self._stopped.wait(0.5):
            try:
                self._label_what_is_there()
            except EdgeOpsError as error:
                self.failure = error

    def _label_what_is_there(self) -> None:
        waiting = self._operator.get("/api/v1/samples?labelled=false&limit=500")["samples"]
        labels = [
            {"sample": sample["id"], "label": int(self._truth[int(sample["request"].partition("-")[2])])}
            for sample in waiting
            if sample["request"].startswith("scene-")
        ]
        if labels:
            self._operator.post("/api/v1/labels", labels)
            self.labelled += len(labels)


def wait_until(
    condition: Callable[[], bool], *, timeout_s: float, what: str, on_timeout: Callable[[], str] = lambda: ""
) -> None:
    """Look every quarter of a second until something holds.

    Raises:
        EdgeOpsError: The time is over; says what was waited for, and what ``on_timeout`` adds.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise EdgeOpsError(f"{what}: not within {timeout_s:.0f} s. {on_timeout()}".strip())
        time.sleep(0.25)
