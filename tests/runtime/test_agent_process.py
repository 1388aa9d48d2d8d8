"""The agent as its users run it: a real process with a real worker and engine; killed, stopped, and looked into."""

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeops.bundle import Bundle, write_bundle
from edgeops.messages import Trial
from edgeops_runtime.memory import Memory
from edgeops_runtime.slots import SlotStore
from edgeops_runtime.worker_process import WORKER_COMMAND

sys.path.insert(0, str(Path(__file__).parent))  # The folder is no package, and this module is only for its tests.

from agent_parts import PATIENCE, Hammer, Station, eventually


class ModelStation(Station):
    """A station whose worker is the real one; answers are those of the V2 protocol."""

    def __init__(self, directory: Path, release_key, **settings) -> None:
        super().__init__(directory, release_key, command=WORKER_COMMAND, **settings)
        self.address = ""

    def answer(self, *, top: float = 0.4) -> str:
        """Ask for the scores of an image whose pixels are up to ``top``; returns the version that answered."""
        image = np.random.default_rng(3).uniform(top - 0.1, top, (1, 1, 28, 28)).astype(np.float32)
        tensor = {"name": "image", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": image.ravel().tolist()}
        host, _, port = (self.agent.address if self.agent is not None else self.address).rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10 * PATIENCE)
        try:
            connection.request("POST", "/v2/models/digits/infer", body=json.dumps({"inputs": [tensor]}))
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise OSError(f"{response.status}: {body[:200]!r}")
        answer = json.loads(body)
        if not np.isfinite(answer["outputs"][0]["data"]).all():
            raise OSError("the answer is not finite")
        return str(answer["model_version"])


@pytest.fixture
def station(tmp_path, release_key) -> Iterator[ModelStation]:
    station = ModelStation(tmp_path, release_key, capture=True)
    yield station
    station.close()


@pytest.fixture
def run_agent(station: ModelStation) -> Iterator:
    """Starts ``edgeops-agent run`` on the station's data; its broker is nowhere."""
    started: list[subprocess.Popen] = []

    def run() -> subprocess.Popen:
        station.write_identity()
        config = station.directory / "agent.toml"
        config.write_text(f'data = "{station.data}"\nlisten = "127.0.0.1:0"\nlog_level = "warning"\n')
        started.append(subprocess.Popen([sys.executable, "-m", "edgeops_runtime", "run", "--config", str(config)]))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def serves(station: ModelStation) -> str | None:
    try:
        station.address = (station.data / "address").read_text().strip()
        return station.answer()
    except (OSError, ValueError, http.client.HTTPException):
        return None


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def worker_of(agent: subprocess.Popen) -> list[int]:
    """The agent's worker, once it is there: what answered before may have been the one of an agent that was killed."""
    return eventually(lambda: children(agent.pid), "a worker")


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only its entry is left because nobody collects orphans here."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_real_models_are_installed_upgraded_and_refused_under_load(station, make_bundle):
    station.start()
    before = station.install(make_bundle("1.0.0"))
    trial = Trial(shadow_requests=8, min_agreement=0.9, probation_requests=5, probation_s=0.3, max_latency_ratio=50)
    with Hammer(station) as hammer:
        station.desire(station.target(None, rollout=make_bundle("1.1.0"), trial=trial))
        station.wait_for("1.1.0", "committed", within_s=40)
        for version, fault in (("1.2.0", "nan"), ("1.3.0", "raises")):
            station.desire(station.target(None, rollout=make_bundle(version, fault), trial=trial))
            end = station.wait_for(version, "rolled_back", within_s=40)
            assert end.reason_class.value == "defect"
            assert end.figures == {}  # It never came near a live request, nor a copy of one.
        wrong = make_bundle("1.4.0", "wrong", hidden=True)
        station.desire(station.target(None, rollout=wrong, trial=trial))
        with_hidden_fault = station.wait_for("1.4.0", "committed", within_s=40)
    assert hammer.failures == []
    assert with_hidden_fault.figures["agreement"] == 1.0  # Nobody sent a bright image, so nobody could know.
    station.stop()
    assert sum(record.requests for record in station.telemetry()) == before + len(hammer.answers)
    assert sum(record.profile.rows for record in station.telemetry() if record.profile) == before + len(hammer.answers)


