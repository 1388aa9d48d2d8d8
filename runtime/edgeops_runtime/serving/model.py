"""A loaded model that answers and counts: the same in a worker behind HTTP and in a program of the user's.

>>> import edgeops_runtime                                          # doctest: +SKIP
>>> with edgeops_runtime.load("fashion-1.2.0") as model:            # doctest: +SKIP
...     answers = model.infer({"image": images})
...     model.swap("fashion-1.3.0")
"""

import ctypes
import gc
import os
import threading
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import NDArray

from edgeops.bundle import Bundle, open_bundle
from edgeops.errors import ConfigError, EngineError, ManifestError, NotFiniteError
from edgeops.manifest import Manifest, Variant
from edgeops.signals import Reference, Statistic, decode_reference
from edgeops.signing import PublicKey
from edgeops_runtime.control import WindowClosed
from edgeops_runtime.engines import available_engines, choose_variant, load_engine
from edgeops_runtime.engines.engine import Session, Tensors
from edgeops_runtime.engines.options import SessionOptions
from edgeops_runtime.host import cpu_flags
from edgeops_runtime.serving.comparison import compare_golden
from edgeops_runtime.serving.counters import Counters
from edgeops_runtime.serving.pipeline import Answer, Pipeline, warm_up
from edgeops_runtime.serving.profiler import Profiler
from edgeops_runtime.serving.recorder import Recorders
from edgeops_runtime.serving.vectors import read_golden

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

DRAIN_S = 60.0
"""How long a swap waits for the calls on the version before, so that it can give its counters and its memory back."""

