"""One inference: in process against the bare engine, over the Unix socket against the in-process call, in threads and asyncio.

The bare call is what a program without us would write: public ``session.run``, or set, invoke and get, on one thread and the same
array. What the input path could do instead (IOBinding, LiteRT's tensor views) is timed beside what it does.
"""

import asyncio
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
from ai_edge_litert.interpreter import Interpreter

from benchmarks.figures import Figure, blocks_us, interleaved_us
from benchmarks.runtime import echo, models
from benchmarks.runtime.exchange import Exchange, Feeds, binary_request, json_request, serving
from edgeops.bundle import Bundle
from edgeops.manifest import Variant
from edgeops.processing import apply
from edgeops_runtime import Model, load

_THREADS = 4
_WINDOW_ROWS = 512
_ERRORS = 3

Call = Callable[[], object]


def measure(rounds: int = 4000) -> list[Figure]:
    """Everything, with so many calls of each candidate."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        key = models.SigningKey.generate()
        bundle = models.linear(directory, key=key)
        plain = models.linear(directory, key=key, drift=False)
        row = np.random.default_rng(0).random((1, *models.IMAGE)).astype(np.float32)
        return [
            *_linear(bundle, plain, row, rounds),
            *_network(rounds),
            *_beside(bundle, row, rounds),
            *_profile(bundle, row),
            *_over_the_socket(bundle, row, directory, rounds),
            *_bindings(directory, rounds),
            *_views(directory, rounds),
        ]


def _linear(bundle: Bundle, plain: Bundle, row: np.ndarray, rounds: int) -> list[Figure]:
    feeds = {"input": row}
    with load(bundle.path) as model, load(plain.path) as without:
        calls: dict[str, Call] = {
            "bare": bare_call(bundle, bundle.manifest.variant("onnx"), {"input": row}),
            "plain": lambda: without.infer(feeds),
            "drift": lambda: model.infer(feeds),
        }
        medians = interleaved_us(calls, rounds)
        means = blocks_us(calls, rounds)
    bare = "session.run"
    return [
        Figure("linear: in-process call", medians["plain"], "µs", bare, medians["bare"]),
        Figure("linear: in-process call, with the drift profile", medians["drift"], "µs", bare, medians["bare"]),
        Figure(
            "linear: mean of a call, with the drift profile and its binning",
            means["drift"],
            "µs",
            f"{bare}, mean",
            means["bare"],
        ),
    ]


def _network(rounds: int) -> list[Figure]:
    """The demo's network in int8; the caller gives bytes, and what is not in the model of the preprocessing is ours."""
    bundle, _ = models.fashion()
    image = np.random.default_rng(0).integers(0, 256, (1, 28, 28, 1), dtype=np.uint8).reshape(_shape(bundle))
    feeds = {"image": image}
    prepared = apply(bundle.manifest.preprocess, feeds)
    figures = []
    for name in ("onnx-int8", "tflite-int8"):
        variant = bundle.manifest.variant(name)
        with load(bundle.path, variant=name) as model:
            calls: dict[str, Call] = {
                "bare": bare_call(bundle, variant, prepared),
                "ours": lambda model=model: model.infer(feeds),  # type: ignore[misc]
            }
            medians = interleaved_us(calls, rounds)
        bare = "session.run" if variant.format == "onnx" else "set, invoke, get"
        figures.append(
            Figure(f"demo's CNN, {name}: in-process call, all included", medians["ours"], "µs", bare, medians["bare"])
        )
    return figures


def _shape(bundle: Bundle) -> tuple[int, ...]:
    return tuple(1 if isinstance(size, str) else size for size in bundle.manifest.inputs[0].shape)


def bare_call(bundle: Bundle, variant: Variant, prepared: Feeds) -> Call:
    """The engine alone on a variant of a model with one input, with what is left after preprocessing."""
    path = str(bundle.file(variant.file))
    ((ours, theirs),) = variant.inputs.items()
    array = prepared[ours]
    if variant.format == "onnx":
        session = onnxruntime.InferenceSession(path, _one_thread(), providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {theirs: array})
    interpreter = Interpreter(path, num_threads=1)
    interpreter.allocate_tensors()
    return _set_invoke_get(interpreter, array)


