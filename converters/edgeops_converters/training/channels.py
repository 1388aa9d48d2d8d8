"""Which channels of a module can only go together: dependency groups, read from its graph.

Every index along an axis of a weight is given a *channel*; operators say which channels are the same. An addition makes the
channels of both sides one, a concatenation sets them side by side, flattening repeats each for every place, a depthwise
convolution hands its input's on, a grouped convolution and a split in equal parts tie the channels at the same place in every
part. Channels that an operator mixes, or that the caller sees, stay. What is left are groups of channels that can be cut out of
all their weights at once (Fang et al., "DepGraph: towards any structural pruning", 2023; here per channel instead of per layer).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeops_converters.extras import load
from edgeops_converters.training.operators import operator_argument, operator_name
from edgeops_converters.training.tracing import Trace, layer_of

if TYPE_CHECKING:
    from torch import fx

IntArray = NDArray[np.int64]
Axis = tuple[str, int]
"""Name of a weight, and one of its axes."""

OF_THE_CALLER = "they are the caller's"
"""Why the channels of inputs and outputs stay."""

_PER_VALUE = frozenset([
    "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "sigmoid", "tanh", "leaky_relu", "elu",
    "selu", "celu", "mish", "softplus", "clamp", "clamp_min", "clamp_max", "abs", "neg", "exp", "sqrt", "rsqrt",
    "square", "dropout", "feature_dropout", "alpha_dropout", "clone", "alias", "detach", "contiguous", "to",
    "_to_copy", "type_as", "float",
])  # fmt: skip
_IN_SPACE = frozenset(
    [f"{name}{rank}d" for rank in (1, 2, 3) for name in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")]
    + ["upsample_nearest1d", "upsample_nearest2d", "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "pad"]
)  # fmt: skip
_PAIRWISE = frozenset([
    "add", "sub", "mul", "div", "maximum", "minimum",
])  # fmt: skip
_RESHAPES = frozenset([
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view",
])  # fmt: skip
_REDUCTIONS = frozenset([
    "mean", "sum", "amax", "amin",
])  # fmt: skip


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product.

    Attributes:
        weight: Its name.
        positions: Places of one row at which the weight is applied.
    """

    weight: str
    positions: int


@dataclass(frozen=True)
class ChannelGroup:
    """Channels in the same weights: any of them can go, and goes from all of these.

    Attributes:
        channels: Shape ``(channels,)``.
        axes: Where they are.
    """

    channels: IntArray
    axes: frozenset[Axis]

    @property
    def layers(self) -> tuple[str, ...]:
        """Those that hold them."""
        return tuple(sorted({name.rpartition(".")[0] or name for name, _ in self.axes}))


@dataclass(frozen=True)
class Channels:
    """What can be cut out of a module.

    Attributes:
        axes: Axis of a weight → the channel at each index, shape ``(size,)``.
        reads: Axes along which a layer sums over channels; zeros there take a channel out of everything.
        groups: What can go.
        fixed: What cannot, with the reason.
        products: For the cost.
    """

    axes: Mapping[Axis, IntArray]
    reads: frozenset[Axis]
    groups: tuple[ChannelGroup, ...]
    fixed: tuple[tuple[ChannelGroup, str], ...]
    products: tuple[Product, ...]


def read_channels(trace: Trace) -> Channels:
    """Find the groups of a graph that was traced for a fixed number of rows."""
    reader = _Reader(trace)
    for node in trace.nodes:
        reader.visit(node)
    return reader.channels()


@dataclass(frozen=True)
class _Track:
    """The axis of a tensor that has channels, and which."""

    axis: int
    channels: IntArray


