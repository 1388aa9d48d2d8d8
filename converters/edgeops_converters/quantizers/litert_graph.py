"""Reading, running and patching TFLite files for quantisation: layers, what flows between them, and the integer biases."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops_converters.extras import load, quiet
from edgeops_converters.layers import FloatArray, Geometry

_CAPS = {"RELU6": 6.0}
_OPTIONS = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "ADD": "AddOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
}
"""Operator → the class of the schema that says what is fused into it."""
_OPERATORS_FIELD = 10  # of SubGraph in the schema's virtual table


@dataclass(frozen=True)
class LitertLayer:
    """A convolution or matrix product of a file; tensors by index.

    Attributes:
        operator: Its index; the name of the layer in what is corrected.
        kind: Of the schema's ``BuiltinOperator``.
        geometry: Where it looks.
        input: Tensor that it reads; likewise ``output``, ``weights`` and ``bias``.
    """

    operator: int
    kind: int
    geometry: Geometry
    input: int
    output: int
    weights: int
    bias: int


class LitertFile:
    """A ``.tflite`` with one subgraph, in memory, whose 32-bit biases can be changed in place.

    Args:
        content: The file.
    """

    def __init__(self, content: bytes) -> None:
        self._schema = load("ai_edge_litert.schema_py_generated")
        self.content = bytearray(content)
        self._model = self._schema.Model.GetRootAs(self.content, 0)
        self._graph = self._model.Subgraphs(0)
        with quiet():
            self._interpreter = _interpreter(bytes(content))
        self.details = {int(one["index"]): one for one in self._interpreter.get_tensor_details()}
        self.indices = {one["name"]: index for index, one in self.details.items()}

    @property
    def inputs(self) -> list[int]:
        """Tensors that go in."""
        return [int(index) for index in self._graph.InputsAsNumpy()]

    @property
    def outputs(self) -> list[int]:
        """Tensors that come out."""
        return [int(index) for index in self._graph.OutputsAsNumpy()]

    @cached_property
    def operators(self) -> list[tuple[int, list[int], list[int]]]:
        """Kind, tensors that it reads and tensors that it gives, in order; what is written into the file later changes none."""
        found = []
        for index in range(self._graph.OperatorsLength()):
            one = self._graph.Operators(index)
            code = self._model.OperatorCodes(one.OpcodeIndex())
            kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            ends = ([int(i) for i in one.InputsAsNumpy()], [int(i) for i in one.OutputsAsNumpy()])
            found.append((kind, *ends))
        return found

    @property
    def readers_of_outputs(self) -> list[str]:
        """Names of what the operators give that read an output of the model."""
        readers = [given for _, inputs, given in self.operators if {*self.outputs} & {*inputs}]
        return [self.details[index]["name"] for given in readers for index in given]

    @property
    def products(self) -> list[tuple[str, list[int], list[int]]]:
        """Kind, tensors that it takes and gives, of every convolution and matrix product; data first, then weights."""
        builtin = self._schema.BuiltinOperator
        names = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "TRANSPOSE_CONV", "CONV_3D")
        kinds = {getattr(builtin, name): name for name in names}
        # A transposed convolution takes shape, weights and data.
        return [
            (kinds[kind], inputs[::-1] if kind == builtin.TRANSPOSE_CONV and len(inputs) == 3 else inputs, outputs)  # noqa: PLR2004 - shape, filter, data
            for kind, inputs, outputs in self.operators
            if kind in kinds
        ]

    def layers(self) -> list[LitertLayer]:
        """Convolutions and matrix products with constant weights and a bias of their own, in the order of the file."""
        builtin = self._schema.BuiltinOperator
        options = {
            builtin.CONV_2D: self._schema.Conv2DOptions,
            builtin.DEPTHWISE_CONV_2D: self._schema.DepthwiseConv2DOptions,
            builtin.FULLY_CONNECTED: None,
        }
        produced = {index for _, _, outputs in self.operators for index in outputs}
        readers = Counter(self._graph.Tensors(index).Buffer() for index in range(self._graph.TensorsLength()))
        found = []
        for position, (kind, inputs, outputs) in enumerate(self.operators):
            if kind not in options or len(inputs) < 3 or inputs[2] < 0:  # noqa: PLR2004 - data, weights, bias
                continue
            is_own = readers[self._graph.Tensors(inputs[2]).Buffer()] == 1
            if is_own and not {*inputs[1:3]} & produced and not {*inputs[1:3]} & {*self.inputs}:
                geometry = self._geometry(position, options[kind], inputs) if options[kind] else Geometry()
                found.append(LitertLayer(position, kind, geometry, inputs[0], outputs[0], inputs[1], inputs[2]))
        return found

    def constant(self, index: int) -> NDArray[Any]:
        """The value of a tensor that the file holds."""
        return np.asarray(self._interpreter.get_tensor(index))

    def decoded(self, index: int, values: NDArray[Any]) -> FloatArray:
        """What a tensor's integers stand for."""
        parameters = self.details[index]["quantization_parameters"]
        scales, zeros = (np.asarray(parameters[key], np.float64) for key in ("scales", "zero_points"))
        if not scales.size:
            return np.asarray(values, np.float64)
        shape = [1] * values.ndim
        if scales.size > 1:
            shape[int(parameters["quantized_dimension"])] = scales.size
        return np.asarray((values - zeros.reshape(shape)) * scales.reshape(shape))

    def arranged(self, layer: LitertLayer, weights: FloatArray) -> FloatArray:
        """Stored weights as shape ``(out, in / groups, *kernel)``."""
        if layer.kind == self._schema.BuiltinOperator.DEPTHWISE_CONV_2D:
            return weights.transpose(3, 0, 1, 2)
        return weights.transpose(0, 3, 1, 2) if layer.geometry.strides else weights

    def stored(self, layer: LitertLayer, weights: NDArray[Any]) -> NDArray[Any]:
        """The way back from :meth:`arranged`."""
        if layer.kind == self._schema.BuiltinOperator.DEPTHWISE_CONV_2D:
            return weights.transpose(1, 2, 3, 0)
        return weights.transpose(0, 2, 3, 1) if layer.geometry.strides else weights

    def kind(self, position: int) -> str:
        """The name of an operator in the schema."""
        kind = self.operators[position][0]
        return next(str(name) for name, code in vars(self._schema.BuiltinOperator).items() if code == kind)

    def cap(self, position: int) -> float | None:
        """Where an operator cuts what it gives; ``None`` if it does what is no rectifier."""
        name, schema = self.kind(position), self._schema
        if name in _CAPS:
            return _CAPS[name]
        kind = _OPTIONS.get(name)
        if kind is None:
            return math.inf
        options, table = getattr(schema, kind)(), self._graph.Operators(position).BuiltinOptions()
        options.Init(table.Bytes, table.Pos)
        activation = schema.ActivationFunctionType
        caps = {activation.NONE: math.inf, activation.RELU: math.inf, activation.RELU6: 6.0}
        return caps.get(options.FusedActivationFunction())

    def rows_of(self, layer: LitertLayer, values: NDArray[Any]) -> NDArray[Any]:
        """The input of a layer with what is averaged in front; a matrix product takes whatever lies before its last axis."""
        return values if layer.geometry.strides else values.reshape(-1, int(self.details[layer.weights]["shape"][-1]))

    def is_integer(self, layer: LitertLayer) -> bool:
        """Whether data and weights have eight bits and the bias 32."""
        types = [np.dtype(self.details[index]["dtype"]) for index in (layer.input, layer.weights, layer.bias)]
        return types == [np.dtype(np.int8), np.dtype(np.int8), np.dtype(np.int32)]

    def has_scale_a_channel(self, layer: LitertLayer) -> bool:
        """Whether the weights have as many scales as the bias has values."""
        scales = self.details[layer.weights]["quantization_parameters"]["scales"]
        return len(scales) == int(np.prod(self.details[layer.bias]["shape"]))

    def set_bias(self, layer: LitertLayer, bias: FloatArray) -> None:
        """Round a bias to the grid of the accumulator and write it into the file."""
        scales = np.asarray(self.details[layer.bias]["quantization_parameters"]["scales"], np.float64)
        limit = np.iinfo(np.int32)
        integers = np.clip(np.rint(bias / np.where(scales > 0, scales, 1.0)), limit.min, limit.max).astype("<i4")
        self._write(layer.bias, integers)

    def set_codes(self, layer: LitertLayer, codes: NDArray[np.int8], scales: FloatArray) -> None:
        """Write integer weights, as stored, and their scales into the file; the bias gets the scale of the accumulator.

        What :meth:`constant` and :meth:`decoded` give is still what the file held when it was opened.

        Args:
            layer: An integer layer.
            codes: Shape and order of the stored weights.
            scales: One for each output channel.
        """
        self._write(layer.weights, np.ascontiguousarray(codes, np.int8))
        step = float(self.details[layer.input]["quantization_parameters"]["scales"][0])
        for index, values in ((layer.weights, scales), (layer.bias, scales * step)):
            self._graph.Tensors(index).Quantization().ScaleAsNumpy()[:] = values.astype("<f4")

    def set_float(self, index: int, values: FloatArray) -> None:
        """Write a float32 constant into the file; what :meth:`constant` gives is still what the file held when it was opened."""
        self._write(index, np.ascontiguousarray(values, "<f4"))

    def _write(self, index: int, values: NDArray[Any]) -> None:
        buffer = self._model.Buffers(self._graph.Tensors(index).Buffer())
        if buffer.DataLength():
            buffer.DataAsNumpy()[:] = values.reshape(-1).view(np.uint8)
        else:  # large files keep their data behind the flatbuffer
            self.content[buffer.Offset() : buffer.Offset() + buffer.Size()] = values.tobytes()

    def until(self, operator: int) -> bytes:
        """The file with no operators after this one; outputs that are not reached hold nothing."""
        copy = bytearray(self.content)
        graph = self._schema.Model.GetRootAs(copy, 0).Subgraphs(0)
        length = graph._tab.Vector(graph._tab.Offset(_OPERATORS_FIELD)) - 4  # noqa: SLF001 - the format: a length, then offsets
        copy[length : length + 4] = (operator + 1).to_bytes(4, "little")
        return bytes(copy)

    def _geometry(self, position: int, kind: Any, inputs: Sequence[int]) -> Geometry:  # noqa: ANN401 - a class of the schema
        options, table = kind(), self._graph.Operators(position).BuiltinOptions()
        options.Init(table.Bytes, table.Pos)
        data, weights = (self.details[index]["shape"] for index in inputs[:2])
        strides = (options.StrideH(), options.StrideW())
        dilations = (options.DilationHFactor(), options.DilationWFactor())
        pads: tuple[tuple[int, int], ...] = ((0, 0), (0, 0))
        if options.Padding() == self._schema.Padding.SAME:
            pads = tuple(
                _same(int(size), int(extent), stride, dilation)
                for size, extent, stride, dilation in zip(data[1:3], weights[1:3], strides, dilations, strict=True)
            )
        is_depthwise = kind is self._schema.DepthwiseConv2DOptions
        return Geometry(strides, dilations, pads, int(data[3]) if is_depthwise else int(data[3] // weights[3]))


def stream(
    content: bytes, feeds: Mapping[int, NDArray[Any]], wanted: Sequence[int], *, batch: int
) -> Iterator[dict[int, NDArray[Any]]]:
    """Run rows a batch at a time through LiteRT's kernels, with every tensor kept.

    Args:
        content: The file.
        feeds: Input tensor → rows.
        wanted: Tensors to give.
        batch: What the file takes at once; the last batch is filled up with copies of the last row.
    """
    with quiet():
        interpreter = _interpreter(content)
    total = len(next(iter(feeds.values())))
    for start in range(0, total, batch):
        indices = np.minimum(np.arange(start, start + batch), total - 1)
        for index, rows in feeds.items():
            interpreter.set_tensor(index, rows[indices])
        interpreter.invoke()
        yield {index: interpreter.get_tensor(index) for index in wanted}


def _interpreter(content: bytes) -> Any:  # noqa: ANN401 - LiteRT has no types
    interpreter = load("ai_edge_litert.interpreter").Interpreter(
        model_content=content, num_threads=2, experimental_preserve_all_tensors=True
    )
    interpreter.allocate_tensors()
    return interpreter


def _same(size: int, extent: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's padding SAME: zeros before and after."""
    reach = (-(-size // stride) - 1) * stride + (extent - 1) * dilation + 1
    missing = max(reach - size, 0)
    return missing // 2, missing - missing // 2
