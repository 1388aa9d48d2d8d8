"""A hook of the device's owner that looks at each captured row before it leaves the worker.

The hook is a function of a module that is installed on the device: it gets the inputs of one row by name and returns what may
leave, of the same names, dtypes and shapes, or ``None`` where nothing may. A hook that fails ends the order: nothing leaves
unredacted.
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.errors import ConfigError, RefusedError
from edgeops_runtime.engines.engine import Tensors

Hook = Callable[[Tensors], Tensors | None]


def load_hook(name: str) -> Hook:
    """The function of ``module:function``; empty: one that lets everything pass.

    Raises:
        ConfigError: There is none.
    """
    if not name:
        return lambda inputs: inputs
    module, _, function = name.partition(":")
    try:
        hook = getattr(importlib.import_module(module), function)
    except Exception as error:  # the owner's module may do anything while it is imported
        raise ConfigError(f"redact {name!r}: expected module:function, installed here: {error}") from error
    if not callable(hook):
        raise ConfigError(f"redact {name!r}: expected a function, got {type(hook).__name__}")
    found: Hook = hook
    return found


def redact(hook: Hook, inputs: Tensors) -> Tensors | None:
    """What of a row may leave; ``None``: nothing.

    Args:
        hook: Decides; gets copies, which it may write to.
        inputs: Input name → one row.

    Raises:
        RefusedError: The hook failed, or returned something else than it may.
    """
    try:
        allowed = hook({name: array.copy() for name, array in inputs.items()})
    except Exception as error:
        raise RefusedError(f"the redaction hook failed: {type(error).__name__}: {error}") from error
    if allowed is None:
        return None
    if not isinstance(allowed, dict) or set(allowed) != set(inputs):
        raise RefusedError(f"the redaction hook: expected None or the inputs {sorted(inputs)}, got {_names(allowed)}")
    for name, array in inputs.items():
        if not _is_alike(allowed[name], array):
            raise RefusedError(
                f"the redaction hook: input {name!r}: expected {array.dtype} {list(array.shape)}, "
                f"got {getattr(allowed[name], 'dtype', type(allowed[name]).__name__)}"
                f" {list(getattr(allowed[name], 'shape', ()))}"
            )
    return allowed


def _is_alike(array: object, model: NDArray[Any]) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == model.dtype and array.shape == model.shape


def _names(value: object) -> str:
    return str(sorted(map(str, value))) if isinstance(value, dict) else type(value).__name__
