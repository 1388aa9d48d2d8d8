"""The report's page: self-contained, complete, and safe with any text in it."""

import re
from xml.etree import ElementTree as ET

import msgspec
import pytest

from edgeops.signals import EVERYTHING, Reference, Signal, Statistic, decode_reference
from edgeops_converters.charts import Row, bars, histogram, intervals
from edgeops_converters.page import render_page


@pytest.fixture(scope="module")
def reference(conversion):
    return decode_reference(conversion.bundle.file("reference.json").read_bytes())


def test_the_page_loads_nothing_from_elsewhere(conversion):
    page = conversion.bundle.file("report.html").read_text()
    assert not re.search(r"""(src|href)\s*=|@import|url\(|<script""", page)


def test_the_page_shows_every_variant_signal_and_stratum(conversion, reference):
    page = conversion.bundle.file("report.html").read_text()
    for variant in conversion.report.variants:
        assert page.count(variant.name) >= 4
    for signal in reference.signals:
        assert f">{signal.name}<" in page
    for text in ("harbour", "market", "south east", conversion.report.lineage.source_digest):
        assert text in page


def test_text_of_the_user_is_escaped(conversion, reference):
    evil = msgspec.structs.replace(conversion.report, notes=("<script>alert(1)</script>",))
    page = render_page(evil, reference, labels=("<b>", "&", "'", '"'))
    assert "<script>" not in page
    assert "<title><b>" not in page


def test_the_page_of_a_regression_has_no_accuracy(conversion):
    variants = tuple(
        msgspec.structs.replace(variant, accuracy=None, drop=None, agreement=None, sqnr_db=None)
        for variant in conversion.report.variants
    )
    source = msgspec.structs.replace(conversion.report.source, accuracy=None)
    report = msgspec.structs.replace(conversion.report, variants=variants, source=source)
    signal = Signal(name="x.0", tensor="x", statistic=Statistic.VALUE, edges=(), counts={EVERYTHING: (3, 0)})
    page = render_page(report, Reference(rows=3, signals=(signal,)))
    assert "Accuracy on held-out rows" not in page
    assert "x.0" in page


@pytest.mark.parametrize(
    "picture",
    [
        bars([Row("a & b", 0, "nothing", "onnx compressed"), Row("c", 0, "0", "onnx compressed")]),
        bars([]),
        intervals([Row("a", 90, "90 %", "source", low=90, high=90)], unit=" %"),
        histogram((5,), ()),
        histogram((5, 2), (0.0,)),
        histogram((0, 0, 0), (1.0, 1.0000001)),
        histogram((1, 2, 3), (0.5, 1.5), labels=("a", "<b>", "c")),
    ],
)
def test_every_chart_is_well_formed_even_with_little_in_it(picture):
    ET.fromstring(picture)
    assert "nan" not in picture
    assert "inf" not in picture


def test_every_precision_has_a_colour_of_the_page(conversion, reference):
    dynamic = msgspec.structs.replace(conversion.report.variants[0], precision="dynamic")
    page = render_page(msgspec.structs.replace(conversion.report, variants=(dynamic,)), reference)
    kinds = set(re.findall(r'<rect class="((?:onnx|tflite) [^"]+)"', page))
    assert kinds
    for kind in kinds:
        assert f"svg .{kind.replace(' ', '.')} {{ fill:" in page
