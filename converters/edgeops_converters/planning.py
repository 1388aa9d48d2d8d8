"""Making a plan: channels equalised, every tensor counted, ranges chosen by what they do to the answers, weights rounded.

Written once for all formats, against :class:`edgeops_converters.graph.FloatGraph`. What carries a plan out in a file is in
:mod:`edgeops_converters.quantizers`; what carries it from one file to another in :mod:`edgeops_converters.matching`.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.processing import Tensors
from edgeops_converters.calibration import CORRECTION_ROWS, Survey, spread
from edgeops_converters.channels import channels_of
from edgeops_converters.equalization import Extent, Reader, divided, divisors, extents_of, multiplied
from edgeops_converters.graph import FloatGraph, Layer, Parameters
from edgeops_converters.histograms import Histogram
from edgeops_converters.layers import FloatArray, patches
from edgeops_converters.plan import LayerPlan, LayerPrecision, QuantPlan, TensorPlan
from edgeops_converters.ranges import ESTIMATORS, LEVELS, Range, minmax
from edgeops_converters.regions import regions_of
from edgeops_converters.rounding import Grid, round_weights
from edgeops_converters.targets import Target

_WINDOWS = 1024  # of each layer that are looked at, over all rows; more where the window has many taps
_WINDOWS_A_TAP = 3
_BIAS_CODES = 2.0**30  # that a bias may take


@dataclass(frozen=True)
class Planned:
    """A plan with the arrays that do not go into its JSON.

    Attributes:
        plan: As it ships.
        grids: Node of each layer → its weights in integers.
        histograms: Tensor → what was counted, for the report.
    """

    plan: QuantPlan
    grids: Mapping[str, Grid]
    histograms: Mapping[str, Histogram]

    @property
    def ranges(self) -> dict[str, Range]:
        """Tensor → what eight bits cover."""
        return {name: Range(tensor.low, tensor.high) for name, tensor in self.plan.tensors.items()}


def make_plan(
    graph: FloatGraph, rows: Tensors, *, target: Target, pinned: Mapping[str, Range] | None = None
) -> Planned:
    """Plan the quantisation of a float model; its parameters are equalised on the way.

    Args:
        graph: The model; its layers are changed, its answers are not.
        rows: Calibration rows; read in constant memory.
        target: The CPUs that it is for.
        pinned: Tensors whose range is known exactly, because bytes come in.
    """
    few = spread(rows, CORRECTION_ROWS)
    equalised = equalise(graph, few)
    survey = Survey()
    for values in graph.stream(rows):
        survey.add(values)
    known = pinned or {}
    # Inputs and outputs keep the least and the greatest value: the largest output is the answer.
    free = {layer.input for layer in graph.layers} & set(survey.histograms) - graph.ends - set(known)
    candidates = {name: _candidates(survey.histograms[name]) for name in sorted(free)}
    seen = observe(graph, few, graph.layers, candidates)
    tensors = _choose_ranges(graph, survey.histograms, candidates, seen, known)
    ranges = {name: Range(one.low, one.high) for name, one in tensors.items()}
    grids = round_layers(graph, ranges, seen, target=target)
    regions = regions_of(graph)
    layers = {
        layer.name: LayerPlan(
            node=layer.node,
            region=regions[layer.node],
            precision=LayerPrecision.INT8,
            weights=_digest(grids[layer.node]),
            gain_db=round(grids[layer.node].gain_db, 2),
            equalised=layer.node in equalised,
        )
        for layer in graph.layers
    }
    plan = QuantPlan(target=str(target), layers=layers, tensors=tensors)
    return Planned(plan=plan, grids=grids, histograms=survey.histograms)


def own_ranges(graph: FloatGraph, rows: Tensors, tensors: Collection[str]) -> dict[str, Range]:
    """Ranges of tensors that no plan has, each by itself."""
    survey = Survey()
    for values in graph.stream(rows, tensors) if tensors else ():
        survey.add({name: values[name] for name in tensors})
    return {
        name: (minmax if name in graph.ends else ESTIMATORS["mse"])(histogram)
        for name, histogram in survey.histograms.items()
    }


def equalise(graph: FloatGraph, rows: Tensors) -> frozenset[str]:
    """Bring channels to ranges that suit eight bits; gives the nodes whose inputs were changed."""
    groups = channels_of(graph)
    extents = _extents(graph, rows, {tensor for group in groups for tensor in group.tensors})
    changed: dict[str, Parameters] = {}
    equalised = set()
    for group in groups:
        held = {one.node: changed.get(one.node) or graph.parameters(one) for one in (*group.writers, *group.readers)}
        readers = [
            Reader(held[one.node].weights, one.geometry.groups, extents[one.input].power) for one in group.readers
        ]
        factors = divisors([extents[name] for name in sorted(group.tensors)], readers, cap=group.cap)
        if (factors == 1).all():
            continue
        for one in group.writers:
            before = held[one.node]
            held[one.node] = Parameters(divided(before.weights, factors), divided(before.bias, factors))
        for one in group.readers:
            before = held[one.node]
            held[one.node] = Parameters(multiplied(before.weights, factors, one.geometry.groups), before.bias)
            equalised.add(one.node)
        changed |= held
    graph.change(changed)
    return frozenset(equalised)


def _extents(graph: FloatGraph, rows: Tensors, tensors: Collection[str]) -> dict[str, Extent]:
    """What the channels of tensors hold."""
    sums: dict[str, FloatArray] = {}
    for values in graph.stream(rows, tensors):
        for name in tensors:
            flat = np.moveaxis(values[name], graph.channel_axis, 0).reshape(values[name].shape[graph.channel_axis], -1)
            squares = np.einsum("cv,cv->c", flat, flat, dtype=np.float64)
            new = np.stack([flat.min(axis=1), flat.max(axis=1), squares, np.full(len(flat), float(flat.shape[1]))])
            old = sums.get(name)
            if old is not None:
                new = np.stack([np.minimum(old[0], new[0]), np.maximum(old[1], new[1]), *(old[2:] + new[2:])])
            sums[name] = new
    return extents_of(sums)


def round_layers(
    graph: FloatGraph, ranges: Mapping[str, Range], seen: Mapping[str, "Seen"], *, target: Target
) -> dict[str, Grid]:
    """Node of each layer that was observed → its weights in integers."""
    grids = {}
    for layer in graph.layers:
        if layer.node not in seen:
            continue
        held, step = graph.parameters(layer), ranges[layer.input].step
        grids[layer.node] = round_weights(
            held.weights,
            # Quantising what comes in adds noise of this power to every value.
            seen[layer.node].moments + np.eye(seen[layer.node].moments.shape[-1]) * step**2 / 12,
            floor=np.abs(held.bias) / (step * _BIAS_CODES),
            # Depthwise kernels multiply in 32 bits on every CPU. One group that reads one channel does not run in them, nor do
            # groups that give several channels each.
            is_paired=target.saturates and not 1 < layer.geometry.groups == len(held.weights),
        )
    return grids


@dataclass
class Seen:
    """What a layer reads, learnt from some of the places that its window looks at.

    Attributes:
        noise: Estimator → power of the change of its answers when what it reads is rounded in that range.
        power: Of its answers, without bias.
    """

    noise: dict[str, float] = field(default_factory=dict)
    power: float = 1e-30
    _sum: NDArray[np.float64] = field(default_factory=lambda: np.zeros(()))
    _count: int = 0

    @property
    def moments(self) -> NDArray[np.float64]:
        """Second moments of what each weight is multiplied with; shape ``(groups, taps, taps)``."""
        return np.asarray(self._sum / self._count)

    def add(self, windows: NDArray[np.float32], weights: FloatArray, candidates: Mapping[str, Range]) -> None:
        """Look at windows, shape ``(count, groups, taps)``."""
        by_group = np.ascontiguousarray(np.moveaxis(windows, 1, 0))
        held = weights.reshape(len(by_group), -1, by_group.shape[-1]).swapaxes(1, 2).astype(np.float32)
        self._sum = self._sum + (by_group.swapaxes(1, 2) @ by_group).astype(np.float64)
        self._count += len(windows)
        self.power += _power(by_group @ held)
        for estimator, candidate in candidates.items():
            changed = _power((_rounded(by_group, candidate) - by_group) @ held)
            self.noise[estimator] = self.noise.get(estimator, 0.0) + changed


def observe(
    graph: FloatGraph,
    rows: Tensors,
    layers: Sequence[Layer],
    candidates: Mapping[str, Mapping[str, Range]] | None = None,
) -> dict[str, Seen]:
    """Node of each layer → what it reads on a few rows.

    Args:
        graph: The model.
        rows: A few.
        layers: Of the graph.
        candidates: Tensor → estimator → range to try.
    """
    found = {layer.node: Seen() for layer in layers}
    count = len(next(iter(rows.values())))
    for values in graph.stream(rows, {layer.input for layer in layers}):
        for layer in layers:
            weights = graph.parameters(layer).weights
            inputs = graph.planes(layer, values[layer.input])
            taps = int(np.prod(weights.shape[1:]))
            most = -(-max(_WINDOWS, _WINDOWS_A_TAP * taps) * len(values[layer.input]) // count)
            windows = patches(inputs, weights.shape[2:], layer.geometry, most=most)
            found[layer.node].add(windows, weights, (candidates or {}).get(layer.input, {}))
    return found


def _choose_ranges(
    graph: FloatGraph,
    histograms: Mapping[str, Histogram],
    candidates: Mapping[str, Mapping[str, Range]],
    seen: Mapping[str, Seen],
    pinned: Mapping[str, Range],
) -> dict[str, TensorPlan]:
    """For each tensor the range that its readers answer best with."""
    read_by: dict[str, list[Layer]] = {}
    for layer in graph.layers:
        read_by.setdefault(layer.input, []).append(layer)
    chosen: dict[str, TensorPlan] = {}
    for name, histogram in histograms.items():
        if name in pinned:
            chosen[name] = _tensor(pinned[name], "exact", "bytes come in, and this is their grid")
        elif name in candidates:
            readers = read_by[name]
            noise = {
                estimator: sum(seen[one.node].noise[estimator] / seen[one.node].power for one in readers)
                for estimator in candidates[name]
            }
            best = min(noise, key=lambda estimator: noise[estimator])
            others = "".join(f"; {key} {_db(value):.1f} dB" for key, value in noise.items() if key != best)
            why = f"{_db(noise[best]):.1f} dB behind {', '.join(one.name for one in readers)}{others}"
            chosen[name] = _tensor(candidates[name][best], best, why)
        elif name in graph.ends:
            chosen[name] = _tensor(minmax(histogram), "minmax", "an input or output of the model keeps all it can be")
        else:
            chosen[name] = _tensor(ESTIMATORS["mse"](histogram), "mse", "no layer reads it; its own error is least")
    return chosen


def _candidates(histogram: Histogram) -> dict[str, Range]:
    """Estimator → range, those left out that another gives already."""
    found: dict[str, Range] = {}
    for name, estimator in ESTIMATORS.items():
        candidate = estimator(histogram)
        if all(abs(candidate.low - one.low) + abs(candidate.high - one.high) > one.step for one in found.values()):
            found[name] = candidate
    return found


def _rounded(values: NDArray[np.float32], candidate: Range) -> NDArray[np.float32]:
    """What eight bits make of values."""
    step = np.float32(candidate.step)
    zero = np.rint(-candidate.low / step)
    codes = np.rint(values / step)
    return np.asarray(np.clip(codes, -zero, LEVELS - zero) * step, np.float32)


def _power(answers: NDArray[np.floating[Any]]) -> float:
    return float(np.square(answers).sum(dtype=np.float64))


def _db(noise: float) -> float:
    return float(-10 * np.log10(max(noise, 1e-30)))


def _tensor(found: Range, estimator: str, why: str) -> TensorPlan:
    return TensorPlan(low=found.low, high=found.high, estimator=estimator, why=why)


def _digest(grid: Grid) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(grid.codes).tobytes())
    digest.update(np.ascontiguousarray(grid.scales, "<f8").tobytes())
    return f"sha256:{digest.hexdigest()}"
