"""The settings of a conversion, checked before any work."""

import math
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec

from edgeops.errors import RecipeError
from edgeops.manifest import Operator
from edgeops_converters.compressors import PRECISIONS, is_made
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.rewrites.layout import Layout
from edgeops_converters.targets import Target


class Limits(TypedDict):
    """The arguments of :func:`edgeops_converters.gate.judge`."""

    max_drop: float
    min_int8: float
    max_latency_ms: float | None
    max_bytes: int | None


@dataclass(frozen=True)
class Recipe:
    """What to make and what to accept.

    Attributes:
        formats: Of ``onnx``, ``tflite``.
        precisions: Of :data:`edgeops_converters.compressors.PRECISIONS`.
        max_drop: Largest accepted loss against the source, in percentage points.
        target: The CPUs that it is made for.
        also: Others, for which there is one more int8 file for onnxruntime each.
        input_layout: In which callers give images.
        preprocess: From the caller's inputs to the model's; ``postprocess`` likewise for outputs.
        labels: Class names by index.
        stratum_attribute: Device attribute whose values are the strata of the evaluation data.
        min_int8: Least share of convolutions and matrix products in integers, in per cent.
        requantize: Whether a source that is int8 already is quantised anew.
        max_latency_ms: Longest that a compressed variant may take for one row on one thread; ``None`` for any.
        max_bytes: Largest file of a compressed variant; ``None`` for any.
        force: Whether a variant that the gate refuses is kept all the same.
    """

    formats: tuple[str, ...]
    precisions: tuple[str, ...]
    max_drop: float
    target: Target
    also: tuple[Target, ...] = ()
    input_layout: Layout = Layout.NCHW
    preprocess: tuple[Operator, ...] = ()
    postprocess: tuple[Operator, ...] = ()
    labels: tuple[str, ...] = ()
    stratum_attribute: str = ""
    force: bool = False
    min_int8: float = 0.0
    requantize: bool = False
    max_latency_ms: float | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        _check_choice("formats", self.formats, tuple(EXPORTERS))
        _check_choice("precisions", self.precisions, PRECISIONS)
        for precision in self.precisions:
            if not any(is_made(form, precision) for form in self.formats):
                said = " and ".join(self.formats)
                raise RecipeError(
                    f"precisions: {precision} is not made for {said}; leave it out, or add a format that has it"
                )
        if not 0 <= self.max_drop <= 100:  # noqa: PLR2004 - percentage points
            raise RecipeError(f"max_drop: expected 0 to 100 percentage points, got {self.max_drop}")
        if not 0 <= self.min_int8 <= 100:  # noqa: PLR2004 - per cent
            raise RecipeError(f"min_int8: expected 0 to 100 per cent, got {self.min_int8}")
        if self.max_latency_ms is not None and not 0 < self.max_latency_ms < math.inf:
            raise RecipeError(f"max_latency_ms: expected more than 0 milliseconds, got {self.max_latency_ms}")
        if self.max_bytes is not None and self.max_bytes <= 0:
            raise RecipeError(f"max_bytes: expected more than 0 bytes, got {self.max_bytes}")
        if len(set(self.labels)) != len(self.labels):
            raise RecipeError("labels: expected different names, one for each class")

    @property
    def limits(self) -> Limits:
        """What :func:`edgeops_converters.gate.judge` holds a variant to."""
        return {
            "max_drop": self.max_drop,
            "min_int8": self.min_int8,
            "max_latency_ms": self.max_latency_ms,
            "max_bytes": self.max_bytes,
        }

    def as_json(self) -> dict[str, Any]:
        """The settings for the lineage."""
        return {
            "formats": list(self.formats),
            "precisions": list(self.precisions),
            **self.limits,
            "requantize": self.requantize,
            "target": ",".join((self.target, *self.also)),
            "input_layout": str(self.input_layout),
            "activations": "int8" if self.target.is_signed else "uint8",
            "stratum_attribute": self.stratum_attribute,
            "force": self.force,
            "preprocess": msgspec.to_builtins(list(self.preprocess)),
            "postprocess": msgspec.to_builtins(list(self.postprocess)),
        }


def _check_choice(what: str, chosen: tuple[str, ...], known: tuple[str, ...]) -> None:
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(known):
        raise RecipeError(f"{what}: expected one or more of {', '.join(known)}, got {', '.join(chosen) or 'none'}")
