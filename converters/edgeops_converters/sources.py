"""The model that is converted: opened from wherever it comes, and tried once on real rows.

A source becomes a :class:`Model`, which is all that the rest of the converter sees: names, specifications, and a function
that answers rows as the original does. Exporting it is left to :mod:`edgeops_converters.exporters`, reading the bytes of a model
file to the module of its format.
"""

import contextlib
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeops.errors import EngineError, ExportError, RecipeError, TensorError
from edgeops.files import digest_file
from edgeops.processing import Tensors
from edgeops.tensors import PROTOCOL_NAMES, TensorSpec
from edgeops_converters.dequantizers import DEQUANTIZERS
from edgeops_converters.extras import load, quiet
from edgeops_converters.failures import explain
from edgeops_converters.fidelity import sqnr_db
from edgeops_converters.litert_file import read_litert
from edgeops_converters.model_file import ModelFile
from edgeops_converters.onnx_file import read_onnx
from edgeops_converters.sessions import run_rows

if TYPE_CHECKING:
    import torch
    from torch import nn

BATCH = "batch"
"""Name of the first dimension of every input and output."""
READERS: dict[str, Callable[[Path], ModelFile]] = {".onnx": read_onnx, ".tflite": read_litert}
"""Suffix of a model file → what reads and checks it."""
_OUTPUT = "output"
_PICKLES = {".pt", ".pth", ".pkl", ".ckpt"}
_THREADS = 2
_LEAST_DB = 6.0  # a quarter of the signal's power: other answers, rather than rounding


@dataclass(frozen=True)
class Model:
    """A model that has answered real rows.

    Attributes:
        label: As the user named it.
        digest: SHA-256 over weights and structure, or of the file.
        directory: Where the user's code lies, for the Git revision.
        inputs: What the model itself takes, after ``preprocess``; the first dimension counts rows.
        outputs: What it gives, before ``postprocess``.
        batch: The number of rows that it takes at once; ``None`` when any.
        answer: Rows of every input to rows of every output.
        module: Takes the inputs in order and returns a tuple of outputs in order; ``None`` for a model file.
        file: The model file, where it is one already; ``None`` for a module.
    """

    label: str
    digest: str
    directory: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: int | None
    answer: Callable[[Tensors], Tensors]
    module: "nn.Module | None" = None
    file: ModelFile | None = None


def open_model(source: "nn.Module | str | Path", example: Tensors, *, allow_pickle: bool = False) -> Model:
    """Open a source and run it on a few rows.

    Args:
        source: A module, ``file.py:function``, a ``.pt2`` program, an ``.onnx`` or a ``.tflite`` file. A damaged model file can
            crash the engine, and this process with it: :func:`edgeops_converters.rehearsal.rehearse` finds out elsewhere.
        example: At least two rows of every input, as the model itself takes them.
        allow_pickle: Load a pickled module (``.pt``), which can run any code.

    Raises:
        ExportError: There is no such file or function, it gives no module in eval mode, or the module fails on the rows.
        RecipeError: The names, shapes or dtypes of the rows are not those of the model.
    """
    if not isinstance(source, (str, Path)):
        return _open_module(source, example, label=type(source).__qualname__, directory=Path.cwd())
    path, _, function = str(source).partition(":")
    kind = Path(path).suffix
    if kind == ".py":
        return _open_module(
            _make(Path(path), function), example, label=str(source), directory=Path(path).absolute().parent
        )
    if kind in _PICKLES and allow_pickle:
        return _open_module(_unpickle(Path(path)), example, label=str(source), directory=Path(path).absolute().parent)
    if kind not in {".pt2", *READERS}:
        raise ExportError(
            f"{source}: expected file.py:function, a .pt2 exported program, an .onnx or a .tflite file{_hint(kind)}"
        )
    if not Path(path).is_file():
        raise ExportError(f"{source}: no such file")
    return _open_program(Path(path), example) if kind == ".pt2" else _open_file(Path(path), example)


def in_float(model: Model, example: Tensors) -> Model:
    """The model with the integers of its file taken for what they stand for, as if the float file had been given.

    Raises:
        ExportError: Its file cannot be taken apart, or its float form does not answer as the file does.
    """
    if model.file is None or not model.file.is_quantized:
        raise ExportError(f"{model.label}: is float already; there is nothing to quantise anew, leave --requantize out")
    file = as_float(model, example)
    note = f"{model.label} is int8 already; it is quantised anew from what its weights stand for"
    answer = file.open(threads=_THREADS).run
    return replace(model, file=replace(file, notes=(*file.notes, note)), answer=answer)


