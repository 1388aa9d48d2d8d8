"""Session fixtures that several parts share: a release key, small signed bundles with real models, and the tflite environment.

``make_bundle`` builds linear models with onnx.helper in milliseconds, broken in chosen ways; ``small_bundle`` has a real CNN for
every engine, built once in a process of its own and kept in ``build/``.
"""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from edgeops.binning import count_rows
from edgeops.bundle import Bundle, write_bundle
from edgeops.manifest import FileEntry, Lineage, Manifest, Variant
from edgeops.signals import Reference, Signal, Statistic, encode_reference
from edgeops.signing import SigningKey
from edgeops.tensors import TensorSpec

ROOT = Path(__file__).resolve().parent.parent
INPUT, OUTPUT = "image", "logits"
CLASSES = 10
_PLACEHOLDER = FileEntry(digest="sha256:" + "0" * 64, size_bytes=0)

BundleFactory = Callable[..., Bundle]


@pytest.fixture(scope="session")
def release_key() -> SigningKey:
    """The key that signs the manifests of every test bundle."""
    return SigningKey.generate()


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory, release_key: SigningKey) -> BundleFactory:
    """A factory of signed bundles: ``make_bundle(version, broken=None, hidden=False, name="digits")``.

    The model is linear, ``image`` FP32 ``(batch, 1, 28, 28)`` to ``logits`` FP32 ``(batch, 10)``, in one ONNX variant ``onnx``.
    Versions differ by very little, so they agree. ``broken`` is one of:

    * ``"nan"``: the answers are NaN;
    * ``"raises"``: the engine refuses to run;
    * ``"slow"``: an answer takes some 30 ms of CPU;
    * ``"wrong"``: the sign of the answers is flipped.

    With ``hidden`` that happens only when the rows of a request are bright (mean above 0.5). The golden inputs are dark, so such
    a bundle passes its golden test and fails on live input. The same arguments give the same bundle.
    """
    directory = tmp_path_factory.mktemp("bundles")
    made: dict[tuple[str, str | None, bool, str], Bundle] = {}

    def make(version: str, broken: str | None = None, *, hidden: bool = False, name: str = "digits") -> Bundle:
        key = (version, broken, hidden, name)
        if key not in made:
            target = directory / f"{name}-{version}-{broken}-{hidden}"
            made[key] = _linear_bundle(target, name, version, broken, hidden=hidden, key=release_key)
        return made[key]

    return make


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory, release_key: SigningKey) -> Bundle:
    """``digits`` 1.0.0 with a small real CNN in three variants: ``onnx-float``, ``onnx-int8``, ``tflite-float``."""
    files = small_models()
    golden = np.load(files / "golden.npz")
    variants = tuple(
        Variant(
            name=name,
            file=file,
            format=file.rpartition(".")[2],
            engines=engines,
            precision=precision,
            batch=batch,
            inputs={INPUT: tensors["input"]},
            outputs={OUTPUT: tensors["output"]},
            tolerance=tolerance,
        )
        for name, file, engines, precision, batch, tolerance in (
            ("onnx-float", "model.onnx", {"onnxruntime": "1.18"}, "float32", None, 1e-3),
            ("onnx-int8", "model.int8.onnx", {"onnxruntime": "1.18"}, "int8", None, 0.5),
            ("tflite-float", "model.tflite", {"litert": "1.2", "tflite": "2.14"}, "float32", 1, 1e-3),
        )
        for tensors in [json.loads((files / "tensors.json").read_text())[file]]
    )
    answers = {f"output/{variant.name}/{OUTPUT}": golden[f"output/{variant.file}"] for variant in variants}
    work = tmp_path_factory.mktemp("small")
    return _write(
        work,
        work / "digits-1.0.0",
        variants,
        models={variant.file: files / variant.file for variant in variants},
        golden={f"input/{INPUT}": golden["input"], **answers},
        evaluation=(golden["held-out/input"], golden["held-out/output"]),
        identity=("digits", "1.0.0"),
        key=release_key,
    )


@pytest.fixture(scope="session")
def tflite_python() -> Path:
    """The interpreter of an environment with the extra ``device-tflite`` only, which needs numpy<2."""
    return _environment("device-tflite", ROOT / "requirements-device-tflite.lock")


@pytest.fixture(scope="session")
def device_python() -> Path:
    """The interpreter of an environment with the extra ``device`` only."""
    return _environment("device", ROOT / "requirements.lock")


