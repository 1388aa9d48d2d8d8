"""The report's page: self-contained, complete, and safe with any text in it."""

import html
import re
from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import pytest

from edgeops.signals import EVERYTHING, Reference, Signal, Statistic, decode_reference
from edgeops_converters.advice import advise
from edgeops_converters.audit import Audit, FloatLayer
from edgeops_converters.charts import (
    Part,
    Point,
    Row,
    bars,
    clipped_histogram,
    histogram,
    intervals,
    profile,
    stair,
    tradeoff,
)
from edgeops_converters.fidelity import Drop
from edgeops_converters.histograms import Histogram
from edgeops_converters.layer_noise import LayerReport
from edgeops_converters.page import render_page
from edgeops_converters.tensor_report import summarize
from edgeops_converters.trials import Outcome, Trial

EVIL = "<script>alert('1')</script>\"&"


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


@pytest.fixture
def everything(conversion):
    """A report with 150 layers, ranges, and what a search tried."""
    seen = Histogram()
    seen.add(np.random.default_rng(0).normal(size=5000))
    tensors = tuple(
        summarize(f"tensor {index}", seen, low=-1.5, high=2.0, estimator="mse", reason="2.0 dB better")
        for index in range(20)
    )
    layers = tuple(
        LayerReport(
            name=f"layer {index}",
            kind="Conv",
            precision="int8",
            sqnr_db=50 - index / 5,
            input_sqnr_db=50 - index // 10 / 3,
        )
        for index in range(150)
    )
    variants = tuple(
        msgspec.structs.replace(one, layers=layers, tensors=tensors) if one.precision == "int8" else one
        for one in conversion.report.variants
    )
    trials = tuple(
        Trial(
            name=f"trial {index}",
            settings="int8, with the head in float",
            size_bytes=1000 * (index + 1),
            latency_ms=None if index == 0 else 1.0 + index,
            drop=Drop(points=2.0 - index, low=1.0 - index, high=3.0 - index),
            outcome=outcome,
            reason="because",
            is_pareto=True,
        )
        for index, outcome in enumerate([Outcome.REFUSED, Outcome.CHOSEN, Outcome.PASSED])
    )
    report = msgspec.structs.replace(conversion.report, variants=variants, trials=trials)
    return msgspec.structs.replace(report, advice=advise(report))


def told_by(report, text):
    """The report with a text in every place that a user, a file or a library fills."""
    layer = LayerReport(name=f"{text};{text}/{text}", kind=text, precision=text, sqnr_db=10.0, input_sqnr_db=20.0)
    tensor = msgspec.structs.replace(report.variants[0].tensors[0], tensor=text, estimator=text, reason=text)
    audited = Audit(integer=1, total=2, in_float=(FloatLayer(layer=text, reason=text),))
    variants = tuple(
        msgspec.structs.replace(one, name=text, notes=(text,), layers=(layer,), tensors=(tensor,), audit=audited)
        for one in report.variants
    )
    trials = tuple(msgspec.structs.replace(one, name=text, settings=text, reason=text) for one in report.trials)
    return msgspec.structs.replace(
        report, name=text, notes=(text,), advice=(text,), cpu=text, license=text, variants=variants, trials=trials
    )


def test_text_of_the_user_is_escaped(everything, reference):
    page = render_page(told_by(everything, EVIL), reference, labels=("<b>", "&", "'", '"'))
    assert "<script>" not in page
    assert "<title><b>" not in page
    assert page.count("&lt;script&gt;") > 40
    for picture in pictures_of(page):
        ET.fromstring(picture)


def test_every_layer_range_and_trial_is_on_the_page(everything, reference):
    page = render_page(everything, reference)
    assert page.count("<td>Conv</td>") == 300
    assert page.count(">tensor ") == 40
    assert "The other 8 tensors" in page
    assert page.count('class="chosen-range"') == 40
    for index in range(3):
        assert page.count(f"trial {index}") >= 2
    assert "All 3 trials" in page
    assert "Latency against loss" in page
    assert all(line in html.unescape(page) for line in everything.advice)


def pictures_of(page):
    found = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(found) > 10
    return found


def test_every_picture_of_the_page_is_well_formed(everything, reference):
    for picture in pictures_of(render_page(everything, reference)):
        ET.fromstring(picture)


def test_the_page_of_an_older_report_has_no_empty_sections(conversion, reference):
    variants = tuple(
        msgspec.structs.replace(one, layers=(), tensors=(), sizes=None, latency_interval=None)
        for one in conversion.report.variants
    )
    page = render_page(msgspec.structs.replace(conversion.report, variants=variants, advice=()), reference)
    for title in ("What to do next", "Where the bytes go", "What was tried", "Noise by layer", "Ranges of the"):
        assert title not in page


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
        bars([Row("a" * 60, 3, "3", "onnx", low=2, high=4, parts=(Part(1, "<", ""), Part(2, "&", "")))]),
        profile([], unit=" dB"),
        profile([Point(1, -3.0, "layer", "<&>", name="A")], unit=" dB"),
        profile([Point(index + 1, 20.0, "layer", "x") for index in range(2000)], unit=" dB"),
        tradeoff([Point(1, 1, "trial", "<&>", name="<")], [], x_unit="<", y_unit="&"),
        tradeoff([Point(1e6, 0.0, "refused", ""), Point(2e6, 0.0, "", "")], [], x_unit="", y_unit="", limit=0),
        clipped_histogram((), first=0.0, width=1.0, low=0.0, high=0.0),
        clipped_histogram((5,), first=-1.0, width=2.0, low=-1e-9, high=1e-9),
        clipped_histogram((0, 0), first=1e30, width=1e29, low=0, high=1),
    ],
)
def test_every_chart_is_well_formed_even_with_little_in_it(picture):
    ET.fromstring(picture)
    assert "nan" not in picture
    assert "inf" not in picture


def test_the_front_leaves_out_what_is_beaten():
    points = [Point(3, 1, "", ""), Point(1, 3, "", ""), Point(2, 3, "", ""), Point(4, 2, "", "")]
    assert [(point.x, point.y) for point in stair(points)] == [(1, 3), (3, 1)]


def test_a_summary_of_a_histogram_keeps_every_value():
    seen, values = Histogram(), np.random.default_rng(1).normal(size=30_000) ** 3
    seen.add(values)
    told = summarize("x", seen, low=-1.0, high=1.0, estimator="percentile")
    assert len(told.counts) <= 64
    assert sum(told.counts) == 30_000
    assert told.first <= values.min()
    assert told.first + told.width * len(told.counts) >= values.max()
    assert told.clipped == pytest.approx((np.abs(values) > 1).mean(), abs=0.01)
    empty = summarize("x", Histogram(), low=0.0, high=0.0, estimator="minmax")
    assert (empty.counts, empty.clipped) == ((), 0.0)


def test_the_whole_range_clips_nothing():
    seen, values = Histogram(), np.random.default_rng(1).normal(size=3000)
    seen.add(values)
    assert summarize("x", seen, low=values.min(), high=values.max(), estimator="minmax").clipped == 0
