"""Which variant of a bundle this device takes, and on which of its engines; one that was never used here is tried first.

The choice is :func:`edgeops_runtime.engines.choose_variant`'s, trying :mod:`edgeops_runtime.doctor.examiner`'s.
"""

import threading
from collections.abc import Callable, Mapping, Sequence

from edgeops.manifest import Manifest, Variant
from edgeops_runtime import host
from edgeops_runtime.doctor.examiner import Examiner
from edgeops_runtime.doctor.verdicts import EngineVerdict
from edgeops_runtime.engines import available_engines, choose_variant


class VariantChooser:
    """Knows the engines of a device; may be used from several threads.

    Args:
        preference: Engines that may be used, the preferred first; empty: all.
        examiner: Tries engines; ``None``: they are taken as they are.
        on_failure: Told once of each engine that may not serve, in words; from any thread.
        measured: Variant and engine that were found best for the bundle of a digest, with the engines that may serve (name →
            version); ``None``: nobody has measured.
    """

    def __init__(
        self,
        preference: Sequence[str],
        examiner: Examiner | None,
        on_failure: Callable[[str], None],
        *,
        measured: Callable[[str, Mapping[str, str]], tuple[str, str] | None] = lambda *_: None,
    ) -> None:
        self._measured = measured
        self._preference = tuple(preference)
        self._examiner = examiner
        self._on_failure = on_failure
        self._installed = available_engines()
        self._failed: dict[str, str] = {}

    @property
    def engines(self) -> dict[str, str]:
        """Installed engine → version, without those that failed."""
        return {engine: version for engine, version in self._installed.items() if engine not in self._failed}

    def choose(self, manifest: Manifest, digest: str) -> tuple[Variant, str] | str:
        """The variant and the engine to take, or why there is none; may take seconds, the first time.

        Args:
            manifest: Of the bundle, in its order of preference.
            digest: Of the bundle, for what was measured here.
        """
        self._examine(self._preference or tuple(self._installed))
        fitting, objections = choose_variant(
            manifest,
            self.engines,
            preference=self._preference,
            cpu=host.cpu_flags(),
            memory_bytes=host.available_memory_bytes(),
        )
        if not fitting:
            return "; ".join((objections, *self._failed.values()))
        best = self._measured(digest, self.engines)
        return next((pair for pair in fitting if (pair[0].name, pair[1]) == best), fitting[0])

    def examine_beside(self, engine: str) -> None:
        """Try an engine that serves already on a thread of its own: it may be another version since the last start."""
        threading.Thread(target=self._examine, args=([engine],), name="probe", daemon=True).start()

    def _examine(self, engines: Sequence[str]) -> None:
        if self._examiner is None:
            return
        wanted = {engine: self._installed[engine] for engine in engines if engine in self._installed}
        self._examiner.usable(wanted, self._fail)

    def _fail(self, verdict: EngineVerdict) -> None:
        text = f"engine {verdict.engine} {verdict.version} {verdict.outcome}: {verdict.reason}"
        if self._failed.get(verdict.engine) != text:
            self._failed = {**self._failed, verdict.engine: text}
            self._on_failure(text)
