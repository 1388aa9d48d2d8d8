"""Model files that the tests read: small ones made by hand, each with one thing that real files have."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgeops_converters.extras import load, quiet
from edgeops_converters.litert_file import packed, unpacked

ROWS = {"x": np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)}


def onnx_model(*, opset=17, ir=8, batch="n", operator="Relu", extra_nodes=(), outputs=None):
    """``y = relu(x @ w + b)``."""
    random = np.random.default_rng(1)
    weights, bias = random.normal(size=(4, 3)).astype(np.float32), random.normal(size=3).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="gemm"),
        helper.make_node(operator, ["h"], ["y"], name="rectifier"),
        *extra_nodes,
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        outputs or [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def litert_edited(content, edit):
    """A ``.tflite`` after a change in its object form."""
    model = unpacked(content)
    edit(model)
    return packed(model)


def with_integer_interface(source, target, rows):
    """What ai-edge-quantizer makes by default: int8 at both ends."""
    quantizer, recipe = load("ai_edge_quantizer.quantizer"), load("ai_edge_quantizer.recipe")
    with quiet():
        stock = quantizer.Quantizer(str(source))
        stock.load_quantization_recipe(recipe.static_wi8_ai8())
        found = stock.calibrate({"serving_default": [{"args_0": row[None]} for row in rows]})
        target.write_bytes(stock.quantize(found, enable_progress_report=False).quantized_model)
    return target
