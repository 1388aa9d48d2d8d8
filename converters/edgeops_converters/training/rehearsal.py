"""Quantisation-aware training: the module answers through the rounding of int8 while it is trained, and learns to live with it.

The module keeps its class, its layers and its weights; for the time of the training only its ``forward`` is that of its graph
with rounding at the points where the converter puts it: inputs, layers with batch norm and rectifier, additions, pools and what
else makes new values. Weights go to the nearest step of their channel, where the converter's own rounding does a little better;
ranges come from its histograms and estimators. Gradients pass the rounding unchanged and stop outside the range (Jacob et al.,
"Quantization and training of neural networks for efficient integer-arithmetic-only inference", 2018). Afterwards nothing of it
is left but the weights.

The converter holds the integers against the module in float, and corrects their biases towards it. So the module has to stay good
without the rounding too: trained for the rounded answers alone it learns biases that make up for the rounding, and the correction
takes them away again. The noise here is that of the converter's files within a few decibels where export keeps the operators; it
is less where export takes one apart into many that are all rounded, as adaptive pools whose size does not divide the image's.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeops.errors import RecipeError
from edgeops.processing import Tensors
from edgeops_converters.extras import load
from edgeops_converters.histograms import Histogram
from edgeops_converters.ranges import LEVELS, Range, least_squares, minmax
from edgeops_converters.training.operators import operator_argument, operator_name
from edgeops_converters.training.tracing import Trace, arguments

if TYPE_CHECKING:
    import torch
    from torch import fx, nn

_SCHEMES: tuple[Callable[[Histogram], Range], ...] = (minmax, least_squares)
_MOST_ROWS = 256  # that ranges are taken from, evenly over all
_CORRECTION_ROWS = 64
_ROWS_AT_ONCE = 64
_LEAST_SCALE = 1e-12
_LAYERS = (
    frozenset(f"conv{rank}d" for rank in (1, 2, 3)) | {"linear"} | {f"conv_transpose{rank}d" for rank in (1, 2, 3)}
)
_RECTIFIERS = frozenset([
    "relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max",
])  # fmt: skip
# What only moves or chooses values leaves them on the grid that they are on.
_MOVES = frozenset([
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t", "contiguous",
    "clone", "alias", "detach", "dropout", "getitem", "chunk", "split", "split_with_sizes", "unbind", "slice",
    "select", "expand", "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d", "upsample_nearest2d", "pad",
    "to", "_to_copy", "lift_fresh_copy",
])  # fmt: skip


@dataclass(frozen=True)
class _Plan:
    """Ranges of the points, and what is added to the channels of each layer so that they answer on average as in float."""

    ranges: "dict[fx.Node, Range]"
    shifts: "dict[fx.Node, torch.Tensor]"


@dataclass
class Rehearsal:
    """A module's graph with the rounding of int8 in it.

    Args:
        trace: Of the module, for any number of rows.
        module: Whose weights it runs with.
        weight_bits: Of every weight.

    Raises:
        RecipeError: The graph takes a fixed number of rows, and a training step has others.
    """

    trace: Trace
    module: "nn.Module"
    weight_bits: int = 8
    _plan: "_Plan | None" = None

    def __post_init__(self) -> None:
        if not self.trace.is_dynamic:
            raise RecipeError(
                f"{type(self.module).__name__}: training through int8 takes batches of any size, and the module fixes the number "
                "of rows; use x.shape[0] or -1 in reshapes"
            )
        nodes = self.trace.nodes
        self._norms = {norm: node for node in nodes if (norm := _norm_behind(node, self.trace)) is not None}
        self._normed = {node: norm for norm, node in self._norms.items()}
        self._ends = {*self.trace.inputs, *self.trace.outputs}
        self._points = {node for node in nodes if self._is_point(node)}
        layers = {node for node in nodes if self._is_layer(node)}
        self._layer_ends = {self._normed.get(node, node) for node in layers}
        order = {node: place for place, node in enumerate(nodes)}
        self._last_reads: dict[fx.Node, list[fx.Node]] = {}
        for node in nodes:
            if node.op == "call_function" and node.users:
                last = max(node.users, key=order.__getitem__)
                self._last_reads.setdefault(last, []).append(node)
        self._signature = inspect.signature(self.module.forward)

    @property
    def points(self) -> "list[fx.Node]":
        """The nodes whose values are rounded, in order."""
        return [node for node in self.trace.nodes if node in self._points]

    def calibrate(self, rows: Tensors) -> None:
        """Set ranges and corrected biases from what flows through the module as it is now, in the better of the converter's ways.

        Args:
            rows: Calibration rows of every input.
        """
        histograms: dict[fx.Node, Histogram] = {node: Histogram() for node in self._points}

        def count(node: "fx.Node", value: "torch.Tensor") -> None:
            if node in histograms:
                histograms[node].add(value.numpy())

        means: dict[fx.Node, torch.Tensor] = {}

        def measure(node: "fx.Node", value: "torch.Tensor") -> None:
            if node in self._layer_ends:
                means[node] = _channel_means(node, value)

        with load("torch").no_grad():
            for batch in self._batches(rows, _MOST_ROWS):
                self._run(batch, None, watch=count)
            few = next(self._batches(rows, _CORRECTION_ROWS))
            wanted = self._run(few, None, watch=measure)
            plans = [self._corrected(self._estimated(histograms, scheme), few, means) for scheme in _SCHEMES]
            self._plan = min(plans, key=lambda plan: _noise(self._run(few, plan), wanted))

    def _corrected(
        self, ranges: "dict[fx.Node, Range]", rows: "list[torch.Tensor]", means: "Mapping[fx.Node, torch.Tensor]"
    ) -> _Plan:
        """Correct the biases layer by layer, each with the inputs that the corrected ones before it give."""
        plan = _Plan(ranges, {})

        def correct(node: "fx.Node", value: "torch.Tensor") -> None:
            if node in self._layer_ends:
                plan.shifts[node] = means[node] - _channel_means(node, value)

        self._run(rows, plan, watch=correct)
        return plan

    def answer(self, *given: Any, **named: Any) -> Any:  # noqa: ANN401 - the signature of the user's forward
        """What ``forward`` gives, through the rounding.

        Raises:
            RecipeError: The ranges are not set, or the arguments are not those that the module was traced with.
        """
        if self._plan is None:
            raise RecipeError("the ranges of the rehearsal are not set; call calibrate first")
        return self._answered(given, named, self._plan)

    def plain(self, *given: Any, **named: Any) -> Any:  # noqa: ANN401 - the signature of the user's forward
        """What ``forward`` gives without rounding, batch norms folded all the same."""
        return self._answered(given, named, None)

    def _answered(
        self,
        given: tuple[Any, ...],
        named: Mapping[str, Any],
        plan: _Plan | None,
    ) -> Any:  # noqa: ANN401 - whatever the user's forward returns
        bound = self._signature.bind(*given, **named).arguments
        missing = [name for name in self.trace.parameters if not isinstance(bound.get(name), load("torch").Tensor)]
        if missing:
            raise RecipeError(f"the step calls the module without {missing}, which the data have")
        flat = self._run([bound[name] for name in self.trace.parameters], plan)
        return load("torch.utils._pytree").tree_unflatten(flat, self.trace.program.call_spec.out_spec)

    @contextlib.contextmanager
    def on_stage(self) -> Iterator[None]:
        """For this time the module answers through the rounding."""
        own = self.module.__dict__.get("forward")

        def forward(*given: Any, **named: Any) -> Any:  # noqa: ANN401 - the signature of the user's forward
            return self.answer(*given, **named)

        forward.__signature__ = self._signature  # type: ignore[attr-defined]  # as the caller knows it
        self.module.forward = forward  # of this object, not of its class
        try:
            yield
        finally:
            del self.module.forward
            if own is not None:
                self.module.forward = own

    def _is_point(self, node: "fx.Node") -> bool:
        value = node.meta.get("val")
        if not isinstance(value, load("torch").Tensor) or not value.is_floating_point():
            return False
        if node.op == "placeholder":
            return node in self.trace.inputs
        if node.op != "call_function" or operator_name(node) in _MOVES or node in self._normed:
            return False
        followers = list(node.users)
        return not (len(followers) == 1 and operator_name(followers[0]) in _RECTIFIERS)

    def _is_layer(self, node: "fx.Node") -> bool:
        """A convolution or matrix product with a weight of the module."""
        is_known = node.op == "call_function" and operator_name(node) in _LAYERS
        return is_known and operator_argument(node, "weight") in self.trace.weights

    def _batches(self, rows: Tensors, most: int) -> "Iterator[list[torch.Tensor]]":
        """So many rows, evenly over all, a few at a time."""
        count = len(next(iter(rows.values())))
        places = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
        named = arguments(self.module, {name: array[places] for name, array in rows.items()})
        for begin in range(0, len(places), _ROWS_AT_ONCE):
            yield [named[name][begin : begin + _ROWS_AT_ONCE] for name in self.trace.parameters]

    def _estimated(
        self, histograms: "Mapping[fx.Node, Histogram]", scheme: Callable[[Histogram], Range]
    ) -> "dict[fx.Node, Range]":
        return {node: (minmax if node in self._ends else scheme)(histogram) for node, histogram in histograms.items()}

    def _run(
        self,
        inputs: "list[torch.Tensor]",
        plan: _Plan | None,
        watch: "Callable[[fx.Node, torch.Tensor], None] | None" = None,
    ) -> "list[Any]":
        """Run the graph, through the rounding where there is a plan; tell values at points and layers before it is applied."""
        replaced = load("torch.fx.node").map_arg
        values: dict[fx.Node, Any] = dict(zip(self.trace.inputs, inputs, strict=True))
        for node in self.trace.nodes:
            if node.op == "output":
                return list(replaced(node.args[0], values.__getitem__))
            if node.op == "get_attr":
                values[node] = getattr(self.trace.program.graph_module, str(node.target))
            elif node.op == "call_function":
                values[node] = self._computed(node, values, replaced, is_rounding=plan is not None)
            elif node not in values:
                values[node] = self._held(node)
            if watch is not None and (node in self._points or node in self._layer_ends):
                watch(node, values[node])
            if plan is not None and node in plan.shifts:
                values[node] = values[node] + plan.shifts[node]
            if plan is not None and node in self._points:
                values[node] = rounded(values[node], plan.ranges[node])
            for read in self._last_reads.get(node, ()):
                del values[read]
        return []

    def _held(self, node: "fx.Node") -> "torch.Tensor":
        """The weight or constant that a placeholder stands for, as it is now."""
        if node in self.trace.constants:
            return self.trace.constants[node]
        owner, _, name = self.trace.weights[node].rpartition(".")
        return getattr(self.module.get_submodule(owner), name)  # type: ignore[no-any-return]  # a parameter or buffer

    def _computed(
        self,
        node: "fx.Node",
        values: "Mapping[fx.Node, Any]",
        replaced: Callable[..., Any],
        *,
        is_rounding: bool,
    ) -> Any:  # noqa: ANN401 - what an operator gives
        """As the operator gives it; a layer with its weight rounded, and with the batch norm behind it folded in."""
        if node in self._norms:
            return values[self._norms[node]]
        given, named = replaced(node.args, values.__getitem__), replaced(node.kwargs, values.__getitem__)
        if self._is_layer(node) and (is_rounding or node in self._normed):
            parameters = [parameter.name for parameter in node.target._schema.arguments]  # type: ignore[union-attr] # noqa: SLF001
            named, given = {**dict(zip(parameters, given, strict=False)), **named}, ()
            axis = 1 if "transpose" in operator_name(node) else 0
            if node in self._normed:
                norm = self._normed[node]
                folded = [replaced(arg, values.__getitem__) for arg in (*norm.args[1:5], norm.args[7])]
                named["weight"], named["bias"] = _folded(named["weight"], named.get("bias"), axis, *folded)
            if is_rounding:
                named["weight"] = rounded_weight(named["weight"], axis, self.weight_bits)
        return node.target(*given, **named)  # type: ignore[operator]  # an operator


def _folded(  # noqa: PLR0917 - the numbers of a batch norm, in the operator's order
    weight: "torch.Tensor",
    bias: "torch.Tensor | None",
    axis: int,
    gain: "torch.Tensor | None",
    offset: "torch.Tensor | None",
    mean: "torch.Tensor",
    variance: "torch.Tensor",
    epsilon: float,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Weight and bias of a layer with the batch norm behind it; its statistics stay frozen while rounding is learned."""
    factor = (variance + epsilon).rsqrt()
    factor = factor if gain is None else factor * gain
    shift = -mean * factor if bias is None else (bias - mean) * factor
    shape = [1] * weight.ndim
    shape[axis] = -1
    return weight * factor.reshape(shape), shift if offset is None else shift + offset


