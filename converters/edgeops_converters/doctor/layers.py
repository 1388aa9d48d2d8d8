"""Rules about weights: what cannot be a number, what eight bits cannot hold, and what does nothing."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgeops_converters.doctor.diagnosis import Finding, Level, Where
from edgeops_converters.doctor.operators import found
from edgeops_converters.doctor.subject import Operator, Product, Subject
from edgeops_converters.targets import Target
from edgeops_converters.weights import not_finite

_LARGEST_BYTES = 2**31 - 1  # of one protobuf message and of one flatbuffer
_WIDE_SPREAD = 100.0  # of output channels: less than 2 of 8 bits are left for the small ones
_RECTIFIERS = {"relu", "relu6", "clamp", "hardtanh", "leaky_relu", "batch_norm"}
_BYTE, _HIGHEST_INT16 = 255, 2**15 - 1


def examine_layers(subject: Subject, target: Target) -> Iterator[Finding]:
    """Everything that the weights say."""
    yield from _numbers(subject)
    yield from _types(subject)
    yield from _size(sum(values.nbytes for values in subject.weights.values()))
    for product in subject.products:
        if np.isfinite(product.weights).all():
            yield from _channels(product, subject)
        yield from _bias(product)
    if target.saturates:
        yield from _saturation(subject)


def _numbers(subject: Subject) -> Iterator[Finding]:
    for name, said in not_finite(subject.weights):
        yield Finding(
            level=Level.BLOCKS,
            rule="not-finite",
            layer=name,
            what=said,
            change="the training diverged; go back to a checkpoint before that",
        )


def _types(subject: Subject) -> Iterator[Finding]:
    for name, values in subject.weights.items():
        if values.dtype in (np.float64, np.float16):
            yield Finding(
                level=Level.COSTS,
                rule="weight-dtype",
                layer=name,
                what=f"{values.dtype} weights: neither runtime quantises what is not float32",
                change="call .float() on the model",
            )


def _size(size_bytes: int) -> Iterator[Finding]:
    if size_bytes > _LARGEST_BYTES:
        yield Finding(
            level=Level.BLOCKS,
            rule="size",
            what=f"{size_bytes / 1e9:.1f} GB of weights: one .onnx or .tflite file holds {_LARGEST_BYTES / 1e9:.1f} GB",
            change="a smaller model, or half of it in each of two bundles",
        )


def _channels(product: Product, subject: Subject) -> Iterator[Finding]:
    peaks = channel_peaks(product.weights)
    dead = np.flatnonzero(peaks == 0)
    if dead.size:
        yield found(
            product.operator,
            level=Level.NOTE,
            rule="dead-channels",
            what=f"{dead.size} of {peaks.size} output channels have no weight but zero (the first is {dead[0]})",
            change="prune them: the layer and its readers get smaller, and nothing else changes",
        )
    spread = float(peaks.max() / np.median(peaks[peaks > 0])) if dead.size < peaks.size else 1.0
    if spread > _WIDE_SPREAD:
        is_mended = _is_equalised(product, subject)
        what = (
            f"the largest output channel has {spread:.0f} times the weights of the median one, and all share one range"
        )
        yield found(
            product.operator,
            level=Level.NOTE if is_mended else Level.COSTS,
            rule="channel-spread",
            what=f"{what}; EdgeOps rewrites this" if is_mended else what,
            change=""
            if is_mended
            else "a batch norm behind it in training, or a rectifier and a layer, between which EdgeOps levels it",
        )


def channel_peaks(weights: NDArray[np.floating]) -> NDArray[np.floating]:
    """Largest magnitude of each output channel; shape ``(out,)``.

    >>> channel_peaks(np.array([[1.0, -3.0], [0.0, 0.0]]))
    array([3., 0.])
    """
    return np.asarray(np.abs(weights).reshape(len(weights), -1).max(axis=1))


def _is_equalised(product: Product, subject: Subject) -> bool:
    """Whether only a rectifier lies between it and the one layer that reads it, which is when EdgeOps levels its channels."""
    weighted = {id(one.operator) for one in subject.products}
    tensor = product.output
    while len(readers := subject.readers(tensor)) == 1:
        (reader,) = readers
        if id(reader) in weighted:
            return True
        if reader.kind not in _RECTIFIERS:
            return False
        tensor = reader.output
    return False


def _bias(product: Product) -> Iterator[Finding]:
    if not product.has_bias:
        what = "no bias: XNNPACK's integer kernels ask for one, and bias correction needs one to correct"
        yield found(product.operator, level=Level.NOTE, rule="no-bias", what=f"{what}; EdgeOps adds zeros")


def _saturation(subject: Subject) -> Iterator[Finding]:
    """On x86 without VNNI two products are added in 16 bits, and what exceeds them is cut off."""
    shares = [(saturating_share(one), one.operator) for one in subject.products if np.isfinite(one.weights).all()]
    worst, operator = max(shares, key=_share, default=(0.0, None))
    if operator is not None and worst > 0:
        count = sum(share > 0 for share, _ in shares)
        yield found(
            operator,
            level=Level.NOTE,
            rule="saturation",
            where=Where.X86_WITHOUT_VNNI,
            what=f"{count} of {len(shares)} layers can overflow the 16 bits in which such a CPU adds two products; "
            f"this one most, in {worst:.0%} of its pairs of weights",
            change="EdgeOps keeps such pairs small, at the cost of accuracy; if every device has VNNI: --target x86-vnni",
        )


def _share(one: tuple[float, Operator]) -> float:
    return one[0]


def saturating_share(product: Product) -> float:
    """Share of neighbouring pairs of int8 weights whose products with the largest uint8 exceed 16 bits.

    VPMADDUBSW multiplies unsigned with signed bytes and adds neighbours with saturation to int16 (Intel's instruction set
    reference, volume 2). Neighbours are two input channels of one tap. Depthwise convolutions have no neighbours.

    Args:
        product: Quantised as EdgeOps does: a scale for each output channel, the largest weight at 127.
    """
    weights = product.weights.reshape(*product.weights.shape[:2], -1)
    pairs = weights.shape[1] // 2
    if not pairs:
        return 0.0
    scales = np.maximum(channel_peaks(weights), np.finfo(np.float32).tiny)[:, None, None] / 127
    codes = np.round(weights[:, : 2 * pairs] / scales)
    first, second = codes[:, 0::2], codes[:, 1::2]
    # Activations are at least zero, so the worst are those that meet the weights of one sign.
    above = np.maximum(first, 0) + np.maximum(second, 0)
    below = np.minimum(first, 0) + np.minimum(second, 0)
    return float(((above * _BYTE > _HIGHEST_INT16) | (below * _BYTE < -_HIGHEST_INT16 - 1)).mean())
