"""From measurements to a bundle: golden vectors, report, manifest, and the directory."""

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeops.bundle import Bundle, write_bundle
from edgeops.errors import EngineError
from edgeops.files import digest_file
from edgeops.manifest import FileEntry, Manifest, Measured, Operator, Requires, Variant
from edgeops.processing import Tensors
from edgeops.signals import Reference, encode_reference
from edgeops.signing import SigningKey
from edgeops.tensors import PROTOCOL_NAMES, TensorSpec
from edgeops_converters import golden
from edgeops_converters.compressors import engines_of
from edgeops_converters.exam import Answers, Exam
from edgeops_converters.measurement import Measurement
from edgeops_converters.page import render_page
from edgeops_converters.plan import QuantPlan, encode_plan
from edgeops_converters.recipe import Recipe
from edgeops_converters.report import Report, VariantReport, encode_report
from edgeops_converters.samples import Samples
from edgeops_converters.sessions import run_rows
from edgeops_converters.sizes import break_down
from edgeops_converters.sources import Model
from edgeops_converters.tensor_report import TensorReport

_KERNEL_ROWS = 64
GOLDEN_FILE, REFERENCE_FILE = "golden.npz", "reference.json"
REPORT_FILE, PAGE_FILE, PLAN_FILE = "report.json", "report.html", "plan.json"


@dataclass(frozen=True)
class GoldenTest:
    """The golden vectors as written.

    Attributes:
        tolerances: Variant → largest difference that is accepted.
        notes: A line for each variant whose golden test proves little.
    """

    tolerances: dict[str, float]
    notes: tuple[str, ...]


def make_golden(target: Path, kept: Sequence[Measurement], exam: Exam) -> GoldenTest:
    """Write the golden rows, and work out how far another CPU may differ."""
    rows = golden.choose_rows(kept[0].answers.classes, exam.samples.rows)
    tolerances, outputs, notes = {}, {}, []
    for one in kept:
        name = one.artifact.name
        raw = _first_rows(one.answers.raw)
        try:
            # One row at a time: where ranges are found at each call, an answer depends on the rows beside it.
            batch = one.artifact.batch or 1
            other = run_rows(one.artifact.open(is_plain=True).run, _first_rows(exam.inputs), batch=batch)
        except EngineError:
            other = raw
            notes.append(f"{name}: has no second set of kernels here; the tolerance is of quantisation steps only")
        tolerances[name] = golden.tolerance(raw, other, precision=one.artifact.precision, postprocess=exam.postprocess)
        outputs[name] = {output: array[rows] for output, array in one.answers.given.items()}
        if not golden.has_power(outputs[name], tolerances[name]):
            notes.append(f"{name}: the golden rows have nearly the same answers, so the golden test proves little")
    golden.write_golden(target, {name: array[rows] for name, array in exam.samples.inputs.items()}, outputs)
    return GoldenTest(tolerances, tuple(notes))


def describe(
    one: Measurement, exam: Exam, original: Answers, *, tolerance: float, tensors: tuple[TensorReport, ...] = ()
) -> VariantReport:
    """What the report says of a variant."""
    artifact, answers = one.artifact, one.answers
    return VariantReport(
        name=artifact.name,
        file=artifact.file,
        format=artifact.format,
        precision=artifact.precision,
        size_bytes=artifact.size_bytes,
        latency_ms=one.latency_ms,
        speedup=None if artifact.precision == "float32" else one.float_latency_ms / one.latency_ms,
        accuracy=exam.accuracy(answers),
        drop=exam.drop(original, answers),
        agreement=exam.agreement(original, answers),
        sqnr_db=exam.sqnr_db(original, answers),
        tolerance=tolerance,
        gate=msgspec.structs.replace(one.verdict, forced=not one.verdict.passed),
        notes=(*artifact.notes, *one.remarks, *((str(one.layers),) if isinstance(one.layers, EngineError) else ())),
        audit=one.audit,
        latency_interval=one.latency,
        sizes=break_down(artifact),
        layers=one.layers if isinstance(one.layers, tuple) else (),
        tensors=tensors,
    )


