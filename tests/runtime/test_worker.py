"""Real worker processes, told what to do as the agent does."""

import contextlib
import os
import queue
import re
import resource
import socket
import subprocess
import sys
import threading
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeops.bundle import write_bundle
from edgeops.messages import SampleContent, about_sample
from edgeops.sealing import SealingKey
from edgeops_runtime.control import (
    CaptureEnded,
    Collect,
    Drain,
    Drained,
    Ease,
    Failed,
    Golden,
    GoldenResult,
    Launch,
    Pause,
    Paused,
    Ready,
    Recent,
    RecentResult,
    Sampled,
    Serve,
    Serving,
    Shadow,
    ShadowResult,
    Window,
    WindowClosed,
)
from edgeops_runtime.watchdog import Checkup, ask
from edgeops_runtime.worker_process import Gone, WorkerOrder, WorkerProcess

INFER = "/v2/models/digits/infer"


def body_of(image, request=""):
    tensor = {
        "name": "image",
        "datatype": "FP32",
        "shape": list(image.shape),
        "parameters": {"binary_data_size": image.nbytes},
    }
    text = msgspec.json.encode({"id": request, "inputs": [tensor]})
    return text + image.tobytes(), {"Inference-Header-Content-Length": str(len(text))}


def images(count, *, seed=0, brightness=0.4):
    return (np.random.default_rng(seed).random((count, 1, 28, 28)) * brightness).astype(np.float32)


class Client:
    """A caller that keeps its connection."""

    def __init__(self, listening):
        self._connection = HTTPConnection(*listening.getsockname(), timeout=30)

    def infer(self, image, request=""):
        body, headers = body_of(image, request)
        self._connection.request("POST", INFER, body, headers)
        answer = self._connection.getresponse()
        return answer.status, msgspec.json.decode(answer.read())

    def close(self):
        self._connection.close()


@pytest.fixture
def client(listening):
    made = Client(listening)
    yield made
    made.close()


def test_a_worker_says_what_it_is_when_it_is_ready(make_bundle, start_worker):
    worker = start_worker(make_bundle("1.0.0"))
    assert isinstance(worker.first, Ready), worker.first
    assert (worker.first.engine, worker.first.pid) == ("onnxruntime", worker.process.pid)
    assert worker.first.rss_bytes > 1 << 20
    assert worker.first.load_s > 0


@pytest.mark.parametrize(
    ("broken", "choice", "message"),
    [
        (None, ("nothing", "onnxruntime"), "no variant 'nothing'"),
        (None, ("onnx", "nothing"), "engine 'nothing': expected one of"),
        (None, ("onnx", "litert"), "model.onnx: litert .* cannot load it"),
        ("raises", ("onnx", "onnxruntime"), "onnxruntime cannot run it"),
    ],
)
def test_a_worker_that_cannot_load_says_why_and_exits(make_bundle, start_worker, broken, choice, message):
    worker = start_worker(make_bundle("1.0.0", broken), *choice)
    assert isinstance(worker.first, Failed)
    assert worker.first.what == "load"
    with pytest.raises(RuntimeError, match=message):
        raise RuntimeError(worker.first.reason)
    assert worker.control.receive_from_worker() is None
    assert worker.process.wait(20) == 1


def test_a_damaged_file_is_found_before_it_is_loaded(make_bundle, start_worker, tmp_path):
    bundle = make_bundle("1.0.0")
    copy = write_bundle(tmp_path / "copy", bundle.manifest, {name: bundle.file(name) for name in bundle.manifest.files})
    with copy.file("model.onnx").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"\xff")
    worker = start_worker(copy)
    assert isinstance(worker.first, Failed)
    assert "model.onnx: expected sha256" in worker.first.reason


@pytest.mark.parametrize(
    ("broken", "reason"), [(None, None), ("nan", "NaN or infinity"), ("wrong", "differs by"), ("slow", None)]
)
def test_the_golden_test_finds_what_is_wrong(make_bundle, start_worker, broken, reason):
    worker = start_worker(make_bundle("1.0.0", broken))
    result = worker.ask(Golden())
    assert isinstance(result, GoldenResult)
    assert result.passed is (reason is None)
    if reason is None:
        assert result.rows == 8
        assert result.largest_difference <= result.tolerance
    else:
        assert reason in result.reason
        assert "golden row 0" in result.reason
    if broken == "wrong":
        assert result.largest_difference > result.tolerance


