"""Carrying a plan out: integers written, weights set bit for bit, biases corrected on the engine's own kernels.

The story of static int8: :func:`plan_for` makes one plan, on the first format; every other format is given the same; and
:func:`carry_out` writes a file, as often as a search wants with other regions in float.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.calibration import CORRECTION_ROWS, Means, spread
from edgeops_converters.correction import BiasCorrection, Correctable, correct, levels_of
from edgeops_converters.graph import FloatGraph, Layer, Parameters
from edgeops_converters.layers import FloatArray
from edgeops_converters.matching import match_layers, match_tensors
from edgeops_converters.plan import QuantPlan
from edgeops_converters.planning import Planned, make_plan, observe, own_ranges, round_layers
from edgeops_converters.quantizers import QUANTIZERS, Integers, Quantizer
from edgeops_converters.ranges import Range
from edgeops_converters.regions import nodes_with
from edgeops_converters.rounding import Grid
from edgeops_converters.targets import Target


@dataclass(frozen=True)
class Subject:
    """A float file that is ready to be written in integers, as often as wanted.

    Attributes:
        quantizer: Of its format.
        graph: With the parameters of the plan.
        nodes: Name of each layer in the plan → its node here.
        ranges: Tensor → what eight bits cover.
        grids: Node → weights in integers.
        expected: What float says on the rows that biases are corrected on.
        notes: What a person should know of how the plan fits this file.
    """

    quantizer: Quantizer
    graph: FloatGraph
    nodes: Mapping[str, str]
    ranges: Mapping[str, Range]
    grids: Mapping[str, Grid]
    expected: "Expected"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expected:
    """What the float model does on a few rows.

    Attributes:
        rows: The rows.
        answers: Output tensor → what it gives.
        mean_inputs: Node → mean of what the layer reads, shape ``(in, *space)``.
        spans: Node → width of what it gives.
    """

    rows: Tensors
    answers: Tensors
    mean_inputs: Mapping[str, FloatArray]
    spans: Mapping[str, float]


def quantize(source: Artifact, calibration: Tensors, target: Path, *, cpu: Target) -> Artifact:
    """Plan one file by itself and carry the plan out.

    Args:
        source: A float32 model file.
        calibration: Rows of every input, as the model itself takes them; read in constant memory.
        target: The file to write.
        cpu: The CPUs that it is to be fast and right on.

    Raises:
        RecipeError: The quantizer cannot work on this model or data.
        MissingExtraError: A library of the ``convert`` extra is not installed.
    """
    planned, subjects = plan_for([source], calibration, target=cpu)
    return carry_out(planned.plan, subjects[source.format], target, cpu=cpu)


def plan_for(
    sources: Sequence[Artifact],
    rows: Tensors,
    *,
    target: Target,
    pinned: Mapping[str, Mapping[str, Range]] | None = None,
) -> tuple[Planned, dict[str, Subject]]:
    """Make one plan for all formats of a model.

    Args:
        sources: Float32 files of one model, one a format; the plan is made on the first.
        rows: Calibration rows of every input, as the model itself takes them; read in constant memory.
        target: The CPUs that it is for.
        pinned: Format → tensors whose range is known exactly.

    Returns:
        The plan, and for each format what :func:`carry_out` takes.

    Raises:
        RecipeError: A quantizer cannot work on a file.
    """
    few, known = spread(rows, CORRECTION_ROWS), pinned or {}
    first, *others = sources
    lead = QUANTIZERS[first.format].read(first)
    graphs = {other.format: QUANTIZERS[other.format].read(other) for other in others}
    # Layers are told by their weights, so before these are equalised.
    matches = {form: match_layers(lead, graph) for form, graph in graphs.items()}
    planned = make_plan(lead, rows, target=target, pinned=known.get(first.format))
    nodes = {name: layer.node for name, layer in planned.plan.layers.items()}
    subjects = {
        first.format: Subject(QUANTIZERS[first.format], lead, nodes, planned.ranges, planned.grids, _expect(lead, few))
    }
    for form, graph in graphs.items():
        subjects[form] = _follow(planned, lead, graph, matches[form], rows, pinned=known.get(form, {}), target=target)
    return planned, subjects


def carry_out(
    plan: QuantPlan,
    subject: Subject,
    target: Path,
    *,
    cpu: Target,
    precision: str = "int8",
    correction: BiasCorrection = BiasCorrection.FULL,
) -> Artifact:
    """Write one file of a plan.

    Args:
        plan: Says which regions stay in float.
        subject: The float file, as :func:`plan_for` gave it.
        target: The file to write.
        cpu: The CPUs that it is for.
        precision: What the file is called by.
        correction: Of the biases.

    Raises:
        RecipeError: The quantizer cannot work on it.
    """
    left_out = float_nodes(plan, subject)
    integers = subject.quantizer.write(subject.graph, subject.ranges, left_out=left_out, target=cpu)
    integers.set_weights({node: grid for node, grid in subject.grids.items() if node in integers.nodes})
    _correct(integers, subject, correction)
    made = integers.save(target, precision=precision)
    return replace(made, target=cpu) if made.format == "onnx" else made


def float_nodes(plan: QuantPlan, subject: Subject) -> frozenset[str]:
    """The nodes of a file that a plan leaves in float, with what an engine fuses into them."""
    regions = plan.regions
    names = (name for region in plan.float_regions for name in regions[region])
    return nodes_with(subject.graph, {subject.nodes[name] for name in names if name in subject.nodes})


def _expect(graph: FloatGraph, rows: Tensors) -> Expected:
    """Run a few rows through the float model."""
    wanted = {tensor for layer in graph.layers for tensor in (layer.input, layer.output)}
    outputs = list(graph.source.outputs.values())
    means, spans = Means(), dict[str, tuple[float, float]]()
    answers: dict[str, list[np.ndarray]] = {wire: [] for wire in outputs}
    for values in graph.stream(rows, {*wanted, *outputs}):
        for layer in graph.layers:
            means.add(layer.node, graph.planes(layer, values[layer.input]))
            low, high = spans.get(layer.node, (0.0, 0.0))
            given = values[layer.output]
            spans[layer.node] = (min(low, float(given.min())), max(high, float(given.max())))
        for wire, parts in answers.items():
            parts.append(values[wire])
    return Expected(
        rows=rows,
        answers={wire: np.concatenate(parts) for wire, parts in answers.items()},
        mean_inputs={layer.node: means.mean(layer.node) for layer in graph.layers},
        spans={node: high - low for node, (low, high) in spans.items()},
    )


def _follow(
    planned: Planned,
    lead: FloatGraph,
    graph: FloatGraph,
    matched: Mapping[str, str],
    rows: Tensors,
    *,
    pinned: Mapping[str, Range],
    target: Target,
) -> Subject:
    """Give another file of the model the parameters, ranges and integers of the plan."""
    names = {layer.node: name for name, layer in planned.plan.layers.items()}
    here_of = {there: here for here, there in matched.items()}
    shapes = {layer.node: graph.parameters(layer).weights.shape for layer in graph.layers}
    held = {layer.node: lead.parameters(layer) for layer in lead.layers}
    graph.change(
        {
            there: Parameters(held[here].weights.reshape(shapes[there]), held[here].bias)
            for there, here in here_of.items()
        }
    )
    few = spread(rows, CORRECTION_ROWS)
    tensors = match_tensors(lead, graph, few)
    ranges = {there: planned.ranges[here] for there, here in tensors.items() if here in planned.ranges} | dict(pinned)
    flowing = {tensor for node in graph.nodes for tensor in node.gives} | graph.ends
    ranges |= own_ranges(graph, rows, flowing - set(ranges))
    grids = {
        there: replace(planned.grids[here], codes=planned.grids[here].codes.reshape(shapes[there]))
        for there, here in here_of.items()
    }
    strangers = [layer for layer in graph.layers if layer.node not in grids]
    if strangers:
        grids |= round_layers(graph, ranges, observe(graph, few, strangers), target=target)
    said = (
        f"{graph.source.file}: {len(strangers)} layers are not in the ONNX file as such, and were planned by themselves"
    )
    return Subject(
        quantizer=QUANTIZERS[graph.source.format],
        graph=graph,
        nodes={names[here]: there for here, there in matched.items()},
        ranges=ranges,
        grids=grids,
        expected=_expect(graph, few),
        notes=(said,) if strangers else (),
    )


def _correct(integers: Integers, subject: Subject, method: BiasCorrection) -> float:
    """Set the biases so that every layer answers on average what it answers in float; gives the noise that is left."""
    graph, expected = subject.graph, subject.expected
    wanted = [layer for layer in graph.layers if layer.node in integers.nodes]
    layers = {layer.node: _correctable(layer, graph, integers, expected) for layer in wanted}
    reads, gives = {node.name: node.reads for node in graph.nodes}, {node.name: node.gives for node in graph.nodes}
    return correct(layers, levels_of(reads, gives, set(layers)), _Probe(integers, expected), method)


def _correctable(layer: Layer, graph: FloatGraph, integers: Integers, expected: Expected) -> Correctable:
    held = graph.parameters(layer)
    return Correctable(
        geometry=layer.geometry,
        weights=held.weights,
        rounded=integers.weights(layer.node),
        bias=held.bias,
        mean_input=expected.mean_inputs[layer.node],
        span=expected.spans[layer.node],
    )


@dataclass(frozen=True)
class _Probe:
    """Integers with the rows that they are asked; see :class:`edgeops_converters.correction.Probe`."""

    integers: Integers
    expected: Expected

    def set_biases(self, biases: Mapping[str, FloatArray]) -> None:
        self.integers.set_biases(biases)

    def mean_inputs(self, layers: Sequence[str]) -> dict[str, FloatArray]:
        return self.integers.mean_inputs(layers, self.expected.rows)

    def noise(self) -> float:
        return self.integers.noise(self.expected.answers, self.expected.rows)
