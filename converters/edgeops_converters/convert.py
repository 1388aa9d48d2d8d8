"""From a trained model to a signed bundle: the story of a conversion, top to bottom.

Each step is a module of its own; this one puts them in order, hands values on, and writes nothing before the gate has passed.
"""

import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from edgeops import processing
from edgeops.bundle import Bundle, write_bundle
from edgeops.errors import ConflictError, EngineError, ExportError, GateError, RecipeError
from edgeops.files import digest_bytes, digest_file
from edgeops.manifest import FileEntry, Lineage, Manifest, Measured, Operator, Variant, parse_version
from edgeops.processing import Tensors
from edgeops.signals import Reference, encode_reference
from edgeops.signing import SigningKey
from edgeops.tensors import PROTOCOL_NAMES, TensorSpec
from edgeops.topics import check_name
from edgeops_converters import golden
from edgeops_converters.artifact import ENGINES, Artifact
from edgeops_converters.baseline import make_reference
from edgeops_converters.evaluation import Answers, answer, check_labels, class_output
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.fidelity import accuracy, agreement, paired_drop, sqnr_db
from edgeops_converters.gate import Evidence, Verdict, is_slower, judge
from edgeops_converters.lineage import git_revision, tool_versions
from edgeops_converters.page import render_page
from edgeops_converters.quantizers import QUANTIZERS
from edgeops_converters.recipe import Recipe
from edgeops_converters.report import Report, SourceReport, VariantReport, encode_report
from edgeops_converters.samples import Samples, SampleSource, check_alike, read_calibration, read_evaluation
from edgeops_converters.sessions import run_rows
from edgeops_converters.sources import Model, open_model
from edgeops_converters.steps import Steps
from edgeops_converters.targets import parse_target, this_machine
from edgeops_converters.timing import interleaved_medians

if TYPE_CHECKING:
    from torch import nn

_EXAMPLE_ROWS = 4
_TIMED_ROWS = 64
_TIMING_BUDGET_S = 1.5
_THREADS = 2
_KERNEL_ROWS = 64


@dataclass(frozen=True)
class Conversion:
    """A finished conversion: the bundle as written, and its report."""

    bundle: Bundle
    report: Report


@dataclass(frozen=True)
class _Measurement:
    """A model file with everything that was measured on it."""

    artifact: Artifact
    answers: Answers
    latency_ms: float
    float_latency_ms: float | None
    verdict: Verdict


