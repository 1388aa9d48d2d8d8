import msgspec

from benchmarks.converter.__main__ import Report
from benchmarks.converter.bars import BOTH, MEMORY, OURS, Measure, Place
from benchmarks.converter.measurement import FLOAT, Finding, Line
from benchmarks.converter.stock import NNCF_FULL
from edgeops_converters.fidelity import Drop


def line(tool: str, *, size: int, seconds: float | None) -> Line:
    return Line(
        format="onnx",
        tool=tool,
        value=0.9,
        drop=Drop(points=0.2, low=-0.1, high=0.5),
        agreement=0.99,
        sqnr_db=30.0,
        p50_ms=1.0,
        speedup=2.0,
        integer=9,
        products=10,
        size_bytes=size,
        seconds=seconds,
    )


def finding(subject: str) -> Finding:
    return Finding(
        subject=subject,
        title="a net",
        origin="somewhere",
        rows=100,
        value=0.9,
        weights=1000,
        lines=(
            line(FLOAT, size=4_000_000, seconds=None),
            line(OURS, size=1_000_000, seconds=3.0),
            line(NNCF_FULL, size=1_100_000, seconds=6.0),
        ),
        parity=0.995,
        failures={},
        left_out={},
    )


def report(*subjects: str) -> Report:
    return Report(
        {"cpu": "one"}, subjects=[finding(name) for name in subjects], peak_mb={"onnx": {100: 400.0, 10_000: 420.0}}
    )


def test_bars_see_every_figure_of_a_line() -> None:
    readings = report("resnet").readings()
    ours = readings[Place("resnet", "onnx", OURS)]

    assert {measure: reading.value for measure, reading in ours.items()} == {
        Measure.AGREEMENT: 0.99,
        Measure.SQNR: 30.0,
        Measure.SPEED: 2.0,
        Measure.DROP: 0.2,
        Measure.INTEGER: 90.0,
        Measure.SIZE: 0.25,
        Measure.SECONDS: 0.5,
    }
    assert readings[Place("resnet", BOTH, OURS)][Measure.PARITY].value == 99.5
    assert readings[Place(MEMORY, "onnx", OURS)][Measure.GROWTH].value == 1.05


def test_size_of_what_is_no_convolutional_net_is_not_judged() -> None:
    assert Measure.SIZE not in report("autoencoder").readings()[Place("autoencoder", "onnx", OURS)]


def test_float_is_neither_ours_nor_stock() -> None:
    assert Place("resnet", "onnx", FLOAT) not in report("resnet").readings()


def test_subject_that_failed_is_judged_too() -> None:
    found = report("resnet")
    found.failed["keywords"] = "ValueError: broken"

    assert found.measured == ["resnet", "keywords", MEMORY]


def test_report_is_written_as_json() -> None:
    again = msgspec.json.decode(msgspec.json.encode(report("resnet")))

    assert again["subjects"][0]["lines"][1]["drop"] == {"points": 0.2, "low": -0.1, "high": 0.5}
    assert again["peak_mb"]["onnx"]["10000"] == 420.0
