"""Rewrites: the same answers within float rounding, in a form that quantises better and runs faster.

Each pass is a module of its own and a line in a table; it takes a graph, edits it, and says which layers it changed. What comes
out is held against the source on real rows, and where it differs, or where the model cannot be traced, the source stays as it
is.

There are two results: what float files are made from, and what int8 files are made from. They differ only in forms that are
faster in integers and slower in float.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeops import processing
from edgeops.errors import EdgeOpsError, ExportError, RecipeError
from edgeops.manifest import Operator
from edgeops.processing import Tensors
from edgeops.tensors import TensorSpec
from edgeops_converters.extras import load, quiet
from edgeops_converters.model_file import ModelFile
from edgeops_converters.rewrites import entry, layout, onnx
from edgeops_converters.rewrites.batch_norms import fold_batch_norms
from edgeops_converters.rewrites.biases import complete_biases
from edgeops_converters.rewrites.flattening import convolve_flattened
from edgeops_converters.rewrites.graph import Graph, capture, rows_of, trace
from edgeops_converters.rewrites.hard_activations import integer_hard_sigmoids, integer_hard_swishes
from edgeops_converters.rewrites.identities import remove_identities
from edgeops_converters.rewrites.layout import Layout
from edgeops_converters.rewrites.pooling import pool_means
from edgeops_converters.sources import Model

Pass = Callable[[Graph], tuple[str, ...]]
"""Edits a graph and gives the layers that it changed, as the user's model calls them."""

PASSES: dict[str, Pass] = {
    "removed what does nothing": remove_identities,
    "folded batch norms": fold_batch_norms,
    "gave a bias of zeros": complete_biases,
    "means over space as global average pooling": pool_means,
    "linear layers on flattened images as convolutions": convolve_flattened,
}
"""What is done → the pass, in order; for all files."""

INTEGER_PASSES: dict[str, Pass] = {
    "hard sigmoids in integers": integer_hard_sigmoids,
    "hard swishes in integers": integer_hard_swishes,
}
"""The same, for what int8 files are made from; measured to be faster there, and slower in float."""

_SAME = 1e-4  # of the largest answer: ten times what float rounding makes of a deep network


@dataclass(frozen=True)
class PassResult:
    """What a pass did.

    Attributes:
        title: As in the table.
        layers: That it changed.
    """

    title: str
    layers: tuple[str, ...]

    @property
    def text(self) -> str:
        """One line for people.

        >>> PassResult("folded batch norms", ("a", "b", "c", "d", "e")).text
        'folded batch norms: a, b, c and 2 more'
        """
        some, more = self.layers[:3], len(self.layers) - 3
        return f"{self.title}: {', '.join(some)}{f' and {more} more' if more > 0 else ''}"