def convert(
    source: "nn.Module | str | Path",
    *,
    data: SampleSource,
    evaluation: SampleSource,
    name: str,
    version: str,
    output: Path,
    formats: Sequence[str] = ("onnx", "tflite"),
    precisions: Sequence[str] = ("float", "int8"),
    max_drop: float = 0.5,
    target: str | None = None,
    labels: Sequence[str] = (),
    preprocess: Sequence[Operator] = (),
    postprocess: Sequence[Operator] = (),
    keys: Iterable[SigningKey] = (),
    stratum_attribute: str = "",
    parent: str | None = None,
    dataset: str | None = None,
    license: str = "",  # noqa: A002 - the manifest's word
    force: bool = False,
    on_step: Callable[[str], None] | None = None,
) -> Conversion:
    """Compress a model, prove that it is still the model, and write a signed bundle.

    Args:
        source: A module in eval mode, ``file.py:function``, a ``.pt2`` exported program, or an ``.onnx`` file (ONNX out only).
        data: Calibration rows: an ``.npz`` file or a mapping, one key for each input, as the caller of the bundle gives them.
        evaluation: Held-out rows, with ``labels`` (class index) and ``stratum`` (str) where there are any.
        name: Of the model; with ``version`` (semantic) it names the bundle to people.
        version: As above.
        output: The bundle directory to make.
        formats: Of ``onnx``, ``tflite``.
        precisions: Of ``float``, ``int8``.
        max_drop: Largest accepted loss of accuracy against the source, in percentage points.
        target: ``x86`` or ``arm``; this machine when ``None``.
        labels: Class names by index.
        preprocess: Operators from the caller's inputs to the model's.
        postprocess: Operators from the model's outputs to the caller's.
        keys: Who signs the manifest.
        stratum_attribute: Device attribute whose values are the ``stratum`` of the evaluation rows.
        parent: Manifest digest of the bundle that this one was retrained from.
        dataset: Digest of the dataset that it was retrained on.
        license: SPDX expression of the model.
        force: Keep a variant that the gate refuses; the report says so.
        on_step: Told the name of each step when it begins.

    Raises:
        RecipeError: Settings or data cannot work.
        ExportError: The source does not export; the message says what to change.
        GateError: A compressed variant is slower than float or not faithful, and ``force`` was not given.
        ConflictError: ``output`` exists.
        ManifestError: Name or version is not valid.
        MissingExtraError: A library of the ``convert`` extra is not installed.
    """
    recipe = Recipe(
        formats=tuple(formats),
        precisions=tuple(precisions),
        max_drop=max_drop,
        target=parse_target(target),
        preprocess=tuple(preprocess),
        postprocess=tuple(postprocess),
        labels=tuple(labels),
        stratum_attribute=stratum_attribute,
        force=force,
    )
    check_name("model", name)
    parse_version(version)
    if Path(output).exists():
        raise ConflictError(f"{output}: exists already; choose another directory or version")
    steps = Steps(on_step, clock=time.perf_counter)

    with tempfile.TemporaryDirectory(prefix="edgeops-convert-") as scratch:
        with steps.step("read the data"):
            calibration, held_out = read_calibration(data), read_evaluation(evaluation)
            check_alike(calibration, held_out)
            _check_strata(held_out, stratum_attribute)
            calibration_inputs = _preprocessed(recipe, calibration)
            inputs = _preprocessed(recipe, held_out)
        with steps.step("open the source"):
            model = open_model(source, {key: array[:_EXAMPLE_ROWS] for key, array in calibration_inputs.items()})
            classes = class_output(model.inputs, model.outputs, is_told=_is_told(recipe, held_out))
            check_labels(held_out, {spec.name: spec.shape for spec in model.outputs}, classes)
            _check_label_names(recipe, model, classes)
            recipe, notes = _formats_of(model, recipe)
        with steps.step("answers of the source"):
            original = _answers(model.answer, inputs, model.batch, recipe, classes)
            if not original.is_finite:
                raise ExportError(f"{model.label}: answers NaN or Inf on the evaluation data; look at its weights")
        artifacts = _artifacts(model, calibration_inputs, recipe, Path(scratch), steps)
        measured = _measure(artifacts, inputs, original, held_out, recipe, classes, steps)
        kept = _gated([one for one in measured if _is_wanted(one, recipe)], recipe)
        with steps.step("drift reference"):
            witness = next((one for one in kept if one.artifact.precision == "int8"), kept[0])
            reference = make_reference(
                inputs, witness.answers, held_out, class_output=classes, stratum_attribute=stratum_attribute
            )
        with steps.step("golden vectors"):
            tolerances, weak = _write_golden(Path(scratch) / "golden.npz", kept, held_out.inputs, inputs, recipe)
        lineage = Lineage(
            source=model.label,
            source_digest=model.digest,
            data_digest=_data_digest(calibration, held_out),
            git_revision=git_revision(model.directory),
            parent=parent,
            dataset=dataset,
            recipe={**recipe.as_json(), "refused_but_forced": _forced(kept)},
            tools=tool_versions(),
        )
        report = Report(
            name=name,
            version=version,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            target=str(recipe.target),
            cpu=_cpu_name(),
            max_drop=max_drop,
            calibration_rows=calibration.rows,
            evaluation_rows=held_out.rows,
            source=SourceReport(
                label=model.label,
                accuracy=accuracy(original.classes, held_out.labels)
                if original.classes is not None and held_out.labels is not None
                else None,
            ),
            variants=tuple(_variant_report(one, original, held_out, tolerances[one.artifact.name]) for one in kept),
            reference_variant=witness.artifact.name,
            signals=tuple(signal.name for signal in reference.signals),
            lineage=lineage,
            license=license,
            notes=(*notes, *weak),
            seconds=steps.seconds,
        )
        with steps.step("write the bundle"):
            bundle = _write(report, reference, kept, model, held_out, recipe, Path(scratch), Path(output), keys)
    return Conversion(bundle=bundle, report=report)


# ---- reading -------------------------------------------------------------------------------------------------------


