"""What may ship and what may not."""

import pytest

from edgeops_converters.gate import Evidence, Purpose, judge


def evidence(**changes):
    known = {
        "latency_ms": 1.0,
        "float_latency_ms": 2.0,
        "drop_points": 0.1,
        "disagreement_points": 1.0,
        "sqnr_db": 30.0,
    }
    return Evidence(**{**known, **changes})


def test_a_faster_and_faithful_variant_passes():
    verdict = judge(evidence(), max_drop=0.5)
    assert verdict.passed
    assert verdict.reasons == ()


def test_the_limit_itself_is_accepted():
    assert judge(evidence(drop_points=0.5), max_drop=0.5).passed


def test_a_lossy_variant_is_refused_with_both_figures():
    verdict = judge(evidence(drop_points=0.75), max_drop=0.5)
    assert not verdict.passed
    assert "loses 0.75 points of accuracy where at most 0.5" in verdict.reasons[0]


def test_a_slower_variant_is_refused_with_both_figures():
    verdict = judge(evidence(latency_ms=2.5), max_drop=0.5)
    assert not verdict.passed
    assert "2.500 ms where float in the same format takes 2.000 ms" in verdict.reasons[0]


def test_a_difference_within_the_noise_is_not_slower():
    assert judge(evidence(latency_ms=2.08), max_drop=0.5).passed


def test_latency_of_another_cpu_is_not_held_against_a_variant():
    assert judge(evidence(latency_ms=None), max_drop=0.5).passed


def test_without_labels_disagreement_counts_and_is_named():
    verdict = judge(evidence(drop_points=None, disagreement_points=3.0), max_drop=0.5)
    assert not verdict.passed
    assert "there are no labels" in verdict.measure
    assert judge(evidence(drop_points=None, disagreement_points=0.4), max_drop=0.5).passed


@pytest.mark.parametrize(("sqnr_db", "passed"), [(None, True), (30.0, True), (8.0, False), (-3.0, False)])
def test_outputs_that_are_no_classes_are_held_to_their_noise(sqnr_db, passed):
    verdict = judge(evidence(drop_points=None, disagreement_points=None, sqnr_db=sqnr_db), max_drop=0.5)
    assert verdict.passed is passed
    assert "no classes" in verdict.measure


def test_answers_that_are_not_finite_are_refused():
    assert not judge(evidence(is_finite=False), max_drop=100).passed


def test_every_reason_is_given():
    assert len(judge(evidence(latency_ms=9.0, drop_points=9.0, is_finite=False), max_drop=0.5).reasons) == 3


def test_what_is_made_for_its_size_may_be_slower_but_must_be_smaller_and_faithful():
    small = {"purpose": Purpose.SIZE, "latency_ms": 9.0, "size_ratio": 0.5}
    assert judge(evidence(**small), max_drop=0.5).passed
    assert not judge(evidence(**small, drop_points=0.75), max_drop=0.5).passed
    verdict = judge(evidence(**{**small, "size_ratio": 1.02}), max_drop=0.5)
    assert not verdict.passed
    assert "1.02 of the size of float" in verdict.reasons[0]


def test_the_limits_of_latency_and_size_hold_for_every_compressed_variant():
    at_the_limit = evidence(latency_ms=1.0, size_bytes=2000)
    assert judge(at_the_limit, max_drop=0.5, max_latency_ms=1.0, max_bytes=2000).passed
    verdict = judge(at_the_limit, max_drop=0.5, max_latency_ms=0.5, max_bytes=1999)
    assert verdict.reasons == (
        "it takes 1.000 ms where at most 0.5 ms are accepted",
        "its file has 2,000 bytes where at most 1,999 are accepted",
    )
    small = evidence(purpose=Purpose.SIZE, size_ratio=0.5, latency_ms=3.0)
    assert not judge(small, max_drop=0.5, max_latency_ms=2.5).passed
    assert judge(evidence(latency_ms=None), max_drop=0.5, max_latency_ms=0.1).passed


def test_what_a_search_says_against_a_variant_counts_though_its_figures_are_good():
    assert judge(evidence(refusal="nothing holds"), max_drop=0.5).reasons == ("nothing holds",)
