"""ONNX without calibration: weights stored small, and matrix products whose activations are rounded at each call.

Weights that are only *stored* small are decoded by ``Cast`` and ``Mul``, which onnxruntime folds into float32 constants when it
loads the file: the speed, and the memory, are float's, on every version. ``DequantizeLinear`` would say the same, but onnxruntime
does not fold it, and decodes all weights again at each call (half of float's speed on a small network). Arithmetic in half
precision is not for CPUs: onnxruntime has few such kernels, and casts forth and back around every layer.
"""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.errors import MissingExtraError, RecipeError
from edgeops_converters.artifact import Artifact
from edgeops_converters.extras import load, quiet
from edgeops_converters.onnx_file import strip

_BLOCK = 32  # weights that share a scale and a zero in 4 bits
_INT8_ACCURACY = (
    4  # of MatMulNBits: activations in 8 bits, where the CPU has the kernel; as fast as float where float32 is not
)
_LEAST = 256  # numbers; what is smaller stays float32
_FEWEST_A_SCALE = 4
_HALF_MAX = 65504.0
_LARGEST_CODE = 127
_INTEGER_PRODUCTS = {"MatMulInteger", "DynamicQuantizeLSTM"}

Parts = tuple[list[Any], list[Any]]
"""What stands for a weight: tensors to hold, and nodes to decode them."""


def float16(source: Artifact, target: Path) -> Artifact:
    """Store weights in half precision, and compute in float32.

    Args:
        source: A float32 model file.
        target: The file to write.

    Raises:
        RecipeError: onnxruntime cannot read the model.
    """
    return _written(source, target, "float16", lambda model: _store(model, _halved, _weights(model)))


def int8_weights(source: Artifact, target: Path) -> Artifact:
    """Store weights in 8 bits with a scale for each channel, and compute in float32; otherwise as :func:`float16`."""
    return _written(source, target, "int8-weights", lambda model: _store(model, _rounded, _weights(model)))


def dynamic(source: Artifact, target: Path) -> Artifact:
    """Run matrix products and LSTMs in integers, with the range of the activations found at each call.

    The rest as in :func:`int8_weights`. Convolutions stay in float: ``ConvInteger`` takes several times as long as a float
    convolution, and old versions do not have it. onnxruntime has no integer form of a GRU. The range is one for all rows of a
    call, so an answer depends a little on the rows beside it.

    Args:
        source: A float32 model file.
        target: The file to write.

    Raises:
        RecipeError: onnxruntime cannot read the model, or nothing in it would run in integers.
    """
    return _written(source, target, "dynamic", _dynamic)


def int4_weights(source: Artifact, target: Path) -> Artifact:
    """Keep the weights of matrix products in 4 bits, with a scale and a zero for each block of 32.

    The rest as in :func:`int8_weights`.

    Args:
        source: A float32 model file.
        target: The file to write.

    Raises:
        RecipeError: onnxruntime cannot read the model, or it has no matrix product with constant weights.
    """
    return _written(source, target, "int4-weights", _int4)


def _written(source: Artifact, target: Path, precision: str, compress: Callable[[Any], Any]) -> Artifact:
    onnx = load("onnx")
    try:
        model = compress(_folded(source))
    except (MissingExtraError, OSError):
        raise
    except RecipeError as error:
        raise RecipeError(f"{source.file}: {precision}: {error}") from error
    except Exception as error:  # onnxruntime's quantiser raises plain exceptions of many kinds
        raise RecipeError(f"{source.file}: onnxruntime cannot compress it to {precision}: {error}") from error
    strip(model)
    del model.graph.value_info[:]  # shapes that the engine infers again
    onnx.save(model, str(target))
    return replace(source, path=target, precision=precision, notes=())


def _folded(source: Artifact) -> Any:  # noqa: ANN401 - onnx has no types
    """The float model with constants folded, so that every weight is a tensor that the file holds."""
    with quiet(), tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "folded.onnx"
        load("onnxruntime.quantization.shape_inference").quant_pre_process(
            str(source.path), str(path), skip_symbolic_shape=True
        )
        return load("onnx").load(str(path))


def _dynamic(model: Any) -> Any:  # noqa: ANN401 - onnx has no types
    types, weights = load("onnxruntime.quantization").QuantType, _weights(model)
    # An AVX2 CPU adds pairs of products of unsigned activations and signed weights in 16 bits, which overflow with 8-bit
    # weights: 5 to 17 dB instead of 39. Unsigned weights have kernels that do not; an LSTM's are always signed, and get 7 bits.
    model = _quantized(model, ["LSTM"], types.QInt8, is_reduced=True)
    model = _quantized(model, ["MatMul", "Gemm"], types.QUInt8, is_reduced=False)
    if not any(node.op_type in _INTEGER_PRODUCTS for node in model.graph.node):
        raise RecipeError(
            "there is no matrix product or LSTM with constant weights; "
            "take int8, which runs convolutions in integers, or int8-weights, which makes the file small"
        )
    return _store(model, _rounded, weights)