def pack(
    output: Path,
    report: Report,
    reference: Reference,
    *,
    kept: Sequence[Measurement],
    model: Model,
    samples: Samples,
    recipe: Recipe,
    scratch: Path,
    keys: Iterable[SigningKey],
    plan: QuantPlan | None = None,
) -> Bundle:
    """Write the bundle directory, whole or not at all.

    Args:
        output: The directory to make.
        report: Goes in as JSON and as a page, and fills the manifest.
        reference: The drift baseline.
        kept: The variants, in order of preference.
        model: Its tensors are the bundle's.
        samples: As the caller gives them; their dtypes are the bundle's.
        recipe: Operators and labels.
        scratch: Where the golden vectors lie, and where the other files are made.
        keys: Who signs.
        plan: Of the variants that were planned, if there are any.

    Raises:
        ConflictError: The directory exists.
    """
    (scratch / REFERENCE_FILE).write_bytes(encode_reference(reference))
    (scratch / REPORT_FILE).write_bytes(encode_report(report))
    (scratch / PAGE_FILE).write_text(render_page(report, reference, recipe.labels), encoding="utf-8")
    files = {name: scratch / name for name in (GOLDEN_FILE, REFERENCE_FILE, REPORT_FILE, PAGE_FILE)}
    files |= {one.artifact.file: one.artifact.path for one in kept}
    if plan is not None:
        files[PLAN_FILE] = scratch / PLAN_FILE
        files[PLAN_FILE].write_bytes(encode_plan(plan))
    manifest = Manifest(
        name=report.name,
        version=report.version,
        created=report.created,
        inputs=tuple(_caller_input(spec, samples) for spec in model.inputs),
        outputs=tuple(_caller_output(spec, recipe.postprocess) for spec in model.outputs),
        preprocess=recipe.preprocess,
        postprocess=recipe.postprocess,
        labels=recipe.labels,
        variants=tuple(_variant(one, report.variant(one.artifact.name), is_alone=not recipe.also) for one in kept),
        files={
            name: FileEntry(digest=digest_file(file), size_bytes=file.stat().st_size) for name, file in files.items()
        },
        golden=GOLDEN_FILE,
        reference=REFERENCE_FILE,
        lineage=report.lineage,
        license=report.license,
    )
    return write_bundle(output, manifest, files, keys=keys)


def cpu_name() -> str:
    """The CPU that latency is measured on, as Linux names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _first_rows(tensors: Tensors) -> Tensors:
    return {name: array[:_KERNEL_ROWS] for name, array in tensors.items()}


def _caller_input(spec: TensorSpec, samples: Samples) -> TensorSpec:
    """An input as the caller gives it, before ``preprocess``."""
    dtype = PROTOCOL_NAMES[str(samples.inputs[spec.name].dtype)]
    return TensorSpec(name=spec.name, dtype=dtype, shape=spec.shape, layout=spec.layout)


def _caller_output(spec: TensorSpec, postprocess: Sequence[Operator]) -> TensorSpec:
    """An output as the caller gets it: every operator gives float32."""
    is_processed = any(operator.tensor == spec.name for operator in postprocess)
    return TensorSpec(
        name=spec.name, dtype="FP32" if is_processed else spec.dtype, shape=spec.shape, layout=spec.layout
    )


def _variant(one: Measurement, report: VariantReport, *, is_alone: bool) -> Variant:
    artifact = one.artifact
    target = artifact.target
    flags = () if target is None else target.cpu_flags if is_alone else target.family_flags
    return Variant(
        name=artifact.name,
        file=artifact.file,
        format=artifact.format,
        engines=engines_of(artifact),
        precision=artifact.precision,
        batch=artifact.batch,
        inputs=dict(artifact.inputs),
        outputs=dict(artifact.outputs),
        tolerance=report.tolerance,
        requires=Requires(cpu=flags),
        measured=Measured(latency_ms=report.latency_ms, accuracy=report.accuracy, agreement=report.agreement),
    )
