"""From a trained model to a signed bundle: the story of a conversion, top to bottom.

Each step is a module of its own; this one puts them in order and hands values on. Nothing is written before the gate has passed.
"""

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeops import processing
from edgeops.bundle import Bundle
from edgeops.errors import ConflictError, ExportError, RecipeError, TransientError
from edgeops.files import digest_bytes
from edgeops.manifest import Lineage, Operator, parse_version
from edgeops.processing import Tensors
from edgeops.signing import SigningKey
from edgeops.topics import check_name
from edgeops_converters.advice import advise
from edgeops_converters.artifact import Artifact
from edgeops_converters.baseline import make_reference
from edgeops_converters.compressors import COMPRESSIONS, is_made
from edgeops_converters.exam import Exam, check_labels, class_output
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.lineage import git_revision, tool_versions
from edgeops_converters.measurement import Measurement, admitted, measure, replaced_int8
from edgeops_converters.mixing import Quiz
from edgeops_converters.packing import GOLDEN_FILE, cpu_name, describe, make_golden, pack
from edgeops_converters.planned_files import PlannedFiles, make_planned
from edgeops_converters.recipe import Recipe
from edgeops_converters.rehearsal import rehearse
from edgeops_converters.report import Report, SourceReport
from edgeops_converters.rewrites import Rewritten, rewrite
from edgeops_converters.rewrites.layout import as_model_takes, parse_layout
from edgeops_converters.samples import Samples, SampleSource, check_alike, read_calibration, read_evaluation
from edgeops_converters.sources import Model, in_float, open_model
from edgeops_converters.splits import split
from edgeops_converters.steps import Steps
from edgeops_converters.targets import has_dot_product, parse_targets
from edgeops_converters.weights import check_finite

if TYPE_CHECKING:
    from torch import nn

_EXAMPLE_ROWS = 4