def _preprocessed(recipe: Recipe, samples: Samples) -> Tensors:
    unknown = {operator.tensor for operator in recipe.preprocess} - set(samples.inputs)
    if unknown:
        raise RecipeError(f"preprocess: no input {sorted(unknown)}; {samples.where} has {sorted(samples.inputs)}")
    return processing.apply(recipe.preprocess, samples.inputs)


def _check_strata(held_out: Samples, attribute: str) -> None:
    if attribute and held_out.strata is None:
        raise RecipeError(f"{held_out.where}: expected the key 'stratum' with the {attribute!r} of each row")


def _is_told(recipe: Recipe, held_out: Samples) -> bool:
    return held_out.labels is not None or bool(recipe.labels)


def _check_label_names(recipe: Recipe, model: Model, classes: str | None) -> None:
    unknown = {operator.tensor for operator in recipe.postprocess} - {spec.name for spec in model.outputs}
    if unknown:
        raise RecipeError(
            f"postprocess: no output {sorted(unknown)}; the model has {[spec.name for spec in model.outputs]}"
        )
    sizes = {spec.name: spec.shape[1] for spec in model.outputs if spec.name == classes}
    if recipe.labels and sizes.get(classes or "") != len(recipe.labels):
        found = f"output {classes!r} has {sizes[classes]} classes" if classes in sizes else "no output has classes"
        raise RecipeError(f"labels: got {len(recipe.labels)} names, but {found}")


def _formats_of(model: Model, recipe: Recipe) -> tuple[Recipe, tuple[str, ...]]:
    """An ONNX source gives ONNX only; say so."""
    if model.onnx is None or recipe.formats == ("onnx",):
        return recipe, ()
    if "onnx" not in recipe.formats:
        raise ExportError(f"{model.label}: an ONNX source gives ONNX only; for TFLite give the torch model")
    note = f"{model.label} is ONNX already, which gives ONNX only; for TFLite give the torch model"
    return Recipe(**{**vars(recipe), "formats": ("onnx",)}), (note,)


# ---- making and measuring ------------------------------------------------------------------------------------------


def _artifacts(model: Model, calibration: Tensors, recipe: Recipe, scratch: Path, steps: Steps) -> list[Artifact]:
    """Float and int8 files of every format; float is made even when it is not wanted, to measure against."""
    example = {name: array[:_EXAMPLE_ROWS] for name, array in calibration.items()}
    made = []
    for form in recipe.formats:
        with steps.step(f"export {form}"):
            exported = EXPORTERS[form].export(model, example, scratch / f"model.float.{form}")
            made.append(exported)
        if "int8" in recipe.precisions:
            with steps.step(f"quantise {form}"):
                made.append(
                    QUANTIZERS[form].quantize(exported, calibration, scratch / f"model.int8.{form}", cpu=recipe.target)
                )
    return made


def _measure(
    artifacts: Sequence[Artifact],
    inputs: Tensors,
    original: Answers,
    held_out: Samples,
    recipe: Recipe,
    classes: str | None,
    steps: Steps,
) -> list[_Measurement]:
    answers = {}
    for artifact in artifacts:
        with steps.step(f"evaluate {artifact.name}"):
            run = artifact.open(threads=_THREADS).run
            answers[artifact.name] = _answers(run, inputs, artifact.batch, recipe, classes)
    with steps.step("latency"):
        latency = _latency(artifacts, inputs, budget_s=_TIMING_BUDGET_S)
        if any(is_slower(_evidence(a, answers[a.name], latency, original, held_out, recipe)) for a in artifacts):
            # A neighbour may have been busy just then; what is slower twice is slower.
            again = _latency(artifacts, inputs, budget_s=2 * _TIMING_BUDGET_S)
            latency = {name: min(value, again[name]) for name, value in latency.items()}
    measured = []
    for artifact in artifacts:
        evidence = _evidence(artifact, answers[artifact.name], latency, original, held_out, recipe)
        verdict = Verdict(passed=True) if artifact.precision == "float32" else judge(evidence, max_drop=recipe.max_drop)
        measured.append(
            _Measurement(
                artifact,
                answers[artifact.name],
                latency[artifact.name],
                latency.get(f"{artifact.format}-float"),
                verdict,
            )
        )
    return measured


def _answers(
    run: Callable[[Tensors], Tensors], inputs: Tensors, batch: int | None, recipe: Recipe, classes: str | None
) -> Answers:
    return answer(run, inputs, batch=batch, postprocess=recipe.postprocess, class_output=classes)


