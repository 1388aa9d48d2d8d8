"""The models that one process serves, by name, and what happens to a request for one of them on its way to the engine.

Protocols (:mod:`~edgeops_runtime.serving.v2` and others) find a :class:`Served` here, ask it, encode what it answers, and tell it
that the answer goes out.
"""

import threading
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from numpy.typing import NDArray

from edgeops.errors import ConflictError, DeadlineError, EngineError, NotFoundError
from edgeops_runtime.engines.engine import Tensors
from edgeops_runtime.serving.batcher import Batcher
from edgeops_runtime.serving.budget import Queue, ThreadBudget
from edgeops_runtime.serving.codec import Codec
from edgeops_runtime.serving.model import LoadedModel
from edgeops_runtime.serving.pipeline import Answer

Observer = Callable[[str, Tensors, Answer], None]
"""Told of every answer: the request's id, the caller's inputs, the answer."""


class Served:
    """One model that is served; may be used from several threads.

    Args:
        model: Answers, and counts.
        budget: Lanes of this process, the same for all its models; without one the model has those of the machine for itself.
        weight: Its share of them while other models want them too.
        observer: Told of every answer before it goes out; must be quick.

    Attributes:
        last_start: When the last request came that was answered, by ``time.perf_counter_ns()``; 0 before the first.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        budget: ThreadBudget | None = None,
        weight: float = 1.0,
        observer: Observer | None = None,
    ) -> None:
        self.model = model
        self.name = model.manifest.name
        self.version = model.manifest.version
        self.codec = Codec(model.manifest.outputs, model=self.name, version=self.version)
        self.batcher = Batcher(
            model.manifest,
            model.variant,
            model.pipeline,
            budget=budget or ThreadBudget.for_machine(1),
            queue=Queue(self.name, weight=weight),
        )
        self.last_start = 0
        self._observer = observer

    def answer(self, feeds: Mapping[str, NDArray[Any]], start: int, *, deadline: int | None = None) -> Answer:
        """Answer, when it is this request's turn; what the device fails to do is counted.

        Args:
            feeds: Every input by name, rows first.
            start: When the request came, by ``time.perf_counter_ns()``; ``deadline`` likewise, ``None`` for none.
            deadline: An answer after it is of no use.

        Raises:
            TensorError: The request is wrong.
            OverloadedError: Too many requests wait already.
            DeadlineError: Its turn would have come too late.
            EngineError: The model failed.
        """
        if deadline is not None and time.perf_counter_ns() >= deadline:
            raise DeadlineError(f"{self.name}: the deadline passed before the model could be asked")
        try:
            return self.batcher.answer(feeds, deadline=deadline)
        except EngineError as error:
            self.model.failed(start, error)
            raise

    def answered(self, request: str, feeds: Tensors, answer: Answer, start: int, *, is_borrowed: bool = False) -> None:
        """Count an answer that goes to its caller now.

        Args:
            request: The caller's id of it; may be empty.
            feeds: What was asked.
            answer: What goes out.
            start: As in :meth:`answer`.
            is_borrowed: The caller's memory is looked at, and changes after this call; an observer gets copies.
        """
        if self._observer is not None:
            if is_borrowed:
                feeds = {name: array.copy() for name, array in feeds.items()}
            self._observer(request, feeds, answer)
        self.last_start = start
        self.model.answered(answer, start, is_lent=is_borrowed)

    def failed(self, start: int) -> None:
        """Count a request that could not be answered for a reason of ours."""
        self.model.failed(start)

    @property
    def is_due(self) -> bool:
        """Whether :meth:`settle` has something to do."""
        return bool(self.model.recorders.full)

    def settle(self) -> None:
        """What can wait until the reply is out."""
        self.model.settle()


class Label(StrEnum):
    """What a version is to its callers."""

    STABLE = "stable"
    """Answers whoever asks for the model."""
    CANARY = "canary"
    """Answers who asks for it by version or label; at most one beside the stable one."""


class Repository:
    """Models by name: of each a stable version, and perhaps a canary; readers need no lock."""

    def __init__(self, *served: Served) -> None:
        self._stable = {one.name: one for one in served}
        self._canaries: dict[str, Served] = {}
        self._lock = threading.Lock()
        self._is_leaving = False

    @property
    def served(self) -> tuple[Served, ...]:
        """All of them, the stable ones first."""
        return (*self._stable.values(), *self._canaries.values())

    @property
    def is_ready(self) -> bool:
        """Whether requests are welcome: there is a model, and the process is not about to end."""
        return bool(self._stable) and not self._is_leaving

    def leave(self) -> None:
        """Say from now on that requests had better go elsewhere; those that come are answered."""
        self._is_leaving = True

    def find(self, name: str, version: str | None = None) -> Served:
        """The model of a name: the stable one, or that of a version.

        Raises:
            NotFoundError: There is none.
        """
        found = self._stable.get(name)
        if found is not None and (version is None or version == found.version):
            return found
        canary = self._canaries.get(name)
        if canary is not None and version == canary.version:
            return canary
        raise self._missing(name if version is None else f"{name} version {version}")

    def labelled(self, name: str, label: str) -> Served:
        """The version of a model that has a label.

        Raises:
            NotFoundError: There is none.
        """
        found = {Label.STABLE.value: self._stable, Label.CANARY.value: self._canaries}.get(label, {}).get(name)
        if found is None:
            raise self._missing(f"{name} with the label {label}")
        return found

    def versions(self, name: str) -> dict[Label, Served]:
        """Every version of a model, the stable one first.

        Raises:
            NotFoundError: There is none.
        """
        found = {Label.STABLE: self.find(name)}
        canary = self._canaries.get(name)
        return found | {Label.CANARY: canary} if canary is not None else found

    def put(self, served: Served, label: Label = Label.STABLE) -> list[Served]:
        """Serve a model from now on; returns those that it replaces.

        A canary that becomes stable leaves no canary behind.

        Raises:
            ConflictError: It would be a canary beside nothing, or beside its own version.
        """
        name = served.name
        with self._lock:
            stable, canary = self._stable.get(name), self._canaries.get(name)
            if label is Label.CANARY:
                if stable is None or stable.version == served.version:
                    beside = "nothing" if stable is None else f"version {stable.version}, which is the same"
                    raise ConflictError(
                        f"{name} {served.version}: expected a stable version to stand beside, got {beside}"
                    )
                self._canaries = self._canaries | {name: served}
                return [canary] if canary is not None else []
            self._stable = self._stable | {name: served}
            replaced = [stable] if stable is not None else []
            if canary is not None and canary.version == served.version:
                self._canaries = _without(self._canaries, name)
                replaced.append(canary)
            return replaced

    def remove(self, name: str, label: Label = Label.STABLE) -> list[Served]:
        """Serve a model no more; without its stable version there is no canary either.

        Raises:
            NotFoundError: It was not served.
        """
        with self._lock:
            removed = [self.labelled(name, label)]
            if label is Label.STABLE and name in self._canaries:
                removed.append(self._canaries[name])
            if label is Label.STABLE:
                self._stable = _without(self._stable, name)
            self._canaries = _without(self._canaries, name)
        return removed

    def _missing(self, asked: str) -> NotFoundError:
        have = ", ".join(f"{one.name} version {one.version}" for one in self.served) or "nothing"
        return NotFoundError(f"no model {asked}; there is {have}")


def _without(served: dict[str, Served], name: str) -> dict[str, Served]:
    return {key: one for key, one in served.items() if key != name}
