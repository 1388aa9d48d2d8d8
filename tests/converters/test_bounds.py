"""Upper bounds of a loss: against tables and against the exact probability of every outcome."""

import math

import pytest

from edgeops_converters.bounds import CONFIDENCE, most_lost, rows_to_prove

# One-sided 95 % limits of Clopper and Pearson, from the quantiles of the beta distribution.
TABLE = [(0, 10, 0.258866), (3, 10, 0.606624), (20, 2000, 0.0144981), (1, 600, 0.00788182), (1500, 2000, 0.765898)]


@pytest.mark.parametrize(("lost", "rows", "limit"), TABLE)
def test_without_a_row_won_it_is_the_exact_limit_of_the_share_lost(lost, rows, limit):
    assert most_lost(lost, 0, rows) == pytest.approx(limit, rel=1e-5)


def test_rows_that_all_agree_do_not_prove_that_nothing_is_lost():
    assert most_lost(0, 0, 100) > 0.02
    assert most_lost(10, 0, 10) == 1.0


def test_rows_won_make_up_for_rows_lost_but_not_for_doubt():
    assert most_lost(10, 10, 1000) < most_lost(10, 0, 1000)
    assert most_lost(10, 10, 1000) > most_lost(0, 0, 1000)
    assert most_lost(0, 30, 1000) < 0


@pytest.mark.parametrize("share", [0.001, 0.005, 0.02, 0.3])
def test_the_rows_that_it_takes_prove_half_of_the_loss_and_much_fewer_do_not(share):
    rows = rows_to_prove(share)
    assert most_lost(round(rows * share / 2), 0, rows) <= share
    fewer = 2 * rows // 3
    assert most_lost(round(fewer * share / 2), 0, fewer) > share


def test_no_number_of_rows_proves_that_nothing_at_all_is_lost():
    assert rows_to_prove(0.0) is None
    assert rows_to_prove(-0.1) is None


@pytest.mark.parametrize("rows", [40, 200])
@pytest.mark.parametrize("lost", [0.004, 0.02, 0.05])
@pytest.mark.parametrize("won", [0.0, 0.004, 0.02])
def test_the_bound_is_below_the_truth_at_most_as_often_as_it_says(rows, lost, won):
    """Summed over every outcome rather than drawn, so that nothing is left to chance."""
    outcomes = ((one, other) for one in range(rows + 1) for other in range(rows + 1 - one))
    likely = {pair: chance for pair in outcomes if (chance := _chance(*pair, rows, lost, won)) > 1e-6}
    assert sum(likely.values()) > 0.999
    too_low = sum(chance for pair, chance in likely.items() if most_lost(*pair, rows) < lost - won)
    assert too_low <= 1 - CONFIDENCE


def _chance(lost_rows, won_rows, rows, lost, won):
    """Of so many rows lost and won."""
    if won == 0 and won_rows:
        return 0.0
    same = rows - lost_rows - won_rows
    ways = math.lgamma(rows + 1) - math.lgamma(lost_rows + 1) - math.lgamma(won_rows + 1) - math.lgamma(same + 1)
    rest = won_rows * math.log(won) if won_rows else 0.0
    return math.exp(ways + lost_rows * math.log(lost) + rest + same * math.log1p(-lost - won))
