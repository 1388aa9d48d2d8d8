"""Measuring an existing bundle on other rows."""

from collections.abc import Iterable

import msgspec

from edgeops import processing
from edgeops.bundle import Bundle
from edgeops.errors import RecipeError, TensorError
from edgeops.manifest import Interval
from edgeops.tensors import TensorSpec
from edgeops_converters.exam import Answers, Exam, check_labels, class_output
from edgeops_converters.samples import Samples, SampleSource, read_evaluation
from edgeops_converters.sessions import SESSIONS

_THREADS = 2


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """How a variant does.

    Attributes:
        accuracy: ``None`` without labels.
        agreement: Share of rows with the class of the bundle's first float variant, or of its first variant where it has no
            float one; ``None`` when the outputs are no classes.
    """

    rows: int
    accuracy: Interval | None
    agreement: float | None


def evaluate(bundle: Bundle, evaluation: SampleSource) -> dict[str, Score]:
    """Measure every variant of a bundle.

    Args:
        bundle: An opened bundle with all its files.
        evaluation: An ``.npz`` file or a mapping of arrays, with ``labels`` where accuracy is wanted.

    Returns:
        Variant name → score.

    Raises:
        RecipeError: The data is not what the bundle takes.
        EngineError: An engine failed.
        MissingExtraError: An engine is not installed.
    """
    manifest, samples = bundle.manifest, read_evaluation(evaluation)
    exam, answers = ask_bundle(bundle, samples)
    floats = [variant.name for variant in manifest.variants if variant.precision == "float32"]
    original = answers[floats[0] if floats else manifest.variants[0].name]
    return {
        name: Score(rows=samples.rows, accuracy=exam.accuracy(given), agreement=exam.agreement(original, given))
        for name, given in answers.items()
    }


def ask_bundle(bundle: Bundle, samples: Samples) -> tuple[Exam, dict[str, Answers]]:
    """What every variant of a bundle answers, and the exam that it was asked.

    Raises:
        RecipeError: The data is not what the bundle takes.
        EngineError: An engine failed.
        MissingExtraError: An engine is not installed.
    """
    manifest = bundle.manifest
    _check_inputs(samples, manifest.inputs)
    is_told = samples.labels is not None or bool(manifest.labels)
    classes = class_output(manifest.inputs, manifest.outputs, is_told=is_told)
    check_labels(samples, {spec.name: spec.shape for spec in manifest.outputs}, classes)
    exam = Exam(samples, processing.apply(manifest.preprocess, samples.inputs), manifest.postprocess, classes)
    answers = {}
    for variant in manifest.variants:
        session = SESSIONS[variant.format](bundle.file(variant.file), variant.inputs, variant.outputs, threads=_THREADS)
        answers[variant.name] = exam.ask(session.run, batch=variant.batch)
    return exam, answers


def _check_inputs(samples: Samples, specs: Iterable[TensorSpec]) -> None:
    known = {spec.name: spec for spec in specs}
    if set(known) != set(samples.inputs):
        raise RecipeError(f"{samples.where}: expected the keys {sorted(known)}, got {sorted(samples.inputs)}")
    for name, spec in known.items():
        try:
            spec.check(samples.inputs[name])
        except TensorError as error:
            raise RecipeError(f"{samples.where}: {error}") from error
