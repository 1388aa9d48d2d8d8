"""Structured pruning: which channels go, and the module without them. Real shapes, never masks.

Channels go in blocks that leave a multiple of eight, since that is what integer kernels work in, and those go first that cost the
least of the answer for what they save. The user's own module is copied and its weights are replaced by smaller ones, so that its
``forward`` runs as before; what the ``forward`` does not follow is left alone, with the reason.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeops.errors import RecipeError
from edgeops.processing import Tensors
from edgeops_converters.extras import load, quiet
from edgeops_converters.failures import explain
from edgeops_converters.training.channels import OF_THE_CALLER, ChannelGroup, Channels, IntArray, Product
from edgeops_converters.training.step import TrainingStep
from edgeops_converters.training.tracing import arguments

if TYPE_CHECKING:
    import torch
    from torch import nn

MULTIPLE = 8
"""Channels that are left of a group."""

_TOLERANCE = 1e-4  # of the outputs' largest magnitude: sums of floats in another order
_IMPORTANCE_STEPS = 16


def multiply_accumulates(products: Sequence[Product], shapes: Mapping[str, Sequence[int]]) -> int:
    """Of one row, in convolutions and matrix products whose weights have these shapes."""
    return sum(product.positions * math.prod(shapes[product.weight]) for product in products)


def importance(module: "nn.Module", channels: Channels, step: TrainingStep) -> NDArray[np.float64]:
    """What leaving a channel out would change of the loss, to first order, squared, over a few batches.

    The gate is at the layers that read the channel (Molchanov et al., "Importance estimation for neural network pruning", 2019).

    Args:
        module: Its mode is the step's business, and its gradients are used.
        channels: Of the module.
        step: Of the user.

    Returns:
        By channel; shape ``(channels,)``.
    """
    count = 1 + max((int(ids.max()) for ids in channels.axes.values() if len(ids)), default=0)
    total = np.zeros(count)
    for index in range(_IMPORTANCE_STEPS):
        module.zero_grad(set_to_none=True)
        step.run(module, index).loss.backward()  # type: ignore[no-untyped-call]  # torch's
        change = np.zeros(count)
        for name, axis in sorted(channels.reads):
            weight = module.get_parameter(name)
            if weight.grad is not None:
                product = (weight.detach() * weight.grad).double().movedim(axis, 0).flatten(1).sum(1)
                np.add.at(change, channels.axes[name, axis], product.numpy())
        total += change**2
    module.zero_grad(set_to_none=True)
    return total / _IMPORTANCE_STEPS


def choose(
    channels: Channels, shapes: Mapping[str, Sequence[int]], scores: NDArray[np.float64], *, share: float
) -> IntArray:
    """The channels that go.

    Args:
        channels: What can go.
        shapes: Of the weights.
        scores: Importance by channel.
        share: Of the multiply-accumulates that are to go, in (0, 1); at least that.

    Raises:
        RecipeError: So much cannot go; the message has what could.
    """
    before = multiply_accumulates(channels.products, shapes)
    if not before:
        raise RecipeError(
            "prune: the module has no convolution and no linear layer, and their channels are all that can go"
        )

    def cost(gone: IntArray) -> int:
        return multiply_accumulates(channels.products, _shapes_without(channels, shapes, gone))

    gone: IntArray = np.zeros(0, np.int64)
    queues = [list(blocks(group, scores)) for group in channels.groups]
    taken: list[tuple[int, IntArray]] = []
    while (now := cost(gone)) > before * (1 - share):
        offers = [
            (float(scores[queue[0]].sum()) / max(now - cost(np.concatenate([gone, queue[0]])), 1), index)
            for index, queue in enumerate(queues)
            if queue
        ]
        if not offers:
            raise RecipeError(
                f"prune: {share:.0%} of the multiply-accumulates cannot go; with {MULTIPLE} channels left in every group "
                f"{1 - now / before:.1%} would{_left_alone(channels)}"
            )
        _, index = min(offers)
        taken.append((index, queues[index].pop(0)))
        gone = np.concatenate([gone, taken[-1][1]])
    stays_out: set[int] = set()
    for index, block in reversed(taken):  # the last block may have saved more than was wanted
        kept = np.setdiff1d(gone, block)
        if index not in stays_out and cost(kept) <= before * (1 - share):
            gone = kept
        else:
            stays_out.add(index)
    return gone


def blocks(group: ChannelGroup, scores: NDArray[np.float64]) -> Iterator[IntArray]:
    """The channels of a group, the least important first, in blocks after each of which a multiple of eight is left.

    >>> group = ChannelGroup(np.arange(20), frozenset())
    >>> [len(block) for block in blocks(group, np.ones(20))]
    [4, 8]
    """
    order = group.channels[np.argsort(scores[group.channels], kind="stable")]
    ends = range(len(order) % MULTIPLE or MULTIPLE, len(order) - MULTIPLE + 1, MULTIPLE)
    begin = 0
    for end in ends:
        yield order[begin:end]
        begin = end


def cut(module: "nn.Module", channels: Channels, gone: IntArray) -> "nn.Module":
    """A copy of the module with smaller weights, without these channels."""
    made = copy.deepcopy(module)
    for name, axes in _axes_by_weight(channels, gone).items():
        before = _tensor(made, name)
        after = before.detach()
        for axis in axes:
            kept = np.flatnonzero(~np.isin(channels.axes[name, axis], gone))
            after = after.index_select(axis, load("torch").from_numpy(kept))
        _replace(made, before, after)
    return made


def masked(module: "nn.Module", channels: Channels, gone: IntArray) -> "nn.Module":
    """A copy of the module, of the same shapes, in which nothing reads these channels: what :func:`cut` must answer."""
    made = copy.deepcopy(module)
    with load("torch").no_grad():
        for name, axis in channels.reads:
            is_gone = np.flatnonzero(np.isin(channels.axes[name, axis], gone))
            _tensor(made, name).index_fill_(axis, load("torch").from_numpy(is_gone), 0.0)
    return made


def tried(module: "nn.Module", channels: Channels, rows: Tensors) -> Channels:
    """Cut a block of every group by itself, and leave alone the groups of which the module does not follow.

    A ``forward`` may have sizes written out that its graph does not tell from computed ones.
    """
    groups: list[ChannelGroup] = []
    fixed = list(channels.fixed)
    for group in channels.groups:
        block = next(blocks(group, np.zeros(int(group.channels.max()) + 1)), None)
        reason = "too few channels" if block is None else difference(module, channels, block, rows)
        if reason:
            fixed.append((group, reason))
        else:
            groups.append(group)
    return replace(channels, groups=tuple(groups), fixed=tuple(fixed))


def difference(module: "nn.Module", channels: Channels, gone: IntArray, rows: Tensors) -> str:
    """Why the module without these channels is not the module that does not read them; empty when it is."""
    smaller = cut(module, channels, gone)
    expected = _answers(masked(module, channels, gone), rows)
    try:
        answered = _answers(smaller, rows)
    except Exception as error:  # noqa: BLE001 - the user's forward with other sizes
        return f"forward has sizes written out: {explain(error, smaller)}"
    for wanted, given in zip(expected, answered, strict=True):
        if wanted.shape != given.shape:
            return f"the shape of the answer changes from {list(wanted.shape)} to {list(given.shape)}"
        allowed = _TOLERANCE * max(float(wanted.abs().max()), 1e-6)
        if not float((wanted - given).abs().max()) <= allowed:  # NaN is no match either
            return "the answers change by more than what the channels gave"
    return ""


@dataclass(frozen=True)
class CutLayer:
    """What became of a weight.

    Attributes:
        name: Of the layer.
        before: Shape of its weight.
        after: Shape of its weight.
    """

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]


def cut_layers(channels: Channels, before: "nn.Module", after: "nn.Module") -> tuple[CutLayer, ...]:
    """The convolutions and matrix products whose weights are smaller now."""
    found = []
    for product in channels.products:
        shapes = tuple(tuple(_tensor(module, product.weight).shape) for module in (before, after))
        if shapes[0] != shapes[1]:
            found.append(CutLayer(product.weight.rpartition(".")[0] or product.weight, *shapes))
    return tuple(dict.fromkeys(found))


def shapes_of(module: "nn.Module") -> dict[str, tuple[int, ...]]:
    """Name of a parameter or buffer → its shape."""
    named = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    return {name: tuple(tensor.shape) for name, tensor in named.items()}


def _shapes_without(channels: Channels, shapes: Mapping[str, Sequence[int]], gone: IntArray) -> dict[str, list[int]]:
    smaller = {product.weight: list(shapes[product.weight]) for product in channels.products}
    for (name, axis), ids in channels.axes.items():
        if name in smaller:
            smaller[name][axis] = int((~np.isin(ids, gone)).sum())
    return smaller


def _left_alone(channels: Channels) -> str:
    reasons = [f"{', '.join(group.layers)} ({reason})" for group, reason in channels.fixed if reason != OF_THE_CALLER]
    return f"; left alone: {'; '.join(reasons)}" if reasons else ""


def _axes_by_weight(channels: Channels, gone: IntArray) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for (name, axis), ids in channels.axes.items():
        if np.isin(ids, gone).any():
            found.setdefault(name, []).append(axis)
    return found


def _tensor(module: "nn.Module", name: str) -> "torch.Tensor":
    owner, _, attribute = name.rpartition(".")
    return getattr(module.get_submodule(owner), attribute)  # type: ignore[no-any-return]  # a parameter or buffer


def _replace(module: "nn.Module", before: "torch.Tensor", after: "torch.Tensor") -> None:
    """Put a smaller tensor wherever the larger one is, and tell its layers their new sizes."""
    torch = load("torch")
    if isinstance(before, torch.nn.Parameter):
        after = torch.nn.Parameter(after, requires_grad=before.requires_grad)
    for layer in module.modules():
        for kind in (layer._parameters, layer._buffers):  # noqa: SLF001 - a tied weight is in several places
            for name, tensor in list(kind.items()):
                if tensor is before:
                    kind[name] = after  # type: ignore[assignment]  # of the same kind as before
                    _resize(layer, name, tuple(before.shape))


def _resize(layer: Any, name: str, before: tuple[int, ...]) -> None:  # noqa: ANN401 - a layer of any class
    """Set what a layer of torch keeps of the sizes of its weight."""
    nn = load("torch").nn
    shape = tuple(getattr(layer, name).shape)
    if name != "weight":
        return
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = shape
    elif isinstance(layer, nn.modules.batchnorm._NormBase):  # noqa: SLF001 - the only name that all its kinds have
        (layer.num_features,) = shape
    elif isinstance(layer, nn.PReLU):
        (layer.num_parameters,) = shape
    elif isinstance(layer, nn.modules.conv._ConvNd):  # noqa: SLF001 - likewise
        if layer.transposed:
            layer.in_channels, layer.out_channels = shape[0], shape[1] * layer.groups
            return
        if layer.groups > 1 and shape[1] == 1:  # depthwise: as many groups as channels
            layer.groups = shape[0] // (before[0] // layer.groups)
        layer.in_channels, layer.out_channels = shape[1] * layer.groups, shape[0]


def _answers(module: "nn.Module", rows: Tensors) -> "list[torch.Tensor]":
    torch = load("torch")
    with torch.inference_mode(), quiet():
        given = module(**arguments(module, rows))
    return [
        value.float() for value in load("torch.utils._pytree").tree_leaves(given) if isinstance(value, torch.Tensor)
    ]
