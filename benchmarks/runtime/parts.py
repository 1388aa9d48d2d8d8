"""What there is to measure, as data: a part is a module with ``measure(…) -> list[Figure]``, imported when it is its turn."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.figures import Figure


@dataclass(frozen=True)
class Part:
    """One module.

    Attributes:
        what: For people.
        settings: Which settings of the command it takes, by name.
    """

    what: str
    settings: tuple[str, ...] = ()


PARTS = {
    "hot_path": Part("one inference, in process and over the socket", ("rounds",)),
    "rivals": Part("the same model behind MLServer and BentoML", ("rounds",)),
    "shared_memory": Part("a large tensor through shared memory", ("rounds",)),
    "spinning": Part("CPU at a modest rate", ("seconds",)),
    "footprint": Part("memory of agent and worker, start and recovery", ("starts",)),
    "swaps": Part("versions exchanged under load", ("swaps",)),
    "kills": Part("kill -9 at random points", ("kills",)),
    "outbox": Part("weeks without a broker, and flash writes"),
    "proofs": Part("what tests prove"),
}


class LeftOutError(Exception):
    """Something is not installed; the message says how to get it."""


def measure(name: str, settings: Mapping[str, int]) -> list[Figure]:
    """Import a part and run it.

    Args:
        name: Of a module beside this one.
        settings: All of the command's; the part gets those that it takes.

    Raises:
        LeftOutError: Something that it needs is not there.
    """
    try:
        module = importlib.import_module(f"benchmarks.runtime.{name}")
    except ModuleNotFoundError as error:
        raise LeftOutError(
            f"{error.name} cannot be imported; `make setup` installs what there is to measure with"
        ) from error
    found: list[Figure] = module.measure(**{each: settings[each] for each in PARTS[name].settings})
    return found
