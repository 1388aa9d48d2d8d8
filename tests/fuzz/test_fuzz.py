"""A short run of every fuzz target: what is kept in the corpus, and some mutations of it, the same ones each time."""

import itertools
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(
    0, str(Path(__file__).parent)
)  # The folder is no package, and its modules are only for this and scripts/fuzz.

from mutation import mutations
from targets import TARGETS, corpus

ROUNDS = {"http": 600, "request": 5000, "bundle": 400, "outbox": 150}


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_comes_breaks_no_promise(target):
    inputs = corpus(target)
    assert len(inputs) > 5
    for data in itertools.chain(inputs, itertools.islice(mutations(inputs, random.Random(7)), ROUNDS[target])):
        try:
            TARGETS[target](data)
        except BaseException as error:
            error.add_note(f"{target}: {data!r}")
            raise
