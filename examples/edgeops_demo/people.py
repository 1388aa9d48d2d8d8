"""The two people that the demo stands in for: the operator who uses the server's API, and the one who labels samples."""

import json
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeops.bundle import Bundle, pack
from edgeops.errors import EdgeOpsError
from edgeops_demo.images import Labels


class Operator:
    """Calls the server's REST API.

    Args:
        url: Of the server.
        token: The operator's API token.
    """

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url, token

    def get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """Read a resource.

        Raises:
            EdgeOpsError: The server is away or says no; with its answer.
        """
        return self._call("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any] | list[Any] | None = None) -> Any:  # noqa: ANN401 - JSON
        """Ask for something to be done.

        Raises:
            EdgeOpsError: The server is away or says no; with its answer.
        """
        return self._call("POST", path, json.dumps(body if body is not None else {}).encode())

    def publish(self, bundle: Bundle) -> None:
        """Upload a bundle.

        Raises:
            EdgeOpsError: The server is away, or refuses it; with its answer.
        """
        with tempfile.TemporaryDirectory() as directory:
            archive = Path(directory) / "bundle.tar"
            pack(bundle, archive)
            self._call("POST", "/api/v1/bundles", archive.read_bytes(), content_type="application/x-tar")

    def _call(self, method: str, path: str, body: bytes | None, *, content_type: str = "application/json") -> Any:  # noqa: ANN401 - JSON
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": content_type}
        request = urllib.request.Request(self.url + path, data=body, headers=headers, method=method)  # noqa: S310 - http
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - http
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise EdgeOpsError(
                f"{method} {path}: HTTP {error.code}: {error.read().decode(errors='replace')}"
            ) from error
        except (OSError, ValueError) as error:
            raise EdgeOpsError(f"{method} {path}: {error}") from error


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