def test_golden_vectors_without_this_variant_fail_the_order_and_not_the_worker(make_bundle, start_worker, tmp_path):
    bundle = make_bundle("1.0.0")
    np.savez(tmp_path / "golden.npz", **{"input/image": images(2)})
    files = {name: bundle.file(name) for name in bundle.manifest.files} | {"golden.npz": tmp_path / "golden.npz"}
    worker = start_worker(write_bundle(tmp_path / "copy", bundle.manifest, files))
    failed = worker.ask(Golden())
    assert isinstance(failed, Failed)
    assert (failed.what, "output/onnx/<name>" in failed.reason) == ("golden", True)
    assert isinstance(worker.ask(Window()), WindowClosed)


def test_nothing_is_answered_before_serve_and_connections_wait(make_bundle, start_worker, client):
    worker = start_worker(make_bundle("1.0.0"))
    answers = []
    caller = threading.Thread(target=lambda: answers.append(client.infer(images(1))))
    caller.start()
    window = worker.ask(Window())
    assert window.requests == 0
    assert answers == []
    assert isinstance(worker.ask(Serve()), Serving)
    caller.join(20)
    assert answers[0][0] == 200
    assert answers[0][1]["model_version"] == "1.0.0"


def test_windows_count_every_request_once(make_bundle, start_worker, client):
    worker = start_worker(make_bundle("1.0.0", "nan", hidden=True))
    worker.ask(Serve())
    windows = []
    for turn in range(3):
        for row in images(100, seed=turn):
            assert client.infer(row[None])[0] == 200
        assert client.infer(images(70, seed=turn))[0] == 200
        assert client.infer(images(1, brightness=2.0))[0] == 500
        assert client.infer(images(1)[:, :, :3])[0] == 400
        windows.append(worker.ask(Window()))
    for window in windows:
        assert (window.requests, window.rows, window.errors, window.not_finite) == (102, 170, 1, 1)
        assert sum(window.latency.values()) == 102
        assert window.profile.rows == 170
        assert all(sum(counts) == 170 for counts in window.profile.counts.values())
        assert window.end >= window.start
        assert window.rss_bytes > 1 << 20
    assert [later.start for later in windows[1:]] == [earlier.end for earlier in windows[:-1]]


def test_recent_requests_shadow_a_candidate(make_bundle, start_worker, client, tmp_path):
    incumbent = start_worker(make_bundle("1.0.0"))
    incumbent.ask(Serve())
    sent = images(80)
    for row in sent[:78]:
        client.infer(row[None])
    client.infer(sent[78:])  # two rows; the first of them is kept
    path = tmp_path / "recent.npz"
    result = incumbent.ask(Recent(count=1000, path=str(path)))
    assert isinstance(result, RecentResult)
    assert result.count == 64
    recent = np.load(path)
    np.testing.assert_array_equal(recent["input/image"], sent[15:79])
    assert recent["output/logits"].shape == (64, 10)
    assert list(tmp_path.iterdir()) == [path]

    assert incumbent.ask(Recent(count=5, path=str(path))).count == 5
    np.testing.assert_array_equal(np.load(path)["input/image"], sent[74:79])

    def shadow(broken, *, hidden=False):
        candidate = start_worker(make_bundle("1.1.0", broken, hidden=hidden))
        result = candidate.ask(Shadow(path=str(path)))
        assert isinstance(result, ShadowResult), result
        assert candidate.ask(Window()).requests == 0
        return result

    good = shadow(None)
    assert (good.answered, good.failed, good.not_finite, good.agreement) == (5, 0, 0, 1.0)
    assert good.latency_ms > 0
    wrong = shadow("wrong")
    assert (wrong.answered, wrong.agreement) == (5, 0.0)
    nan = shadow("nan")
    assert (nan.answered, nan.not_finite, nan.agreement, nan.latency_ms) == (0, 5, None, None)
    assert "NaN" in nan.reason


def test_shadow_finds_what_fails_on_live_input_only(make_bundle, start_worker, client, tmp_path):
    incumbent = start_worker(make_bundle("1.0.0"))
    incumbent.ask(Serve())
    for row in images(6, brightness=2.0):
        client.infer(row[None])
    path = tmp_path / "recent.npz"
    incumbent.ask(Recent(count=10, path=str(path)))
    candidate = start_worker(make_bundle("1.1.0", "raises", hidden=True))
    assert candidate.ask(Golden()).passed
    result = candidate.ask(Shadow(path=str(path)))
    assert (result.answered, result.failed) == (0, 6)
    assert "onnxruntime cannot run it" in result.reason


