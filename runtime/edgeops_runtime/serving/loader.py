"""Models come and go while the process serves: load, try, let it answer, and give back the memory of the one before.

A version that fails on the way changes nothing. No request fails over a swap: those that found the version before finish with it.
"""

import gc
import logging
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeops.errors import ConflictError, EdgeOpsError, GateError
from edgeops.manifest import Manifest
from edgeops_runtime.serving.comparison import compare_golden
from edgeops_runtime.serving.counters import Counters
from edgeops_runtime.serving.folders import Folders
from edgeops_runtime.serving.model import DRAIN_S, give_memory_back
from edgeops_runtime.serving.recorder import Recorders
from edgeops_runtime.serving.repository import Label, Repository, Served

logger = logging.getLogger(__name__)

_USUAL_S = 1.0


class Loader:
    """Loads models into a repository and takes them out; may be used from several threads.

    Args:
        repository: Where they answer.
        folders: Where their bundles are.
        serve: Loads a bundle directory, verified and warm.
    """

    def __init__(self, repository: Repository, folders: Folders, serve: Callable[[Path], Served]) -> None:
        self._repository = repository
        self._folders = folders
        self._serve = serve
        # One load at a time, of whatever model: two at once would need the memory of both.
        self._changing = threading.Lock()
        self._counting = threading.Lock()
        self._failures: dict[str, str] = {}
        self.retired = Counters()
        """Of models that answer no more."""

    def start(self) -> None:
        """Load what is to be served from the beginning; a second version of a model becomes its canary.

        Raises:
            EdgeOpsError: A bundle cannot be loaded, or there are three versions of a model.
        """
        for path in self._folders.newest():
            served = self._serve(path)
            versions = {} if served.name not in self._names() else self._repository.versions(served.name)
            if Label.CANARY in versions:
                raise ConflictError(f"{path}: expected at most two versions of {served.name}, the second as canary")
            self._repository.put(served, Label.CANARY if versions else Label.STABLE)

    def load(
        self, name: str, *, version: str | None = None, bundle: str | None = None, label: Label = Label.STABLE
    ) -> Served:
        """Load a version of a model, hold it against its golden vectors, and let it answer.

        Args:
            name: The model.
            version: Otherwise the newest.
            bundle: Name of its directory; otherwise any.
            label: What it is to callers.

        Raises:
            NotFoundError: There is no such bundle.
            GateError: It does not give its golden answers.
            EdgeOpsError: It cannot be loaded, as :func:`edgeops_runtime.load` says.
        """
        with self._changing:
            path = self._folders.find(name, version=version, directory=bundle)
            try:
                served = self._tried(path, name)
                replaced = self._repository.put(served, label)
            except EdgeOpsError as error:
                self._failures[path.name] = str(error)
                raise
            self._failures.pop(path.name, None)
        self._retire(replaced)
        return served

    def unload(self, name: str, label: Label = Label.STABLE) -> None:
        """Let a model answer no more; without its stable version there is no canary either.

        Raises:
            NotFoundError: It was not there.
        """
        with self._changing:
            removed = self._repository.remove(name, label)
        self._retire(removed)

    def index(self, *, only_ready: bool = False) -> list[dict[str, str]]:
        """What there is, loaded or not, as the repository extension has it."""
        loaded = {(one.name, one.version) for one in self._repository.served}
        entries = [
            {"name": name, "version": version, "state": "READY", "reason": ""} for name, version in sorted(loaded)
        ]
        if only_ready:
            return entries
        for path, manifest in self._folders.bundles():
            if not isinstance(manifest, Manifest):
                entry = {"name": path.name, "version": "", "reason": str(manifest)}
            elif (manifest.name, manifest.version) in loaded:
                continue
            else:
                reason = self._failures.get(path.name, "not loaded")
                entry = {"name": manifest.name, "version": manifest.version, "reason": reason}
            entries.append(entry | {"state": "UNAVAILABLE"})
        return entries

    def close(self) -> None:
        """Count what was answered until now; no request is under way any more, and none follows."""
        for served in self._repository.served:
            self._count(served.model.recorders)

    def _tried(self, path: Path, name: str) -> Served:
        served = self._serve(path)
        if served.name != name:
            raise ConflictError(f"{path}: expected the model {name}, got {served.name}")
        result = compare_golden(served.model)
        if not result.passed:
            raise GateError(f"{served.name} {served.version}: {result.reason}; what was served before goes on")
        return served

    def _names(self) -> set[str]:
        return {one.name for one in self._repository.served}

    def _retire(self, replaced: list[Served]) -> None:
        """Let go of models, and wait until the last request that found them is answered.

        A request holds on to what it found for as long as it needs it, so the last one is over when nobody does. That costs
        requests nothing, unlike counting them.
        """
        while replaced:
            served: Any = replaced.pop()
            described, recorders = f"{served.name} {served.version}", served.model.recorders
            is_free = threading.Event()
            weakref.finalize(served, is_free.set).atexit = False
            del served
            if not is_free.wait(_USUAL_S):
                gc.collect()  # A traceback may hold it in a cycle.
                if not is_free.wait(DRAIN_S):
                    logger.warning(
                        "%s: still asked after %g s; its memory comes back with its last answer", described, DRAIN_S
                    )
            self._count(recorders)
        give_memory_back()

    def _count(self, recorders: Recorders) -> None:
        with self._counting:
            self.retired = Counters.total([self.retired, recorders.totals()])
