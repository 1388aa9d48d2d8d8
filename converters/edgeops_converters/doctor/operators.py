"""Rules about operators: which have no integer kernel on which runtime, and which cost more than they seem to.

The tables are what the engines did with small networks that hold one such operator between two layers; the tests repeat that.
A new operator is a line in a table, and the test of the table finds it.
"""

from collections.abc import Iterator

from edgeops_converters.doctor.diagnosis import Finding, Level, Where
from edgeops_converters.doctor.subject import Operator, Subject

_PLAIN = "a rectifier, ReLU6, sigmoid or SiLU stays in integers"
_OWN_NORM = "a batch norm costs nothing, for it is folded into the layer before"

FLOAT_IN_ONNXRUNTIME = {
    "tanh": "sigmoid has a kernel: tanh(x) = 2 * sigmoid(2 * x) - 1",
    "gelu": _PLAIN, "elu": _PLAIN, "celu": _PLAIN, "selu": _PLAIN, "mish": _PLAIN, "softplus": _PLAIN,
    "prelu": "leaky ReLU, with one slope for all channels, has a kernel",
    "layer_norm": _OWN_NORM, "rms_norm": _OWN_NORM, "group_norm": _OWN_NORM, "instance_norm": _OWN_NORM,
    "div": "by a constant: multiply by its inverse instead",
    "sub": "a constant: add its negative instead",
    "neg": "multiply by -1 instead",
    "pow": "x * x has a kernel",
    "log_softmax": "leave it to the caller, or to --processing",
    "exp": "leave it to the caller if it is the last step", "log": "leave it to the caller if it is the last step",
    "sqrt": "", "rsqrt": "", "reciprocal": "", "abs": "", "erf": _PLAIN, "cumsum": "",
    "amax": "max_pool2d has a kernel", "sum": "a mean over height and width has a kernel",
    "gt": "", "ge": "", "lt": "", "le": "",
    "conv_transpose2d": "upsample_nearest2d and a convolution have kernels",
    "upsample_bilinear2d": "nearest neighbour has a kernel",
    "lstm": "convolutions over time have kernels", "gru": "convolutions over time have kernels",
}  # fmt: skip
"""Operator → what has a kernel instead; these run in float between two conversions."""

FLOAT_IN_LITERT = {
    "leaky_relu": _PLAIN, "elu": _PLAIN, "celu": _PLAIN, "selu": _PLAIN, "mish": _PLAIN, "softplus": _PLAIN,
    "log_softmax": "leave it to the caller, or to --processing",
    "exp": "leave it to the caller if it is the last step", "log": "leave it to the caller if it is the last step",
    "abs": "", "amax": "max_pool2d has a kernel", "flip": "", "cumsum": "",
    "gt": "", "ge": "", "lt": "", "le": "",
    "conv3d": "convolutions over two axes have kernels",
}  # fmt: skip
"""Likewise for the quantiser of TFLite."""

OUTSIDE_XNNPACK = {
    "hardswish", "gelu", "softmax", "sqrt", "rsqrt", "div", "layer_norm", "rms_norm", "prelu", "avg_pool2d",
    "upsample_nearest2d", "matmul", "scaled_dot_product_attention",
}  # fmt: skip
"""What stays in integers in TFLite and has no kernel in XNNPACK, so that TFLite's own runs it between two parts of XNNPACK."""

REWRITTEN = {
    "hardswish": ("onnxruntime has no integer HardSigmoid, which this becomes", Where.ONNXRUNTIME),
    "hardsigmoid": ("onnxruntime has no integer HardSigmoid", Where.ONNXRUNTIME),
}
"""What EdgeOps puts into a form with integer kernels itself."""

RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
_CONVOLUTIONS = {"conv1d", "conv2d"}
_IMAGE_RANK = 4
_SPACE = ([2, 3], [-2, -1], [-1, -2], [3, 2])


def examine_operators(subject: Subject) -> Iterator[Finding]:
    """Everything that the operators say, in the order of the model."""
    for operator in subject.operators:
        for rule in (_falls_back, _leaves_xnnpack, _rewritten, _mean, _padding, _recurrent, _foreign):
            yield from rule(operator)
    yield from _entry(subject)


def found(operator: Operator, **said: object) -> Finding:
    """A finding about an operator."""
    return Finding(layer=operator.layer, kind=operator.layer_kind, line=operator.line, **said)  # type: ignore[arg-type]  # the caller's words