def test_fault_that_only_live_images_show_is_found_in_probation(station, make_bundle):
    station.start()
    station.install(make_bundle("1.0.0"))
    trial = Trial(shadow_requests=0, probation_requests=50, probation_s=60, deadline_s=120)
    station.desire(station.target(None, rollout=make_bundle("1.1.0", "nan", hidden=True), trial=trial))
    station.wait_for("1.1.0", "probation")
    eventually(lambda: station.answer() == "1.1.0")
    with pytest.raises(OSError, match=r"500|not finite"):
        station.answer(top=1.0)
    assert "not finite" in station.wait_for("1.1.0", "rolled_back").reason
    eventually(lambda: station.answer(top=1.0) == "1.0.0")


def test_killed_agent_takes_its_worker_with_it_and_serves_again_once_it_is_back(station, make_bundle, run_agent):
    station.start()
    station.install(make_bundle("1.0.0"))
    station.stop()
    process = run_agent()
    eventually(lambda: serves(station) == "1.0.0")
    address = station.address
    for _ in range(3):
        (worker,) = worker_of(process)
        process.kill()
        process.wait()
        process = run_agent()
        eventually(lambda: serves(station) == "1.0.0")
        assert station.address == address
        eventually(lambda ended=worker: has_ended(ended), "the worker of the agent that was killed ends")
        assert SlotStore(station.data).slots.current.version == "1.0.0"
    (worker,) = worker_of(process)
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: serves(station) == "1.0.0")
    (worker,) = worker_of(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    assert has_ended(worker)


def test_real_workers_take_turns_where_two_do_not_fit_and_no_request_fails(station, make_bundle):
    station.start()
    station.install(make_bundle("1.0.0"))
    station.memory = Memory(available=1 << 20, total=1 << 30)
    trial = Trial(shadow_requests=6, min_agreement=0.9, probation_requests=5, probation_s=0.3, max_latency_ratio=50)
    with Hammer(station) as hammer:
        eventually(lambda: len(hammer.answers) > trial.shadow_requests)
        station.desire(station.target(None, rollout=make_bundle("1.1.0"), trial=trial))
        good = station.wait_for("1.1.0", "committed", within_s=60)
        eventually(lambda: hammer.answers[-1] == "1.1.0")
        station.desire(station.target(None, rollout=make_bundle("1.2.0", "nan"), trial=trial))
        bad = station.wait_for("1.2.0", "rolled_back", within_s=60)
        answered = len(hammer.answers)
        eventually(lambda: len(hammer.answers) > answered + 3, within_s=60)
    assert hammer.failures == []
    assert good.figures["shadow_answered"] == trial.shadow_requests
    assert "golden test" in bad.reason
    assert hammer.answers[-1] == "1.1.0"
    assert "1.2.0" not in hammer.answers


def test_agent_process_loads_no_engine_and_no_numpy(station, tmp_path):
    station.write_identity()
    program = """
import sys, threading
from edgeops_runtime.service import link_of
from edgeops_runtime.agent import Agent
from edgeops_runtime.config import Config
from edgeops_runtime.identity import load_identity
from pathlib import Path
config = Config(data=sys.argv[1], listen="127.0.0.1:0")
identity = load_identity(Path(sys.argv[1]))
agent = Agent(config, identity, lambda: link_of(identity))
threading.Timer(0.5, agent.stop).start()
agent.run()
heavy = {"numpy", "torch", "onnx", "onnxruntime", "ai_edge_litert", "tflite_runtime", "edgeops_fleet", "edgeops_converters",
    "cryptography", "click"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(station.data)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_stopped_agent_does_not_wait_for_idle_clients_and_answers_the_request_that_is_on_its_way(
    station, make_bundle, run_agent
):
    station.start()
    station.install(make_bundle("1.0.0"))
    station.stop()
    process = run_agent()
    eventually(lambda: serves(station) == "1.0.0")
    host, _, port = station.address.rpartition(":")
    clients = [http.client.HTTPConnection(host, int(port), timeout=20) for _ in range(3)]
    for client in clients:
        client.request("GET", "/v2/health/ready")
        assert client.getresponse().read()
    body = json.dumps({"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": [0.1] * 784}]})
    busy = clients[0]
    busy.putrequest("POST", "/v2/models/digits/infer")
    busy.putheader("Content-Length", str(len(body)))
    busy.endheaders(body[:100].encode())
    process.send_signal(signal.SIGTERM)
    (worker,) = children(process.pid)
    # The idle ones are closed while the one that is busy has sent half of its request only.
    assert clients[1].sock.recv(1) == clients[2].sock.recv(1) == b""
    busy.send(body[100:].encode())
    response = busy.getresponse()
    assert (response.status, response.getheader("Connection")) == (200, "close")
    assert json.loads(response.read())["model_version"] == "1.0.0"
    assert process.wait(timeout=8) == 0
    assert has_ended(worker)
    for client in clients:
        client.close()


def test_damaged_identity_is_an_error_that_names_the_file(station):
    station.write_identity()
    (station.data / "identity.json").write_bytes(b"\xff garbage")
    config = station.directory / "agent.toml"
    config.write_text(f'data = "{station.data}"\nlisten = "127.0.0.1:0"\n')
    done = subprocess.run(
        [sys.executable, "-m", "edgeops_runtime", "run", "--config", str(config)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert f"{station.data / 'identity.json'}: expected" in done.stderr
    assert "Traceback" not in done.stderr


def faulty_bundle(directory: Path, version: str, fault: str, *, healthy: Bundle, key) -> Bundle:
    """A signed bundle that is right in everything but its model."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("Flatten", ["pixels"], ["flat"])]
    constants = {"weights": np.zeros((784, 7 if fault == "another shape" else 10), np.float32)}
    if fault == "all memory":
        constants |= {"size": np.array([1 << 30], np.int64)}
        nodes += [helper.make_node("ConstantOfShape", ["size"], ["huge"])]
        nodes += [helper.make_node("ReduceSum", ["huge"], ["zero"], keepdims=0)]
        nodes += [helper.make_node("MatMul", ["flat", "weights"], ["product"])]
        nodes += [helper.make_node("Add", ["product", "zero"], ["scores"])]
    elif fault == "no end":
        constants |= {"half": np.float32(0.5), "start": np.float32(0)}
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["going"], ["goes_on"]),
                helper.make_node("Add", ["state", "state"], ["next"]),
            ],
            "turn",
            [
                helper.make_tensor_value_info("turn", TensorProto.INT64, []),
                helper.make_tensor_value_info("going", TensorProto.BOOL, []),
                helper.make_tensor_value_info("state", TensorProto.FLOAT, []),
            ],
            [
                helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
                helper.make_tensor_value_info("next", TensorProto.FLOAT, []),
            ],
        )
        nodes += [helper.make_node("ReduceMean", ["pixels"], ["mean"], keepdims=0)]
        nodes += [helper.make_node("Greater", ["mean", "half"], ["is_bright"])]
        nodes += [helper.make_node("Loop", ["", "is_bright", "start"], ["zero"], body=body)]
        nodes += [helper.make_node("MatMul", ["flat", "weights"], ["product"])]
        nodes += [helper.make_node("Add", ["product", "zero"], ["scores"])]
    else:
        nodes += [helper.make_node("MatMul", ["flat", "weights"], ["scores"])]
    graph = helper.make_graph(
        nodes,
        "faulty",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    if fault == "a file outside":
        (directory / "secret.bin").write_bytes(np.ones((784, 10), np.float32).tobytes())
        onnx.external_data_helper.set_external_data(graph.initializer[0], location="../../../secret.bin")
        graph.initializer[0].ClearField("raw_data")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    work = directory / f"faulty-{version}"
    work.mkdir()
    (work / "model.onnx").write_bytes(b"\x08\x08garbage" * 100 if fault == "no model" else model)
    rows = np.zeros((2, 1, 28, 28), np.float32)
    np.savez(work / "golden.npz", **{"input/image": rows, "output/onnx/logits": np.zeros((2, 10), np.float32)})
    manifest = msgspec.structs.replace(healthy.manifest, version=version, reference=None)
    files = {name: work / name for name in ("model.onnx", "golden.npz")}
    return write_bundle(work / "bundle", manifest, files, keys=[key])


@pytest.mark.slow
def test_real_models_of_every_bad_kind_never_serve(station, make_bundle, release_key, tmp_path):
    station.settings["worker_memory_mb"] = 1500
    station.start()
    healthy = make_bundle("1.0.0")
    station.install(healthy)
    trial = Trial(shadow_requests=4, min_agreement=0.9, probation_requests=5, probation_s=0.3, attempts=1)
    with Hammer(station) as hammer:
        for number, (fault, reason) in enumerate(
            {
                "another shape": "expected",
                "no model": "load:",
                "all memory": "alloc",
                "a file outside": "load:",
            }.items()
        ):
            bad = faulty_bundle(tmp_path, f"2.{number}.0", fault, healthy=healthy, key=release_key)
            station.desire(station.target(None, rollout=bad, trial=trial))
            end = station.wait_for(bad.manifest.version, "rolled_back", within_s=60)
            assert end.reason_class.value == "defect"
            assert reason in end.reason, (fault, end.reason)
            assert bad.digest in station.agent._store.slots.quarantine
    assert hammer.failures == []
    assert set(hammer.answers) == {"1.0.0"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGKILL])