def test_shadow_without_recent_requests_has_nothing_to_compare(make_bundle, start_worker, tmp_path):
    worker = start_worker(make_bundle("1.0.0"))
    path = tmp_path / "recent.npz"
    assert worker.ask(Recent(count=10, path=str(path))).count == 0
    result = worker.ask(Shadow(path=str(path)))
    assert (result.answered, result.failed, result.agreement) == (0, 0, None)
    assert isinstance(worker.ask(Shadow(path=str(tmp_path / "nowhere.npz"))), Failed)
    assert isinstance(worker.ask(Recent(count=1, path=str(tmp_path / "nowhere" / "recent.npz"))), Failed)


@pytest.fixture(scope="module")
def sealing_key(tmp_path_factory):
    return SealingKey.load_or_generate(tmp_path_factory.mktemp("keys") / "sealing.key")


def opened(sample, key):
    assert isinstance(sample, Sampled), sample
    return msgspec.msgpack.decode(key.open(sample.sealed, about=about_sample(sample.command)), type=SampleContent)


def test_samples_are_sent_sealed_until_the_order_is_filled(make_bundle, start_worker, client, sealing_key):
    worker = start_worker(make_bundle("1.0.0"))
    worker.ask(Serve())
    worker.control.send(Collect(command="label these", count=3, share=1.0, seal_to=sealing_key.public))
    assert isinstance(worker.ask(Window()), WindowClosed)  # the order before this one has arrived
    sent = images(5)
    answers = [client.infer(row[None], f"request {index}")[1] for index, row in enumerate(sent)]
    samples = [worker.control.receive_from_worker() for _ in range(3)]
    assert all(isinstance(sample, Sampled) for sample in samples)
    assert [sample.request for sample in samples] == ["request 0", "request 1", "request 2"]
    for sample, image, answer in zip(samples, sent, answers, strict=False):
        assert image.tobytes()[:64] not in sample.sealed
        content = opened(sample, sealing_key)
        tensor = content.inputs["image"]
        assert (sample.command, sample.probability) == ("label these", 1.0)
        assert (tensor.dtype, tensor.shape) == ("FP32", (1, 1, 28, 28))
        np.testing.assert_array_equal(np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)[0], image)
        logits = np.array(answer["outputs"][0]["data"])
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert content.predicted == logits.argmax()
        assert content.confidence == pytest.approx(probabilities.max(), abs=1e-5)
    assert isinstance(worker.ask(Window()), WindowClosed)  # and no fourth sample


def test_samples_are_drawn_with_the_share_that_was_ordered(make_bundle, start_worker, client, sealing_key):
    worker = start_worker(make_bundle("1.0.0"))
    worker.ask(Serve())
    worker.control.send(Collect(command="c", count=10_000, share=0.25, seal_to=sealing_key.public))
    worker.ask(Window())
    for turn in range(40):
        client.infer(images(10, seed=turn))
    worker.control.send(Drain(timeout_s=0.0))
    lines = iter(worker.control.receive_from_worker, None)
    kinds = [type(line) for line in lines]
    assert kinds[-1] is Drained
    # 400 draws at 0.25: outside of these bounds once in a hundred million runs.
    assert 50 < kinds.count(Sampled) < 155


HOOKS = """
def blank_the_first_line_of_dark_images(inputs):
    if inputs["image"].mean() > 0.5:
        return None
    inputs["image"][..., 0, :] = 0
    return inputs

def fail(inputs):
    1 / 0

def rename(inputs):
    return {"face": inputs["image"]}

def widen(inputs):
    return {"image": inputs["image"].astype("float64")}
"""


@pytest.fixture
def owners_hooks(tmp_path, monkeypatch):
    """A module that the owner of the device has installed."""
    (tmp_path / "hooks_of_the_owner.py").write_text(HOOKS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))


