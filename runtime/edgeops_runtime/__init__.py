"""The device: load bundles and answer with them, in a program of the user's, behind local HTTP, or under the fleet's agent.

``load`` is for programs::

    with edgeops_runtime.load("fashion-1.2.0") as model:
        answers = model.infer({"image": images})

It is imported on use, since the agent imports this package and must load neither numpy nor an engine.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeops_runtime.serving.model import Model, load

__all__ = ["Model", "load"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - module attributes are of any type
    if name in __all__:
        return getattr(importlib.import_module("edgeops_runtime.serving.model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
