"""Two bundles side by side: what they are, in what they differ, and which is better in what.

Figures come from ``report.json``, or from the manifest where a bundle has no report that this release reads. With data, both
answer the same rows, and the difference has an interval of pairs. Printing is left to :mod:`edgeops_converters.cli.compare`.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

from edgeops.bundle import Bundle, open_bundle, unpack
from edgeops.errors import ManifestError, RecipeError
from edgeops.manifest import FileEntry, Interval, Lineage, Manifest
from edgeops.signing import PublicKey
from edgeops.tensors import TensorSpec
from edgeops_converters.evaluation import ask_bundle
from edgeops_converters.exam import Answers, Exam
from edgeops_converters.fidelity import Drop, wilson
from edgeops_converters.report import Report, VariantReport, decode_report
from edgeops_converters.samples import SampleSource, read_evaluation

_REPORT_FILE = "report.json"
_NOISE_RATIO = 1.05
"""What the medians of two runs on one machine may differ by, beyond their intervals, without meaning anything."""


class Better(StrEnum):
    """Which of two figures is better."""

    FIRST = "A"
    SECOND = "B"
    SAME = "same"
    UNCLEAR = "unclear"  # the intervals overlap


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """What one of the bundles is.

    Attributes:
        where: As it was given.
        cpu: Where latency was measured; empty when that is not known.
        evaluation_rows: That its figures were measured on; ``None`` when that is not known.
    """

    where: str
    name: str
    version: str
    created: str
    digest: str
    lineage: Lineage
    cpu: str
    evaluation_rows: int | None


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a variant in both bundles.

    Attributes:
        what: For example ``latency``.
        unit: Of the values: ``bytes``, ``ms``, ``share``, ``points``, ``dB`` or ``%``.
        first: In the first bundle, with equal ends where it has no interval; ``None`` when it is not known. Likewise ``second``.
        better: Which is better; ``None`` when one of them is not known. Latencies come from runs at different times, and have to
            differ by more than their intervals say (:data:`_NOISE_RATIO`); those of different CPUs are not compared.
    """

    what: str
    unit: str
    first: Interval | None
    second: Interval | None
    better: Better | None


class VariantComparison(msgspec.Struct, frozen=True, kw_only=True):
    """A variant that both bundles have under the same name.

    Attributes:
        is_same_file: Whether it is the same model file, byte for byte.
    """

    name: str
    is_same_file: bool
    figures: tuple[Figure, ...]


