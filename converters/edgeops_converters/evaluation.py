"""Answers of models to the evaluation rows, through the real pre- and post-processing and the real engines."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from edgeops import processing
from edgeops.bundle import Bundle
from edgeops.errors import RecipeError, TensorError
from edgeops.manifest import Interval, Operator
from edgeops.processing import Tensors
from edgeops.tensors import TensorSpec
from edgeops_converters.fidelity import ClassArray, accuracy, agreement
from edgeops_converters.samples import Samples, SampleSource, read_evaluation
from edgeops_converters.sessions import SESSIONS, run_rows

_CLASS_RANK = 2
_THREADS = 2


@dataclass(frozen=True)
class Answers:
    """What a model said to all rows.

    Attributes:
        raw: What the engine gave.
        given: The same after ``postprocess``, as the caller of the bundle gets it.
        classes: The top class of each row; ``None`` when the outputs are no classes.
    """

    raw: Tensors
    given: Tensors
    classes: ClassArray | None

    @property
    def is_finite(self) -> bool:
        """Whether no output has NaN or Inf."""
        return all(bool(np.isfinite(array).all()) for array in self.raw.values())


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """How a variant of an existing bundle does on given rows.

    Attributes:
        accuracy: ``None`` without labels.
        agreement: Share of rows with the class of the bundle's float variant; ``None`` when outputs are no classes.
    """

    rows: int
    accuracy: Interval | None
    agreement: float | None


def answer(
    run: Callable[[Tensors], Tensors],
    inputs: Tensors,
    *,
    batch: int | None,
    postprocess: Iterable[Operator],
    class_output: str | None,
) -> Answers:
    """Run all rows.

    Args:
        run: Answers one batch.
        inputs: Rows of every input, after ``preprocess``.
        batch: What ``run`` takes at once; ``None`` when any.
        postprocess: The bundle's operators.
        class_output: The output whose largest element is the class; ``None`` when there is none.

    Raises:
        EngineError: The engine failed.
    """
    raw = run_rows(run, inputs, batch=batch)
    given = processing.apply(postprocess, raw)
    classes = None if class_output is None else given[class_output].argmax(axis=1).astype(np.int64)
    return Answers(raw, given, classes)


def class_output(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, is_told: bool) -> str | None:
    """The output that has one score for each class, if there is one.

    Args:
        inputs: Of the model.
        outputs: Of the model.
        is_told: Whether labels say that the outputs are classes. Without them a reconstruction, which has the shape of an
            input, is not taken for classes.
    """
    for spec in outputs:
        is_vector = len(spec.shape) == _CLASS_RANK and spec.dtype == "FP32" and spec.shape[1] != 1
        if is_vector and (is_told or all(spec.shape != other.shape for other in inputs)):
            return spec.name
    return None


def check_labels(samples: Samples, outputs: Mapping[str, Sequence[int | str]], name: str | None) -> None:
    """Labels must be classes that the model has.

    Args:
        samples: With labels.
        outputs: Output name → shape.
        name: The output that has the classes.

    Raises:
        RecipeError: There are no classes, or a label is out of range.
    """
    if samples.labels is None:
        return
    if name is None:
        shapes = ", ".join(f"{output} {list(shape)}" for output, shape in outputs.items())
        raise RecipeError(
            f"{samples.where}: 'labels' need an output of shape [batch, classes]; the model has {shapes}; "
            "leave the labels out to compare outputs only"
        )
    classes = outputs[name][1]
    wrong = (samples.labels < 0) | (samples.labels >= classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise RecipeError(
            f"{samples.where}: 'labels': row {row} has {samples.labels[row]}, expected 0 to {int(classes) - 1} "
            f"(output {name!r} has {classes} classes)"
        )


def evaluate(bundle: Bundle, evaluation: SampleSource) -> dict[str, Score]:
    """Measure every variant of an existing bundle on other rows.

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
    check_inputs(samples, manifest.inputs)
    name = class_output(manifest.inputs, manifest.outputs, is_told=samples.labels is not None or bool(manifest.labels))
    check_labels(samples, {spec.name: spec.shape for spec in manifest.outputs}, name)
    inputs = processing.apply(manifest.preprocess, samples.inputs)
    answers = {}
    for variant in manifest.variants:
        session = SESSIONS[variant.format](bundle.file(variant.file), variant.inputs, variant.outputs, threads=_THREADS)
        answers[variant.name] = answer(
            session.run, inputs, batch=variant.batch, postprocess=manifest.postprocess, class_output=name
        )
    floats = [variant.name for variant in manifest.variants if variant.precision == "float32"]
    original = answers[(floats or list(answers))[0]]
    return {variant: _score(given, original, samples) for variant, given in answers.items()}


def check_inputs(samples: Samples, specs: Iterable[TensorSpec]) -> None:
    """Data must be what the caller of a bundle gives.

    Raises:
        RecipeError: It names the key.
    """
    known = {spec.name: spec for spec in specs}
    if set(known) != set(samples.inputs):
        raise RecipeError(f"{samples.where}: expected the keys {sorted(known)}, got {sorted(samples.inputs)}")
    for name, spec in known.items():
        try:
            spec.check(samples.inputs[name])
        except TensorError as error:
            raise RecipeError(f"{samples.where}: {error}") from error


def _score(given: Answers, original: Answers, samples: Samples) -> Score:
    if given.classes is None or original.classes is None:
        return Score(rows=samples.rows, accuracy=None, agreement=None)
    return Score(
        rows=samples.rows,
        accuracy=None if samples.labels is None else accuracy(given.classes, samples.labels),
        agreement=agreement(original.classes, given.classes),
    )