def _beside(bundle: Bundle, row: np.ndarray, rounds: int) -> list[Figure]:
    """Many callers at once, and from an event loop."""
    feeds = {"input": row}
    with load(bundle.path) as model:
        one = _calls_a_second(model, feeds, threads=1, calls=rounds)
        many = _calls_a_second(model, feeds, threads=_THREADS, calls=rounds)
        alone, hopping = asyncio.run(_from_a_loop(model, feeds, rounds // 4))
    return [
        Figure(f"linear: calls a second from {_THREADS} threads", many, "", "from one", one),
        Figure("linear: infer_async", hopping, "µs", "infer in the same loop", alone),
    ]


def _calls_a_second(model: Model, feeds: Feeds, *, threads: int, calls: int) -> float:
    barrier = threading.Barrier(threads + 1)

    def work() -> None:
        barrier.wait()
        for _ in range(calls // threads):
            model.infer(feeds)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    barrier.wait()
    begun = time.perf_counter()
    for worker in workers:
        worker.join()
    return calls // threads * threads / (time.perf_counter() - begun)


async def _from_a_loop(model: Model, feeds: Feeds, calls: int) -> tuple[float, float]:
    taken: dict[bool, list[int]] = {False: [], True: []}
    for hops in (False, True) * max(calls, 1):
        begun = time.perf_counter_ns()
        if hops:
            await model.infer_async(feeds)
        else:
            model.infer(feeds)
        taken[hops].append(time.perf_counter_ns() - begun)
    return float(np.median(taken[False])) / 1000, float(np.median(taken[True])) / 1000


def _profile(bundle: Bundle, row: np.ndarray) -> list[Figure]:
    with load(bundle.path) as model:
        for _ in range(_WINDOW_ROWS):
            model.infer({"input": row})
        window = model.window()
    raw = msgspec.msgpack.encode(window.profile)
    name = f"drift profile of {window.rows} rows, on the wire"
    return [Figure(name, len(zlib.compress(raw, 6)), "bytes", "uncompressed", len(raw))]


def _over_the_socket(bundle: Bundle, row: np.ndarray, directory: Path, rounds: int) -> list[Figure]:
    feeds = {"input": row}
    address = f"unix:{directory / 'serve.sock'}"
    binary, text = binary_request("linear", feeds), json_request("linear", feeds)
    with load(bundle.path) as model, serving(bundle.path, address):
        exchanges = {"binary": Exchange(address, binary), "JSON": Exchange(address, text)}
        reply_bytes = len(exchanges["binary"]())
        file = str(bundle.file(model.variant.file))
        with _echo(len(binary), reply_bytes) as bare, _echo(len(binary), reply_bytes, file) as runs:
            calls = {**exchanges, "echo": bare, "runs": runs, "in process": lambda: model.infer(feeds)}
            medians = interleaved_us(calls, rounds)
        for exchange in exchanges.values():
            exchange.close()
    alternative = ("in process", medians["in process"])
    return [
        Figure("linear: V2 binary over the Unix socket, round trip", medians["binary"], "µs", *alternative),
        Figure("linear: V2 binary over the Unix socket, without the kernel's part", medians["binary"], "µs",
               f"echo of {len(binary)} and {reply_bytes} bytes by a bare process", medians["echo"]),
        Figure("linear: V2 binary over the Unix socket, without the engine's part", medians["binary"], "µs",
               "a bare process that receives, runs and sends", medians["runs"]),
        Figure("linear: V2 JSON over the Unix socket, round trip", medians["JSON"], "µs", *alternative),
    ]  # fmt: skip


@contextmanager
def _echo(request_bytes: int, reply_bytes: int, *model: str) -> Iterator[Call]:
    ours, theirs = socket.socketpair()
    arguments = [str(theirs.fileno()), str(request_bytes), str(reply_bytes), *model]
    with theirs:
        process = subprocess.Popen([sys.executable, echo.__file__, *arguments], pass_fds=[theirs.fileno()])
    request = bytes(request_bytes)

    def call() -> None:
        ours.sendall(request)
        missing = reply_bytes
        while missing > 0:
            missing -= len(ours.recv(1 << 16))

    try:
        yield call
    finally:
        ours.close()
        process.wait(30)


def _bindings(directory: Path, rounds: int) -> list[Figure]:
    """IOBinding of onnxruntime, in the two ways that leave the caller an answer of its own."""
    figures = []
    for bundle, what in ((models.linear(directory / "b"), "784 floats"), (models.pooling(directory / "b"), "602 kB")):
        row = np.random.default_rng(1).random(_shape(bundle)).astype(np.float32)
        inner = onnxruntime.InferenceSession(
            str(bundle.file("model.onnx")), _one_thread(), providers=["CPUExecutionProvider"]
        )
        feed = {"x": row}
        calls: dict[str, Call] = {
            "run": lambda session=inner._sess, feed=feed: session.run(["y"], feed, None)[0],  # noqa: SLF001 # type: ignore[misc]
            "bound": _bound_anew(inner, row),
            "copied": _bound_once(inner, row),
        }
        medians = interleaved_us(calls, rounds)
        figures += [
            Figure(f"{what}, ONNX: IOBinding to each input", medians["bound"], "µs", "as now", medians["run"]),
            Figure(f"{what}, ONNX: IOBinding, copied in", medians["copied"], "µs", "as now", medians["run"]),
        ]
    return figures


def _one_thread() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = _ERRORS
    return options


def _bound_anew(session: onnxruntime.InferenceSession, row: np.ndarray) -> Call:
    """The caller's array is bound at each call, the output is a buffer of ours, and the answer a copy of it."""
    answer = np.empty(session.run(None, {"x": row})[0].shape, np.float32)
    binding, inner = session.io_binding(), session._sess  # noqa: SLF001
    binding.bind_output("y", "cpu", 0, np.float32, answer.shape, answer.ctypes.data)
    bound = binding._iobinding  # noqa: SLF001

    def call() -> object:
        bound.bind_input("x", row)
        inner.run_with_iobinding(bound, None)
        return answer.copy()

    return call


def _bound_once(session: onnxruntime.InferenceSession, row: np.ndarray) -> Call:
    """Input and output are buffers of ours; the caller's array is copied into the one, the answer out of the other."""
    entry, answer = np.empty_like(row), np.empty(session.run(None, {"x": row})[0].shape, np.float32)
    binding, inner = session.io_binding(), session._sess  # noqa: SLF001
    binding.bind_input("x", "cpu", 0, np.float32, entry.shape, entry.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, answer.shape, answer.ctypes.data)
    bound = binding._iobinding  # noqa: SLF001

    def call() -> object:
        np.copyto(entry, row)
        inner.run_with_iobinding(bound, None)
        return answer.copy()

    return call


def _views(directory: Path, rounds: int) -> list[Figure]:
    """LiteRT's ``tensor()``: views of the interpreter's memory, copied into and out of."""
    figures = []
    for what, shape in (("784 floats", models.IMAGE), ("602 kB", models.LARGE_IMAGE)):
        path = str(models.pooling_tflite(directory / f"{shape[1]}.tflite", shape))
        interpreters = [Interpreter(path, num_threads=1) for _ in range(2)]
        for interpreter in interpreters:
            interpreter.allocate_tensors()
        row = np.random.default_rng(1).random((1, *shape[1:], shape[0])).astype(np.float32)
        calls = {"now": _set_invoke_get(interpreters[0], row), "views": _through_views(interpreters[1], row)}
        medians = interleaved_us(calls, rounds)
        figures.append(Figure(f"{what}, LiteRT: tensor views", medians["views"], "µs", "as now", medians["now"]))
    return figures


def _set_invoke_get(interpreter: Interpreter, row: np.ndarray) -> Call:
    entry, exit_ = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def call() -> object:
        interpreter.set_tensor(entry, row)
        interpreter.invoke()
        return interpreter.get_tensor(exit_)

    return call


def _through_views(interpreter: Interpreter, row: np.ndarray) -> Call:
    entry = interpreter.tensor(interpreter.get_input_details()[0]["index"])
    exit_ = interpreter.tensor(interpreter.get_output_details()[0]["index"])

    def call() -> object:
        entry()[...] = row  # A view that is held would keep invoke() from running.
        interpreter.invoke()
        return exit_().copy()

    return call
