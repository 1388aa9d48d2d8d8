"""The report of a conversion: ``report.json`` for machines, and what :mod:`edgeops_converters.page` shows to people."""

import msgspec

from edgeops.errors import ManifestError
from edgeops.manifest import Interval, Lineage
from edgeops_converters.audit import Audit
from edgeops_converters.fidelity import Drop
from edgeops_converters.gate import Verdict
from edgeops_converters.layer_noise import LayerReport
from edgeops_converters.sizes import Sizes
from edgeops_converters.tensor_report import TensorReport
from edgeops_converters.trials import Trial

REPORT_SCHEMA = 1


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Common settings of every part."""


class SourceReport(_Part, frozen=True, kw_only=True):
    """The model that was converted.

    Attributes:
        label: As the user named it.
        accuracy: On the evaluation rows; ``None`` without labels.
    """

    label: str
    accuracy: Interval | None


class VariantReport(_Part, frozen=True, kw_only=True):
    """One variant, as measured on the workstation.

    Attributes:
        latency_ms: Median of one row, one thread.
        speedup: Latency of the float variant of the same format over this one's.
        drop: Loss of accuracy against the source, on the same rows.
        agreement: Share of rows with the source's class; ``None`` when the outputs are no classes.
        sqnr_db: Of the raw outputs against the source's; ``None`` when they are the same.
        tolerance: Of the golden test.
        notes: What a person should know.
        audit: What its engine runs in integers; ``None`` for float.
        latency_interval: The median with its 95 % interval, in milliseconds.
        sizes: Where the bytes go.
        layers: How noisy each layer is, in the order of the graph; none for float.
        tensors: The range of each quantised activation, in the order of the graph.
    """

    name: str
    file: str
    format: str
    precision: str
    size_bytes: int
    latency_ms: float
    speedup: float | None
    accuracy: Interval | None
    drop: Drop | None
    agreement: float | None
    sqnr_db: float | None
    tolerance: float
    gate: Verdict
    notes: tuple[str, ...] = ()
    audit: Audit | None = None
    latency_interval: Interval | None = None
    sizes: Sizes | None = None
    layers: tuple[LayerReport, ...] = ()
    tensors: tuple[TensorReport, ...] = ()


class Report(_Part, frozen=True, kw_only=True):
    """Everything that was measured and decided; equal to ``report.json``.

    Attributes:
        cpu: Where latency was measured.
        evaluation_rows: That all figures of the variants are from.
        search_rows: That a search chose by, and that no figure of a variant is from; 0 without a search.
        variants: In order of preference, as in the manifest.
        signals: Names of the drift signals in ``reference.json``.
        notes: What a person should know about the conversion as a whole.
        seconds: Step → duration, in order.
        trials: What a search tried, in that order; none without a search.
        advice: What to do next, most urgent first.
    """

    schema: int = REPORT_SCHEMA
    name: str
    version: str
    created: str
    target: str
    cpu: str
    max_drop: float
    calibration_rows: int
    evaluation_rows: int
    search_rows: int = 0
    source: SourceReport
    variants: tuple[VariantReport, ...]
    reference_variant: str
    signals: tuple[str, ...]
    lineage: Lineage
    license: str = ""
    notes: tuple[str, ...] = ()
    seconds: dict[str, float]
    trials: tuple[Trial, ...] = ()
    advice: tuple[str, ...] = ()

    def variant(self, name: str) -> VariantReport:
        """The variant of that name.

        Raises:
            ManifestError: There is none.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise ManifestError(f"report: no variant {name!r}; it has {[variant.name for variant in self.variants]}")


def encode_report(report: Report) -> bytes:
    """The report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2)


def decode_report(data: bytes) -> Report:
    """Read ``report.json``.

    Raises:
        ManifestError: It is not a report of this schema.
    """
    try:
        return msgspec.json.decode(data, type=Report)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ManifestError(f"report.json: {error}") from error
