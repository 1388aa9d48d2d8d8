"""TFLite by ai-edge-quantizer's recipes: weights stored small, matrix products in integers, and 16-bit activations.

Weights that are only *stored* small are decoded once by XNNPACK when it loads the file, so that the speed is float's.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeops.errors import MissingExtraError, RecipeError
from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.extras import load, quiet
from edgeops_converters.quantizers.litert import renamed
from edgeops_converters.quantizers.litert_graph import LitertFile, stream
from edgeops_converters.ranges import Range

Extremes = dict[str, dict[str, Any]]
"""Tensor → ``min`` and ``max``, as ai-edge-quantizer takes them."""

_ALL = ".*"
_HALF_BITS = 16


def float16(source: Artifact, target: Path) -> Artifact:
    """Store weights in half precision, and compute in float32.

    Args:
        source: A float32 model file.
        target: The file to write.

    Raises:
        RecipeError: ai-edge-quantizer cannot read the model.
    """

    def ask(recipe: Any, _file: LitertFile) -> None:  # noqa: ANN401 - ai-edge-quantizer has no types
        typing, names = load("ai_edge_quantizer.qtyping"), load("ai_edge_quantizer.algorithm_manager").AlgorithmName
        recipe.add_weight_only_config(
            _ALL,
            typing.TFLOperationName.ALL_SUPPORTED,
            _HALF_BITS,
            typing.QuantGranularity.TENSORWISE,
            names.FLOAT_CASTING,
        )

    return _written(source, target, "float16", ask)


def int8_weights(source: Artifact, target: Path) -> Artifact:
    """Store weights in 8 bits with a scale for each channel, and compute in float32; otherwise as :func:`float16`."""
    return _written(source, target, "int8-weights", lambda recipe, _file: _small_weights(recipe))


def dynamic(source: Artifact, target: Path) -> Artifact:
    """Run matrix products in integers, with the range of the activations found at each call.

    The rest as in :func:`int8_weights`. Convolutions stay in float: with ranges found at each call they are slower than in float,
    depthwise ones above all. A recurrent cell is unrolled into matrix products, and runs in integers.

    Args:
        source: A float32 model file.
        target: The file to write.

    Raises:
        RecipeError: ai-edge-quantizer cannot read the model, or nothing in it would run in integers.
    """

    def ask(recipe: Any, file: LitertFile) -> None:  # noqa: ANN401 - ai-edge-quantizer has no types
        _check_products(file, instead="int8, which runs convolutions in integers, or int8-weights")
        _products(recipe, bits=8)

    return _written(source, target, "dynamic", ask)


def int4_weights(source: Artifact, target: Path) -> Artifact:
    """Keep the weights of matrix products in 4 bits with a scale for each channel; the rest as in :func:`int8_weights`.

    Activations are rounded to 8 bits at each call, which is lost beside what 4 bits lose, and far faster than decoding the
    weights: XNNPACK has kernels for it.

    Args:
        source: A float32 model file.
        target: The file to write.

    Raises:
        RecipeError: ai-edge-quantizer cannot read the model, or it has no matrix product.
    """

    def ask(recipe: Any, file: LitertFile) -> None:  # noqa: ANN401 - ai-edge-quantizer has no types
        _check_products(file, instead="int8-weights")
        _products(recipe, bits=4)

    return _written(source, target, "int4-weights", ask)


def int16(source: Artifact, rows: Tensors, target: Path) -> Artifact:
    """Quantise weights to 8 bits and activations to 16.

    The ranges are the largest values seen: with 65,536 levels there is nothing to win by clipping.

    Args:
        source: A float32 model file.
        rows: Calibration rows, as the model takes them.
        target: The file to write.

    Raises:
        RecipeError: ai-edge-quantizer cannot quantise the model.
    """
    return _int16(source, lambda file: _seen(file, source, rows), target)


def int16_within(source: Artifact, ranges: dict[str, Range], target: Path) -> Artifact:
    """As :func:`int16`, with ranges from elsewhere.

    Args:
        source: A float32 model file.
        ranges: Tensor of the file → what its integers are to cover. They are made symmetric, as 16-bit kernels want them.
        target: The file to write.

    Raises:
        RecipeError: ai-edge-quantizer cannot quantise the model.
    """
    return _int16(source, lambda _file: ranges, target)


def _int16(source: Artifact, find: Callable[[LitertFile], dict[str, Range]], target: Path) -> Artifact:
    def ask(recipe: Any, file: LitertFile) -> Extremes:  # noqa: ANN401 - ai-edge-quantizer has no types
        names = load("ai_edge_quantizer.qtyping").TFLOperationName
        recipe.add_static_config(_ALL, names.ALL_SUPPORTED, activation_num_bits=16, weight_num_bits=8)
        for end in (names.INPUT, names.OUTPUT):
            # Its default moves the interface to integers, and then the variants of one bundle would differ.
            recipe.add_quantization_config(_ALL, end, algorithm_key="no_quantize")
        for name in file.readers_of_outputs:
            # A tensor that is both an output and another layer's input gets two types, and the file does not load; so the layer
            # that reads it stays float.
            recipe.add_quantization_config(re.escape(name), names.ALL_SUPPORTED, algorithm_key="no_quantize")
        ranks = {one["name"]: len(one["shape"]) for one in file.details.values()}
        return {name: _symmetric(found, ranks[name]) for name, found in find(file).items() if name in ranks}

    return _written(source, target, "int16", ask)


def _symmetric(found: Range, rank: int) -> dict[str, Any]:
    peak = max(-found.low, found.high)
    return {end: np.full((1,) * rank, value, np.float32) for end, value in (("min", -peak), ("max", peak))}


def _written(
    source: Artifact, target: Path, precision: str, ask: Callable[[Any, LitertFile], Extremes | None]
) -> Artifact:
    """What ai-edge-quantizer makes of the wishes that ``ask`` puts into a recipe."""
    quantizer, manager = load("ai_edge_quantizer.quantizer"), load("ai_edge_quantizer.recipe_manager")
    try:
        with quiet():
            recipe = manager.RecipeManager()
            extremes = ask(recipe, LitertFile(source.path.read_bytes()))
            stock = quantizer.Quantizer(str(source.path))
            stock.load_quantization_recipe(recipe.get_quantization_recipe())
            result = stock.quantize(calibration_result=extremes, enable_progress_report=False)
    except (MissingExtraError, OSError):
        raise
    except RecipeError as error:
        raise RecipeError(f"{source.file}: {precision}: {error}") from error
    except Exception as error:  # ai-edge-quantizer raises plain exceptions of many kinds
        raise RecipeError(f"{source.file}: ai-edge-quantizer cannot compress it to {precision}: {error}") from error
    target.write_bytes(bytes(result.quantized_model))
    inputs, outputs = renamed(source.path, target)
    return replace(
        source,
        path=target,
        precision=precision,
        inputs={name: inputs[wire] for name, wire in source.inputs.items()},
        outputs={name: outputs[wire] for name, wire in source.outputs.items()},
        notes=(),
    )


def _small_weights(recipe: Any) -> None:  # noqa: ANN401 - ai-edge-quantizer has no types
    recipe.add_weight_only_config(_ALL, load("ai_edge_quantizer.qtyping").TFLOperationName.ALL_SUPPORTED, 8)


def _products(recipe: Any, *, bits: int) -> None:  # noqa: ANN401 - ai-edge-quantizer has no types
    _small_weights(recipe)
    recipe.add_dynamic_config(_ALL, load("ai_edge_quantizer.qtyping").TFLOperationName.FULLY_CONNECTED, bits)


def _check_products(file: LitertFile, *, instead: str) -> None:
    if "FULLY_CONNECTED" not in {kind for kind, _, _ in file.products}:
        raise RecipeError(f"there is no matrix product with constant weights; take {instead}")


def _seen(file: LitertFile, source: Artifact, rows: Tensors) -> dict[str, Range]:
    """Tensor → least and greatest value in the float model."""
    feeds = {file.indices[wire]: rows[name] for name, wire in source.inputs.items()}
    wanted = [*feeds, *(index for _, _, outputs in file.operators for index in outputs)]
    wanted = [index for index in wanted if np.dtype(file.details[index]["dtype"]).kind == "f"]
    found: dict[str, Range] = {}
    for values in stream(bytes(file.content), feeds, wanted, batch=source.batch or 1):
        for index, array in values.items():
            name = file.details[index]["name"]
            known = found.get(name, Range(0.0, 0.0))
            found[name] = Range(min(known.low, float(array.min())), max(known.high, float(array.max())))
    return found
