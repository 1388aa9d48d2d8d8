"""The plan of a quantisation: for every tensor its range, for every layer its precision and rounding, each with the reason.

One plan is made of the float model, whatever file it stands in, and carried out in each format by an emitter
(:mod:`edgeops_converters.quantizers`). It ships in the bundle as ``plan.json``. How it is made is the business of
:mod:`edgeops_converters.planning`.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from edgeops.errors import ManifestError

PLAN_SCHEMA = 1


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Common settings of every part."""


class LayerPrecision(StrEnum):
    """In what a layer computes."""

    INT8 = "int8"
    FLOAT = "float32"


class TensorPlan(_Part, frozen=True, kw_only=True):
    """What eight bits of an activation cover.

    Attributes:
        low: The least value; 0 or less.
        high: The greatest value; 0 or more.
        estimator: Name in :data:`edgeops_converters.ranges.ESTIMATORS`, or ``exact`` where a grid of bytes is met.
        why: How it came to be that one.
    """

    low: float
    high: float
    estimator: str
    why: str


class LayerPlan(_Part, frozen=True, kw_only=True):
    """What becomes of a convolution or matrix product.

    Attributes:
        node: In the graph that the plan was made of.
        region: Layers of one number are quantised together or not at all, since what lies between them fuses.
        precision: In what it computes.
        weights: SHA-256 of the integer weights and their scales, in every format the same; in float, of what they would be.
        gain_db: How much less noise its answers have than with weights rounded to the nearest.
        equalised: Whether its input channels were brought to one range.
        why: Why this precision.
    """

    node: str
    region: int
    precision: LayerPrecision
    weights: str = ""
    gain_db: float = 0.0
    equalised: bool = False
    why: str = ""


class QuantPlan(_Part, frozen=True, kw_only=True):
    """Everything that is decided before a file is written.

    Attributes:
        target: The CPUs that it is made for, as in :class:`edgeops_converters.targets.Target`.
        layers: Name in the user's model → layer, in the order of the graph.
        tensors: Name in the graph → activation.
    """

    schema: int = PLAN_SCHEMA
    target: str
    layers: dict[str, LayerPlan]
    tensors: dict[str, TensorPlan]

    @property
    def regions(self) -> dict[int, tuple[str, ...]]:
        """Region → names of its layers, in order."""
        found: dict[int, list[str]] = {}
        for name, layer in self.layers.items():
            found.setdefault(layer.region, []).append(name)
        return {region: tuple(names) for region, names in found.items()}

    @property
    def float_regions(self) -> frozenset[int]:
        """The regions that stay in float."""
        return frozenset(one.region for one in self.layers.values() if one.precision is LayerPrecision.FLOAT)

    def with_float(self, regions: Mapping[int, str]) -> "QuantPlan":
        """The same plan with exactly these regions in float; each with the reason."""
        return msgspec.structs.replace(
            self,
            layers={
                name: msgspec.structs.replace(
                    layer,
                    precision=LayerPrecision.FLOAT if layer.region in regions else LayerPrecision.INT8,
                    why=regions.get(layer.region, ""),
                )
                for name, layer in self.layers.items()
            },
        )


def encode_plan(plan: QuantPlan) -> bytes:
    """The plan as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=2)


def decode_plan(data: bytes) -> QuantPlan:
    """Read ``plan.json``.

    Raises:
        ManifestError: It is not a plan of this schema.
    """
    try:
        return msgspec.json.decode(data, type=QuantPlan)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ManifestError(f"plan.json: {error}") from error
