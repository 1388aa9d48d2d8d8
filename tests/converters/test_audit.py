"""What runs in integers is read from the engine, not from what the quantiser meant."""

import numpy as np
import pytest

from edgeops_converters.audit import Audit, FloatLayer, audit
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.gate import Evidence, judge
from edgeops_converters.quantization import quantize
from edgeops_converters.sources import open_model
from edgeops_converters.targets import Target


@pytest.fixture(params=EXPORTERS)
def pair(request, network, calibration, tmp_path):
    """Float and int8 of the trained network in one format."""
    model = open_model(network, {"image": calibration["image"][:4]})
    exported = EXPORTERS[request.param].export(model, calibration, tmp_path / "float")
    quantized = quantize(exported, calibration, tmp_path / "int8", cpu=Target.X86)
    return exported, quantized


def test_every_product_of_the_integer_file_runs_in_integers_and_none_of_the_float_file(pair):
    exported, quantized = (audit(artifact) for artifact in pair)
    assert quantized.total == exported.total > 2
    assert (quantized.integer, quantized.in_float) == (quantized.total, ())
    assert exported.integer == 0
    assert all(layer.layer and layer.reason for layer in exported.in_float)


def test_a_layer_that_fell_back_to_float_is_named_with_the_reason(network, calibration, tmp_path):
    import onnx

    model = open_model(network, {"image": calibration["image"][:4]})
    exported = EXPORTERS["onnx"].export(model, calibration, tmp_path / "float.onnx")
    quantized = quantize(exported, calibration, tmp_path / "int8.onnx", cpu=Target.X86)
    graph = onnx.load(quantized.path)
    product = next(node for node in graph.graph.node if node.op_type == "Conv")
    given = {node.output[0]: node for node in graph.graph.node}
    product.input[0] = given[given[product.input[0]].input[0]].input[0]  # around the Q and the DQ before it
    onnx.save(graph, quantized.path)
    found = audit(quantized)
    assert (found.integer, len(found.in_float)) == (found.total - 1, 1)
    assert "float" in found.in_float[0].reason


def test_a_share_below_the_least_is_refused_with_the_layers_in_float():
    found = Audit(integer=9, total=10, in_float=(FloatLayer(layer="head", reason="Gemm reads float from Concat"),))
    evidence = Evidence(
        latency_ms=1.0, float_latency_ms=2.0, drop_points=0.0, disagreement_points=0.0, sqnr_db=30.0, audit=found
    )
    assert judge(evidence, max_drop=0.5, min_int8=90).passed
    verdict = judge(evidence, max_drop=0.5, min_int8=95)
    assert not verdict.passed
    assert "9 of 10" in verdict.reasons[0]
    assert "head (Gemm reads float from Concat), where 95 % are asked" in verdict.reasons[0]


def test_the_report_has_the_audit_of_what_is_compressed(conversion):
    page = conversion.bundle.file("report.html").read_text(encoding="utf-8")
    for variant in conversion.report.variants:
        assert (variant.audit is None) == (variant.precision == "float32")
        if variant.audit is not None:
            said = f"{variant.audit.integer} of {variant.audit.total} convolutions and matrix products in integers"
            assert said in page


def test_nothing_is_compared_where_nothing_is_multiplied():
    assert Audit(integer=0, total=0).percent == 100
    assert np.isclose(Audit(integer=1, total=3).percent, 33.333, atol=0.01)
