"""The model that is converted: opened from wherever it comes, and tried once on real rows.

A source becomes a :class:`Model`, which is all that the rest of the converter sees: names, specifications, and a function
that answers rows as the original does. Exporting it is left to :mod:`edgeops_converters.exporters`.
"""

import contextlib
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeops.errors import ExportError, RecipeError, TensorError
from edgeops.files import digest_file
from edgeops.processing import Tensors
from edgeops.tensors import PROTOCOL_NAMES, TensorSpec
from edgeops_converters.extras import load, quiet
from edgeops_converters.failures import explain
from edgeops_converters.sessions import OnnxSession

if TYPE_CHECKING:
    import torch
    from torch import nn

BATCH = "batch"
"""Name of the first dimension of every input and output."""
_OUTPUT = "output"


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
        module: Takes the inputs in order and returns a tuple of outputs in order; ``None`` for an ONNX file.
        onnx: The file, for an ONNX source.
    """

    label: str
    digest: str
    directory: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: int | None
    answer: Callable[[Tensors], Tensors]
    module: "nn.Module | None" = None
    onnx: Path | None = None


def open_model(source: "nn.Module | str | Path", example: Tensors) -> Model:
    """Open a source and run it on a few rows.

    Args:
        source: A module, ``file.py:function``, a ``.pt2`` or an ``.onnx`` file.
        example: At least two rows of every input, as the model itself takes them.

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
    if kind not in {".pt2", ".onnx"}:
        raise ExportError(f"{source}: expected file.py:function, a .pt2 exported program or an .onnx file{_hint(kind)}")
    if not Path(path).is_file():
        raise ExportError(f"{source}: no such file")
    return _open_program(Path(path), example) if kind == ".pt2" else _open_onnx(Path(path), example)


def _hint(kind: str) -> str:
    if kind in {".pt", ".pth", ".pkl", ".ckpt"}:
        return "; a pickle can run any code when it is loaded, so write torch.export.save(program, 'model.pt2') instead"
    if kind == ".tflite":
        return "; a .tflite has lost what a faithful conversion needs, give the model that it was made from"
    return ""


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
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    with _importable(path.absolute().parent):
        try:
            module = _import(path)
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            raise ExportError(f"{path}: cannot be imported: {type(error).__name__}: {error}") from error
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


def _open_onnx(path: Path, example: Tensors) -> Model:
    onnx = load("onnx")
    try:
        graph = onnx.load(str(path))
        onnx.checker.check_model(graph)
    except Exception as error:  # protobuf's, onnx's and the operating system's errors share no base class
        raise ExportError(f"{path}: not a readable .onnx file: {str(error).strip() or type(error).__name__}") from error
    initial = {tensor.name for tensor in graph.graph.initializer}
    inputs = tuple(_onnx_spec(value, onnx) for value in graph.graph.input if value.name not in initial)
    outputs = tuple(_onnx_spec(value, onnx) for value in graph.graph.output)
    fixed = next((spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], int)), None)
    _check_specs(str(path), inputs, example)
    session = OnnxSession(
        path, {spec.name: spec.name for spec in inputs}, {spec.name: spec.name for spec in outputs}, threads=2
    )
    return Model(
        label=str(path),
        digest=digest_file(path),
        directory=path.absolute().parent,
        inputs=tuple(_with_batch(spec) for spec in inputs),
        outputs=tuple(_with_batch(spec) for spec in outputs),
        batch=fixed if isinstance(fixed, int) else None,
        answer=session.run,
        onnx=path,
    )


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


def _onnx_spec(value: Any, onnx: Any) -> TensorSpec:  # noqa: ANN401 - onnx has no types
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    dimensions = [
        dimension.dim_value if dimension.HasField("dim_value") else dimension.dim_param or f"dim{index}"
        for index, dimension in enumerate(tensor.shape.dim)
    ]
    if not dimensions or dtype not in PROTOCOL_NAMES:
        raise ExportError(f"ONNX tensor {value.name!r}: {dtype} of rank {len(dimensions)} cannot be served by rows")
    return TensorSpec(name=value.name, dtype=PROTOCOL_NAMES[dtype], shape=tuple(dimensions))


def _module_digest(module: "nn.Module") -> str:
    """SHA-256 over the structure and every parameter and buffer."""
    digest = hashlib.sha256(str(module).encode())
    for name, tensor in sorted(module.state_dict().items()):
        if hasattr(tensor, "detach"):
            values = tensor.detach().cpu()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.contiguous().reshape(-1).view(load("torch").uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"