def as_float(model: Model, example: Tensors) -> ModelFile:
    """The file of a model in float32: the one that was given, or what its integers stand for.

    Raises:
        ExportError: As in :func:`in_float`.
    """
    if model.file is None:
        raise ExportError(f"{model.label}: is no model file")
    if not model.file.is_quantized:
        return model.file
    try:
        file = DEQUANTIZERS[model.file.format](model.file)
        given = run_rows(file.open(threads=_THREADS).run, example, batch=file.batch)
    except (ExportError, EngineError, ValueError, LookupError) as error:  # numpy's, of scales that fit no tensor
        raise ExportError(f"{model.label}: its integers cannot be taken apart: {error}") from error
    expected = run_rows(model.answer, example, batch=model.batch)
    if not all(np.isfinite(array).all() for array in (*expected.values(), *given.values())):
        raise ExportError(f"{model.label}: answers NaN or Inf on rows of the data, or its float form does")
    noise = sqnr_db(expected, given)
    if noise is not None and not noise >= _LEAST_DB:
        raise ExportError(
            f"{model.label}: its float form answers with {noise:.1f} dB signal to noise of what the file answers, where "
            f"{_LEAST_DB:g} are expected; give the float model that it was made from"
        )
    return file


def _hint(kind: str) -> str:
    if kind in _PICKLES:
        return (
            "; a pickle can run any code when it is loaded, so write torch.export.save(program, 'model.pt2') instead, "
            "or say --allow-pickle if you made this file yourself"
        )
    return ""


def _unpickle(path: Path) -> "nn.Module":
    """Load a module that ``torch.save`` wrote whole; the caller has allowed it."""
    torch = load("torch")
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    with _importable(path.absolute().parent):
        try:
            with quiet():
                found = torch.load(str(path), map_location="cpu", weights_only=False)
        except Exception as error:  # a pickle raises whatever the code in it raises
            raise ExportError(
                f"{path}: cannot be unpickled: {type(error).__name__}: {error}; the classes of the model must be importable "
                f"from {path.absolute().parent}, so give file.py:function if they were defined in a script"
            ) from error
    if isinstance(found, torch.jit.ScriptModule) or not isinstance(found, torch.nn.Module):
        keys = f" with the keys {', '.join(map(str, list(found)[:5]))}" if isinstance(found, Mapping) else ""
        raise ExportError(
            f"{path}: expected a torch.nn.Module that torch.save wrote whole, got {type(found).__name__}{keys}; "
            "give file.py:function, with a function that makes the module and loads this into it"
        )
    return found  # type: ignore[no-any-return]  # checked above, through a lazily loaded class


def import_file(path: Path) -> ModuleType:
    """Import the user's file, which may import its neighbours.

    Raises:
        ExportError: There is none, or it raises.
    """
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    with _importable(path.absolute().parent):
        try:
            return _import(path)
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            raise ExportError(f"{path}: cannot be imported: {type(error).__name__}: {error}") from error


def load_function(path: Path, name: str, *, purpose: str) -> Callable[..., Any]:
    """A function of the user's own file, which may import its neighbours, as when Python runs it.

    Args:
        path: The file.
        name: Of the function; empty when none was given.
        purpose: What the function is to do, for the message: ``returns the model``.

    Raises:
        ExportError: There is no such file or function, or importing the file fails.
    """
    if not name:
        raise ExportError(f"{path}: expected file.py:function, with a function that {purpose}")
    module = import_file(path)
    function = getattr(module, name, None)
    if not callable(function):
        known = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        raise ExportError(f"{path}: no function {name!r}; it has {', '.join(known) or 'none'}")
    return function  # type: ignore[no-any-return]  # checked above


def _make(path: Path, function: str) -> "nn.Module":
    """Import the user's file and call the function that makes the model."""
    make = load_function(path, function, purpose="returns the model")
    with _importable(path.absolute().parent):
        try:
            made = make()
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            raise ExportError(f"{path}:{function} failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, load("torch").nn.Module):
        raise ExportError(f"{path}:{function}: expected a torch.nn.Module, got {type(made).__name__}")
    return made  # type: ignore[no-any-return]  # checked above, through a lazily loaded class


def _import(path: Path) -> ModuleType:
    name = f"edgeops_source_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look a module up by its name
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _importable(directory: Path) -> Iterator[None]:
    """The user's file may import its neighbours, as when Python runs it."""
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))


def _open_module(module: "nn.Module", example: Tensors, *, label: str, directory: Path) -> Model:
    torch = load("torch")
    if not isinstance(module, torch.nn.Module):
        raise ExportError(f"{label}: expected a torch.nn.Module, a path, or file.py:function")
    if module.training:
        raise ExportError(f"{label}: the module is in training mode; call .eval() on it before converting")
    names = _bind(_parameters(module.forward), example, label)
    return _tried(module, names, example, label=label, digest=_module_digest(module), directory=directory, batch=None)


