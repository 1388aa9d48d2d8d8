"""The models that one process serves, by name, and what happens to a request for one of them on its way to the engine.

Protocols (:mod:`~edgeops_runtime.serving.v2` and others) find a :class:`Served` here, ask it, encode what it answers, and tell it
that the answer goes out.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from edgeops.errors import DeadlineError, EngineError, NotFoundError
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

    def answered(self, request: str, feeds: Tensors, answer: Answer, start: int) -> None:
        """Count an answer that goes to its caller now.

        Args:
            request: The caller's id of it; may be empty.
            feeds: What was asked.
            answer: What goes out.
            start: As in :meth:`answer`.
        """
        if self._observer is not None:
            self._observer(request, feeds, answer)
        self.model.answered(answer, start)

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


class Repository:
    """Models by name; readers need no lock."""

    def __init__(self, *served: Served) -> None:
        self._served = {one.name: one for one in served}
        self._lock = threading.Lock()

    @property
    def served(self) -> tuple[Served, ...]:
        """All of them."""
        return tuple(self._served.values())

    def find(self, name: str, version: str | None = None) -> Served:
        """The model of a name, in a version if one is given.

        Raises:
            NotFoundError: There is none.
        """
        found = self._served.get(name)
        if found is None or version not in {None, found.version}:
            have = ", ".join(f"{one.name} version {one.version}" for one in self.served) or "nothing"
            asked = name if version is None else f"{name} version {version}"
            raise NotFoundError(f"no model {asked}; there is {have}")
        return found

    def put(self, served: Served) -> Served | None:
        """Serve a model from now on; returns the one that it replaces."""
        with self._lock:
            before = self._served.get(served.name)
            self._served = self._served | {served.name: served}
        return before

    def remove(self, name: str) -> Served:
        """Serve a model no more.

        Raises:
            NotFoundError: It was not served.
        """
        with self._lock:
            removed = self.find(name)
            self._served = {key: one for key, one in self._served.items() if key != name}
        return removed