def _quantized(model: Any, kinds: list[str], weights: Any, *, is_reduced: bool) -> Any:  # noqa: ANN401 - onnx has no types
    quantization = load("onnxruntime.quantization")
    with quiet(), tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "dynamic.onnx"
        quantization.quantize_dynamic(
            model,
            str(path),
            op_types_to_quantize=kinds,
            per_channel=True,
            reduce_range=is_reduced,
            weight_type=weights,
        )
        return load("onnx").load(str(path))


def _int4(model: Any) -> Any:  # noqa: ANN401 - onnx has no types
    nbits, weights = load("onnxruntime.quantization.matmul_nbits_quantizer"), _weights(model)
    with quiet():
        wrapped = load("onnxruntime.quantization.onnx_model").ONNXModel(model)
        wrapped.replace_gemm_with_matmul()
        quantizer = nbits.MatMulNBitsQuantizer(
            wrapped.model, bits=4, block_size=_BLOCK, is_symmetric=False, accuracy_level=_INT8_ACCURACY
        )
        quantizer.process()
    made = quantizer.model.model
    if not any(node.op_type == "MatMulNBits" for node in made.graph.node):
        raise RecipeError("there is no matrix product with constant weights; take int8-weights")
    return _store(made, _rounded, weights)


def _weights(model: Any) -> set[str]:  # noqa: ANN401 - onnx has no types
    """Names of the float32 tensors that the file holds, without those that the caller can set."""
    onnx, settable = load("onnx"), {value.name for value in model.graph.input}
    held = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    return {tensor.name for tensor in held} - settable


def _store(
    model: Any,  # noqa: ANN401 - onnx has no types
    encode: Callable[[str, NDArray[Any]], Parts | None],
    weights: set[str],
) -> Any:  # noqa: ANN401 - onnx has no types
    """The model with those of these weights that are large in another form; what a quantiser has added, as its scales, stays."""
    to_array, graph = load("onnx").numpy_helper.to_array, model.graph
    held, decoders = [], []
    for tensor in graph.initializer:
        parts = encode(tensor.name, to_array(tensor)) if tensor.name in weights else None
        held += parts[0] if parts else [tensor]
        decoders += parts[1] if parts else []
    held, nodes = [_copy(one) for one in held], [*decoders, *(_copy(node) for node in graph.node)]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(held)
    graph.node.extend(nodes)
    return model


def _copy(message: Any) -> Any:  # noqa: ANN401 - a message of protobuf
    """A message that outlives the list it was in."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _halved(name: str, weights: NDArray[Any]) -> Parts | None:
    if weights.size < _LEAST or np.abs(weights).max() > _HALF_MAX:
        return None
    onnx, half = load("onnx"), f"{name}.half"
    cast = onnx.helper.make_node("Cast", [half], [name], name=f"{name}.cast", to=onnx.TensorProto.FLOAT)
    return [onnx.numpy_helper.from_array(weights.astype(np.float16), half)], [cast]


def _rounded(name: str, weights: NDArray[Any]) -> Parts | None:
    found = rounded(weights)
    if found is None:
        return None
    onnx, (codes, scales) = load("onnx"), found
    code, scale, cast = f"{name}.codes", f"{name}.scales", f"{name}.cast"
    make, to_tensor = onnx.helper.make_node, onnx.numpy_helper.from_array
    return [to_tensor(codes, code), to_tensor(scales, scale)], [
        make("Cast", [code], [cast], name=cast, to=onnx.TensorProto.FLOAT),
        make("Mul", [cast, scale], [name], name=f"{name}.decode"),
    ]


def rounded(weights: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]] | None:
    """Round to 8 bits, with a scale for each slice along the axis that loses the least.

    Decoding is a multiplication, whichever axis it is along, so the axis needs not be the operator's channels.

    Args:
        weights: Float32, any shape.

    Returns:
        Codes of that shape, and scales of a shape that broadcasts to it; ``None`` for vectors and what is small, which stay as
        they are: biases and norms weigh little and matter much.

    >>> codes, scales = rounded(np.outer(10.0 ** np.arange(4), np.linspace(-1, 1, 128)).astype(np.float32))
    >>> codes.shape, scales.shape, int(codes.max())
    ((4, 128), (4, 1), 127)
    """
    axes = [axis for axis, size in enumerate(weights.shape) if 1 < size <= weights.size / _FEWEST_A_SCALE]
    if weights.size < _LEAST or max(weights.shape) == weights.size or not axes:
        return None
    return min((_along(weights, axis) for axis in axes), key=lambda found: _lost(weights, *found))


def _along(weights: NDArray[Any], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    others: Iterable[int] = (one for one in range(weights.ndim) if one != axis)
    scales = np.abs(weights).max(axis=tuple(others), keepdims=True) / np.float32(_LARGEST_CODE)
    scales = np.where(scales > 0, scales, 1).astype(np.float32)  # a channel whose weights are all zero
    return np.rint(weights / scales).clip(-_LARGEST_CODE, _LARGEST_CODE).astype(np.int8), scales


def _lost(weights: NDArray[Any], codes: NDArray[np.int8], scales: NDArray[np.float32]) -> float:
    return float(np.square(weights - codes * scales, dtype=np.float64).sum())
