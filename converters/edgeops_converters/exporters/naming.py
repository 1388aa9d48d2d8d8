"""Names that a person knows: the layers of an exported file called as in the user's model, everything else briefly.

Exporters call nodes by number (ONNX) or tensors by the whole path of Python classes (TFLite, a fifth of a small file). Plan,
audit and report show what is in the file, so the file should say what its reader calls the layer.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops_converters.extras import load
from edgeops_converters.litert_file import packed
from edgeops_converters.quantizers.onnx_graph import label_of

_PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D")


def name_onnx(graph: Any) -> None:  # noqa: ANN401 - onnx has no types
    """Call each node with weights as the module that they belong to."""
    taken = {node.name for node in graph.node}
    for node in graph.node:
        label = label_of(node)
        if label is not None and label not in taken:
            taken.add(label)
            node.name = label


def name_litert(content: bytes, weights: Mapping[str, NDArray[Any]]) -> bytes:
    """Call what each layer gives as the module that its weights belong to, and other tensors by a number.

    Args:
        content: A float ``.tflite`` with one subgraph.
        weights: Name of each parameter of the model → value.
    """
    schema = load("ai_edge_litert.schema_py_generated")
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    if any(buffer.offset > 1 for buffer in model.buffers):
        return content  # the data of very large files lie behind the flatbuffer, which packing would lose
    (graph,) = model.subgraphs
    kinds = {getattr(schema.BuiltinOperator, name) for name in _PRODUCTS}
    ends = {int(index) for index in (*graph.inputs, *graph.outputs)}
    for index, tensor in enumerate(graph.tensors):
        if index not in ends:
            tensor.name = f"t{index}".encode()
    known = _by_content(weights)
    taken: set[str] = set()
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        if max(code.builtinCode, code.deprecatedBuiltinCode) not in kinds or int(operator.outputs[0]) in ends:
            continue
        data = model.buffers[graph.tensors[int(operator.inputs[1])].buffer].data
        label = known.get(_print_of(np.asarray(data).view(np.float32))) if data is not None else None
        if label is not None and label not in taken:
            taken.add(label)
            graph.tensors[int(operator.outputs[0])].name = label.encode()
    return packed(model)


def _by_content(weights: Mapping[str, NDArray[Any]]) -> dict[bytes, str]:
    """What a weight holds, in whatever order → the module that it belongs to."""
    return {_print_of(np.asarray(value, np.float32)): module for module, value in _weights(weights)}


def _weights(weights: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, value in weights.items():
        module, _, what = name.removeprefix("module.").rpartition(".")
        if what == "weight" and value.dtype.kind == "f":
            yield module, value


def _print_of(values: NDArray[np.float32]) -> bytes:
    """The same for the same numbers in any layout."""
    return np.sort(values.reshape(-1)).tobytes()