def _channel_means(node: "fx.Node", value: "torch.Tensor") -> "torch.Tensor":
    """Of each channel of a layer's answer, in a shape that can be added to it."""
    axis = value.ndim - 1 if operator_name(node) == "linear" else 1
    return value.mean([dim for dim in range(value.ndim) if dim != axis], keepdim=True)


def _noise(given: "list[Any]", wanted: "list[Any]") -> float:
    """Squared error over all outputs, each in units of its own power."""
    return sum(
        float((value - target).square().sum() / target.square().sum().clamp_min(1e-12))
        for value, target in zip(given, wanted, strict=True)
        if hasattr(target, "is_floating_point") and target.is_floating_point()
    )


def rounded(values: "torch.Tensor", to: Range) -> "torch.Tensor":
    """Values on the grid of eight bits over a range in which zero is exact; gradients stop outside of it."""
    step = max(to.step, _LEAST_SCALE)
    zero = min(max(round(-to.low / step), 0), LEVELS)
    return load("torch").fake_quantize_per_tensor_affine(values, step, zero, 0, LEVELS)  # type: ignore[no-any-return]


def rounded_weight(values: "torch.Tensor", axis: int, bits: int) -> "torch.Tensor":
    """Weights on a symmetric grid for each output channel, ±127 of eight bits."""
    torch = load("torch")
    most = 2 ** (bits - 1) - 1
    peaks = values.detach().abs().movedim(axis, 0).flatten(1).amax(1)
    scales = (peaks / most).clamp_min(_LEAST_SCALE)
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(  # type: ignore[no-any-return]  # loaded lazily
        values, scales, zeros, axis, -most, most
    )


def _norm_behind(node: "fx.Node", trace: Trace) -> "fx.Node | None":
    """The batch norm that alone reads a layer, whose numbers are the module's own."""
    if node.op != "call_function" or operator_name(node) not in _LAYERS or len(node.users) != 1:
        return None
    if operator_argument(node, "weight") not in trace.weights:
        return None
    (norm,) = node.users
    if norm.op != "call_function" or operator_name(norm) != "batch_norm" or norm.args[0] is not node:
        return None
    is_own = all(value is None or value in trace.weights for value in norm.args[1:5])
    return norm if is_own and norm.args[3] is not None and norm.args[5] is False else None