@pytest.mark.usefixtures("owners_hooks")
def test_nothing_leaves_when_the_redaction_hook_fails(make_bundle, start_worker, client, sealing_key):
    worker = start_worker(make_bundle("1.0.0"))
    worker.ask(Serve())
    for hook, reason in (
        ("hooks_of_the_owner:fail", "the redaction hook failed: ZeroDivisionError"),
        ("hooks_of_the_owner:rename", r"expected None or the inputs \['image'\], got \['face'\]"),
        ("hooks_of_the_owner:widen", r"expected float32 \[1, 1, 28, 28\], got float64"),
        ("hooks_of_the_owner:nowhere", "expected module:function, installed here"),
        ("nothing_of_that_name:f", "expected module:function, installed here"),
    ):
        worker.control.send(Collect(command=hook, count=3, share=1.0, seal_to=sealing_key.public, redact=hook))
        client.infer(images(3))
        client.infer(images(3))
        ended = worker.control.receive_from_worker()
        assert isinstance(ended, CaptureEnded)
        assert ended.command == hook
        assert re.search(reason, ended.reason)
    client.infer(images(1))
    assert isinstance(worker.ask(Window()), WindowClosed)  # And nothing more.


@pytest.mark.usefixtures("owners_hooks")
def test_a_redaction_hook_says_what_of_a_row_may_leave(make_bundle, start_worker, client, sealing_key):
    worker = start_worker(make_bundle("1.0.0"))
    worker.ask(Serve())
    hook = "hooks_of_the_owner:blank_the_first_line_of_dark_images"
    worker.control.send(Collect(command="c", count=3, share=1.0, seal_to=sealing_key.public, redact=hook))
    worker.ask(Window())
    client.infer(np.stack([np.full((1, 28, 28), value, np.float32) for value in (0.3, 0.9, 0.2)]))
    samples = [worker.control.receive_from_worker() for _ in range(2)]  # The bright one stays here.
    assert isinstance(worker.ask(Window()), WindowClosed)
    for sample, value in zip(samples, (0.3, 0.2), strict=True):
        tensor = opened(sample, sealing_key).inputs["image"]
        image = np.frombuffer(tensor.data, "<f4").reshape(28, 28)
        assert image[0].tolist() == [0.0] * 28
        np.testing.assert_allclose(image[1:], value)


def test_a_worker_whose_agent_is_gone_exits_at_once(make_bundle, start_worker, client):
    worker = start_worker(make_bundle("1.0.0"))
    worker.ask(Serve())
    client.infer(images(1))
    worker.control.close()
    assert worker.process.wait(20) == 70


def test_a_line_that_is_none_is_answered_and_survived(make_bundle, start_worker):
    worker = start_worker(make_bundle("1.0.0"))
    worker.control._socket.sendall(b'{"type": "dance"}\n')
    failed = worker.control.receive_from_worker()
    assert isinstance(failed, Failed)
    assert failed.what == "control"
    assert isinstance(worker.ask(Window()), WindowClosed)


def test_a_drain_sends_the_last_window_and_exits_cleanly(make_bundle, start_worker, client):
    worker = start_worker(make_bundle("1.0.0"))
    worker.ask(Serve())
    for row in images(5):
        client.infer(row[None])
    drained = worker.ask(Drain(timeout_s=0.0))
    assert isinstance(drained, Drained)
    assert (drained.window.requests, drained.window.profile.rows) == (5, 5)
    assert worker.control.receive_from_worker() is None
    assert worker.process.wait(20) == 0


def test_a_paused_worker_stays_warm_and_takes_over_again(make_bundle, start_worker, client):
    incumbent, candidate = start_worker(make_bundle("1.0.0")), start_worker(make_bundle("1.1.0"))
    incumbent.ask(Serve())
    assert client.infer(images(1))[1]["model_version"] == "1.0.0"
    candidate.ask(Serve())
    assert isinstance(incumbent.ask(Pause()), Paused)
    versions = [client.infer(images(1))[1]["model_version"] for _ in range(5)]
    assert versions == ["1.0.0", *["1.1.0"] * 4]
    assert isinstance(incumbent.ask(Serve()), Serving)
    candidate.process.kill()
    candidate.process.wait()
    client.close()
    assert client.infer(images(1))[1]["model_version"] == "1.0.0"
    assert incumbent.ask(Window()).requests == 3


