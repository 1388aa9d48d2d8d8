"""Profiles merge exactly: adding is associative and commutative and loses nothing; references are checked when they are read."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeops.errors import ManifestError
from edgeops.signals import (
    Profile,
    Reference,
    Signal,
    Statistic,
    decode_reference,
    encode_reference,
    merge_profiles,
)

BINS = {"a": 4, "b": 2}
COUNT = st.integers(0, 2**40)


@st.composite
def profiles(draw):
    names = draw(st.sets(st.sampled_from(sorted(BINS))))
    return Profile(
        reference="sha256:r",
        rows=draw(COUNT),
        counts={name: tuple(draw(st.lists(COUNT, min_size=BINS[name], max_size=BINS[name]))) for name in names},
    )


@given(profiles(), profiles(), profiles())
def test_adding_profiles_is_associative(a, b, c):
    assert (a + b) + c == a + (b + c)


@given(profiles(), profiles())
def test_adding_profiles_is_commutative(a, b):
    assert a + b == b + a


@given(st.lists(profiles(), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_merging_in_any_order_and_in_any_groups_loses_nothing(parts, random):
    merged = merge_profiles(parts)
    assert merged.rows == sum(part.rows for part in parts)
    for name, bins in BINS.items():
        assert merged.counts.get(name, (0,) * bins) == tuple(
            sum(part.counts.get(name, (0,) * bins)[index] for part in parts) for index in range(bins)
        )
    shuffled = list(parts)
    random.shuffle(shuffled)
    cut = random.randrange(len(shuffled))
    groups = [merge_profiles(group) for group in (shuffled[:cut], shuffled[cut:]) if group]
    assert merge_profiles(groups) == merged


@given(profiles())
def test_a_profile_survives_the_wire(profile):
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(profile), type=Profile) == profile


def test_profiles_of_different_references_do_not_add():
    with pytest.raises(ManifestError, match="2 references"):
        Profile(reference="r1", rows=1, counts={}) + Profile(reference="r2", rows=1, counts={})


def test_profiles_with_different_bins_do_not_add():
    with pytest.raises(ManifestError, match="'s': 3 bins do not add to 2"):
        Profile(reference="r", rows=1, counts={"s": (1, 0)}) + Profile(reference="r", rows=1, counts={"s": (1, 0, 0)})


def test_nothing_does_not_merge():
    with pytest.raises(ManifestError):
        merge_profiles([])


def signal(**changes):
    fields = {
        "name": "s",
        "tensor": "x",
        "statistic": Statistic.MEAN,
        "edges": (0.0, 1.0),
        "counts": {"": (1, 2, 3, 0), "north": (1, 0, 0, 0)},
    }
    return Signal(**(fields | changes))


def test_the_id_of_a_reference_survives_writing_and_reading():
    reference = Reference(rows=6, signals=(signal(),), stratum_attribute="site", accuracy={"": (5, 6), "north": (1, 1)})
    again = decode_reference(encode_reference(reference))
    assert again == reference
    assert again.id == reference.id


def test_a_stratum_that_was_not_seen_has_the_counts_of_everything():
    assert signal().counts_of("north") == (1, 0, 0, 0)
    assert signal().counts_of("south") == (1, 2, 3, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"edges": (1.0, 0.0)},
        {"edges": (0.0, 0.0)},
        {"counts": {"": (1, 2, 3)}},
        {"counts": {"": (1, 2, 3, -1)}},
        {"counts": {"north": (1, 2, 3, 0)}},
    ],
)
def test_a_signal_that_contradicts_itself_is_refused(changes):
    with pytest.raises(ManifestError):
        signal(**changes)


def test_a_damaged_reference_is_refused_with_the_name_of_its_file():
    with pytest.raises(ManifestError, match=r"bundle/reference\.json"):
        decode_reference(b'{"rows": 1, "signals": [], "colour": 2}', where="bundle/reference.json")
    with pytest.raises(ManifestError, match="reference"):
        decode_reference(b'{"rows": 1, "signals": [')
