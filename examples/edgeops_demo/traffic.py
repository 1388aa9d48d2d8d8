"""Cameras that ask their device all the time: one thread a device, real requests over HTTP, every answer counted.

Requests are the Open Inference Protocol with the binary extension. A connection is kept alive and made anew when the device
says so; a request is never repeated, so whatever goes wrong is seen. The id of a request names the image, so that a person who
labels a sample later can look it up.
"""

import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops_demo.cameras import overexpose
from edgeops_demo.images import Split

FLASH_EVERY = 25
"""Every so manieth frame has the sun in it."""

Lens = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


class Tally(msgspec.Struct):
    """What one camera has seen of its device."""

    requests: int = 0
    failed: int = 0
    correct: int = 0
    judged: int = 0
    last_failure: str = ""


class Camera(threading.Thread):
    """Sends images to one device until it is stopped.

    Args:
        name: The device's id.
        address: ``host:port`` of the device.
        model: The model to ask.
        scenes: What is in front of the camera.
        per_second: Requests a second.
        seed: Of the order of the images.
    """

    def __init__(self, name: str, address: str, *, model: str, scenes: Split, per_second: float, seed: int) -> None:
        super().__init__(name=f"camera {name}", daemon=True)
        self.tally = Tally()
        self.lens: Lens = np.asarray
        self._address, self._model, self._scenes = address, model, scenes
        self._period_s = 1 / per_second
        self._order = np.random.default_rng(seed).permutation(len(scenes))
        self._stopped = threading.Event()
        self._connection: http.client.HTTPConnection | None = None

    def stop(self) -> None:
        """End after the request that is under way."""
        self._stopped.set()

    def run(self) -> None:
        """Wait until the device serves, then ask at the given rate."""
        while not self._stopped.is_set() and not self._is_ready():
            self._stopped.wait(0.1)
        due, turn = time.monotonic(), 0
        while not self._stopped.is_set():
            self._ask(turn)
            turn += 1
            due = max(due + self._period_s, time.monotonic() - 1.0)
            self._stopped.wait(max(due - time.monotonic(), 0))
        self._disconnect()

    def _ask(self, turn: int) -> None:
        index = int(self._order[turn % len(self._order)])
        is_flash = turn % FLASH_EVERY == FLASH_EVERY - 1
        scene = self._scenes.images[index : index + 1]
        image = overexpose(scene) if is_flash else self.lens(scene)
        self.tally.requests += 1
        try:
            answer = self._infer(image, request_id=f"{'flash' if is_flash else 'scene'}-{index}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.tally.failed += 1
            self.tally.last_failure = f"{type(error).__name__}: {error}"
            self._disconnect()
            return
        if not is_flash:
            self.tally.judged += 1
            self.tally.correct += int(answer.argmax() == self._scenes.labels[index])

    def _infer(self, image: NDArray[np.uint8], *, request_id: str) -> NDArray[np.float32]:
        header = json.dumps(
            {
                "id": request_id,
                "inputs": [
                    {
                        "name": "image",
                        "datatype": "UINT8",
                        "shape": list(image.shape),
                        "parameters": {"binary_data_size": image.nbytes},
                    }
                ],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        body = header + image.tobytes()
        headers = {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"}
        connection = self._connect()
        connection.request("POST", f"/v2/models/{self._model}/infer", body=body, headers=headers)
        response = connection.getresponse()
        data = response.read()
        if response.status != http.client.OK:
            raise ValueError(f"HTTP {response.status}: {data[:200]!r}")
        size = int(response.headers["Inference-Header-Content-Length"])
        if json.loads(data[:size])["id"] != request_id:
            raise ValueError("the answer belongs to another request")
        if response.will_close:
            self._disconnect()
        scores = np.frombuffer(data, dtype="<f4", offset=size)
        if not np.isfinite(scores).all():
            raise ValueError(f"the answer is not finite: {scores}")
        return scores

    def _is_ready(self) -> bool:
        try:
            connection = self._connect()
            connection.request("GET", f"/v2/models/{self._model}/ready")
            response = connection.getresponse()
            response.read()
            if response.will_close:
                self._disconnect()
        except (OSError, http.client.HTTPException):
            self._disconnect()
            return False
        return response.status == http.client.OK

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is None:
            host, _, port = self._address.rpartition(":")
            self._connection = http.client.HTTPConnection(host, int(port), timeout=10)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def total(tallies: Mapping[str, Tally]) -> Tally:
    """The sum over cameras, with one of the failures."""
    every = tallies.values()
    return Tally(
        requests=sum(tally.requests for tally in every),
        failed=sum(tally.failed for tally in every),
        correct=sum(tally.correct for tally in every),
        judged=sum(tally.judged for tally in every),
        last_failure=next((tally.last_failure for tally in every if tally.last_failure), ""),
    )
