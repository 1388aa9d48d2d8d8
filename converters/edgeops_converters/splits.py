"""Held-out rows in two halves: one that a search chooses by, one that says what became of it. Pure."""

import numpy as np
from numpy.typing import NDArray

from edgeops.errors import RecipeError
from edgeops_converters.samples import Samples

_SEED = 0
_FEWEST_ROWS = 4  # two of each half, as of every set of rows

Rows = NDArray[np.int64]


def split(samples: Samples) -> tuple[Rows, Rows]:
    """Indices of the rows to search by and of the rows to test on, each ascending.

    Labels go half to each, and every stratum has a row in the test; the same rows are always split the same way.

    Raises:
        RecipeError: There are too few rows.
    """
    if samples.rows < _FEWEST_ROWS:
        raise RecipeError(
            f"{samples.where}: expected at least {_FEWEST_ROWS} rows, half to search a mixed precision by and half to test "
            f"it on, got {samples.rows}"
        )
    labels = samples.labels if samples.labels is not None else np.zeros(samples.rows, np.int64)
    strata = samples.strata if samples.strata is not None else np.zeros(samples.rows, np.int64)
    shuffled = np.random.default_rng(_SEED).permutation(samples.rows)
    search, test = list[int](), list[int]()
    for stratum in np.unique(strata):
        members = shuffled[strata[shuffled] == stratum]
        by_label = members[np.argsort(labels[members], kind="stable")]
        # In turn, so that no label falls to one half by more than a row.
        test.extend(by_label[0::2])
        search.extend(by_label[1::2])
    return np.sort(np.array(search, np.int64)), np.sort(np.array(test, np.int64))