@dataclass(frozen=True)
class Conversion:
    """A finished conversion: the bundle as written, and its report."""

    bundle: Bundle
    report: Report


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
    input_layout: str = "nchw",
    labels: Sequence[str] = (),
    preprocess: Sequence[Operator] = (),
    postprocess: Sequence[Operator] = (),
    keys: Iterable[SigningKey] = (),
    stratum_attribute: str = "",
    parent: str | None = None,
    dataset: str | None = None,
    license: str = "",  # noqa: A002 - the manifest's word
    allow_pickle: bool = False,
    force: bool = False,
    min_int8: float = 0.0,
    requantize: bool = False,
    max_latency_ms: float | None = None,
    max_bytes: int | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Conversion:
    """Compress a model, prove that it is still the model, and write a signed bundle.

    Args:
        source: A module in eval mode, ``file.py:function``, a ``.pt2`` exported program, or a model file (``.onnx``,
            ``.tflite``); a quantised one is bundled as it is, beside its float form.
        data: Calibration rows: an ``.npz`` file or a mapping, one key for each input, as the caller of the bundle gives them.
        evaluation: Held-out rows, with ``labels`` (class index) and ``stratum`` (str) where there are any.
        name: Of the model; with ``version`` (semantic) it names the bundle to people.
        version: As above.
        output: The bundle directory to make.
        formats: Of ``onnx``, ``tflite``.
        precisions: Of ``float``, ``int8``, ``mixed``, ``float16``, ``dynamic``, ``int8-weights``, ``int4-weights``, ``int16``.
        max_drop: Largest accepted loss of accuracy against the source, in percentage points.
        target: ``x86``, ``x86-vnni`` or ``arm``, or several with commas; this machine when ``None``. The first is searched, and
            carried out in every format; for each other there is one more int8 file for onnxruntime.
        input_layout: In which callers give images, and the data has them: ``nchw`` as the model takes them, or ``nhwc``.
        labels: Class names by index.
        preprocess: Operators from the caller's inputs to the model's.
        postprocess: Operators from the model's outputs to the caller's.
        keys: Who signs the manifest.
        stratum_attribute: Device attribute whose values are the ``stratum`` of the evaluation rows.
        parent: Manifest digest of the bundle that this one was retrained from.
        dataset: Digest of the dataset that it was retrained on.
        license: SPDX expression of the model.
        allow_pickle: Load a pickled module (``.pt``), which can run any code.
        force: Keep a variant that the gate refuses; the report says so.
        min_int8: Least share of convolutions and matrix products that the engine must run in integers, in per cent.
        requantize: Quantise a model file that is quantised already anew, from what its integers stand for.
        max_latency_ms: Longest that a compressed variant may take for one row on one thread of this machine; ``None`` for any.
        max_bytes: Largest file of a compressed variant; ``None`` for any.
        on_step: Told the name of each step when it begins.

    Raises:
        RecipeError: Settings or data cannot work.
        ExportError: The source does not export; the message says what to change.
        GateError: A compressed variant is slower than float (or, when it is made for its size, larger), not faithful, not
            integer enough, or beyond a limit, and ``force`` was not given.
        ConflictError: ``output`` exists.
        ManifestError: Name or version is not valid.
        TransientError: The disk is full, or the directory cannot be written.
        MissingExtraError: A library of the ``convert`` extra is not installed.
    """
    targets = parse_targets(target)
    recipe = Recipe(
        formats=tuple(formats),
        precisions=tuple(precisions),
        max_drop=max_drop,
        target=targets[0],
        also=tuple(targets[1:]),
        input_layout=parse_layout(input_layout),
        preprocess=tuple(preprocess),
        postprocess=tuple(postprocess),
        labels=tuple(labels),
        stratum_attribute=stratum_attribute,
        force=force,
        min_int8=min_int8,
        requantize=requantize,
        max_latency_ms=max_latency_ms,
        max_bytes=max_bytes,
    )
    check_name("model", name)
    parse_version(version)
    _check_output(Path(output))
    steps = Steps(on_step, clock=time.perf_counter)

    with tempfile.TemporaryDirectory(prefix="edgeops-convert-") as directory:
        scratch = Path(directory)
        with steps.step("read the data"):
            calibration, held_out = _read_data(data, evaluation, recipe)
            few = _example(calibration.inputs)
            example = as_model_takes(_preprocessed(replace(calibration, inputs=few), recipe), recipe.input_layout)
        with steps.step("open the source"):
            rehearse(source, example)
            opened = open_model(source, example, allow_pickle=allow_pickle)
            opened = in_float(opened, example) if recipe.requantize else opened
            check_finite(opened)
            recipe, notes = _possible(recipe, opened)
        with steps.step("rewrite"):
            rewritten = rewrite(opened, few, preprocess=recipe.preprocess, input_layout=recipe.input_layout)
            asked, model = recipe, rewritten.model
            recipe = replace(recipe, preprocess=rewritten.preprocess)
            ranged = _preprocessed(calibration, recipe)
            exam = _exam(held_out, model, recipe)
            searched, exam = _halves(exam) if "mixed" in recipe.precisions else (None, exam)
        with steps.step("answers of the source"):
            original = exam.ask(model.answer, batch=model.batch)
            quiz = None if searched is None else Quiz(searched, searched.ask(model.answer, batch=model.batch))
            if not original.is_finite or (quiz is not None and not quiz.original.is_finite):
                raise ExportError(
                    f"{model.label}: answers NaN or Inf on the evaluation data, though its weights are numbers; a layer overflows"
                )
        artifacts, planned = _artifacts(rewritten, ranged, recipe, scratch, steps=steps, quiz=quiz)
        measured = measure(artifacts, exam, original, recipe=recipe, steps=steps, refusal=planned.refusal)
        kept = admitted(measured, recipe)
        with steps.step("drift reference"):
            # Devices prefer int8, so what they count is held against what int8 says.
            witness = next((one for one in kept if one.artifact.precision in {"int8", "mixed"}), kept[0])
            reference = make_reference(exam, witness.answers, stratum_attribute=stratum_attribute)
        with steps.step("golden vectors"):
            golden = make_golden(scratch / GOLDEN_FILE, kept, exam)
        report = Report(
            name=name,
            version=version,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            target=", ".join((recipe.target, *recipe.also)),
            cpu=cpu_name(),
            max_drop=max_drop,
            calibration_rows=calibration.rows,
            evaluation_rows=exam.samples.rows,
            search_rows=searched.samples.rows if searched is not None else 0,
            source=SourceReport(label=model.label, accuracy=exam.accuracy(original)),
            variants=tuple(
                describe(
                    one,
                    exam,
                    original,
                    tolerance=golden.tolerances[one.artifact.name],
                    tensors=planned.tensors_of(one.artifact),
                )
                for one in kept
            ),
            reference_variant=witness.artifact.name,
            signals=tuple(signal.name for signal in reference.signals),
            lineage=Lineage(
                source=model.label,
                source_digest=model.digest,
                data_digest=digest_bytes(f"{calibration.digest()}\n{held_out.digest()}".encode()),
                git_revision=git_revision(model.directory),
                parent=parent,
                dataset=dataset,
                recipe={**asked.as_json(), "forced": _forced(kept)},
                tools=tool_versions(),
            ),
            license=license,
            notes=(
                *notes,
                *rewritten.texts,
                *_rows_note(searched, exam),
                *planned.notes,
                *_left_out(measured, kept),
                *golden.notes,
                *(f"{one.artifact.name}: {said}" for one in kept for said in one.remarks),
            ),
            seconds=dict(steps.seconds),
            trials=planned.trials,
        )
        report = msgspec.structs.replace(report, advice=advise(report))
        with steps.step("write the bundle"):
            bundle = pack(
                Path(output),
                report,
                reference,
                kept=kept,
                model=model,
                samples=held_out,
                recipe=recipe,
                scratch=scratch,
                keys=keys,
                plan=planned.plan if any(one.artifact.name in planned.names for one in kept) else None,
            )
    return Conversion(bundle=bundle, report=report)


