"""What to do next follows from the figures, and only from them."""

import pytest
from msgspec.structs import replace

from edgeops.manifest import Interval
from edgeops_converters.advice import advise
from edgeops_converters.audit import Audit, FloatLayer
from edgeops_converters.fidelity import Drop
from edgeops_converters.gate import Verdict
from edgeops_converters.layer_noise import LayerReport
from edgeops_converters.sizes import Sizes


@pytest.fixture
def calm(conversion):
    """A report with nothing to say against it."""
    variants = tuple(
        replace(
            one,
            speedup=2.0 if one.precision == "int8" else None,
            gate=Verdict(passed=True),
            drop=Drop(points=0.0, low=-0.1, high=0.1),
            agreement=0.999,
            latency_interval=Interval(value=one.latency_ms, low=0.99 * one.latency_ms, high=1.01 * one.latency_ms),
            sqnr_db=35.0,
            audit=Audit(integer=3, total=3) if one.precision == "int8" else None,
            sizes=Sizes(weights=one.size_bytes - 100, biases=50, rest=50),
        )
        for one in conversion.report.variants
    )
    return replace(conversion.report, variants=variants, calibration_rows=500, evaluation_rows=1000, max_drop=0.5)


def changed(report, **changes):
    first, *others = report.variants
    return replace(report, variants=(replace(first, **changes), *others))


def layer(name, sqnr, before):
    return LayerReport(name=name, kind="Conv", precision="int8", sqnr_db=sqnr, input_sqnr_db=before)


def test_a_calm_report_says_to_ship_the_preferred_variant(calm):
    (line,) = advise(calm)
    assert f"ship {calm.variants[0].name}" in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gate": Verdict(passed=False, forced=True, reasons=("it takes too long",))}, "agreed to this: it takes too long"),
        ({"drop": Drop(points=0.2, low=-0.4, high=0.8)}, "about 4,000 would do"),
        ({"drop": Drop(points=2.0, low=1.0, high=3.0)}, "Train with quantisation in the loop"),
        ({"latency_interval": Interval(value=2, low=1, high=3)}, "between 1.000 and 3.000 ms"),
        ({"speedup": 1.02}, "1.02× as fast as float"),
        ({"sqnr_db": 29.5, "layers": (layer("a", 30.0, 40.0), layer("b", 29.0, 30.0), layer("c", 20.0, 25.0))},
         "a (Conv, 10.0 dB below its input) and c (Conv, 5.0 dB below its input)"),
        ({"audit": Audit(integer=1, total=2, in_float=(FloatLayer(layer="head", reason="its input is float32"),))}, "1 of 2 of"),
        ({"sizes": Sizes(weights=100, biases=10, rest=15000), "size_bytes": 15110}, "99% of its 15.1 kB"),
    ],
)  # fmt: skip
def test_each_figure_that_is_off_has_its_sentence(calm, changes, said):
    (line,) = advise(changed(calm, **changes))
    assert said in line


def test_a_format_that_is_much_noisier_than_the_other_is_named(calm):
    first, second = calm.variants[:2]
    assert {first.format, second.format} == {"onnx", "tflite"}
    noisy = (replace(first, sqnr_db=31.0), replace(second, sqnr_db=45.0), *calm.variants[2:])
    (line,) = advise(replace(calm, variants=noisy))
    assert f"{first.name} has 14 dB more noise than {second.name}" in line


def test_few_calibration_rows_are_named_when_a_variant_is_unlike_float(calm):
    (line,) = advise(replace(changed(calm, agreement=0.9), calibration_rows=20))
    assert "more calibration rows than 20" in line


def test_labels_are_asked_for_where_only_agreement_is_known(calm):
    bare = replace(
        calm,
        source=replace(calm.source, accuracy=None),
        variants=tuple(replace(one, accuracy=None, drop=None) for one in calm.variants),
    )
    (line,) = advise(bare)
    assert "Give labels" in line


def test_the_report_of_a_conversion_has_its_advice(conversion):
    assert conversion.report.advice == advise(replace(conversion.report, advice=()))