@dataclass
class _Reader:
    trace: Trace
    tracks: "dict[fx.Node, _Track]" = field(default_factory=dict)
    parts: "dict[fx.Node, list[_Track]]" = field(default_factory=dict)
    axes: dict[Axis, IntArray] = field(default_factory=dict)
    reads: set[Axis] = field(default_factory=set)
    products: list[Product] = field(default_factory=list)
    _parents: list[int] = field(default_factory=list)
    _reasons: dict[int, str] = field(default_factory=dict)
    _pinned: dict[str, str] = field(default_factory=dict)
    _lost: "dict[fx.Node, str]" = field(default_factory=dict)

    def visit(self, node: "fx.Node") -> None:
        if node.op == "output":
            for given in node.all_input_nodes:
                self._fix(given, OF_THE_CALLER)
        elif node.op == "call_function" and not self._follow(node):
            reason = f"{layer_of(node)}: nothing is known of channels through {operator_name(node)}"
            self._lost[node] = reason
            for given in node.all_input_nodes:
                self._fix(given, reason)
                if given in self.trace.weights:
                    self._pinned[self.trace.weights[given]] = reason

    def channels(self) -> Channels:
        for (weight, _), channels in self.axes.items():
            if weight in self._pinned:
                self._mark(channels, self._pinned[weight])
        axes = {axis: np.array([self._root(channel) for channel in ids]) for axis, ids in self.axes.items()}
        reasons = {self._root(channel): reason for channel, reason in self._reasons.items()}
        places: dict[int, set[Axis]] = {}
        for axis, ids in axes.items():
            for channel in ids:
                places.setdefault(int(channel), set()).add(axis)
        alike: dict[tuple[frozenset[Axis], str], list[int]] = {}
        for channel, where in places.items():
            reason = reasons.get(channel, "" if where & self.reads else "no layer reads them")
            alike.setdefault((frozenset(where), reason), []).append(channel)
        groups = {key: ChannelGroup(np.array(sorted(ids)), key[0]) for key, ids in alike.items()}
        return Channels(
            axes=axes,
            reads=frozenset(self.reads),
            groups=tuple(group for (_, reason), group in groups.items() if not reason),
            fixed=tuple((group, reason) for (_, reason), group in groups.items() if reason),
            products=tuple(self.products),
        )

    def _follow(self, node: "fx.Node") -> bool:
        """Take channels through an operator; ``False`` when it is not known how."""
        name = operator_name(node)
        if name in _RULES:
            return _RULES[name](self, node)
        if name in _PAIRWISE:
            return self._pairwise(node)
        track = self._of(node.args[0]) if node.args else None
        if track is None:
            # Without channels there is nothing to take along, unless a weight is mixed in.
            return not any(given in self.tracks or given in self.trace.weights for given in node.all_input_nodes)
        if any(given in self.trace.weights or given in self.tracks for given in node.all_input_nodes[1:]):
            return False
        if name in _PER_VALUE or (name in _IN_SPACE and track.axis == 1):
            return self._keep(node, track.axis, track.channels)
        if name in _RESHAPES:
            return self._reshape(node, track)
        if name in _REDUCTIONS:
            return self._reduce(node, track)
        return False

    def _pairwise(self, node: "fx.Node") -> bool:
        given = [arg for arg in node.args[:2] if _is_node(arg)]
        tracks = [(arg, track) for arg in given if (track := self._of(arg)) is not None]
        if not tracks:
            return not any(arg in self.trace.weights for arg in given)
        rank = len(_shape(node))
        lead, first = tracks[0]
        axis, channels = first.axis + rank - len(_shape(lead)), first.channels
        for arg in given:
            if arg is lead:
                continue
            place = axis - (rank - len(_shape(arg)))
            size = _shape(arg)[place] if place >= 0 else 1
            other = self._of(arg)
            if other is not None and (other.axis != place or size != len(channels)):
                return False
            if size == 1 and len(channels) > 1:
                continue
            if other is not None:
                self._join(channels, other.channels)
            elif arg in self.trace.weights and size == len(channels):
                self._bind(arg, place, channels)
            else:
                return False
        return self._keep(node, axis, channels)

    def _convolve(self, node: "fx.Node") -> bool:
        data, weight, bias = (
            operator_argument(node, "input"),
            operator_argument(node, "weight"),
            operator_argument(node, "bias"),
        )
        if weight not in self.trace.weights or (bias is not None and bias not in self.trace.weights):
            return False
        groups, shape = int(operator_argument(node, "groups")), _shape(weight)
        self.products.append(Product(self.trace.weights[weight], math.prod(_shape(node)[2:])))
        track = self._of(data)
        if track is not None and track.axis != 1:
            return False
        read = track.channels if track is not None else self._foreign(data, 1)
        if groups > 1 and shape[1] == 1:
            out = np.repeat(read, shape[0] // groups)
            self._bind(weight, 0, out)
        else:
            out = self._tie(self._fresh(shape[0]), groups)
            self._bind(weight, 0, out)
            self._bind(weight, 1, self._tie(read, groups)[: shape[1]], reads=True)
        if bias is not None:
            self._bind(bias, 0, out)
        return self._keep(node, 1, out)

    def _convolve_transposed(self, node: "fx.Node") -> bool:
        data, weight, bias = (
            operator_argument(node, "input"),
            operator_argument(node, "weight"),
            operator_argument(node, "bias"),
        )
        if int(operator_argument(node, "groups")) != 1 or weight not in self.trace.weights:
            return False
        track = self._of(data)
        if (bias is not None and bias not in self.trace.weights) or (track is not None and track.axis != 1):
            return False
        self.products.append(Product(self.trace.weights[weight], math.prod(_shape(data)[2:])))
        read = track.channels if track is not None else self._foreign(data, 1)
        out = self._fresh(_shape(weight)[1])
        self._bind(weight, 0, read, reads=True)
        self._bind(weight, 1, out)
        if bias is not None:
            self._bind(bias, 0, out)
        return self._keep(node, 1, out)

    def _multiply(self, node: "fx.Node") -> bool:
        data, weight, bias = (
            operator_argument(node, "input"),
            operator_argument(node, "weight"),
            operator_argument(node, "bias"),
        )
        if weight not in self.trace.weights or (bias is not None and bias not in self.trace.weights):
            return False
        last = len(_shape(data)) - 1
        track = self._of(data)
        if track is not None and track.axis != last:
            return False
        self.products.append(Product(self.trace.weights[weight], math.prod(_shape(node)[1:-1])))
        read = track.channels if track is not None else self._foreign(data, last)
        out = self._fresh(_shape(weight)[0])
        self._bind(weight, 0, out)
        self._bind(weight, 1, read, reads=True)
        if bias is not None:
            self._bind(bias, 0, out)
        return self._keep(node, last, out)

    def _normalise(self, node: "fx.Node") -> bool:
        """Batch norm: one number of each kind for every channel."""
        track = self._of(node.args[0])
        values = [arg for arg in node.args[1:5] if arg is not None]
        if track is None or track.axis != 1 or any(value not in self.trace.weights for value in values):
            return False
        for value in values:
            self._bind(value, 0, track.channels)
        return self._keep(node, 1, track.channels)

    def _rectify(self, node: "fx.Node") -> bool:
        """A rectifier with one slope, or one for each channel."""
        track, slope = self._of(node.args[0]), node.args[1]
        if track is None or not isinstance(slope, load("torch.fx").Node) or slope not in self.trace.weights:
            return False
        if _shape(slope)[0] == len(track.channels) and track.axis == 1:
            self._bind(slope, 0, track.channels)
        elif _shape(slope)[0] > 1:
            return False
        return self._keep(node, track.axis, track.channels)

    def _concatenate(self, node: "fx.Node") -> bool:
        tensors: Sequence[fx.Node] = node.args[0]  # type: ignore[assignment]  # the operator's schema
        tracks = [self._of(tensor) for tensor in tensors]
        axis = _dimension(node, len(_shape(node)))
        if all(track is None for track in tracks) or any(tensor in self.trace.weights for tensor in tensors):
            return False
        if all(track is not None and track.axis != axis for track in tracks):
            first, *others = [track for track in tracks if track is not None]
            for other in others:
                if other.axis != first.axis:
                    return False
                self._join(first.channels, other.channels)
            return self._keep(node, first.axis, first.channels)
        if any(track is not None and track.axis != axis for track in tracks):
            return False
        channels = [
            track.channels if track is not None else self._foreign(tensor, axis)
            for track, tensor in zip(tracks, tensors, strict=True)
        ]
        return self._keep(node, axis, np.concatenate(channels))

    def _split(self, node: "fx.Node") -> bool:
        """Parts along the channels must stay equal, so that the same call splits the smaller tensor at the right place."""
        track, count = self._of(node.args[0]), int(operator_argument(node, "chunks"))
        if track is None or _dimension(node, len(_shape(node.args[0]))) != track.axis or len(track.channels) % count:
            return False
        tied = self._tie(track.channels, count)
        self.parts[node] = [_Track(track.axis, part) for part in np.split(tied, count)]
        return True

    def _take(self, node: "fx.Node") -> bool:
        source, index = node.args
        if source not in self.parts:
            return False
        track = self.parts[source][int(index)]  # type: ignore[arg-type,index]  # the operator's schema
        return self._keep(node, track.axis, track.channels)

    def _permute(self, node: "fx.Node") -> bool:
        track, rank = self._of(node.args[0]), len(_shape(node))
        if track is None:
            return True
        order = list(range(rank))
        if operator_name(node) == "permute":
            order = [int(axis) % rank for axis in node.args[1]]  # type: ignore[union-attr,arg-type]  # the schema
        else:
            one, other = (int(axis) % rank for axis in node.args[1:3])  # type: ignore[arg-type]  # the schema
            order[one], order[other] = other, one
        return self._keep(node, order.index(track.axis), track.channels)

    def _reshape(self, node: "fx.Node", track: _Track) -> bool:
        """The channel axis may stay, or take up what follows it, so that each channel is repeated for every place."""
        before, after = _shape(node.args[0]), _shape(node)
        outer, inner, count = math.prod(before[: track.axis]), math.prod(before[track.axis + 1 :]), len(track.channels)
        for axis, size in enumerate(after):
            rest = math.prod(after[axis + 1 :])
            if math.prod(after[:axis]) == outer and size % count == 0 and size // count * rest == inner:
                return self._keep(node, axis, np.repeat(track.channels, size // count))
        return False

    def _reduce(self, node: "fx.Node", track: _Track) -> bool:
        rank = len(_shape(node.args[0]))
        given = node.args[1] if len(node.args) > 1 else None
        if not isinstance(given, Sequence) or not given:
            return False
        dims = sorted(int(dim) % rank for dim in given)  # type: ignore[arg-type]  # the schema
        if track.axis in dims:
            return False
        lost = sum(dim < track.axis for dim in dims) if len(_shape(node)) < rank else 0
        return self._keep(node, track.axis - lost, track.channels)

    def _keep(self, node: "fx.Node", axis: int, channels: IntArray) -> bool:
        self.tracks[node] = _Track(axis, channels)
        return True

    def _of(self, node: Any) -> _Track | None:  # noqa: ANN401 - an argument of an operator
        return self.tracks.get(node) if _is_node(node) else None

    def _fix(self, node: "fx.Node", reason: str) -> None:
        for track in [*self.parts.get(node, []), *([self.tracks[node]] if node in self.tracks else [])]:
            self._mark(track.channels, reason)

    def _mark(self, channels: IntArray, reason: str) -> None:
        for channel in channels:
            self._reasons.setdefault(self._root(int(channel)), reason)

    def _foreign(self, node: "fx.Node", axis: int) -> IntArray:
        """Channels of a tensor of which none are known: those of an input, or behind an operator that lost them."""
        waiting, seen = [node], {node}
        while waiting:
            source = waiting.pop()
            if source in self._lost:
                return self._fresh(_shape(node)[axis], self._lost[source])
            fresh = [given for given in source.all_input_nodes if given not in seen]
            waiting.extend(fresh)
            seen.update(fresh)
        return self._fresh(_shape(node)[axis], OF_THE_CALLER)

    def _fresh(self, count: int, reason: str = "") -> IntArray:
        channels = np.arange(len(self._parents), len(self._parents) + count)
        self._parents.extend(int(channel) for channel in channels)
        if reason:
            self._mark(channels, reason)
        return channels

    def _bind(self, node: Any, axis: int, channels: IntArray, *, reads: bool = False) -> None:  # noqa: ANN401 - a placeholder
        key = (self.trace.weights[node], axis)
        if key in self.axes:  # a weight that is used twice
            self._join(self.axes[key], channels)
        self.axes[key] = channels
        if reads:
            self.reads.add(key)

    def _tie(self, channels: IntArray, parts: int) -> IntArray:
        """Make the channels at the same place in each of so many equal parts one."""
        rows = channels.reshape(parts, -1)
        for row in rows[1:]:
            self._join(rows[0], row)
        return channels

    def _join(self, channels: IntArray, others: IntArray) -> None:
        for one, other in zip(channels, others, strict=True):
            first, second = self._root(int(one)), self._root(int(other))
            if first != second:
                self._parents[second] = first
                if second in self._reasons:
                    self._reasons.setdefault(first, self._reasons[second])

    def _root(self, channel: int) -> int:
        while self._parents[channel] != channel:
            self._parents[channel] = self._parents[self._parents[channel]]
            channel = self._parents[channel]
        return channel


_RULES: "dict[str, Callable[[_Reader, fx.Node], bool]]" = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _Reader._convolve),  # noqa: SLF001 - the table of its own methods
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _Reader._convolve_transposed),  # noqa: SLF001
    "linear": _Reader._multiply,  # noqa: SLF001
    "batch_norm": _Reader._normalise,  # noqa: SLF001
    "prelu": _Reader._rectify,  # noqa: SLF001
    **dict.fromkeys(("cat", "concat"), _Reader._concatenate),  # noqa: SLF001
    "chunk": _Reader._split,  # noqa: SLF001
    "getitem": _Reader._take,  # noqa: SLF001
    **dict.fromkeys(("permute", "transpose"), _Reader._permute),  # noqa: SLF001
}


def _dimension(node: "fx.Node", rank: int) -> int:
    return int(operator_argument(node, "dim")) % rank


def _is_node(value: object) -> bool:
    return hasattr(value, "all_input_nodes")


def _shape(node: Any) -> tuple[int, ...]:  # noqa: ANN401 - an fx.Node
    return tuple(int(size) for size in node.meta["val"].shape)
