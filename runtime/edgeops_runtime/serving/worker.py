"""The worker process: one variant of one bundle on one engine, answering on a socket that it inherits.

The agent starts it with ``python -m edgeops_runtime.serving`` and tells it what to do, as
:mod:`edgeops_runtime.control` says. The main thread converses with the agent, each connection has a thread. When the agent is
gone the worker exits at once: whoever restarts the agent starts new workers.
"""

import fcntl
import gc
import os
import signal
import socket
import stat
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from edgeops.bundle import open_bundle
from edgeops.errors import EdgeOpsError, MessageError
from edgeops_runtime.control import (
    MQTT_VARIABLE,
    Collect,
    ControlSocket,
    Drain,
    Drained,
    Ease,
    Failed,
    FromAgent,
    Golden,
    Launch,
    Pause,
    Paused,
    Ready,
    Recent,
    RecentResult,
    Serve,
    Serving,
    Shadow,
    Window,
)
from edgeops_runtime.engines.engine import Tensors
from edgeops_runtime.serving.budget import ThreadBudget
from edgeops_runtime.serving.capture import Capture, RecentRows
from edgeops_runtime.serving.checkup import Checkup
from edgeops_runtime.serving.comparison import compare_golden, run_shadow
from edgeops_runtime.serving.listener import Listener
from edgeops_runtime.serving.model import LoadedModel, give_memory_back, load_variant, resident_bytes
from edgeops_runtime.serving.pipeline import Answer
from edgeops_runtime.serving.priority import Cores, yield_to_others
from edgeops_runtime.serving.protocols import Protocols
from edgeops_runtime.serving.repository import Repository, Served
from edgeops_runtime.serving.shedding import Shedder

if TYPE_CHECKING:
    from edgeops.mqtt_requests import MqttRequests

_AGENT_GONE = 70
_HELLO_S = 5.0
_GOODBYE_S = 5.0


