"""Engines that are ill, for tests: ``python -m edgeops_runtime.doctor.fakes ILLNESS --engine NAME`` in place of the probe.

The probe itself is the real one; only the engine under it is not.
"""

import ctypes
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from edgeops.errors import EngineError
from edgeops.manifest import Variant
from edgeops_runtime.doctor import probe
from edgeops_runtime.doctor.probe import Golden
from edgeops_runtime.engines.engine import Session, Tensors
from edgeops_runtime.engines.options import SessionOptions

_LEAK_BYTES = 1 << 20


class FakeEngine:
    """An engine that knows the golden answers, and has an illness.

    Args:
        illness: One of :data:`ILLNESSES`.
    """

    name, version = "fake", "1.0"

    def __init__(self, illness: str) -> None:
        self._illness = illness
        self._golden = Golden()
        self._leaked: list[bytearray] = []
        if illness == "sigill-at-import":
            os.kill(os.getpid(), signal.SIGILL)

    def load(
        self,
        model_path: Path,
        variant: Variant,
        threads: int,
        options: SessionOptions = SessionOptions(),  # noqa: ARG002, B008 - the seam's; immutable
    ) -> Session:
        """Take any model.

        Raises:
            EngineError: Its illness is ``system-error``.
        """
        if self._illness == "system-error":
            cause = SystemError("<built-in function> returned NULL without setting an exception")
            raise EngineError(f"{model_path.name}: cannot load it on {threads} threads") from cause
        if not set(variant.inputs) == {"x"}:
            raise EngineError(f"{model_path.name}: expected the input x, got {sorted(variant.inputs)}")
        return self

    def run(self, feeds: Tensors) -> Tensors:
        """Answer from the golden rows, or as the illness has it."""
        ILLNESSES[self._illness](self)
        row = feeds["x"][:1]
        found = np.flatnonzero((self._golden.inputs == row).all(axis=1))
        answer = self._golden.outputs[found[:1]] if len(found) else np.zeros((len(feeds["x"]), 3), np.float32)
        return {"y": answer + (1.0 if self._illness == "wrong" else 0.0)}

    def leak(self) -> None:
        """Lose a megabyte."""
        self._leaked.append(bytearray(os.urandom(1) * _LEAK_BYTES))


def _kill(number: signal.Signals) -> Callable[[FakeEngine], None]:
    return lambda _: os.kill(os.getpid(), number)


ILLNESSES: dict[str, Callable[[FakeEngine], object]] = {
    "none": lambda _: None,
    "wrong": lambda _: None,
    "system-error": lambda _: None,
    "sigill-at-import": lambda _: None,
    "sigill": _kill(signal.SIGILL),
    "sigkill": _kill(signal.SIGKILL),
    "abort": lambda _: os.abort(),
    "sigsegv": lambda _: ctypes.string_at(0),
    "leak": FakeEngine.leak,
    "hang": lambda _: threading.Event().wait(),
}
"""What happens at each run."""


@click.command()
@click.argument("illness", type=click.Choice(list(ILLNESSES)))
@click.option("--engine", required=True, help="Which engine is played; any.")
def main(illness: str, engine: str) -> None:  # noqa: ARG001 - the probe's command line
    """Play the probe of an ill engine."""
    probe.limit_itself()
    probe.examine(lambda: FakeEngine(illness), "onnx", probe.say)
    probe.leave()


if __name__ == "__main__":
    main()