def _falls_back(operator: Operator) -> Iterator[Finding]:
    for where, table in ((Where.ONNXRUNTIME, FLOAT_IN_ONNXRUNTIME), (Where.LITERT, FLOAT_IN_LITERT)):
        if operator.kind in table:
            yield found(
                operator,
                level=Level.COSTS,
                rule="falls-back-to-float",
                where=where,
                what=f"{operator.kind} has no integer kernel: it runs in float, between two conversions",
                change=table[operator.kind],
            )


def _leaves_xnnpack(operator: Operator) -> Iterator[Finding]:
    if operator.kind in OUTSIDE_XNNPACK:
        what = f"XNNPACK has no integer {operator.kind}: TFLite's own kernel runs it, still in integers"
        yield found(operator, level=Level.NOTE, rule="leaves-xnnpack", where=Where.XNNPACK, what=what)


def _rewritten(operator: Operator) -> Iterator[Finding]:
    if operator.kind in REWRITTEN:
        what, where = REWRITTEN[operator.kind]
        yield found(operator, level=Level.NOTE, rule="rewritten", where=where, what=f"{what}; EdgeOps rewrites this")


def _mean(operator: Operator) -> Iterator[Finding]:
    # torch exports a pooling to one place as a mean; ONNX files have an operator of their own, which is integer.
    is_global_pool = operator.kind == "adaptive_avg_pool2d" and operator.arguments.get("output_size") == [1, 1]
    if operator.kind == "mean" and operator.arguments.get("dim") not in _SPACE:
        what = "a mean over other axes than height and width has no integer kernel: it runs in float"
        change = "take the mean over height and width, or over a layout in which those are the axes"
        yield found(operator, level=Level.COSTS, rule="mean", where=Where.ONNXRUNTIME, what=what, change=change)
    elif is_global_pool or (operator.kind == "mean" and operator.rank == _IMAGE_RANK):
        what = "onnxruntime has no integer ReduceMean; EdgeOps rewrites this to a global average pooling"
        yield found(operator, level=Level.NOTE, rule="mean", where=Where.ONNXRUNTIME, what=what)


def _padding(operator: Operator) -> Iterator[Finding]:
    stride, padding = operator.arguments.get("stride"), operator.arguments.get("padding")
    if operator.kind in _CONVOLUTIONS and _exceeds(stride, 1) and _exceeds(padding, 0):
        what = "a stride with padding on both sides needs a PAD of its own in TFLite, which pads on one side only"
        yield found(
            operator, level=Level.NOTE, rule="strided-padding", where=Where.LITERT, what=f"{what}: a copy of its input"
        )
    if operator.kind == "pad" and operator.arguments.get("mode", "constant") != "constant":
        yield found(
            operator,
            level=Level.COSTS,
            rule="pad",
            where=Where.ONNXRUNTIME,
            what=f"padding by {operator.arguments['mode']} has no integer kernel: it runs in float",
            change="padding with zeros joins the convolution behind it",
        )


def _exceeds(numbers: object, least: int) -> bool:
    return isinstance(numbers, (list, tuple)) and any(isinstance(one, int) and one > least for one in numbers)


def _recurrent(operator: Operator) -> Iterator[Finding]:
    if operator.kind in RECURRENT:
        what = "a recurrent cell becomes as many layers as there are steps: a large file, and rounding that adds up"
        change = "convolutions over time, or a window of few steps"
        yield found(operator, level=Level.COSTS, rule="recurrent", where=Where.LITERT, what=what, change=change)
    if operator.kind == "embedding" and operator.layer_kind in {"Embedding", "EmbeddingBag"}:
        what = "a table of embeddings; its indices must lie within it, on the device too"
        yield found(operator, level=Level.NOTE, rule="embedding", what=what)


def _foreign(operator: Operator) -> Iterator[Finding]:
    if "::" in operator.kind:
        yield found(
            operator,
            level=Level.BLOCKS,
            rule="foreign-operator",
            what=f"{operator.kind} is an operator of another library, which no runtime on a device has",
            change="write it with operators of torch",
        )


def _entry(subject: Subject) -> Iterator[Finding]:
    for spec in subject.inputs:
        reader = next(iter(subject.readers(spec.name)), None)
        if len(spec.shape) == _IMAGE_RANK and reader is not None and reader.kind in _CONVOLUTIONS:
            what = f"input {spec.name!r} has channels first, TFLite works on channels last: it is transposed"
            yield found(reader, level=Level.NOTE, rule="entry-transpose", where=Where.LITERT, what=what)
