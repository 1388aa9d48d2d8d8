"""A worker without an engine, for the tests of the agent: a real process that speaks the control lines and answers HTTP.

It does what ``model.onnx`` of its bundle says, a JSON object: ``{"load": "dies" | "fails", "golden": false, "shadow": {…},
"serve": "dies", "window": {…}, "ends": {…}}``; an empty object is a healthy model. Every answer is the name of the version.
``ends`` is ``{"at": "load" | "golden" | "shadow" | "request", "by": "SIGILL" | … | "exit" | "hang", "after": 0}``: a real end.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from edgeops.bundle import open_bundle
from edgeops.latency import latency_bucket
from edgeops.messages import about_sample
from edgeops.sealing import seal
from edgeops_runtime import control


def reach(script, place, count=0):
    """The model may end here, as it says."""
    ends = script.get("ends", {})
    if ends.get("at") != place or count < ends.get("after", 0):
        return
    if ends["by"] == "exit":
        os._exit(0)
    if ends["by"] == "hang":
        threading.Event().wait()
    os.kill(os.getpid(), signal.Signals[ends["by"]])


class Worker:
    def __init__(self, script, version, lines, listening):
        self.script, self.version, self.lines, self.listening = script, version, lines, listening
        self.accepting = threading.Event()
        self.busy = 0
        self.requests = self.reported = 0
        self.under_way = {}
        self.started = time.time()
        self.lock = threading.Lock()

    def window(self):
        with self.lock:
            requests, self.reported = self.requests - self.reported, self.requests
        counts = {"errors": 0, "not_finite": 0, **self.script.get("window", {})} if requests else {}
        start, self.started = self.started, time.time()
        return control.WindowClosed(
            start=start,
            end=self.started,
            requests=requests,
            rows=requests,
            errors=counts.get("errors", 0),
            not_finite=counts.get("not_finite", 0),
            latency={latency_bucket(counts.get("latency_ns", 1_000_000)): requests} if requests else {},
            profile=None,
            rss_bytes=1 << 20,
            busy_s=max((time.monotonic() - begun for begun in list(self.under_way.values())), default=0.0),
        )

    def accept(self):
        self.listening.settimeout(0.02)
        while True:
            self.accepting.wait()
            try:
                connection, _ = self.listening.accept()
            except TimeoutError:
                continue
            with self.lock:
                self.busy += 1
            threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection):
        with connection:
            connection.settimeout(10)
            if connection.recv(65536):
                if self.script.get("serve") == "dies":
                    os._exit(9)
                self.under_way[connection] = time.monotonic()
                reach(self.script, "request", self.requests)
                del self.under_way[connection]
                body = self.version.encode()
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                with self.lock:
                    self.requests += 1
                connection.sendall(head.encode() + body)
        with self.lock:
            self.busy -= 1

    def drain(self, timeout_s):
        self.accepting.clear()
        deadline = time.monotonic() + timeout_s
        time.sleep(0.05)  # The accept that is under way.
        while self.busy and time.monotonic() < deadline:
            time.sleep(0.01)
        self.lines.send(control.Drained(window=self.window()))
        os._exit(0)

    def follow(self, line):
        match line:
            case control.Golden():
                reach(self.script, "golden")
                passed = self.script.get("golden", True)
                self.lines.send(
                    control.GoldenResult(
                        passed=passed, rows=1, largest_difference=0.0 if passed else 9.0, tolerance=0.1
                    )
                )
            case control.Recent():
                Path(line.path).write_bytes(b"recent")
                self.lines.send(control.RecentResult(count=min(self.requests, line.count)))
            case control.Shadow():
                reach(self.script, "shadow")
                assert Path(line.path).read_bytes() == b"recent"
                figures = {"answered": 4, "failed": 0, "not_finite": 0, "agreement": 1.0, "latency_ms": 1.0}
                self.lines.send(control.ShadowResult(**(figures | self.script.get("shadow", {}))))
            case control.Serve():
                self.accepting.set()
                self.lines.send(control.Serving())
            case control.Pause():
                self.accepting.clear()
                self.lines.send(control.Paused())
            case control.Window():
                self.lines.send(self.window())
            case control.Collect():
                for number in range(line.count):
                    sealed = seal(b"x" * 1000, to=line.seal_to, about=about_sample(line.command))
                    self.lines.send(
                        control.Sampled(command=line.command, request=str(number), probability=1.0, sealed=sealed)
                    )
            case control.Drain():
                threading.Thread(target=self.drain, args=(line.timeout_s,), daemon=True).start()


def main():
    launch = control.Launch.from_argument(sys.argv[1])
    lines = control.ControlSocket(socket.socket(fileno=launch.control_fd))
    bundle = open_bundle(launch.bundle, partial=True)
    script = json.loads(bundle.file("model.onnx").read_text())
    reach(script, "load")
    if script.get("load") == "dies":
        os.abort()
    if script.get("load") == "fails":
        lines.send(control.Failed(what="load", reason="no such operator"))
        sys.exit(1)
    worker = Worker(script, bundle.manifest.version, lines, socket.socket(fileno=launch.listen_fd))
    threading.Thread(target=worker.accept, daemon=True).start()
    lines.send(control.Ready(engine="scripted", engine_version="1", pid=os.getpid(), rss_bytes=1, load_s=0.0))
    while (line := lines.receive_from_agent()) is not None:
        worker.follow(line)
    os._exit(70)


if __name__ == "__main__":
    main()