@pytest.fixture
def start_mosquitto(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Starts a mosquitto on loopback with some more lines of configuration, and returns its port; it ends with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*settings: str) -> int:
        program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            if os.environ.get("EDGEOPS_REQUIRE_MOSQUITTO"):
                pytest.fail("mosquitto is not installed, and EDGEOPS_REQUIRE_MOSQUITTO asks for it")
            pytest.skip("mosquitto is not installed")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        config = tmp_path / "mosquitto.conf"
        config.write_text("\n".join([f"listener {port} 127.0.0.1", "allow_anonymous true", *settings, ""]))
        command = [program, "-c", str(config)]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return port
            time.sleep(0.02)
        raise RuntimeError("mosquitto does not listen")

    yield start
    for process in started:
        process.terminate()
        process.wait(10)


def _environment(extra: str, lock: Path) -> Path:
    """Install one extra as a user would, at the versions of the lock file; built once, in ``build/environments``."""
    environment = ROOT / "build" / "environments" / extra
    wanted = hashlib.sha256(lock.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    python, stamp = environment / "bin" / "python", environment / "built-from"
    with _alone(environment.with_suffix(".lock")):
        if not stamp.exists() or stamp.read_text() != wanted:
            _run([sys.executable, "-m", "venv", "--clear", str(environment)])
            install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            _run([*install, "--constraint", str(lock), "--editable", f"{ROOT}[{extra}]"])
            stamp.write_text(wanted)
    return python


def _linear_bundle(
    target: Path, name: str, version: str, broken: str | None, *, hidden: bool, key: SigningKey
) -> Bundle:
    weights, bias = _weights(version)
    work = target.with_name(f"{target.name}-work")
    work.mkdir()
    _save_linear(work / "model.onnx", weights, bias, broken, hidden=hidden)
    rng = np.random.default_rng(7)
    dark = (rng.random((8, 1, 28, 28)) * 0.5).astype(np.float32)
    held_out = rng.random((400, 1, 28, 28)).astype(np.float32)
    variant = Variant(
        name="onnx",
        file="model.onnx",
        format="onnx",
        engines={"onnxruntime": "1.18"},
        precision="float32",
        inputs={INPUT: "pixels"},
        outputs={OUTPUT: "scores"},
        tolerance=1e-3,
    )
    return _write(
        work,
        target,
        (variant,),
        models={"model.onnx": work / "model.onnx"},
        golden={f"input/{INPUT}": dark, f"output/onnx/{OUTPUT}": dark.reshape(8, -1) @ weights + bias},
        evaluation=(held_out, held_out.reshape(len(held_out), -1) @ weights + bias),
        identity=(name, version),
        key=key,
    )


def _write(
    work: Path,
    target: Path,
    variants: tuple[Variant, ...],
    *,
    models: dict[str, Path],
    golden: dict[str, np.ndarray],
    evaluation: tuple[np.ndarray, np.ndarray],
    identity: tuple[str, str],
    key: SigningKey,
) -> Bundle:
    np.savez(work / "golden.npz", **golden)
    (work / "reference.json").write_bytes(encode_reference(_reference(*evaluation)))
    files = {**models, "golden.npz": work / "golden.npz", "reference.json": work / "reference.json"}
    manifest = Manifest(
        name=identity[0],
        version=identity[1],
        created="2026-01-01T00:00:00Z",
        inputs=(TensorSpec(INPUT, "FP32", ("batch", 1, 28, 28), "NCHW"),),
        outputs=(TensorSpec(OUTPUT, "FP32", ("batch", CLASSES)),),
        labels=tuple(f"class-{index}" for index in range(CLASSES)),
        variants=variants,
        files=dict.fromkeys(files, _PLACEHOLDER),
        golden="golden.npz",
        reference="reference.json",
        lineage=Lineage(source="tests", source_digest="", data_digest=""),
    )
    return write_bundle(target, manifest, files, keys=[key])


def _reference(images: np.ndarray, logits: np.ndarray) -> Reference:
    edges = tuple(np.linspace(0.1, 0.9, 9).round(3).tolist())
    bare = [
        Signal(name=name, tensor=tensor, statistic=statistic, edges=bins, softmax=softmax, counts={"": empty})
        for name, tensor, statistic, bins, softmax in (
            ("image.mean", INPUT, Statistic.MEAN, edges, False),
            ("image.gradient", INPUT, Statistic.GRADIENT, edges, False),
            ("confidence", OUTPUT, Statistic.CONFIDENCE, edges, True),
            ("class", OUTPUT, Statistic.CLASS, tuple(i + 0.5 for i in range(CLASSES - 1)), True),
        )
        for empty in [(0,) * (len(bins) + 2)]
    ]
    counts = count_rows(bare, {INPUT: images, OUTPUT: logits})
    signals = tuple(
        Signal(
            name=signal.name,
            tensor=signal.tensor,
            statistic=signal.statistic,
            edges=signal.edges,
            softmax=signal.softmax,
            counts={"": tuple(counts[signal.name].tolist())},
        )
        for signal in bare
    )
    return Reference(rows=len(images), signals=signals)


def _weights(version: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights ``(784, 10)`` and bias ``(10,)``; versions differ by a thousandth, so that they agree and have other digests."""
    rng = np.random.default_rng(1)
    weights = rng.normal(0, 0.3, (784, CLASSES))
    nudge = np.random.default_rng(int.from_bytes(hashlib.sha256(version.encode()).digest()[:4])).normal(
        0, 3e-4, (784, 10)
    )
    bias = rng.normal(0, 0.1, CLASSES)
    return (weights + nudge).astype(np.float32), bias.astype(np.float32)


def _save_linear(path: Path, weights: np.ndarray, bias: np.ndarray, broken: str | None, *, hidden: bool) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    fault = {None: _no_fault, "nan": _nan, "raises": _raises, "slow": _slow, "wrong": _wrong}[broken]
    constants = {
        "weights": weights,
        "bias": bias,
        "threshold": np.float32(0.5 if hidden else -1e9),
    }
    # "active" is 1 when the fault is to show, 0 otherwise; it depends on the input, so that nothing is folded at load.
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["healthy"]),
        helper.make_node("ReduceMean", ["pixels"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "threshold"], ["is_active"]),
        helper.make_node("Cast", ["is_active"], ["active"], to=TensorProto.FLOAT),
        *fault(helper, constants),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _no_fault(helper, constants):
    return [helper.make_node("Identity", ["healthy"], ["scores"])]


def _nan(helper, constants):
    return [
        helper.make_node("Neg", ["active"], ["negative"]),
        helper.make_node("Sqrt", ["negative"], ["zero_or_nan"]),
        helper.make_node("Add", ["healthy", "zero_or_nan"], ["scores"]),
    ]


def _raises(helper, constants):
    constants["table"], constants["far"] = np.zeros(10, np.float32), np.float32(1000)
    return [
        helper.make_node("Mul", ["active", "far"], ["position"]),
        helper.make_node("Cast", ["position"], ["index"], to=7),
        helper.make_node("Gather", ["table", "index"], ["zero"]),
        helper.make_node("Add", ["healthy", "zero"], ["scores"]),
    ]


def _wrong(helper, constants):
    constants["one"], constants["two"] = np.float32(1), np.float32(2)
    return [
        helper.make_node("Mul", ["active", "two"], ["twice"]),
        helper.make_node("Sub", ["one", "twice"], ["sign"]),
        helper.make_node("Mul", ["healthy", "sign"], ["scores"]),
    ]


def _slow(helper, constants):
    constants["turns"], constants["true"] = np.float32(60), np.array(True)
    constants["square"] = np.eye(256, dtype=np.float32)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("MatMul", ["state", "square"], ["next"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", 7, []),
            helper.make_tensor_value_info("going", 9, []),
            helper.make_tensor_value_info("state", 1, [256, 256]),
        ],
        [helper.make_tensor_value_info("goes_on", 9, []), helper.make_tensor_value_info("next", 1, [256, 256])],
    )
    return [
        helper.make_node("Mul", ["active", "turns"], ["wanted"]),
        helper.make_node("Cast", ["wanted"], ["count"], to=7),
        helper.make_node("Loop", ["count", "true", "square"], ["spun"], body=body),
        helper.make_node("ReduceMin", ["spun"], ["zero"], keepdims=0),
        helper.make_node("Add", ["healthy", "zero"], ["scores"]),
    ]


def small_models() -> Path:
    """The directory with the small CNN's files; built again when its script or the lock file changes."""
    script = Path(__file__).with_name("small_models.py")
    state = hashlib.sha256(script.read_bytes() + (ROOT / "requirements.lock").read_bytes()).hexdigest()[:16]
    directory = ROOT / "build" / "tests" / f"small-{state}"
    with _alone(directory.with_suffix(".lock")):
        if not (directory / "golden.npz").exists():
            directory.mkdir(exist_ok=True)
            _run([sys.executable, str(script), str(directory)])
    return directory


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock file, so that test sessions beside each other build a thing once."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
