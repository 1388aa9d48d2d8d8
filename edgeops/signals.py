"""Drift signals: what is counted on the device, and the reference that it is held against.

A *signal* maps each row that passes a model to one bin. The converter chooses the bins from held-out data and counts them on
the converted model (the *reference*); the device counts into the same bins (a *profile*); adding counters is the merge, exact
in any order. This module has the two documents and their arithmetic in plain Python, so that the agent and the server read
them without numpy; turning arrays into bins is :mod:`edgeops.binning`, the verdict is the server's.
"""

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from edgeops.errors import ManifestError
from edgeops.files import digest_bytes

REFERENCE_SCHEMA = 1
EVERYTHING = ""
"""The stratum that holds all rows of a reference."""


class Statistic(StrEnum):
    """How a row of a tensor becomes one number."""

    VALUE = "value"
    """The element at ``index`` of the flattened row."""
    MEAN = "mean"
    STD = "std"
    GRADIENT = "gradient"
    """Mean absolute difference of neighbours along the last axis: sharpness of an image, roughness of a series."""
    PROJECTION = "projection"
    """A fixed random projection with ±1 entries, drawn from ``index`` as the seed, divided by the square root of the size."""
    CONFIDENCE = "confidence"
    """The largest class probability."""
    ENTROPY = "entropy"
    """Of the class probabilities, in nats."""
    CLASS = "class"
    """The index of the largest class probability; bins are classes."""


class Signal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One signal with its bins and its reference counts.

    Attributes:
        name: Unique in the reference, for example ``image.gradient``.
        tensor: The manifest's input, after ``preprocess``, or output, before ``postprocess``.
        statistic: How a row becomes a number.
        index: Element or seed, where the statistic takes one.
        edges: Increasing; bin ``i`` holds ``edges[i-1] <= x < edges[i]``; there are ``len(edges) + 1`` bins and a last one
            for what is not finite.
        softmax: Whether the row is turned into probabilities first.
        counts: Stratum → count by bin, ``len(edges) + 2`` of them; the stratum ``""`` has all rows. A stratum is a value of
            the attribute :attr:`Reference.stratum_attribute` (a site, a lens), for fleets whose parts differ by nature.
    """

    name: str
    tensor: str
    statistic: Statistic
    index: int = 0
    edges: tuple[float, ...]
    softmax: bool = False
    counts: dict[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        if any(low >= high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ManifestError(f"signal {self.name!r}: edges must increase, got {self.edges}")
        for stratum, counts in self.counts.items():
            if len(counts) != self.bins or min(counts) < 0:
                raise ManifestError(
                    f"signal {self.name!r}, stratum {stratum!r}: expected {self.bins} counts, got {len(counts)}"
                )
        if EVERYTHING not in self.counts:
            raise ManifestError(f"signal {self.name!r}: no counts of all rows (stratum '')")

    @property
    def bins(self) -> int:
        """The number of bins, the one for what is not finite included."""
        return len(self.edges) + 2

    def counts_of(self, stratum: str) -> tuple[int, ...]:
        """The reference counts of a stratum, or of everything where that stratum was not seen."""
        return self.counts.get(stratum) or self.counts[EVERYTHING]


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The drift baseline of a bundle (``reference.json``).

    Attributes:
        rows: How many held-out rows were counted.
        stratum_attribute: Device attribute whose values name the strata; empty when there are none.
        accuracy: Stratum → (correct, labelled) on the same rows; empty without labels.
    """

    schema: int = REFERENCE_SCHEMA
    rows: int
    signals: tuple[Signal, ...]
    stratum_attribute: str = ""
    accuracy: dict[str, tuple[int, int]] = {}

    @property
    def id(self) -> str:
        """Digest of the content; a profile names the reference whose bins it counted into."""
        return digest_bytes(encode_reference(self))


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a device counted: rows, and for each signal the count by bin.

    Attributes:
        reference: :attr:`Reference.id` of the bins.
    """

    reference: str
    rows: int
    counts: dict[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        if self.rows < 0 or any(min(counts, default=0) < 0 for counts in self.counts.values()):
            raise ManifestError("profile: counts are not negative")

    def __add__(self, other: "Profile") -> "Profile":
        """Merge two profiles of the same reference.

        >>> a = Profile(reference="r", rows=2, counts={"s": (1, 1)})
        >>> (a + a).counts
        {'s': (2, 2)}
        """
        return merge_profiles((self, other))


def merge_profiles(profiles: Iterable[Profile]) -> Profile:
    """Add profiles; exact, associative and commutative.

    Raises:
        ManifestError: They are of different references, or there is none.
    """
    total: dict[str, list[int]] = {}
    rows = 0
    references = set()
    for profile in profiles:
        references.add(profile.reference)
        rows += profile.rows
        for name, counts in profile.counts.items():
            known = total.setdefault(name, [0] * len(counts))
            if len(known) != len(counts):
                raise ManifestError(f"profile, signal {name!r}: {len(counts)} bins do not add to {len(known)}")
            for index, count in enumerate(counts):
                known[index] += count
    if len(references) != 1:
        raise ManifestError(f"profiles of {len(references)} references do not add: {sorted(references)}")
    return Profile(
        reference=references.pop(), rows=rows, counts={name: tuple(counts) for name, counts in total.items()}
    )


def encode_reference(reference: Reference) -> bytes:
    """The reference as JSON."""
    return msgspec.json.encode(reference, order="deterministic")


def decode_reference(data: bytes, *, where: str = "reference.json") -> Reference:
    """Read a reference.

    Raises:
        ManifestError: A key is missing, unknown or of the wrong type, or counts do not fit the edges.
    """
    try:
        return msgspec.json.decode(data, type=Reference)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ManifestError) as error:
        raise ManifestError(f"{where}: {error}") from error