def _latency(artifacts: Sequence[Artifact], inputs: Tensors, *, budget_s: float) -> dict[str, float]:
    """Median of one call with one row (or the file's batch), one thread, in milliseconds."""

    def timed(artifact: Artifact) -> Callable[[int], object]:
        session, size = artifact.open(threads=1), artifact.batch or 1
        rows = min(len(next(iter(inputs.values()))) - size + 1, _TIMED_ROWS)
        batches = [{name: array[row : row + size] for name, array in inputs.items()} for row in range(max(rows, 0))]
        if not batches:
            raise RecipeError(f"{artifact.file} takes {size} rows at once; give at least as many evaluation rows")
        return lambda index: session.run(batches[index % len(batches)])

    return interleaved_medians(
        {artifact.name: timed(artifact) for artifact in artifacts}, clock=time.perf_counter, budget_s=budget_s
    )


def _evidence(
    artifact: Artifact,
    answers: Answers,
    latency: dict[str, float],
    original: Answers,
    held_out: Samples,
    recipe: Recipe,
) -> Evidence:
    is_here = recipe.target is this_machine() or artifact.format == "tflite"
    has_classes = original.classes is not None and answers.classes is not None
    drop = disagreement = None
    if has_classes and held_out.labels is not None:
        drop = paired_drop(original.classes, answers.classes, held_out.labels).points
    elif has_classes:
        disagreement = 100 * (1 - agreement(original.classes, answers.classes))
    return Evidence(
        latency_ms=latency[artifact.name] if is_here else None,
        float_latency_ms=latency.get(f"{artifact.format}-float"),
        drop_points=drop,
        disagreement_points=disagreement,
        sqnr_db=sqnr_db(original.raw, answers.raw) if answers.is_finite else None,
        finite=answers.is_finite,
    )


# ---- deciding ------------------------------------------------------------------------------------------------------


def _is_wanted(measurement: _Measurement, recipe: Recipe) -> bool:
    precision = "float" if measurement.artifact.precision == "float32" else measurement.artifact.precision
    return precision in recipe.precisions


def _gated(measured: Sequence[_Measurement], recipe: Recipe) -> list[_Measurement]:
    """The variants that ship, in order of preference: int8 before float, each by latency.

    Raises:
        GateError: One does not pass, and ``force`` was not given.
    """
    refused = [one for one in measured if not one.verdict.passed]
    if refused and not recipe.force:
        figures = "; ".join(f"{one.artifact.name}: {' and '.join(one.verdict.reasons)}" for one in refused)
        raise GateError(
            f"{figures}. Nothing was written. Give more or better calibration data, leave the variant out "
            "(--formats, --precisions), accept more (--max-drop), or take it as it is (--force)"
        )
    return sorted(measured, key=lambda one: (one.artifact.precision != "int8", one.latency_ms))


def _forced(kept: Sequence[_Measurement]) -> dict[str, list[str]]:
    return {one.artifact.name: list(one.verdict.reasons) for one in kept if not one.verdict.passed}


# ---- writing -------------------------------------------------------------------------------------------------------


