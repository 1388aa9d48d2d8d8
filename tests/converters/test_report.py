"""``report.json``: what is written is read again, also from a release that knew less."""

import msgspec
import pytest

from edgeops.errors import ManifestError
from edgeops_converters.report import decode_report, encode_report


def test_a_report_survives_the_file(conversion):
    assert decode_report(conversion.bundle.file("report.json").read_bytes()) == conversion.report


def test_a_report_without_the_newer_fields_is_read(conversion):
    told = msgspec.json.decode(encode_report(conversion.report))
    for key in ("trials", "advice"):
        del told[key]
    for variant in told["variants"]:
        for key in ("layers", "tensors", "sizes", "latency_interval"):
            del variant[key]
    report = decode_report(msgspec.json.encode(told))
    assert report.advice == ()
    assert report.variants[0].layers == ()


def test_what_is_no_report_is_refused():
    with pytest.raises(ManifestError, match=r"report\.json"):
        decode_report(b'{"schema": 1}')


def test_latency_and_layers_are_measured(conversion):
    for variant in conversion.report.variants:
        assert variant.latency_interval.low <= variant.latency_ms <= variant.latency_interval.high
        assert bool(variant.layers) == (variant.precision != "float32")