def test_real_worker_that_is_ended_by_a_signal_in_its_probation_gives_the_traffic_back(station, make_bundle, number):
    station.start()
    station.install(make_bundle("1.0.0"))
    trial = Trial(shadow_requests=0, probation_requests=50, probation_s=60, deadline_s=120)
    station.desire(station.target(None, rollout=make_bundle("1.1.0"), trial=trial))
    station.wait_for("1.1.0", "probation", within_s=60)
    eventually(lambda: station.answer() == "1.1.0")
    os.kill(station.agent._deployer.serving_process.pid, number)
    end = station.wait_for("1.1.0", "rolled_back", within_s=60)
    assert number.name in end.reason
    assert station.answer() == "1.0.0"


@pytest.mark.slow
def test_real_model_that_never_ends_on_bright_images_gives_the_traffic_back(
    station, make_bundle, release_key, tmp_path, monkeypatch
):
    station.start()
    healthy = make_bundle("1.0.0")
    station.install(healthy)
    bad = faulty_bundle(tmp_path, "2.0.0", "no end", healthy=healthy, key=release_key)
    trial = Trial(shadow_requests=0, probation_requests=3, probation_s=60, deadline_s=200)
    station.desire(station.target(None, rollout=bad, trial=trial))
    station.wait_for("2.0.0", "probation", within_s=60)
    eventually(lambda: station.answer() == "2.0.0")
    monkeypatch.setattr("edgeops_runtime.deployment.STEP_TIMEOUT_S", 3.0)
    with pytest.raises(OSError):  # noqa: PT011 - whatever its caller sees when the worker is ended
        station.answer(top=1.0)
    assert "under way for" in station.wait_for("2.0.0", "rolled_back", within_s=60).reason
    eventually(lambda: station.answer(top=1.0) == "1.0.0")
    eventually(lambda: station.agent._crew.size == 1, within_s=100)  # It had its time to end, and is ended.


@pytest.mark.parametrize(("arguments", "loads_click"), [(["--config", "/nonexistent.toml"], False), (["--help"], True)])
def test_way_into_the_service_is_without_the_library_of_the_command_line(arguments, loads_click):
    program = """
import sys
from edgeops_runtime.__main__ import main
try:
    main()
except SystemExit as end:
    print(end.code, "click" in sys.modules, "cryptography" in sys.modules)
"""
    command = [sys.executable, "-c", program, "run", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.splitlines()[-1] == f"{0 if loads_click else 1} {loads_click} False"
    assert loads_click or "edgeops-agent: /nonexistent.toml: cannot be read" in done.stderr