def _open_program(path: Path, example: Tensors) -> Model:
    torch = load("torch")
    try:
        with quiet():
            program = torch.export.load(str(path))
            module = program.module()
    except Exception as error:  # torch.export raises whatever it meets in the archive
        raise ExportError(f"{path}: not a readable exported program: {error}") from error
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    spec = program.call_spec.in_spec  # of (arguments, keyword arguments)
    keywords = set((spec.child(1) if hasattr(spec, "child") else spec.children_specs[1]).context or ())
    bound = _bind({str(node.target).removeprefix("args_"): True for node in inputs}, example, str(path))
    names = {name: parameter if parameter in keywords else "" for name, parameter in bound.items()}
    sizes = [node.meta["val"].shape[0] for node in inputs]
    fixed = next((size for size in sizes if isinstance(size, int)), None)
    return _tried(
        module, names, example, label=str(path), digest=digest_file(path), directory=path.absolute().parent, batch=fixed
    )


def _open_file(path: Path, example: Tensors) -> Model:
    file = READERS[path.suffix](path)
    if file.precision == "float16":
        note = "its float16 weights are written as float32"
        file = replace(DEQUANTIZERS[file.format](file), notes=(*file.notes, note))
    if file.is_quantized:
        note = f"{path} is int8 already and stays as it is; float is what its integers stand for; --requantize quantises anew"
        file = replace(file, notes=(*file.notes, note))
    if len(file.inputs) == len(example) == 1:
        file = _renamed_input(file, next(iter(example)))
    _check_specs(str(path), file.inputs, example)
    try:
        answer = file.open(threads=_THREADS).run
        given = run_rows(answer, example, batch=file.batch)
    except EngineError as error:
        raise ExportError(f"{path}: {error}") from error
    return Model(
        label=str(path),
        digest=digest_file(path),
        directory=path.absolute().parent,
        inputs=tuple(_with_batch(spec) for spec in file.inputs),
        outputs=tuple(_measured(spec, given[spec.name]) for spec in file.outputs),
        batch=file.batch,
        answer=answer,
        file=file,
    )


def _renamed_input(file: ModelFile, name: str) -> ModelFile:
    """One array and one input need not have the same name."""
    spec = file.inputs[0]
    renamed = TensorSpec(name=name, dtype=spec.dtype, shape=spec.shape, layout=spec.layout)
    return replace(file, inputs=(renamed,), input_tensors={name: file.input_tensors[spec.name]})


def _measured(spec: TensorSpec, rows: Any) -> TensorSpec:  # noqa: ANN401 - a numpy array
    """An output as declared; where the file leaves the number of its dimensions open, as it came."""
    return _with_batch(spec) if len(spec.shape) == rows.ndim else _spec(spec.name, rows.dtype, rows.shape[1:])


def _tried(
    module: "nn.Module",
    names: Mapping[str, str],
    example: Tensors,
    *,
    label: str,
    digest: str,
    directory: Path,
    batch: int | None,
) -> Model:
    """Run a module on one and on several rows, and learn the names of its outputs."""
    torch = load("torch")
    wrapped = _positional(module, list(names.values()))

    def answer(tensors: Tensors) -> Tensors:
        with torch.inference_mode(), quiet():
            given = wrapped(*(torch.from_numpy(np.ascontiguousarray(tensors[name])) for name in names))
        return {name: value.numpy() for name, value in zip(output_names, given, strict=True)}

    rows = min(len(array) for array in example.values())
    outputs: dict[str, Any] = {}
    for count in (batch,) if batch is not None else (1, rows):
        chunk = {name: np.resize(array, (count, *array.shape[1:])) for name, array in example.items()}
        try:
            with torch.inference_mode(), quiet():
                tensors = [torch.from_numpy(np.ascontiguousarray(chunk[name])) for name in names]
                outputs = _named_outputs(_call(module, names.values(), tensors), torch)
        except Exception as error:  # the user's own code runs here
            shapes = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in chunk.items())
            raise ExportError(f"{label}: fails on rows of the data ({shapes}): {explain(error, module)}") from error
        _check_outputs(label, outputs, rows=count)
    output_names = list(outputs)
    return Model(
        label=label,
        digest=digest,
        directory=directory,
        inputs=tuple(_spec(name, array.dtype, array.shape[1:]) for name, array in example.items() if name in names),
        outputs=tuple(_spec(name, value.numpy().dtype, value.shape[1:]) for name, value in outputs.items()),
        batch=batch,
        answer=answer,
        module=wrapped,
    )


