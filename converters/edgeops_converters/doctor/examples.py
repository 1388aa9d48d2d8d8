"""Rows to try a model on when no data were given: the user's own example, or the shapes that the file carries."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.errors import ExportError, RecipeError
from edgeops.processing import Tensors
from edgeops_converters.extras import load, quiet
from edgeops_converters.samples import read_calibration
from edgeops_converters.sources import import_file

ATTRIBUTE = "example_inputs"
"""What the doctor looks for in a ``.py`` source: rows by name of the input, one array, or a function that returns either."""
_ROWS = 2
_OPEN_SIZE = 16  # of a dimension that the file leaves open


def example_rows(source: str | Path) -> Tensors:
    """Two rows or more of every input.

    Args:
        source: ``file.py:function`` whose file has ``example_inputs``, a ``.pt2`` or an ``.onnx`` file.

    Raises:
        ExportError: The file is not readable.
        RecipeError: It says nothing about its inputs; the message says how to.
    """
    path = Path(str(source).partition(":")[0])
    make = _SOURCES.get(path.suffix)
    if make is None:
        raise RecipeError(f"{source}: says nothing about its inputs; give rows (--data FILE.npz)")
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    given = make(path)
    rows = {name: np.resize(array, (max(_ROWS, len(array)), *array.shape[1:])) for name, array in given.items()}
    return read_calibration(rows).inputs


def _from_code(path: Path) -> Tensors:
    given = getattr(import_file(path), ATTRIBUTE, None)
    if callable(given):
        given = given()
    named = given if isinstance(given, Mapping) else {"input": given}
    arrays = {name: _array(value) for name, value in named.items()}
    wrong = [name for name, array in arrays.items() if array.ndim == 0 or array.dtype == object]
    if wrong or not arrays:
        raise RecipeError(
            f"{path}: the doctor runs the model on rows: give them (--data FILE.npz), or define in the file "
            f"{ATTRIBUTE} = {{'name of the input': array}} (rows first), or a function of that name that returns it"
        )
    return arrays


def _array(value: Any) -> NDArray[Any]:  # noqa: ANN401 - the user's
    return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)


def _from_program(path: Path) -> Tensors:
    torch = load("torch")
    try:
        with quiet():
            program = torch.export.load(str(path))
    except Exception as error:  # torch.export raises whatever it meets in the archive
        raise ExportError(f"{path}: not a readable exported program: {error}") from error
    values = {
        str(node.target).removeprefix("args_"): node.meta["val"]
        for node in program.graph.nodes
        if node.name in program.graph_signature.user_inputs
    }
    return {
        name: _made([size if isinstance(size, int) else None for size in value.shape], str(value.dtype).split(".")[-1])
        for name, value in values.items()
    }


def _from_onnx(path: Path) -> Tensors:
    onnx = load("onnx")
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf's and the operating system's errors share no base class
        raise ExportError(f"{path}: not a readable .onnx file: {str(error).strip() or type(error).__name__}") from error
    constants = {tensor.name for tensor in graph.initializer}
    return {
        value.name: _made(
            [one.dim_value if one.HasField("dim_value") else None for one in value.type.tensor_type.shape.dim],
            np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name,
        )
        for value in graph.input
        if value.name not in constants
    }


def _made(shape: Sequence[int | None], dtype: str) -> NDArray[Any]:
    """Rows from a fixed seed: normal numbers, or zeros where they may be indices."""
    sizes = [size or (_OPEN_SIZE if index else _ROWS) for index, size in enumerate(shape)]
    if np.issubdtype(np.dtype(dtype), np.floating):
        return np.random.default_rng(0).normal(size=sizes).astype(dtype)
    return np.zeros(sizes, dtype)


_SOURCES: dict[str, Callable[[Path], Tensors]] = {".py": _from_code, ".pt2": _from_program, ".onnx": _from_onnx}