class Load:
    """Callers that keep their connections and ask without a pause."""

    def __init__(self, listening, callers=4):
        self._listening = listening
        self._stop = threading.Event()
        self.failures = []
        self.versions = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(callers)]
        self._reached = threading.Condition()

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def wait_for(self, version, count=20):
        """Until that many more answers of a version have come."""
        with self._reached:
            wanted = self.versions.count(version) + count
            assert self._reached.wait_for(lambda: self.versions.count(version) >= wanted or self.failures, 30)

    def _ask(self):
        client = Client(self._listening)
        image = images(1)
        while not self._stop.is_set() and not self.failures:
            try:
                status, answer = client.infer(image)
                outcome = answer["model_version"] if status == 200 else None
                failure = None if status == 200 else (status, answer)
            except (OSError, HTTPException, ValueError) as error:
                outcome, failure = None, repr(error)
            with self._reached:
                if failure is None:
                    self.versions.append(outcome)
                else:
                    self.failures.append(failure)
                self._reached.notify_all()
        client.close()


def test_no_request_fails_while_workers_take_over_from_each_other(make_bundle, start_worker, listening):
    versions = ["1.0.0", "1.1.0", "1.2.0", "1.3.0"]
    worker = start_worker(make_bundle(versions[0]))
    worker.ask(Serve())
    answered = 0
    with Load(listening) as load:
        load.wait_for(versions[0])
        for version in versions[1:]:
            successor = start_worker(make_bundle(version))
            assert isinstance(successor.ask(Serve()), Serving)
            drained = worker.ask(Drain(timeout_s=10.0))
            assert isinstance(drained, Drained), drained
            answered += drained.window.requests
            assert worker.process.wait(20) == 0
            worker = successor
            load.wait_for(version)
    answered += worker.ask(Window()).requests
    assert load.failures == []
    assert set(load.versions) == set(versions)
    # Nothing was lost, and nothing was counted twice, by workers that came and went.
    assert answered == len(load.versions)


def test_requests_wait_and_none_fails_when_a_worker_drains_before_the_next_serves(make_bundle, start_worker, listening):
    worker, successor = start_worker(make_bundle("1.0.0")), start_worker(make_bundle("1.1.0"))
    worker.ask(Serve())
    with Load(listening) as load:
        load.wait_for("1.0.0")
        assert isinstance(worker.ask(Drain(timeout_s=10.0)), Drained)
        successor.ask(Serve())
        load.wait_for("1.1.0")
    assert load.failures == []


