"""Selection: the same devices on both sides, and a language that cannot do anything else."""

import itertools

import pytest

from edgeops.errors import InputError
from edgeops.selection import BUCKETS, bucket, check_where, in_wave, matches, position

DEVICES = [f"camera-{number}" for number in range(5000)]
ATTRIBUTES = {"site": "north", "memory_mb": 512, "has_npu": False}


def test_larger_wave_contains_the_smaller() -> None:
    waves = [
        {name for name in DEVICES if in_wave(name, percent=percent, rotation=77)} for percent in (0, 1, 5, 25, 100)
    ]
    assert waves[0] == set()
    assert waves[-1] == set(DEVICES)
    assert all(smaller <= larger for smaller, larger in itertools.pairwise(waves))
    assert len(waves[3]) / len(DEVICES) == pytest.approx(0.25, abs=0.02)


def test_rotation_changes_who_is_first() -> None:
    first = {
        rotation: min(DEVICES, key=lambda name: position(name, rotation=rotation)) for rotation in (0, 2500, 5000, 7500)
    }
    assert len(set(first.values())) == 4


def test_buckets_are_in_range() -> None:
    assert all(0 <= bucket(name) < BUCKETS for name in DEVICES)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("", True),
        ("site == 'north'", True),
        ("site != 'north'", False),
        ("site in ['south', 'north'] and memory_mb >= 512", True),
        ("not has_npu or memory_mb < 100", True),
        ("absent == 'x'", False),
        ("absent", False),
        ("not absent", True),
        ("absent or site == 'north'", True),
        ("absent in ['x']", False),
        ("not absent == 'x'", True),
        ("memory_mb > 'text'", False),
    ],
)
def test_predicate(where: str, *, expected: bool) -> None:
    check_where(where)
    assert matches(where, ATTRIBUTES) is expected


@pytest.mark.parametrize(
    "where",
    [
        "__import__('os')",
        "site.upper() == 'X'",
        "1 + 1",
        "site[0] == 'n'",
        "(lambda: 1)()",
        "a < b < c",
        "site ==",
        "f'{site}'",
    ],
)
def test_everything_outside_the_language_is_refused(where: str) -> None:
    with pytest.raises(InputError, match="where"):
        check_where(where)
    with pytest.raises(InputError, match="where"):
        matches(where, ATTRIBUTES)
