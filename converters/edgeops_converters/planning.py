"""Making a plan: channels equalised, every tensor counted, ranges chosen by what they do to the answers, weights rounded.

Written once for all formats, against :class:`edgeops_converters.graph.FloatGraph`. What carries a plan out in a file is in
:mod:`edgeops_converters.quantizers`; what carries it from one file to another in :mod:`edgeops_converters.matching`.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgeops.processing import Tensors
from edgeops_converters.calibration import CORRECTION_ROWS, Survey, spread
from edgeops_converters.equalization import divided, divisors, multiplied
from edgeops_converters.graph import FloatGraph, Layer, Parameters
from edgeops_converters.histograms import Histogram
from edgeops_converters.layers import apply, patches
from edgeops_converters.plan import LayerPlan, LayerPrecision, QuantPlan, TensorPlan
from edgeops_converters.ranges import ESTIMATORS, LEVELS, Range, minmax
from edgeops_converters.regions import regions_of
from edgeops_converters.rounding import Grid, round_weights
from edgeops_converters.targets import Target

_SCORED_ROWS = 16
_PATCHES = 4096  # of each layer, over all rows
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
    tensors = _choose_ranges(graph, survey, spread(few, _SCORED_ROWS), pinned or {})
    grids = round_layers(graph, few, {name: Range(one.low, one.high) for name, one in tensors.items()}, target=target)
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
    """Bring the channels between layers to one range; gives the nodes whose inputs were changed."""
    pairs, peaks = graph.pairs, dict[str, NDArray[np.float64]]()
    for values in graph.stream(rows, {second.input for _, second in pairs}):
        for _, second in pairs:
            seen = np.abs(np.moveaxis(graph.planes(second, values[second.input]), 1, 0))
            top = seen.reshape(len(seen), -1).max(axis=1).astype(np.float64)
            peaks[second.input] = np.maximum(peaks.get(second.input, 0.0), top)
    changed: dict[str, Parameters] = {}
    equalised = set()
    for first, second in pairs:
        ahead = changed.get(first.node) or graph.parameters(first)
        behind = changed.get(second.node) or graph.parameters(second)
        factors = divisors(peaks[second.input], behind.weights, second.geometry.groups)
        if (factors == 1).all():
            continue
        changed[first.node] = Parameters(divided(ahead.weights, factors), divided(ahead.bias, factors))
        changed[second.node] = Parameters(multiplied(behind.weights, factors, second.geometry.groups), behind.bias)
        equalised.add(second.node)
    graph.change(changed)
    return frozenset(equalised)


def round_layers(
    graph: FloatGraph,
    rows: Tensors,
    ranges: Mapping[str, Range],
    *,
    target: Target,
    layers: Sequence[Layer] | None = None,
) -> dict[str, Grid]:
    """Node of each layer → its weights in integers, given what flows in on a few rows."""
    wanted = list(graph.layers if layers is None else layers)
    moments = {layer.node: _Moments() for layer in wanted}
    count = len(next(iter(rows.values())))
    for values in graph.stream(rows, {layer.input for layer in wanted}):
        for layer in wanted:
            shape = graph.parameters(layer).weights.shape
            seen = graph.planes(layer, values[layer.input])
            moments[layer.node].add(patches(seen, shape[2:], layer.geometry, most=-(-_PATCHES * len(seen) // count)))
    grids = {}
    for layer in wanted:
        held, step = graph.parameters(layer), ranges[layer.input].step
        noise = np.eye(moments[layer.node].taps) * step**2 / 12
        grids[layer.node] = round_weights(
            held.weights,
            moments[layer.node].mean + noise,
            floor=np.abs(held.bias) / (step * _BIAS_CODES),
            # Depthwise kernels multiply in 32 bits on every CPU.
            is_paired=target.saturates and held.weights.shape[1] > 1,
        )
    return grids


@dataclass
class _Moments:
    """Second moments of patches that come a few at a time."""

    _sum: NDArray[np.float64] = field(default_factory=lambda: np.zeros(()))
    _rows: int = 0

    def add(self, seen: NDArray[np.float32]) -> None:
        """Add patches, shape ``(rows, groups, taps)``."""
        by_group = np.moveaxis(seen, 1, 0)
        self._sum = self._sum + (np.swapaxes(by_group, 1, 2) @ by_group).astype(np.float64)
        self._rows += len(seen)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Shape ``(groups, taps, taps)``."""
        return np.asarray(self._sum / self._rows)

    @property
    def taps(self) -> int:
        """How many weights a channel has."""
        return int(self._sum.shape[-1])


def _choose_ranges(
    graph: FloatGraph, survey: Survey, rows: Tensors, pinned: Mapping[str, Range]
) -> dict[str, TensorPlan]:
    """For each tensor the range that its readers answer best with."""
    read_by: dict[str, list[Layer]] = {}
    for layer in graph.layers:
        read_by.setdefault(layer.input, []).append(layer)
    # Inputs and outputs keep the least and the greatest value: the largest output is the answer.
    free = {name for name in survey.histograms if name not in graph.ends and name not in pinned}
    candidates = {name: _candidates(survey.histograms[name]) for name in free & set(read_by)}
    errors = _errors_behind(graph, rows, candidates, read_by)
    chosen: dict[str, TensorPlan] = {}
    for name, histogram in survey.histograms.items():
        if name in pinned:
            chosen[name] = _tensor(pinned[name], "exact", "bytes come in, and this is their grid")
        elif name in errors:
            best = min(errors[name], key=lambda estimator: errors[name][estimator])
            others = ", ".join(f"{key} {_db(value):.1f} dB" for key, value in errors[name].items() if key != best)
            why = f"{_db(errors[name][best]):.1f} dB behind {', '.join(one.name for one in read_by[name])}; {others}"
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


def _errors_behind(
    graph: FloatGraph, rows: Tensors, candidates: Mapping[str, Mapping[str, Range]], read_by: Mapping[str, list[Layer]]
) -> dict[str, dict[str, float]]:
    """Tensor → estimator → noise over signal of its readers' answers when only this tensor is quantised."""
    noise = {name: dict.fromkeys(ranges, 0.0) for name, ranges in candidates.items()}
    power = dict.fromkeys(candidates, 1e-30)
    for values in graph.stream(rows, set(candidates)):
        for name, ranges in candidates.items():
            for layer in read_by[name]:
                weights, seen = graph.parameters(layer).weights, graph.planes(layer, values[name])
                power[name] += float(np.square(apply(seen, weights, layer.geometry)).sum(dtype=np.float64))
                for estimator, candidate in ranges.items():
                    error = apply(_rounded(seen, candidate) - seen, weights, layer.geometry)
                    noise[name][estimator] += float(np.square(error).sum(dtype=np.float64))
    return {name: {key: value / power[name] for key, value in found.items()} for name, found in noise.items()}


def _rounded(values: NDArray[np.float32], candidate: Range) -> NDArray[np.float32]:
    """What eight bits make of values."""
    step = np.float32(candidate.step)
    zero = np.rint(-candidate.low / step)
    codes = np.rint(values / step)
    return np.asarray(np.clip(codes, -zero, LEVELS - zero) * step, np.float32)


def _db(noise: float) -> float:
    return float(-10 * np.log10(max(noise, 1e-30)))


def _tensor(found: Range, estimator: str, why: str) -> TensorPlan:
    return TensorPlan(low=found.low, high=found.high, estimator=estimator, why=why)


def _digest(grid: Grid) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(grid.codes).tobytes())
    digest.update(np.ascontiguousarray(grid.scales, "<f8").tobytes())
    return f"sha256:{digest.hexdigest()}"