def _write_golden(
    target: Path, kept: Sequence[_Measurement], given: Tensors, inputs: Tensors, recipe: Recipe
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Write the golden rows; returns the tolerance of each variant, and a note for each test that proves little."""
    count = len(next(iter(given.values())))
    rows = golden.choose_rows(kept[0].answers.classes, count)
    sample = {name: array[:_KERNEL_ROWS] for name, array in inputs.items()}
    tolerances, outputs, notes = {}, {}, []
    for one in kept:
        artifact = one.artifact
        try:
            other = run_rows(artifact.open(is_plain=True).run, sample, batch=artifact.batch)
        except EngineError:
            other = {name: array[:_KERNEL_ROWS] for name, array in one.answers.raw.items()}
            notes.append(f"{artifact.name}: does not run without graph optimisation, so the tolerance is of steps only")
        raw = {name: array[:_KERNEL_ROWS] for name, array in one.answers.raw.items()}
        tolerances[artifact.name] = golden.tolerance(
            raw, other, precision=artifact.precision, postprocess=recipe.postprocess
        )
        outputs[artifact.name] = {name: array[rows] for name, array in one.answers.given.items()}
        if not golden.has_power(outputs[artifact.name], tolerances[artifact.name]):
            notes.append(f"{artifact.name}: golden rows give nearly the same answers, so the golden test proves little")
    golden.write_golden(target, {name: array[rows] for name, array in given.items()}, outputs)
    return tolerances, tuple(notes)


def _variant_report(one: _Measurement, original: Answers, held_out: Samples, tolerance: float) -> VariantReport:
    classes, has_labels = one.answers.classes, held_out.labels is not None
    is_float = one.artifact.precision == "float32"
    return VariantReport(
        name=one.artifact.name,
        file=one.artifact.file,
        format=one.artifact.format,
        precision=one.artifact.precision,
        size_bytes=one.artifact.size_bytes,
        latency_ms=one.latency_ms,
        speedup=None if is_float or one.float_latency_ms is None else one.float_latency_ms / one.latency_ms,
        accuracy=accuracy(classes, held_out.labels) if classes is not None and has_labels else None,
        drop=paired_drop(original.classes, classes, held_out.labels) if classes is not None and has_labels else None,
        agreement=agreement(original.classes, classes) if classes is not None else None,
        sqnr_db=sqnr_db(original.raw, one.answers.raw),
        tolerance=tolerance,
        gate=Verdict(
            passed=one.verdict.passed,
            reasons=one.verdict.reasons,
            forced=not one.verdict.passed,
            measure=one.verdict.measure,
        ),
        notes=one.artifact.notes,
    )


def _write(
    report: Report,
    reference: Reference,
    kept: Sequence[_Measurement],
    model: Model,
    held_out: Samples,
    recipe: Recipe,
    scratch: Path,
    output: Path,
    keys: Iterable[SigningKey],
) -> Bundle:
    (scratch / "reference.json").write_bytes(encode_reference(reference))
    (scratch / "report.json").write_bytes(encode_report(report))
    (scratch / "report.html").write_text(render_page(report, reference), encoding="utf-8")
    files = {name: scratch / name for name in ("golden.npz", "reference.json", "report.json", "report.html")}
    files |= {one.artifact.file: one.artifact.path for one in kept}
    manifest = Manifest(
        name=report.name,
        version=report.version,
        created=report.created,
        inputs=tuple(_caller_input(spec, held_out) for spec in model.inputs),
        outputs=tuple(_caller_output(spec, recipe) for spec in model.outputs),
        preprocess=recipe.preprocess,
        postprocess=recipe.postprocess,
        labels=recipe.labels,
        variants=tuple(_variant(one, report.variant(one.artifact.name)) for one in kept),
        files={
            path: FileEntry(digest=digest_file(file), size_bytes=file.stat().st_size) for path, file in files.items()
        },
        golden="golden.npz",
        reference="reference.json",
        lineage=report.lineage,
        license=report.license,
    )
    return write_bundle(output, manifest, files, keys=keys)


def _caller_input(spec: TensorSpec, held_out: Samples) -> TensorSpec:
    """An input as the caller gives it, before ``preprocess``."""
    array = held_out.inputs[spec.name]
    return TensorSpec(name=spec.name, dtype=PROTOCOL_NAMES[str(array.dtype)], shape=spec.shape, layout=spec.layout)


def _caller_output(spec: TensorSpec, recipe: Recipe) -> TensorSpec:
    """An output as the caller gets it: every operator gives float32."""
    is_processed = any(operator.tensor == spec.name for operator in recipe.postprocess)
    return TensorSpec(
        name=spec.name, dtype="FP32" if is_processed else spec.dtype, shape=spec.shape, layout=spec.layout
    )


def _variant(one: _Measurement, report: VariantReport) -> Variant:
    artifact = one.artifact
    return Variant(
        name=artifact.name,
        file=artifact.file,
        format=artifact.format,
        engines=dict(ENGINES[artifact.format]),
        precision=artifact.precision,
        batch=artifact.batch,
        inputs=dict(artifact.inputs),
        outputs=dict(artifact.outputs),
        tolerance=report.tolerance,
        measured=Measured(latency_ms=report.latency_ms, accuracy=report.accuracy, agreement=report.agreement),
    )


def _data_digest(calibration: Samples, held_out: Samples) -> str:
    return digest_bytes(f"{calibration.digest()}\n{held_out.digest()}".encode())


def _cpu_name() -> str:
    """The CPU as Linux names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