class PairedComparison(msgspec.Struct, frozen=True, kw_only=True):
    """A variant of both bundles on the same rows.

    Attributes:
        first: Accuracy of the first bundle's; ``None`` without labels or classes. Likewise ``second``.
        drop: By how much the second is less accurate than the first, row by row.
        agreement: Share of rows on which both have the same class; ``None`` when the outputs are no classes.
        sqnr_db: Of the second's raw outputs against the first's; ``None`` when they are the same.
        better: Which is more accurate; ``None`` without labels.
    """

    name: str
    first: Interval | None
    second: Interval | None
    drop: Drop | None
    agreement: float | None
    sqnr_db: float | None
    better: Better | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two bundles side by side.

    Attributes:
        relation: What the one is to the other, in words.
        differences: In what they differ beyond their figures, in words.
        notes: What to mind when the figures are read.
        variants: That both have.
        only_first: Names of variants that only the first has; likewise ``only_second``.
        rows: Of the data that both answered; ``None`` without data.
        paired: What came of that.
    """

    first: Side
    second: Side
    relation: str
    differences: tuple[str, ...]
    notes: tuple[str, ...]
    variants: tuple[VariantComparison, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    rows: int | None = None
    paired: tuple[PairedComparison, ...] = ()


@contextmanager
def opened(path: Path, *, keys: Iterable[PublicKey] | None = None) -> Iterator[Bundle]:
    """A bundle directory, or the ``.tar`` of one unpacked for as long as it is looked at.

    Raises:
        UntrustedError: None of the keys signed it.
        ManifestError: It is no bundle, or is damaged.
        TransientError: There is no room to unpack it.
    """
    if not path.is_file():
        yield open_bundle(path, keys=keys)
        return
    with tempfile.TemporaryDirectory(prefix="edgeops-compare-") as scratch:
        yield unpack(path, Path(scratch) / "bundle", keys=keys)


def compare(
    first: Bundle, second: Bundle, *, where: tuple[str, str] = ("A", "B"), evaluation: SampleSource | None = None
) -> Comparison:
    """Set two bundles side by side.

    Args:
        first: An opened bundle; with ``evaluation`` it has all its files. Likewise ``second``.
        second: As above.
        where: What to call them.
        evaluation: Rows that both are to answer: an ``.npz`` file or a mapping of arrays, with ``labels`` where there are any.

    Raises:
        RecipeError: The rows are not what both bundles take, or their answers cannot be paired.
        EngineError: An engine failed.
        MissingExtraError: An engine is not installed.
    """
    reports = [_read_report(bundle) for bundle in (first, second)]
    names = [[variant.name for variant in bundle.manifest.variants] for bundle in (first, second)]
    shared = [name for name in names[0] if name in names[1]]
    is_same_cpu = len({report.cpu for report, _ in reports if report is not None}) <= 1
    rows, paired = _paired(first, second, shared, evaluation) if evaluation is not None else (None, ())
    return Comparison(
        first=_side(first, reports[0][0], where[0]),
        second=_side(second, reports[1][0], where[1]),
        relation=_relation(first, second),
        differences=tuple(_differences(first.manifest, second.manifest)),
        notes=(
            *(f"{side}: {said}" for side, (_, said) in zip("AB", reports, strict=True) if said),
            *_cautions(first, second, reports[0][0], reports[1][0]),
        ),
        variants=tuple(
            VariantComparison(
                name=name,
                is_same_file=_entry(first, name) == _entry(second, name),
                figures=tuple(
                    _figures(
                        _facts(first, name, reports[0][0]), _facts(second, name, reports[1][0]), is_same_cpu=is_same_cpu
                    )
                ),
            )
            for name in shared
        ),
        only_first=tuple(name for name in names[0] if name not in shared),
        only_second=tuple(name for name in names[1] if name not in shared),
        rows=rows,
        paired=paired,
    )


def better_of(first: Interval, second: Interval, *, is_lower_better: bool) -> Better:
    """Which of two figures is better; unclear when their intervals overlap.

    >>> a, b = Interval(value=1, low=0.9, high=1.1), Interval(value=2, low=1.5, high=2.5)
    >>> better_of(a, b, is_lower_better=True), better_of(a, b, is_lower_better=False)
    (<Better.FIRST: 'A'>, <Better.SECOND: 'B'>)
    """
    if first == second:
        return Better.SAME
    if first.low <= second.high and second.low <= first.high:
        return Better.UNCLEAR
    return Better.FIRST if (first.value < second.value) == is_lower_better else Better.SECOND


def _read_report(bundle: Bundle) -> tuple[Report | None, str]:
    """The report of a bundle, or why there is none."""
    if _REPORT_FILE not in bundle.manifest.files:
        return None, f"has no {_REPORT_FILE}; its figures are those of the manifest"
    try:
        return decode_report(bundle.file(_REPORT_FILE).read_bytes()), ""
    except ManifestError as error:
        return None, f"its {_REPORT_FILE} is of another release ({error}); its figures are those of the manifest"


def _side(bundle: Bundle, report: Report | None, where: str) -> Side:
    manifest = bundle.manifest
    return Side(
        where=where,
        name=manifest.name,
        version=manifest.version,
        created=manifest.created,
        digest=bundle.digest,
        lineage=manifest.lineage,
        cpu=report.cpu if report is not None else "",
        evaluation_rows=report.evaluation_rows if report is not None else None,
    )


def _relation(first: Bundle, second: Bundle) -> str:
    one, other = first.manifest.lineage, second.manifest.lineage
    if first.digest == second.digest:
        return "A and B are the same bundle"
    if other.parent == first.digest:
        return "B was retrained from A"
    if one.parent == second.digest:
        return "A was retrained from B"
    if one.parent is not None and one.parent == other.parent:
        return "A and B were retrained from the same bundle"
    if one.source_digest == other.source_digest:
        return "A and B are conversions of the same trained model"
    return "A and B come from different trained models"


def _differences(first: Manifest, second: Manifest) -> Iterator[str]:
    yield from _tensor_differences("input", first.inputs, second.inputs)
    yield from _tensor_differences("output", first.outputs, second.outputs)
    if first.labels != second.labels:
        gone, new = (sorted({*a} - {*b}) for a, b in ((first.labels, second.labels), (second.labels, first.labels)))
        said = [f"only in {side}: {', '.join(names)}" for side, names in (("A", gone), ("B", new)) if names]
        yield f"labels: {len(first.labels)} and {len(second.labels)}; {'; '.join(said) or 'in another order'}"
    for what in ("preprocess", "postprocess"):
        if getattr(first, what) != getattr(second, what):
            yield f"{what}: {_operators(getattr(first, what))} → {_operators(getattr(second, what))}"
    if first.license != second.license:
        yield f"licence: {first.license or 'not said'} → {second.license or 'not said'}"
    for what in ("recipe", "tools"):
        one, other = (_settings(getattr(manifest.lineage, what)) for manifest in (first, second))
        for key in sorted({*one, *other}):
            if one.get(key) != other.get(key):
                yield f"{what} {key}: {one.get(key, 'none')} → {other.get(key, 'none')}"


def _settings(values: Mapping[str, object]) -> dict[str, str]:
    """Key → value in words; of what was forced the names, since the reasons have measured figures in them."""
    told = {
        key: sorted(value) if key == "forced" and isinstance(value, dict) else value for key, value in values.items()
    }
    return {
        key: value if isinstance(value, str) else msgspec.json.encode(value).decode() for key, value in told.items()
    }


def _tensor_differences(what: str, first: Sequence[TensorSpec], second: Sequence[TensorSpec]) -> Iterator[str]:
    one, other = ({spec.name: f"{spec.dtype} {list(spec.shape)}" for spec in specs} for specs in (first, second))
    for name in sorted({*one, *other}):
        if one.get(name) != other.get(name):
            yield f"{what} {name}: {one.get(name, 'none')} → {other.get(name, 'none')}"


def _operators(operators: Sequence[object]) -> str:
    return msgspec.json.encode(operators).decode()


def _cautions(first: Bundle, second: Bundle, one: Report | None, other: Report | None) -> Iterator[str]:
    if first.manifest.lineage.data_digest != second.manifest.lineage.data_digest:
        yield "A and B were measured on different data: accuracies say little about each other; give --data"
    if one is not None and other is not None and one.cpu != other.cpu:
        yield f"latencies are of different CPUs: {one.cpu} and {other.cpu}"


@dataclass(frozen=True)
class _Facts:
    """The figures of one variant of one bundle; ``None`` where one is not known."""

    size: Interval
    latency: Interval | None = None
    accuracy: Interval | None = None
    drop: Interval | None = None
    agreement: Interval | None = None
    sqnr: Interval | None = None
    integer: Interval | None = None


def _facts(bundle: Bundle, name: str, report: Report | None) -> _Facts:
    size = _exact(_entry(bundle, name).size_bytes)
    told = next((one for one in report.variants if one.name == name), None) if report is not None else None
    if report is None or told is None:
        measured = bundle.manifest.variant(name).measured
        return _Facts(
            size,
            latency=_exact(measured.latency_ms) if measured.latency_ms is not None else None,
            accuracy=measured.accuracy,
            agreement=_exact(measured.agreement) if measured.agreement is not None else None,
        )
    return _told(size, told, rows=report.evaluation_rows)


def _told(size: Interval, told: VariantReport, *, rows: int) -> _Facts:
    drop = told.drop
    return _Facts(
        size,
        latency=told.latency_interval or _exact(told.latency_ms),
        accuracy=told.accuracy,
        drop=Interval(value=drop.points, low=drop.low, high=drop.high) if drop is not None else None,
        agreement=wilson(round(told.agreement * rows), rows) if told.agreement is not None else None,
        sqnr=_exact(told.sqnr_db) if told.sqnr_db is not None else None,
        integer=_exact(told.audit.percent) if told.audit is not None else None,
    )


def _exact(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)


def _widened(latency: Interval) -> Interval:
    """With room for what two runs differ by."""
    half = _NOISE_RATIO**0.5
    return Interval(value=latency.value, low=latency.low / half, high=latency.high * half)


_FIGURES = {
    "size": ("bytes", True),
    "latency": ("ms", True),
    "accuracy": ("share", False),
    "drop": ("points", True),
    "agreement": ("share", False),
    "sqnr": ("dB", False),
    "integer": ("%", False),
}
"""Figure → unit, and whether less is better."""


def _figures(first: _Facts, second: _Facts, *, is_same_cpu: bool) -> Iterator[Figure]:
    for what, (unit, is_lower_better) in _FIGURES.items():
        one, other = getattr(first, what), getattr(second, what)
        if one is None and other is None:
            continue
        better = None
        if one is not None and other is not None and unit == "ms":
            better = better_of(_widened(one), _widened(other), is_lower_better=True) if is_same_cpu else None
        elif one is not None and other is not None:
            better = better_of(one, other, is_lower_better=is_lower_better)
        yield Figure(what=what, unit=unit, first=one, second=other, better=better)


def _entry(bundle: Bundle, name: str) -> FileEntry:
    return bundle.manifest.files[bundle.manifest.variant(name).file]


def _paired(
    first: Bundle, second: Bundle, shared: Sequence[str], evaluation: SampleSource
) -> tuple[int, tuple[PairedComparison, ...]]:
    _check_pairable(first.manifest, second.manifest)
    samples = read_evaluation(evaluation)
    exam, one = ask_bundle(first, samples)
    _, other = ask_bundle(second, samples)
    return samples.rows, tuple(_pair(name, exam, one[name], other[name]) for name in shared)


def _check_pairable(first: Manifest, second: Manifest) -> None:
    differing = [
        *_tensor_differences("input", first.inputs, second.inputs),
        *_tensor_differences("output", first.outputs, second.outputs),
    ]
    if first.labels and second.labels and first.labels != second.labels:
        differing.append("labels")
    if differing:
        raise RecipeError(
            f"the bundles cannot answer the same rows, they differ in {'; '.join(differing)}; leave out --data"
        )


def _pair(name: str, exam: Exam, one: Answers, other: Answers) -> PairedComparison:
    drop = exam.drop(one, other)
    return PairedComparison(
        name=name,
        first=exam.accuracy(one),
        second=exam.accuracy(other),
        drop=drop,
        agreement=exam.agreement(one, other),
        sqnr_db=exam.sqnr_db(one, other),
        better=_better_of_pairs(drop) if drop is not None else None,
    )


def _better_of_pairs(drop: Drop) -> Better:
    """Which is more accurate; unclear when the difference may as well be zero."""
    if drop.low > 0:
        return Better.FIRST
    if drop.high < 0:
        return Better.SECOND
    return Better.SAME if drop.low == drop.high else Better.UNCLEAR
