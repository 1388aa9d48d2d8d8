"""A loaded model that answers and counts: the same in a worker behind HTTP and in a program of the user's.

>>> import edgeops_runtime                                          # doctest: +SKIP
>>> with edgeops_runtime.load("fashion-1.2.0") as model:            # doctest: +SKIP
...     answers = model.infer({"image": images})
"""

import ctypes
import gc
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgeops.bundle import Bundle, open_bundle
from edgeops.errors import ConfigError, EngineError, ManifestError, NotFiniteError
from edgeops.manifest import Manifest, Variant
from edgeops.signals import Reference, Statistic, decode_reference
from edgeops.signing import PublicKey
from edgeops_runtime.control import WindowClosed
from edgeops_runtime.engines import available_engines, choose_variant, load_engine
from edgeops_runtime.engines.engine import Session, Tensors
from edgeops_runtime.host import cpu_flags
from edgeops_runtime.serving.counters import Counters
from edgeops_runtime.serving.pipeline import Answer, Pipeline, warm_up
from edgeops_runtime.serving.profiler import Profiler

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Model:
    """One variant of a bundle on one engine; may be used from several threads.

    Attributes:
        manifest: What the bundle says of itself.
        variant: Which of its variants this is.
        engine: Name of the engine; ``engine_version`` likewise.
        is_classifier: Whether the first output has one score for each class.
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
        self.engine = engine
        self.engine_version = engine_version
        self.is_classifier = bool(bundle.manifest.labels) or (
            reference is not None and any(signal.statistic is Statistic.CLASS for signal in reference.signals)
        )
        self._pipeline: Pipeline | None = Pipeline(bundle.manifest, session)
        self._profiler = Profiler(bundle.manifest, reference) if reference is not None else None
        self._counters = Counters()
        self._began = time.time()
        self._lock = threading.Lock()  # Held for a few microseconds: counters, and rows into the profiler's buffer.
        self._binning = threading.Lock()  # Held while rows are binned; taken before the other one.

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
        start = time.perf_counter_ns()
        answer = self.answer(feeds, start)
        self.answered(answer, start)
        if self._profiler is not None and self._profiler.is_due:
            self.settle()
        return answer.outputs

    def answer(self, feeds: Mapping[str, NDArray[Any]], start: int) -> Answer:
        """Answer without counting it; a failure of the model is counted.

        Args:
            feeds: As in :meth:`infer`.
            start: When the request came, by ``time.perf_counter_ns()``.

        Raises:
            TensorError: The request is wrong.
            EngineError: The model failed.
        """
        pipeline = self._pipeline
        if pipeline is None:
            raise EngineError(f"{self.manifest.name} {self.manifest.version}: the model was closed")
        try:
            return pipeline.answer(feeds)
        except EngineError as error:
            self.failed(start, is_not_finite=isinstance(error, NotFiniteError))
            raise

    def failed(self, start: int, *, is_not_finite: bool = False) -> None:
        """Count a request that could not be answered, on the device's account."""
        nanoseconds = time.perf_counter_ns() - start
        with self._lock:
            self._counters.failed(nanoseconds, is_not_finite=is_not_finite)

    def answered(self, answer: Answer, start: int) -> None:
        """Count an answer that goes to its caller now."""
        nanoseconds = time.perf_counter_ns() - start
        with self._lock:
            self._counters.answered(answer.rows, nanoseconds)
            if self._profiler is not None:
                self._profiler.add(answer.entered, answer.left, answer.rows)

    def settle(self) -> None:
        """Bin the rows of full buffers; a server does that after the reply is out."""
        profiler = self._profiler
        if profiler is None or not profiler.is_due:
            return
        with self._binning:
            with self._lock:
                taken = profiler.take()
            profiler.count(taken)

    def counters(self) -> Counters:
        """A copy of what was counted since the last window."""
        with self._lock:
            return self._copy_counters()

    def window(self) -> WindowClosed:
        """Hand over what was counted since the last window, and begin a new one."""
        with self._binning:
            with self._lock:
                counters, self._counters = self._counters, Counters()
                taken = self._profiler.take(everything=True) if self._profiler is not None else []
                start, self._began = self._began, time.time()
                end = self._began
            profile = None
            if self._profiler is not None:
                self._profiler.count(taken)
                profile = self._profiler.close()
        return WindowClosed(
            start=start,
            end=max(start, end),
            requests=counters.requests,
            rows=counters.rows,
            errors=counters.errors,
            not_finite=counters.not_finite,
            latency=counters.latency,
            profile=profile,
            rss_bytes=resident_bytes(),
        )

    def quietly(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Answer without counting anything: golden and shadow inputs are not traffic.

        Raises:
            TensorError: The input is wrong.
            EngineError: The model failed, or was closed.
        """
        if self._pipeline is None:
            raise EngineError(f"{self.manifest.name} {self.manifest.version}: the model was closed")
        return self._pipeline.answer(feeds).outputs

    def close(self) -> None:
        """Give the memory back; calls that are under way finish."""
        self._pipeline = None
        gc.collect()
        _trim_heap()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _copy_counters(self) -> Counters:
        now = self._counters
        return Counters(now.requests, now.rows, now.errors, now.not_finite, dict(now.latency))


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
    if threads < 1:
        raise ConfigError(f"threads: expected 1 or more, got {threads}")
    bundle = open_bundle(Path(bundle_dir), keys=keys, partial=True)
    chosen, engine_name = _choose(bundle, variant, engine)
    return load_variant(bundle, chosen, engine_name, threads=threads)


def load_variant(bundle: Bundle, variant: Variant, engine: str, *, threads: int) -> Model:
    """Load one variant on one engine, and warm it up.

    Raises:
        ManifestError: The golden vectors or the reference cannot be read, or do not fit the model.
        EngineError: The engine cannot load or run it.
        MissingExtraError: The engine is not installed.
    """
    loaded = load_engine(engine)
    session = loaded.load(bundle.file(variant.file), variant, threads)
    reference = _read_reference(bundle)
    golden = read_golden(bundle)
    inputs = {spec.name: golden[f"input/{spec.name}"] for spec in bundle.manifest.inputs} if golden else None
    answer = warm_up(Pipeline(bundle.manifest, session), bundle.manifest, inputs)
    if reference is not None and answer is not None:
        _check_reference(bundle, reference, answer)
    return Model(bundle, variant, session, engine=engine, engine_version=loaded.version, reference=reference)


def read_golden(bundle: Bundle) -> Tensors | None:
    """The arrays of the golden vectors; ``None`` where the file is not there.

    Raises:
        ManifestError: The file is no ``.npz``, or lacks an input.
    """
    path = bundle.file(bundle.manifest.golden)
    if not path.exists():
        return None
    arrays = read_arrays(path)
    missing = [spec.name for spec in bundle.manifest.inputs if f"input/{spec.name}" not in arrays]
    if missing:
        raise ManifestError(f"{path}: expected the arrays input/<name> of every input; {missing} are missing")
    return arrays


def read_arrays(path: Path) -> Tensors:
    """The arrays of an ``.npz``; pickled objects are refused.

    Raises:
        ManifestError: It is none.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # numpy, zipfile and zlib have a dozen ways to say that a file is damaged
        raise ManifestError(f"{path}: expected an .npz of arrays: {error}") from error


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
        profiler.add(answer.entered, answer.left, answer.rows)
        profiler.count(profiler.take(everything=True))
    except Exception as error:  # an index out of range, an axis that is not there: whatever numpy calls it
        raise ManifestError(f"{bundle.path}: the drift reference does not fit the model: {error}") from error


def _trim_heap() -> None:
    """Return freed memory to the system; without it glibc keeps a closed model's (measured: 229 MB against 11 MB)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return  # Another C library, which does that by itself or cannot.
