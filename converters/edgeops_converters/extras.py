"""Heavy libraries, imported on first use, without their noise.

The libraries write progress bars, warnings and native log lines to standard error. :func:`quiet` keeps those out of sight
(they go to the debug log); exceptions pass as they are.
"""

import contextlib
import importlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

from edgeops.errors import MissingExtraError

logger = logging.getLogger(__name__)

# onnxruntime reports its use to its maker otherwise; who wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_NOISY = (
    "torch", "torchao", "onnxruntime", "onnxscript", "onnx_ir", "jax", "absl", "litert_torch", "ai_edge_quantizer", "transformers"
)  # fmt: skip
_STDERR = 2


def load(module: str) -> Any:  # noqa: ANN401 - a module of a library without types
    """Import a library of the ``convert`` extra.

    Raises:
        MissingExtraError: It is not installed.
    """
    if module in sys.modules:
        return sys.modules[module]
    try:
        with quiet():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or module, "convert") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings, log lines and what native code writes to standard error out of sight."""
    with warnings.catch_warnings(), _without_log_lines(), _captured_stderr():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _without_log_lines() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _NOISY]
    before = [noisy.level for noisy in loggers]
    root = logging.getLogger()
    handlers, root_level = list(root.handlers), root.level
    for noisy in loggers:
        noisy.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for noisy, level in zip(loggers, before, strict=True):
            noisy.setLevel(level)
        # Some libraries configure logging for the whole program when they are imported; that is the program's to decide.
        root.handlers[:] = handlers
        root.setLevel(root_level)


@contextlib.contextmanager
def _captured_stderr() -> Iterator[None]:
    """Point file descriptor 2, which native code writes to, at a temporary file."""
    sys.stderr.flush()
    kept = os.dup(_STDERR)
    with tempfile.TemporaryFile() as sink, open(os.dup(sink.fileno()), "w", encoding="utf-8") as text:  # noqa: PTH123 - a descriptor, no path
        os.dup2(sink.fileno(), _STDERR)
        try:
            with contextlib.redirect_stderr(text):
                yield
        finally:
            text.flush()
            os.dup2(kept, _STDERR)
            os.close(kept)
            sink.seek(0)
            for line in sink.read().decode(errors="replace").splitlines():
                logger.debug("%s", line)
