"""A model as the rules of the doctor see it: operators in order, layers with weights, and the user's names for both. Pure.

Torch graphs and ONNX graphs are read into this by :mod:`edgeops_converters.doctor.torch_graph` and
:mod:`edgeops_converters.doctor.onnx_graph`; the rules know neither.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from edgeops.tensors import TensorSpec


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        kind: Its name in ATen, for example ``hardswish``; ONNX operators have the name of their counterpart.
        layer: Path of the layer in the user's model, or name of the node.
        layer_kind: What that layer is, for example ``Hardswish``.
        line: The user's own line of code, when it is no more than a line in ``forward``.
        inputs: Names of the tensors that it reads; weights are not among them.
        output: Name of the tensor that it gives.
        rank: Of what it reads first; 0 when that is not known.
        arguments: The rest, by the names of ATen: ``dim``, ``stride``, ``padding``, ``pad``, ``mode``.
    """

    kind: str
    layer: str
    layer_kind: str = ""
    line: str = ""
    inputs: tuple[str, ...] = ()
    output: str = ""
    rank: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product with constant weights.

    Attributes:
        operator: Which it is.
        weights: Shape ``(out, in / groups, *kernel)``, with the factors of a batch norm behind it.
        has_bias: Whether it or the batch norm behind it adds something.
        groups: Of channels.
        output: Of the batch norm where there is one.
    """

    operator: Operator
    weights: NDArray[Any]
    has_bias: bool
    groups: int
    output: str


@dataclass(frozen=True)
class Subject:
    """A model.

    Attributes:
        inputs: What it takes; the first dimension counts rows.
        batch: The number of rows that it takes at once; ``None`` when any.
        operators: In the order in which they run.
        products: In that order too.
        weights: Every weight and statistic by the user's name for it.
        dynamic: Input → its dimensions, other than rows, that are not fixed.
    """

    inputs: tuple[TensorSpec, ...]
    batch: int | None
    operators: tuple[Operator, ...]
    products: tuple[Product, ...]
    weights: Mapping[str, NDArray[Any]]
    dynamic: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def readers(self, tensor: str) -> list[Operator]:
        """Who reads a tensor."""
        return [operator for operator in self.operators if tensor in operator.inputs]