@dataclass(frozen=True)
class Rewritten:
    """A model after its rewrites.

    Attributes:
        model: What float files are made from; takes what callers give, before ``preprocess`` below.
        integers: What int8 files are made from; the same object where it has no other form.
        preprocess: What is still between the caller and the model.
        results: Of the passes that changed something.
        notes: What was not done, and why.
    """

    model: Model
    integers: Model
    preprocess: tuple[Operator, ...]
    results: tuple[PassResult, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Everything for the report's notes."""
        return (*(f"rewritten: {result.text}" for result in self.results), *self.notes)


def rewrite(
    model: Model,
    rows: Tensors,
    *,
    preprocess: Sequence[Operator] = (),
    input_layout: Layout = Layout.NCHW,
) -> Rewritten:
    """Rewrite a model for its files.

    Args:
        model: As opened.
        rows: A few rows as the caller gives them, in the caller's layout and before ``preprocess``.
        preprocess: Operators from the caller's inputs to the model's, in the caller's layout.
        input_layout: In which callers give images.
    """
    if model.file is not None:
        return _of_file(model, model.file, preprocess, input_layout)
    try:
        return _of_module(model, rows, tuple(preprocess), input_layout)
    except ExportError as error:
        taken = _taking(model, (), input_layout)
        if input_layout is Layout.NHWC:
            taken = replace(taken, module=layout.turned_module(model))
        return Rewritten(taken, taken, tuple(preprocess), notes=(f"not rewritten: {error}",))


def _of_module(model: Model, rows: Tensors, preprocess: tuple[Operator, ...], input_layout: Layout) -> Rewritten:
    """A torch model; whatever goes wrong is a reason to leave it as it is, since it can be converted without."""
    try:
        return _traced(model, rows, preprocess, input_layout)
    except EdgeOpsError:
        raise
    except Exception as error:  # torch's own, on a graph that no pass has thought of
        raise ExportError(f"{type(error).__name__}: {error}") from error


def _traced(model: Model, rows: Tensors, preprocess: tuple[Operator, ...], input_layout: Layout) -> Rewritten:
    """A torch model: traced, rewritten twice, and held against what it was."""
    plain = layout.as_model_takes(processing.apply(preprocess, rows), input_layout)
    graph, batch = capture(model, plain)
    results = _applied(PASSES, graph)
    folds, notes = _fold_entries(graph, model, rows, preprocess, input_layout)
    if input_layout is Layout.NHWC:
        layout.turn_inputs(graph, model)
    integers = graph.copied()
    integer_results = _applied(INTEGER_PASSES, integers)
    folded = tuple(operator for operator in preprocess if operator.tensor in folds)
    left = tuple(operator for operator in preprocess if operator not in folded)
    taken = replace(_taking(model, folded, input_layout), batch=batch)
    given = processing.apply(left, rows)
    for one in (graph, integers) if integer_results else (graph,):
        one.finish()
        _check(one, taken, given)
    floats = replace(taken, module=graph.module)
    if batch is not None and model.batch is None:
        notes = (*notes, "takes one row at a time, because the model fixes the batch")
    return Rewritten(
        model=floats,
        integers=replace(taken, module=integers.module) if integer_results else floats,
        preprocess=left,
        results=(*results, *folds.values(), *integer_results),
        notes=notes,
    )


def _of_file(model: Model, file: ModelFile, preprocess: Sequence[Operator], input_layout: Layout) -> Rewritten:
    """An ONNX file that is float; others stay as they are."""
    if file.format != "onnx" or file.is_quantized:
        if input_layout is not Layout.NCHW:
            raise RecipeError(f"{model.label}: keeps the layout that it has; leave --input-layout out")
        return Rewritten(model, model, tuple(preprocess))
    graph = load("onnx").load_from_string(file.content)
    taken = _taking(model, (), input_layout)
    results = _file_results(onnx.PASSES, graph)
    if input_layout is Layout.NHWC:
        onnx.turn_inputs(graph, {spec.name for spec in model.inputs if len(spec.shape) == layout.IMAGE_RANK})
    if input_layout is Layout.NHWC or results:
        taken = replace(taken, file=replace(file, content=graph.SerializeToString()))
    integers, integer_results = taken, _file_results(onnx.INTEGER_PASSES, graph)
    if integer_results:
        integers = replace(taken, file=replace(file, content=graph.SerializeToString()))
    return Rewritten(taken, integers, tuple(preprocess), (*results, *integer_results))


def _file_results(passes: Any, graph: Any) -> tuple[PassResult, ...]:  # noqa: ANN401 - onnx has no types
    return tuple(PassResult(title, layers) for title, layers in onnx.apply(passes, graph).items())


def _applied(passes: dict[str, Pass], graph: Graph) -> tuple[PassResult, ...]:
    """Run passes in order; those that changed something."""
    done = (PassResult(title, tuple(dict.fromkeys(run(graph)))) for title, run in passes.items())
    return tuple(result for result in done if result.layers)


def _fold_entries(
    graph: Graph, model: Model, rows: Tensors, preprocess: Sequence[Operator], input_layout: Layout
) -> tuple[dict[str, PassResult], tuple[str, ...]]:
    """Let inputs that callers give as bytes take them, where that is exact; by input, and why not for the others."""
    folds, notes = dict[str, PassResult](), []
    for place, spec in zip(graph.inputs, model.inputs, strict=True):
        operators = [operator for operator in preprocess if operator.tensor == spec.name]
        if not operators or rows[spec.name].dtype != np.uint8:
            continue
        rank = len(spec.shape)
        axis = input_layout.channel_axis if rank == layout.IMAGE_RANK else 1
        why, found = "it is no scale and mean along the channels", None
        line = (
            entry.line(operators, channels=rows[spec.name].shape[axis], axis=axis, rank=rank) if rank > axis else None
        )
        if line is not None and line[0].all():
            found = entry.grid(*line)
            why = entry.obstacle(graph, place, found)
        if why or found is None:
            notes.append(f"input {spec.name!r} stays float behind its preprocessing: {why}")
            continue
        layer = entry.take_bytes(graph, place, found)
        into = f" (scale {found.scale:.6g}, zero {found.zero}{f'; the rest in {layer}' if layer else ''})"
        folds[spec.name] = PassResult("preprocessing taken into the model, which takes bytes", (spec.name + into,))
    return folds, tuple(notes)


def _taking(model: Model, folded: Sequence[Operator], input_layout: Layout) -> Model:
    """A model that is spoken to as the caller does: with operators folded into it, and images in the caller's layout."""
    is_folded = {operator.tensor for operator in folded}

    def answer(tensors: Tensors) -> Tensors:
        return model.answer(layout.as_model_takes(processing.apply(folded, tensors), input_layout))

    def spec(before: TensorSpec) -> TensorSpec:
        after = layout.spec_of_caller(before, input_layout)
        dtype = "UINT8" if before.name in is_folded else before.dtype
        return TensorSpec(name=after.name, dtype=dtype, shape=after.shape, layout=after.layout)

    return replace(model, inputs=tuple(spec(one) for one in model.inputs), answer=answer)


def _check(graph: Graph, model: Model, rows: Tensors) -> None:
    """Hold a rewritten graph against the source, on rows, and see that it can be traced again, as exporters do.

    Raises:
        ExportError: It answers something else.
    """
    torch = load("torch")
    some = {name: rows_of(array, model.batch or len(array)) for name, array in rows.items()}
    expected = model.answer(some)
    try:
        again = trace(replace(model, module=graph.module), some, rows=model.batch).module()
        with torch.inference_mode(), quiet():
            answers = again(*(torch.from_numpy(some[spec.name]) for spec in model.inputs))
    except Exception as error:  # torch's own; nothing that was right before may fail because of a rewrite
        raise ExportError(f"the rewritten model fails: {error}") from error
    for (name, before), after in zip(expected.items(), answers, strict=True):
        difference, largest = _difference(before, after.numpy())
        if not difference <= _SAME * largest:
            raise ExportError(
                f"the rewritten model answers {name!r} with a difference of {difference:.3g} of {largest:.3g}"
            )


def _difference(before: Any, after: Any) -> tuple[float, float]:  # noqa: ANN401 - any arrays
    """The largest difference and the largest value of two answers; NaN and Inf must be at the same places."""
    wide, other = before.astype(np.float64), after.astype(np.float64)
    is_finite = np.isfinite(wide)
    if wide.shape != other.shape or not np.array_equal(wide[~is_finite], other[~is_finite], equal_nan=True):
        return float("inf"), 0.0
    if not is_finite.any():
        return 0.0, 0.0
    return float(np.abs(wide - other)[is_finite].max()), float(np.abs(wide[is_finite]).max())