_ASYNC_THREADS = 4
_USUALLY_S = 2.0
"""A call that takes longer is rare."""
_CLOSED = "the model was closed"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class LoadedModel:
    """One variant of one bundle on one engine, warm, with what is counted about it; may be used from several threads.

    Attributes:
        bundle: Where it came from.
        manifest: What the bundle says of itself.
        variant: Which of its variants this is.
        engine: Name of the engine; ``engine_version`` likewise.
        is_classifier: Whether the first output has one score for each class.
        pipeline: Answers without counting anything; ``ask`` is its fastest way.
        recorders: What is counted; it outlives the model until its last window is read.
    """

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        session: Session,
        *,
        engine: str,
        engine_version: str,
        reference: Reference | None = None,
    ) -> None:
        self.bundle = bundle
        self.manifest: Manifest = bundle.manifest
        self.variant = variant
        self.engine, self.engine_version = engine, engine_version
        self.is_classifier = bool(bundle.manifest.labels) or (
            reference is not None and any(signal.statistic is Statistic.CLASS for signal in reference.signals)
        )
        self.pipeline = Pipeline(bundle.manifest, session)
        self.ask = self.pipeline.fastest()
        self.recorders = Recorders(bundle.manifest, reference)

    def answered(self, answer: Answer, start: int, *, is_lent: bool = False) -> None:
        """Count an answer that goes to its caller now; of one that is lent, copies are kept."""
        self.recorders.answered(answer, perf_counter_ns() - start, is_lent=is_lent)

    def failed(self, start: int, error: Exception | None = None) -> None:
        """Count a request that could not be answered, on the device's account."""
        self.recorders.failed(perf_counter_ns() - start, is_not_finite=isinstance(error, NotFiniteError))

    def settle(self) -> None:
        """What can wait until the reply is out."""
        if self.recorders.full:
            self.recorders.settle()

    def quietly(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Answer without counting anything: golden and shadow inputs are not traffic.

        Raises:
            TensorError: The input is wrong.
            EngineError: The model failed.
        """
        return self.ask(feeds).outputs

    def counters(self) -> Counters:
        """A copy of what was counted since the last window."""
        return self.recorders.counters()

    def window(self) -> WindowClosed:
        """Hand over what was counted since the last window, and begin a new one."""
        return _window(self.recorders)


class Model:
    """A model to ask, from any number of threads; its version can be exchanged under their feet.

    A call reads once which version is there, and has it until it returns. So a swap waits for nobody and nobody waits for a swap;
    what was replaced is freed when the last call on it has returned.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded: LoadedModel | None = loaded
        self._changing = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None

    @property
    def loaded(self) -> LoadedModel:
        """The version that answers now.

        Raises:
            EngineError: The model was closed.
        """
        if self._loaded is None:
            raise EngineError(_CLOSED)
        return self._loaded

    @property
    def bundle(self) -> Bundle:
        """Where the version that answers came from."""
        return self.loaded.bundle

    @property
    def manifest(self) -> Manifest:
        """What the version that answers says of itself."""
        return self.loaded.manifest

    @property
    def variant(self) -> Variant:
        """Which of its variants answers."""
        return self.loaded.variant

    @property
    def engine(self) -> str:
        """On which engine."""
        return self.loaded.engine

    @property
    def engine_version(self) -> str:
        """In which version of that engine."""
        return self.loaded.engine_version

    def infer(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Answer, and count it.

        Args:
            feeds: Input name → array, rows first, as the manifest describes it.

        Returns:
            Output name → array.

        Raises:
            TensorError: An input is missing, unknown, of another dtype or shape, or not finite.
            NotFiniteError: The model answered NaN or infinity to finite inputs.
            EngineError: The engine failed, or the model was closed.
        """
        start = perf_counter_ns()
        loaded = self._loaded
        if loaded is None:
            raise EngineError(_CLOSED)
        recorders = loaded.recorders
        try:
            answer = loaded.ask(feeds)
        except EngineError as error:
            recorders.failed(perf_counter_ns() - start, is_not_finite=isinstance(error, NotFiniteError))
            raise
        recorders.answered(answer, perf_counter_ns() - start, is_lent=True)
        if recorders.full:
            recorders.settle()
        return answer.outputs

    async def infer_async(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """As :meth:`infer`, on a thread of the model's own, so that the event loop goes on.

        The way to another thread and back costs some 50 µs; of a model that is faster than that, call :meth:`infer`.
        """
        # Here, since they are 3 MB that no worker needs.
        import asyncio  # noqa: PLC0415
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

        threads = self._threads
        if threads is None:
            with self._changing:
                threads = self._threads = self._threads or ThreadPoolExecutor(_ASYNC_THREADS, "infer")
        return await asyncio.get_running_loop().run_in_executor(threads, self.infer, feeds)

    def swap(
        self,
        bundle_dir: Path | str,
        *,
        variant: str | None = None,
        engine: str | None = None,
        threads: int = 1,
        keys: Iterable[PublicKey] | None = None,
    ) -> WindowClosed:
        """Exchange the version while calls go on: verify, load, warm up, pass the golden test, and only then take its place.

        Args:
            bundle_dir: As for :func:`load`, and so are the others.
            variant: Name of a variant.
            engine: Name of an engine.
            threads: How many threads one call may use.
            keys: One of these must have signed the manifest.

        Returns:
            What was counted about the version before since its last window; without the calls that have not returned after
            :data:`DRAIN_S`.

        Raises:
            EngineError: The new version cannot run here, or did not pass its golden test, or this model was closed.
            ManifestError: The bundle is damaged.
            UntrustedError: None of the keys signed it.
        """
        candidate = _load(bundle_dir, variant=variant, engine=engine, threads=threads, keys=keys)
        result = compare_golden(candidate)
        if not result.passed:
            raise EngineError(f"{bundle_dir}: not put in place: {result.reason}")
        with self._changing:
            before = self.loaded
            self._loaded = candidate
            recorders, over = before.recorders, threading.Event()
            # Whoever calls it holds it, so the last one to let go says that it is over; the calls themselves need not.
            gone = weakref.finalize(before, over.set)
            del before
            if not over.wait(_USUALLY_S):
                # Something beside the calls holds it. The collector finds what holds itself, at the price of stopping everybody.
                gc.collect()
                over.wait(DRAIN_S)
            gone.detach()
        give_memory_back()
        return _window(recorders)

    def counters(self) -> Counters:
        """A copy of what was counted since the last window."""
        return self.loaded.counters()

    def window(self) -> WindowClosed:
        """Hand over what was counted about this version since the last window, and begin a new one."""
        return self.loaded.window()

    def close(self) -> None:
        """Give the memory back; calls that are under way finish, and later ones are refused."""
        with self._changing:
            if self._loaded is None:
                return
            self._loaded = None
            if self._threads is not None:
                self._threads.shutdown(wait=False)
        give_memory_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def load(
    bundle_dir: Path | str,
    *,
    variant: str | None = None,
    engine: str | None = None,
    threads: int = 1,
    keys: Iterable[PublicKey] | None = None,
) -> Model:
    """Verify a bundle, load the variant that suits this machine, and warm it up.

    Args:
        bundle_dir: The directory; it may lack the files of other variants.
        variant: Name of a variant; otherwise the first that can run here.
        engine: Name of an engine; otherwise the first of the variant's that is installed.
        threads: How many threads one call may use.
        keys: One of these must have signed the manifest; ``None`` does not ask for a signature.

    Raises:
        UntrustedError: None of the keys signed it.
        ManifestError: The bundle is damaged, or has no such variant.
        ConfigError: There is no such engine, or the number of threads is below 1.
        EngineError: Nothing in the bundle can run here, or the engine cannot load it.
        MissingExtraError: The engine that was asked for is not installed.
    """
    return Model(_load(bundle_dir, variant=variant, engine=engine, threads=threads, keys=keys))


def _load(
    bundle_dir: Path | str,
    *,
    variant: str | None,
    engine: str | None,
    threads: int,
    keys: Iterable[PublicKey] | None,
) -> LoadedModel:
    if threads < 1:
        raise ConfigError(f"threads: expected 1 or more, got {threads}")
    bundle = open_bundle(Path(bundle_dir), keys=keys, partial=True)
    chosen, engine_name = _choose(bundle, variant, engine)
    return load_variant(bundle, chosen, engine_name, threads=threads)


def load_variant(
    bundle: Bundle,
    variant: Variant,
    engine: str,
    *,
    threads: int,
    options: SessionOptions = SessionOptions(),  # noqa: B008 - immutable
) -> LoadedModel:
    """Load one variant on one engine, and warm it up.

    Raises:
        ManifestError: The golden vectors or the reference cannot be read, or do not fit the model.
        EngineError: The engine cannot load or run it.
        MissingExtraError: The engine is not installed.
    """
    loaded = load_engine(engine)
    session = loaded.load(bundle.file(variant.file), variant, threads, options)
    reference = _read_reference(bundle)
    golden = read_golden(bundle)
    inputs = {spec.name: golden[f"input/{spec.name}"] for spec in bundle.manifest.inputs} if golden else None
    answer = warm_up(Pipeline(bundle.manifest, session), bundle.manifest, inputs)
    if reference is not None and answer is not None:
        _check_reference(bundle, reference, answer)
    return LoadedModel(bundle, variant, session, engine=engine, engine_version=loaded.version, reference=reference)


def resident_bytes() -> int:
    """The resident memory of this process; 0 where it cannot be read."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * _PAGE_BYTES


def _choose(bundle: Bundle, variant: str | None, engine: str | None) -> tuple[Variant, str]:
    manifest = bundle.manifest
    if variant is not None:
        manifest.variant(variant)
    if engine is not None:
        load_engine(engine)
    installed = available_engines()
    fitting, _ = choose_variant(manifest, installed, cpu=cpu_flags())
    for candidate, name in fitting:
        if variant in {None, candidate.name} and engine in {None, name} and bundle.file(candidate.file).exists():
            return candidate, name
    needs = "; ".join(
        f"{v.name} needs {' or '.join(f'{e} >= {lowest}' for e, lowest in v.engines.items())}"
        + (f" and a CPU with {', '.join(v.requires.cpu)}" if v.requires.cpu else "")
        + ("" if bundle.file(v.file).exists() else f" and {v.file}, which is not in the directory")
        for v in manifest.variants
        if variant in {None, v.name}
    )
    have = ", ".join(f"{name} {found}" for name, found in installed.items()) or "no engine"
    wish = f" on {engine}" if engine else ""
    raise EngineError(f"{bundle.path}: nothing in it can run here{wish}: {needs}; this machine has {have}")


def _read_reference(bundle: Bundle) -> Reference | None:
    if bundle.manifest.reference is None or not bundle.file(bundle.manifest.reference).exists():
        return None
    path = bundle.file(bundle.manifest.reference)
    return decode_reference(path.read_bytes(), where=str(path))


def _check_reference(bundle: Bundle, reference: Reference, answer: Answer) -> None:
    """Count one answer into the reference's bins, so that a signal that does not fit is found now and not under way."""
    profiler = Profiler(bundle.manifest, reference)
    try:
        buffer = profiler.buffer()
        buffer.add(answer.entered, answer.left, answer.rows)
        profiler.count(buffer)
    except Exception as error:  # an index out of range, an axis that is not there: whatever numpy calls it
        raise ManifestError(f"{bundle.path}: the drift reference does not fit the model: {error}") from error


def _window(recorders: Recorders) -> WindowClosed:
    counters, profile, start, end = recorders.close()
    return WindowClosed(
        start=start,
        end=end,
        requests=counters.requests,
        rows=counters.rows,
        errors=counters.errors,
        not_finite=counters.not_finite,
        latency=counters.latency,
        profile=profile,
        rss_bytes=resident_bytes(),
    )


def give_memory_back() -> None:
    """Return freed memory to the system; without it glibc keeps a closed model's (measured: 229 MB against 11 MB)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return  # Another C library, which does that by itself or cannot.
