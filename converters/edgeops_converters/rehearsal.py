"""Opening a model file that nobody has vouched for in a process that may die of it.

What the readers check is a lot, and still less than what an engine takes for granted: a damaged file can crash it or keep it
busy for ever, and this process with it. So a file is first opened, and run on a few rows, in a process of its own.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeops import errors
from edgeops.errors import EdgeOpsError, ExportError
from edgeops.processing import Tensors
from edgeops_converters.inspection import Inspection, decode_inspection, encode_inspection, inspect_file
from edgeops_converters.sources import READERS, as_float, open_model

_TIMEOUT_S = 300.0
_ROWS_FILE, _RESULT_FILE = "rows.npz", "result"


def rehearse(source: object, example: Tensors, *, timeout_s: float = _TIMEOUT_S) -> None:
    """Open a model file elsewhere; anything else than a model file is left alone.

    Args:
        source: As in :func:`edgeops_converters.sources.open_model`.
        example: A few rows of every input.
        timeout_s: A file that keeps the engine busy for longer is refused.

    Raises:
        ExportError: The file is damaged, crashes the engine, or takes too long; or as in ``open_model``.
        RecipeError: As in ``open_model``.
    """
    if not isinstance(source, (str, Path)) or not is_model_file(Path(source)):
        return
    with tempfile.TemporaryDirectory(prefix="edgeops-rehearsal-") as directory:
        names = list(example)
        arrays: dict[str, Any] = {f"rows_{index}": example[name] for index, name in enumerate(names)}
        np.savez(Path(directory) / _ROWS_FILE, names=np.array(names), **arrays)
        _run(Path(source), Path(directory), timeout_s=timeout_s)


def inspect_apart(path: Path, *, timeout_s: float = _TIMEOUT_S) -> Inspection:
    """What a model file is, found out elsewhere; raises as :func:`rehearse`."""
    with tempfile.TemporaryDirectory(prefix="edgeops-rehearsal-") as directory:
        inspection = decode_inspection(_run(path, Path(directory), timeout_s=timeout_s))
    return msgspec.structs.replace(inspection, path=str(path))


def is_model_file(path: Path) -> bool:
    """Whether it is a file of a format that an engine runs."""
    return path.suffix in READERS and path.is_file()


def _run(path: Path, directory: Path, *, timeout_s: float) -> bytes:
    """Start this module on a file and take its result."""
    # Without -P the working directory would come first, and a file onnx.py in it would be run.
    command = [sys.executable, "-P", "-m", __name__, str(path.absolute()), str(path), str(directory)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False, env=environment)  # noqa: S603 - our own module
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"{path}: keeps its engine busy for more than {timeout_s:g} s with a few rows") from error
    if done.returncode < 0:
        raise ExportError(
            f"{path}: crashes its engine (signal {-done.returncode}); the file is damaged, or was made to do that"
        )
    try:
        result = (directory / _RESULT_FILE).read_bytes()
    except OSError as error:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ExportError(
            f"{path}: cannot be opened: {said[-1] if said else f'exit code {done.returncode}'}"
        ) from error
    if done.returncode:
        kind, message = json.loads(result)
        raise getattr(errors, kind)(message)
    return result


def main(file: str, label: str, directory: str) -> int:
    """Open the file, in the process that may die; the result, or the error, goes to a file."""
    _limit_memory()
    target = Path(directory) / _RESULT_FILE
    try:
        result = _open(Path(file), Path(directory))
    except EdgeOpsError as error:
        known = next(one.__name__ for one in type(error).__mro__ if hasattr(errors, one.__name__))
        known = known if known != errors.MissingExtraError.__name__ else errors.ConfigError.__name__
        target.write_text(json.dumps([known, str(error).replace(file, label)]), encoding="utf-8")
        return 1
    target.write_bytes(result)
    return 0


def _open(path: Path, directory: Path) -> bytes:
    if not (directory / _ROWS_FILE).exists():
        return encode_inspection(inspect_file(path))
    with np.load(directory / _ROWS_FILE) as archive:
        example = {str(name): archive[f"rows_{index}"] for index, name in enumerate(archive["names"])}
    model = open_model(path, example)
    as_float(model, example)
    return b""


def _limit_memory() -> None:
    """A size in a damaged file must not take all memory of the machine."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (total if hard == resource.RLIM_INFINITY else min(total, hard), hard))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