def _check_output(output: Path) -> None:
    """Refuse early what could not be written minutes later."""
    if os.path.lexists(output):
        raise ConflictError(f"{output}: exists already; choose another directory or version")
    above = next(parent for parent in output.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise TransientError(f"{output}: cannot be made, {above} is no directory that can be written to")


def _read_data(data: SampleSource, evaluation: SampleSource, recipe: Recipe) -> tuple[Samples, Samples]:
    calibration, held_out = read_calibration(data), read_evaluation(evaluation)
    check_alike(calibration, held_out)
    if recipe.stratum_attribute and held_out.strata is None:
        raise RecipeError(
            f"{held_out.where}: expected the key 'stratum' with the {recipe.stratum_attribute!r} of each row"
        )
    if held_out.strata is not None and not recipe.stratum_attribute:
        raise RecipeError(
            f"{held_out.where}: has 'stratum'; say which device attribute that is (--stratum-attribute), or leave it out"
        )
    return calibration, held_out


def _preprocessed(samples: Samples, recipe: Recipe) -> Tensors:
    unknown = {operator.tensor for operator in recipe.preprocess} - set(samples.inputs)
    if unknown:
        raise RecipeError(f"preprocess: no input {sorted(unknown)}; {samples.where} has {sorted(samples.inputs)}")
    return processing.apply(recipe.preprocess, samples.inputs)


def _example(rows: Tensors) -> Tensors:
    return {name: array[:_EXAMPLE_ROWS] for name, array in rows.items()}


def _possible(recipe: Recipe, model: Model) -> tuple[Recipe, tuple[str, ...]]:
    """Leave out formats that there is no way to; say so. And say what is not measured for another CPU, and what none has."""
    refusals = {form: EXPORTERS[form].refusal(model) for form in recipe.formats}
    notes = tuple(refusal for refusal in refusals.values() if refusal)
    formats = tuple(form for form, refusal in refusals.items() if not refusal)
    if not formats:
        raise ExportError("; ".join(notes))
    recipe = replace(recipe, formats=formats)
    if model.file is not None and model.file.is_quantized and "mixed" in recipe.precisions:
        raise RecipeError(
            f"precisions: mixed leaves layers in float, and those of {model.label} are quantised; give --requantize, or leave "
            "mixed out"
        )
    timed = [f"onnx-{one}" for one in recipe.precisions if one != "float" and is_made("onnx", one)]
    if recipe.also and not {"onnx", "int8"} <= {*recipe.formats, *recipe.precisions}:
        raise RecipeError(
            f"target: {', '.join(recipe.also)} needs the format onnx and the precision int8; the others serve all CPUs"
        )
    for target in (recipe.target, *recipe.also):
        if not target.runs_here and "onnx" in recipe.formats and timed:
            away = "is asked in exact arithmetic here; its latency on this CPU says nothing, and is not gated"
            notes += (
                f"made for {target}: {', '.join(timed) if target is recipe.target else f'onnx-int8-{target}'} {away}",
            )
    told = [f"tflite-{one}" for one in recipe.precisions if one in {"int8", "mixed", "dynamic"}]
    if "tflite" in recipe.formats and told and not has_dot_product():
        notes += (f"this CPU has no 8-bit dot product: the latency of {', '.join(told)} is told, and not gated",)
    missing = [f"{form}-{one}" for one in recipe.precisions for form in recipe.formats if not is_made(form, one)]
    return recipe, (*notes, *(f"{one} is not made: no engine for that format has it" for one in missing))


def _exam(held_out: Samples, model: Model, recipe: Recipe) -> Exam:
    """What to ask, once it is certain that data, model and settings fit together."""
    shapes = {spec.name: spec.shape for spec in model.outputs}
    unknown = {operator.tensor for operator in recipe.postprocess} - set(shapes)
    if unknown:
        raise RecipeError(f"postprocess: no output {sorted(unknown)}; the model has {sorted(shapes)}")
    is_told = held_out.labels is not None or bool(recipe.labels)
    classes = class_output(model.inputs, model.outputs, is_told=is_told)
    check_labels(held_out, shapes, classes)
    found = shapes[classes][1] if classes is not None else 0
    if recipe.labels and found != len(recipe.labels):
        raise RecipeError(f"labels: got {len(recipe.labels)} names where the model has {found} classes")
    return Exam(held_out, _preprocessed(held_out, recipe), recipe.postprocess, classes)


def _halves(exam: Exam) -> tuple[Exam, Exam]:
    """Rows that a search may look at, and rows that no decision is made on."""
    for_search, for_test = split(exam.samples)
    return exam.part(for_search), exam.part(for_test)


def _rows_note(searched: Exam | None, exam: Exam) -> tuple[str, ...]:
    if searched is None:
        return ()
    chose, told = f"{searched.samples.rows:,}", f"{exam.samples.rows:,}"
    return (
        f"mixed: the search chose by {chose} of the held-out rows; the figures of all variants are of the other {told}",
    )


def _artifacts(
    rewritten: Rewritten, calibration: Tensors, recipe: Recipe, scratch: Path, *, steps: Steps, quiz: Quiz | None
) -> tuple[list[Artifact], PlannedFiles]:
    """Files of every format and precision, float first; float is made even where it is not wanted, to measure against."""
    exported = []
    for form in recipe.formats:
        with steps.step(f"export {form}"):
            exported.append(
                EXPORTERS[form].export(rewritten.model, _example(calibration), scratch / f"model.float.{form}")
            )
    made, planned = [*exported], PlannedFiles()
    file = rewritten.model.file
    if file is not None and file.is_quantized and "int8" in recipe.precisions:
        made += [file.write(scratch / f"model.int8.{one.format}") for one in exported]
    elif {"int8", "mixed"} & set(recipe.precisions):
        bases = exported
        if rewritten.integers is not rewritten.model:
            few, integers = _example(calibration), rewritten.integers
            with steps.step("plan int8"):
                bases = [EXPORTERS[form].export(integers, few, scratch / f"base.{form}") for form in recipe.formats]
        planned = make_planned(bases, exported[0], calibration, recipe, scratch, steps=steps, quiz=quiz)
        made += planned.artifacts
    for one, precision in itertools.product(exported, recipe.precisions):
        if (one.format, precision) in COMPRESSIONS:
            with steps.step(f"compress {one.format} to {precision}"):
                target = scratch / f"model.{precision}.{one.format}"
                made.append(COMPRESSIONS[one.format, precision].compress(one, calibration, target))
    return made, planned


def _left_out(measured: Sequence[Measurement], kept: Sequence[Measurement]) -> tuple[str, ...]:
    """A line for each variant that a mixed precision has replaced."""
    shipped = {one.artifact.name for one in kept}
    return tuple(
        f"{one.artifact.name} is not in the bundle, mixed precision takes its place: {', and '.join(one.verdict.reasons)}"
        for one in replaced_int8(measured)
        if one.artifact.name not in shipped
    )


def _forced(kept: Sequence[Measurement]) -> dict[str, list[str]]:
    """Variant → why the gate refused it, of those that ship all the same."""
    return {one.artifact.name: list(one.verdict.reasons) for one in kept if not one.verdict.passed}