def test_a_worker_does_not_stop_on_a_full_pipe(make_bundle, listening, client):
    """The engine's chatter, or a traceback, goes into a pipe that nobody reads."""
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    while True:
        os.set_blocking(write, False)
        try:
            os.write(write, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(write, True)
    launch = Launch(
        bundle=make_bundle("1.0.0").path,
        variant="onnx",
        engine="onnxruntime",
        listen_fd=listening.fileno(),
        control_fd=theirs.fileno(),
    )
    command = [sys.executable, "-m", "edgeops_runtime.serving", launch.argument]
    process = subprocess.Popen(
        command, pass_fds=(listening.fileno(), theirs.fileno()), stdin=subprocess.DEVNULL, stdout=write, stderr=write
    )
    try:
        theirs.close()
        ours.settimeout(30)
        assert b'"ready"' in ours.recv(10_000)
        assert not os.get_blocking(write)
    finally:
        process.kill()
        process.wait()
        ours.close()
        os.close(read)
        os.close(write)


def test_worker_that_can_have_no_more_threads_turns_clients_away_and_serves_the_others(
    make_bundle, start_worker, listening, client
):
    worker = start_worker(make_bundle("1.0.0"))
    worker.ask(Serve())
    client.infer(images(1))
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    data_bytes = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData"))
    limits = (data_bytes + (20 << 20),) * 2
    resource.prlimit(worker.process.pid, resource.RLIMIT_DATA, limits)
    if resource.prlimit(worker.process.pid, resource.RLIMIT_DATA) != limits:
        pytest.skip("qemu does not limit the memory of what it runs")
    crowd = [socket.create_connection(listening.getsockname(), timeout=20) for _ in range(12)]
    answers = []
    for each in crowd:
        each.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        answers.append(each.recv(1000).split()[1])
    assert set(answers) == {b"200", b"503"}
    for each in crowd:
        each.close()
    client.infer(images(1))


def test_a_worker_takes_less_of_the_board_on_the_agents_word(make_bundle, start_worker, client, sealing_key):
    worker = start_worker(make_bundle("1.0.0"))
    worker.ask(Serve())
    worker.control.send(Ease(capture=False, cores=1, shed=0.5))
    worker.control.send(Collect(command="label these", count=1, share=1.0, seal_to=sealing_key.public))
    assert worker.ask(Window()).requests == 0  # The orders before this one have arrived.
    assert {len(os.sched_getaffinity(int(task.name))) for task in tasks_of(worker)} == {1}
    statuses = [client.infer(image[None])[0] for image in images(6)]
    assert statuses == [200, 503] * 3
    window = worker.ask(Window())
    assert isinstance(window, WindowClosed)  # And no sample.
    assert (window.requests, window.errors) == (3, 0)  # Who is turned away is no error of the model's.

    worker.control.send(Ease())
    assert isinstance(worker.ask(Window()), WindowClosed)
    assert {len(os.sched_getaffinity(int(task.name))) for task in tasks_of(worker)} == {len(os.sched_getaffinity(0))}
    assert client.infer(images(1))[0] == 200
    assert isinstance(worker.control.receive_from_worker(), Sampled)  # The order was kept.


def tasks_of(worker) -> list[Path]:
    return list(Path(f"/proc/{worker.process.pid}/task").iterdir())


@pytest.mark.parametrize(
    ("broken", "expected"), [(None, Checkup.PASSED), ("wrong", Checkup.WRONG), ("nan", Checkup.WRONG)]
)
def test_a_checkup_runs_a_golden_row_over_the_socket_and_is_counted_nowhere(
    make_bundle, start_worker, listening, broken, expected
):
    worker = start_worker(make_bundle("1.0.0", broken))
    worker.ask(Serve())
    worker.control.send(Ease(shed=1.0))  # A worker that sheds answers it all the same.
    host, port = listening.getsockname()
    found, reason = ask(f"{host}:{port}", timeout_s=30)
    assert found is expected, reason
    assert ask(f"{host}:{port}", timeout_s=30)[0] is expected
    window = worker.ask(Window())
    assert (window.requests, window.errors) == (0, 0)


def policies_of(worker) -> list[int]:
    found = []
    for task in tasks_of(worker):
        with contextlib.suppress(ProcessLookupError):
            found.append(os.sched_getscheduler(int(task.name)))
    return found


def test_a_shadow_yields_its_cpu_and_the_rest_of_the_worker_does_not(make_bundle, start_worker, tmp_path):
    candidate = start_worker(make_bundle("1.1.0"))
    assert set(policies_of(candidate)) == {os.SCHED_OTHER}
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    candidate.control.send(Shadow(path=str(pipe)))
    with pipe.open("wb"):  # Opened when the shadow has opened it, and so is under way.
        assert policies_of(candidate).count(os.SCHED_IDLE) == 1
        assert isinstance(candidate.ask(Window()), WindowClosed)  # The worker listens meanwhile.
    failed = candidate.control.receive_from_worker()
    assert (type(failed), failed.what) == (Failed, "shadow")


def test_a_shadow_keeps_to_its_budget(make_bundle, start_worker, client, tmp_path):
    incumbent = start_worker(make_bundle("1.0.0"))
    incumbent.ask(Serve())
    for image in images(3):
        client.infer(image[None])
    path = tmp_path / "recent.npz"
    incumbent.ask(Recent(count=3, path=str(path)))
    result = incumbent.ask(Shadow(path=str(path), budget_s=0.0))
    assert (result.answered, result.agreement) == (1, 1.0)  # One always, and nothing after the budget.
    assert "others needed the CPU" in result.reason


def test_worker_that_is_ready_collects_garbage_again_and_keeps_few_arenas(make_bundle, listening, monkeypatch):
    """It is switched off while modules are imported; left off, every cycle would stay."""
    program = """
import gc, os
from edgeops_runtime.serving import __main__, worker
worker.Worker.obey = lambda self: os._exit(10 + gc.isenabled() + 2 * (os.environ.get("MALLOC_ARENA_MAX") == "2"))
__main__.main()
"""
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    ends = queue.Queue()
    WorkerProcess(
        WorkerOrder(bundle=make_bundle("1.0.0").path, digest="", version="1.0.0", variant="onnx", engine="onnxruntime"),
        listen_fd=listening.fileno(),
        listener=lambda _, line: ends.put(line.reason) if isinstance(line, Gone) else None,
        command=(sys.executable, "-c", program),
    )
    assert ends.get(timeout=60) == "the worker exited with code 13"