class Worker:
    """Does what the agent says with one model."""

    def __init__(
        self,
        model: LoadedModel,
        control: ControlSocket,
        listening: socket.socket,
        *,
        threads: int,
        mqtt_url: str | None,
    ) -> None:
        self._model = model
        self._control = control
        self._recent = RecentRows(model.manifest)
        self._capture = Capture(model.manifest, control.send, is_classifier=model.is_classifier)
        self._cores = Cores()
        served = Served(model, budget=ThreadBudget.for_machine(threads), observer=self._observe)
        self._repository = Repository(served)
        self._protocols = Protocols(self._repository)
        self._shedder = Shedder(self._protocols)
        self._listener = Listener(listening, Checkup(served, self._shedder))
        self._mqtt_url = mqtt_url
        self._mqtt: MqttRequests | None = None
        self._is_draining = False

    def obey(self) -> NoReturn:
        """Follow the agent's orders until it says drain, or is gone; then end the process."""
        while True:
            try:
                order = self._control.receive_from_agent()
            except MessageError as error:
                self._control.send(Failed(what="control", reason=str(error)))
                continue
            if order is None:
                # Nobody is left to tell, and nothing is to be saved.
                os._exit(_AGENT_GONE)
            try:
                self._follow(order)
            except (EdgeOpsError, OSError) as error:
                self._control.send(Failed(what=type(order).__name__.lower(), reason=str(error)))

    def _follow(self, order: FromAgent) -> None:
        match order:
            case Golden():
                self._control.send(compare_golden(self._model))
            case Recent():
                self._control.send(RecentResult(count=self._recent.write(Path(order.path), order.count)))
            case Shadow():
                threading.Thread(target=self._shadow, args=(order,), name="shadow", daemon=True).start()
            case Serve():
                self._listener.start()
                self._open_mqtt()
                self._control.send(Serving())
            case Pause():
                self._close_mqtt()
                self._listener.pause()
                self._control.send(Paused())
            case Window():
                self._control.send(msgspec.structs.replace(self._model.window(), busy_s=self._listener.busy_s))
            case Collect():
                self._capture.order(order)
            case Ease():
                self._capture.is_paused = not order.capture
                self._shedder.share = order.shed
                self._cores.limit(order.cores)
            case Drain():
                self._begin_draining(order.timeout_s)

    def _shadow(self, order: Shadow) -> None:
        """On a thread of its own, since the way to the lowest priority is one-way."""
        yield_to_others()
        try:
            self._control.send(run_shadow(self._model, Path(order.path), budget_s=order.budget_s))
        except (EdgeOpsError, OSError) as error:
            self._control.send(Failed(what="shadow", reason=str(error)))

    def _begin_draining(self, timeout_s: float) -> None:
        """Drain beside the conversation, so that the agent may still be heard; a second order is the last call."""
        if self._is_draining:
            self._listener.hang_up()
            return
        self._is_draining = True
        threading.Thread(target=self._drain, args=(timeout_s,), name="drain", daemon=True).start()

    def _open_mqtt(self) -> None:
        if self._mqtt_url is None or self._mqtt is not None:
            return
        from edgeops_runtime.serving.mqtt import open_mqtt  # noqa: PLC0415 - paho is for those who use it

        self._mqtt = open_mqtt(self._mqtt_url, self._shedder, self._protocols.metrics)
        # The one before us is about to leave, and a broker keeps no request for nobody. One that is away gets none either.
        self._mqtt.wait_ready(_HELLO_S)

    def _close_mqtt(self) -> threading.Thread | None:
        """Say goodbye beside the conversation: a broker that is away must not make the agent wait."""
        requests, self._mqtt = self._mqtt, None
        if requests is None:
            return None
        goodbye = threading.Thread(target=requests.close, name="mqtt goodbye", daemon=True)
        goodbye.start()
        return goodbye

    def _drain(self, timeout_s: float) -> None:
        self._repository.leave()
        goodbye = self._close_mqtt()
        self._listener.drain(timeout_s)
        if goodbye is not None:
            goodbye.join(_GOODBYE_S)
        self._capture.close()
        self._control.send(Drained(window=self._model.window()))
        # Engines are known to crash while an interpreter tears them down; there is nothing to tear down for.
        os._exit(0)

    def _observe(self, request: str, feeds: Tensors, answer: Answer) -> None:
        self._recent.add(feeds, answer.outputs, answer.rows)
        self._capture.offer(request, feeds, answer)


def main(argument: str) -> None:
    """Serve one variant of a bundle; started by the agent.

    Args:
        argument: Of a :class:`~edgeops_runtime.control.Launch`.
    """
    launch = Launch.from_argument(argument)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the agent decides.
    for stream in (sys.stdout, sys.stderr):
        _never_block(stream.fileno())
    control = ControlSocket(socket.socket(fileno=launch.control_fd))
    listening = socket.socket(fileno=launch.listen_fd)
    start = time.monotonic()
    try:
        bundle = open_bundle(launch.bundle, partial=True)
        variant = bundle.manifest.variant(launch.variant)
        model = load_variant(bundle, variant, launch.engine, threads=launch.threads, options=launch.options)
    except EdgeOpsError as error:
        control.send(Failed(what="load", reason=str(error)))
        sys.exit(1)
    mqtt_url = os.environ.get(MQTT_VARIABLE)
    worker = Worker(model, control, listening, threads=launch.threads, mqtt_url=mqtt_url)
    control.send(
        Ready(
            engine=launch.engine,
            engine_version=model.engine_version,
            pid=os.getpid(),
            rss_bytes=resident_bytes(),
            load_s=time.monotonic() - start,
        )
    )
    give_memory_back()  # What the load took: the agent has its answer, and nobody asks yet.
    gc.freeze()  # What is there now stays, and need not be looked through again.
    gc.enable()
    worker.obey()


def _never_block(descriptor: int) -> None:
    """Let writes to a pipe that nobody reads fail rather than wait: an engine's chatter must not stop inference."""
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_NONBLOCK)
