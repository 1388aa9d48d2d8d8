"""Bias correction: every layer of the integer model answers on average what it answers in float. Pure but for the probe.

This is the full, sequential variant (Nagel et al., "Data-free quantization through weight equalization and bias correction",
2019, appendix D): the inputs of a layer are taken from the integer model whose layers before it are corrected already, as the
engine's own integer kernels give them. Layers that do not depend on each other share a pass. Correcting all layers in one pass
does not do: each would make up for the whole error before it, and together they overshoot without bounds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np

from edgeops.processing import Tensors
from edgeops_converters.layers import FloatArray, Geometry, mean_output

_ABSURD = 0.25  # of the output's range: a mean that is off by more is not an error of rounding


@dataclass(frozen=True)
class Correctable:
    """A layer in float and in integers.

    Attributes:
        geometry: Where it looks.
        weights: In float; shape ``(out, in / groups, *kernel)``.
        rounded: What the integers stand for; the same shape.
        bias: In float; shape ``(out,)``.
        mean_input: Of the float model over the rows; shape ``(in, *space)``.
        span: Width of the output's range in float.
    """

    geometry: Geometry
    weights: FloatArray
    rounded: FloatArray
    bias: FloatArray
    mean_input: FloatArray
    span: float


class Probe(Protocol):
    """An integer model whose biases can be set."""

    def set_biases(self, biases: Mapping[str, FloatArray]) -> None:
        """Write biases (layer → shape ``(out,)``) into the model, rounded to its grid."""

    def mean_inputs(self, layers: Sequence[str]) -> dict[str, FloatArray]:
        """Run the rows; layer → mean of its input over the rows, shape ``(in, *space)``."""

    def noise(self) -> float:
        """Run the rows; see :func:`mean_squared_error`."""


class BiasCorrection(StrEnum):
    """How biases make up for what rounding takes."""

    FULL = "full"
    """In the order of the model, with the inputs that the integer model gives; one pass a level."""
    FAST = "fast"
    """At once, with the inputs that float gives; makes up for weights only."""
    NONE = "none"


def correct(
    layers: Mapping[str, Correctable],
    levels: Sequence[Sequence[str]],
    probe: Probe,
    method: BiasCorrection = BiasCorrection.FULL,
) -> float:
    """Correct the biases of an integer model, and leave it as it was where that does not bring it nearer to float.

    Args:
        layers: Name → layer.
        levels: Names in the order of the model; the layers of a level do not depend on each other.
        probe: The integer model.
        method: How.

    Returns:
        What is left of the noise, by which ways to quantise a model can be compared.
    """
    probe.set_biases({name: layer.bias for name, layer in layers.items()})
    before = probe.noise()
    if method is BiasCorrection.NONE:
        return before
    if method is BiasCorrection.FAST:
        probe.set_biases({name: corrected_bias(layer, layer.mean_input) for name, layer in layers.items()})
    else:
        for level in levels:
            means = probe.mean_inputs(level)
            probe.set_biases({name: corrected_bias(layers[name], means[name]) for name in level})
    after = probe.noise()
    if after >= before:
        probe.set_biases({name: layer.bias for name, layer in layers.items()})
    return min(before, after)


def levels_of(
    reads: Mapping[str, Sequence[str]], gives: Mapping[str, Sequence[str]], layers: set[str]
) -> list[list[str]]:
    """Layers by how many others lie before them on the longest way.

    Args:
        reads: Node → tensors that it reads, in the order of the graph.
        gives: Node → tensors that it gives.
        layers: The nodes that count.

    >>> levels_of({"a": ["x"], "r": ["y"], "b": ["z"], "c": ["z"]}, {"a": ["y"], "r": ["z"], "b": [], "c": []}, {"a", "b", "c"})
    [['a'], ['b', 'c']]
    """
    depth: dict[str, int] = {}
    found: dict[int, list[str]] = {}
    for node, tensors in reads.items():
        level = max((depth.get(tensor, 0) for tensor in tensors), default=0)
        if node in layers:
            found.setdefault(level, []).append(node)
            level += 1
        for tensor in gives[node]:
            depth[tensor] = level
    return [found[level] for level in sorted(found)]


def corrected_bias(layer: Correctable, mean_input: FloatArray) -> FloatArray:
    """The bias with which the mean output is that of float; where that is absurd, the bias as it was.

    Args:
        layer: The layer.
        mean_input: Of the integer model; shape ``(in, *space)``.
    """
    shift = mean_output(layer.weights, layer.mean_input, layer.geometry) - mean_output(
        layer.rounded, mean_input, layer.geometry
    )
    is_sane = np.isfinite(shift) & (np.abs(shift) <= _ABSURD * layer.span)
    return layer.bias + np.where(is_sane, shift, 0.0)


def mean_squared_error(expected: Tensors, answered: Tensors) -> float:
    """Over all outputs, each in units of its own power, so that none drowns another."""
    errors = []
    for name, array in expected.items():
        wanted = array.astype(np.float64)
        power = float(np.square(wanted).mean()) or 1.0
        errors.append(float(np.square(answered[name] - wanted).mean()) / power)
    return float(np.mean(errors))
