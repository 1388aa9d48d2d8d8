import numpy as np
import pytest

from benchmarks.converter.ranking import area, paired_area_drop

RANDOM = np.random.default_rng(0)
LABELS = (RANDOM.random(400) < 0.3).astype(np.int64)
SCORES = np.round(RANDOM.normal(size=400) + LABELS, 1)  # rounded, so that there are ties


def test_area_is_the_share_of_pairs_in_the_right_order() -> None:
    high, low = SCORES[LABELS == 1][:, None], SCORES[LABELS == 0][None]

    assert area(SCORES, LABELS) == pytest.approx(((high > low) + 0.5 * (high == low)).mean())


def test_same_scores_lose_nothing() -> None:
    drop = paired_area_drop(SCORES, SCORES, LABELS)

    assert (drop.points, drop.low, drop.high) == (0, 0, 0)


def test_interval_of_a_drop_covers_what_resampling_gives() -> None:
    worse = SCORES + RANDOM.normal(size=400)
    drop = paired_area_drop(SCORES, worse, LABELS)
    picks = [RANDOM.integers(0, 400, 400) for _ in range(400)]
    again = [100 * (area(SCORES[pick], LABELS[pick]) - area(worse[pick], LABELS[pick])) for pick in picks]

    assert drop.points == pytest.approx(100 * (area(SCORES, LABELS) - area(worse, LABELS)))
    assert drop.high - drop.low == pytest.approx(np.subtract(*np.percentile(again, [97.5, 2.5])), rel=0.2)