def _check_outputs(label: str, outputs: "Mapping[str, torch.Tensor]", *, rows: int) -> None:
    """Refuse outputs that cannot be served: none, a dtype that no device has, or not one row for each row of the inputs."""
    if not outputs:
        raise ExportError(f"{label}: forward returns nothing; expected a tensor, a tuple or a mapping of tensors")
    for name, value in outputs.items():
        if str(value.dtype).removeprefix("torch.") not in PROTOCOL_NAMES:
            raise ExportError(f"{label}: output {name!r}: {value.dtype} does not go to a device; return .float() of it")
        if value.ndim == 0 or len(value) != rows:
            raise ExportError(
                f"{label}: output {name!r}: expected one row for each of {rows} input rows, got {list(value.shape)}"
            )


def _positional(module: "nn.Module", parameters: Sequence[str]) -> "nn.Module":
    """The module behind a plain signature: tensors in order to a tuple of tensors in order."""
    torch = load("torch")

    class Positional(torch.nn.Module):  # type: ignore[misc,name-defined]  # the base class is loaded lazily
        def __init__(self) -> None:
            super().__init__()
            self.module = module
            self.training = False

        def forward(self, *tensors: Any) -> Any:  # noqa: ANN401 - torch tensors, loaded lazily
            return tuple(_named_outputs(_call(self.module, parameters, tensors), torch).values())

    return Positional()


def _call(module: "nn.Module", parameters: Iterable[str], tensors: Iterable[Any]) -> Any:  # noqa: ANN401 - the user's
    """Call a module with tensors by parameter; an empty name stands for the next place."""
    given = list(zip(parameters, tensors, strict=True))
    places = [tensor for parameter, tensor in given if not parameter]
    return module(*places, **{parameter: tensor for parameter, tensor in given if parameter})


def _named_outputs(given: Any, torch: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever the user's forward returns
    if isinstance(given, torch.Tensor):
        return {_OUTPUT: given}
    if isinstance(given, Mapping):
        named = {str(name): value for name, value in given.items()}
    elif isinstance(given, (tuple, list)):
        named = {f"{_OUTPUT}_{index}" if len(given) > 1 else _OUTPUT: value for index, value in enumerate(given)}
    else:
        raise TypeError(f"forward returns {type(given).__name__}; expected a tensor, a tuple or a mapping of tensors")
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"output {name!r} of forward is {type(value).__name__}, expected a tensor")
    return named


def _parameters(forward: Callable[..., Any]) -> dict[str, bool]:
    """Names of the parameters of ``forward``, and whether each is required."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(forward).parameters.values()
    return {p.name: p.default is inspect.Parameter.empty for p in parameters if p.kind in kinds}


def _bind(parameters: Mapping[str, bool], example: Tensors, label: str) -> dict[str, str]:
    """Name in the data → parameter of ``forward``; one array and one parameter need not have the same name."""
    required = [name for name, is_required in parameters.items() if is_required]
    if set(required) <= set(example) <= set(parameters):
        return {name: name for name in parameters if name in example}
    if len(example) == 1 and len(required) == 1:
        return {next(iter(example)): required[0]}
    raise RecipeError(
        f"{label}: expected data with the keys {required} (the parameters of forward), got {sorted(example)}"
    )


def _check_specs(where: str, specs: Sequence[TensorSpec], example: Tensors) -> None:
    if {spec.name for spec in specs} != set(example):
        raise RecipeError(
            f"{where}: expected data with the keys {sorted(spec.name for spec in specs)}, got {sorted(example)}"
        )
    for spec in specs:
        array = example[spec.name]
        try:
            _with_batch(spec).check(array)
        except TensorError as error:
            raise RecipeError(f"{where}: data for {error}") from error


def _spec(name: str, dtype: Any, shape: Sequence[int]) -> TensorSpec:  # noqa: ANN401 - a numpy dtype
    return TensorSpec(name=name, dtype=PROTOCOL_NAMES[str(np.dtype(dtype))], shape=(BATCH, *map(int, shape)))


def _with_batch(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(name=spec.name, dtype=spec.dtype, shape=(BATCH, *spec.shape[1:]), layout=spec.layout)


def _module_digest(module: "nn.Module") -> str:
    """SHA-256 over the structure and every parameter and buffer."""
    digest = hashlib.sha256(str(module).encode())
    for name, tensor in sorted(module.state_dict().items()):
        if hasattr(tensor, "detach"):
            values = tensor.detach().cpu()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.contiguous().reshape(-1).view(load("torch").uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"
