"""The evaluation rows, what the source answers to them, and how another model's answers compare."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeops import processing
from edgeops.errors import RecipeError
from edgeops.manifest import Interval, Operator
from edgeops.processing import Tensors
from edgeops.tensors import TensorSpec
from edgeops_converters.bounds import most_lost
from edgeops_converters.fidelity import ClassArray, Drop, accuracy, agreement, discordant, paired_drop, sqnr_db
from edgeops_converters.samples import Samples
from edgeops_converters.sessions import run_rows

_CLASS_RANK = 2


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

    def part(self, rows: NDArray[np.int64]) -> "Answers":
        """To some of the rows."""
        classes = None if self.classes is None else self.classes[rows]
        return Answers(_part(self.raw, rows), _part(self.given, rows), classes)

    @property
    def is_finite(self) -> bool:
        """Whether no output has NaN or Inf."""
        return all(bool(np.isfinite(array).all()) for array in self.raw.values())


@dataclass(frozen=True)
class Exam:
    """Rows that a model is asked.

    Attributes:
        samples: As the caller of the bundle gives them, with labels and strata.
        inputs: The same after ``preprocess``.
        postprocess: Operators behind the model.
        class_output: The output whose largest element is the class; ``None`` when there is none.
    """

    samples: Samples
    inputs: Tensors
    postprocess: tuple[Operator, ...]
    class_output: str | None

    def part(self, rows: NDArray[np.int64]) -> "Exam":
        """Some of the rows."""
        return replace(self, samples=self.samples.part(rows), inputs=_part(self.inputs, rows))

    def ask(self, run: Callable[[Tensors], Tensors], *, batch: int | None) -> Answers:
        """Run all rows through something that answers one batch.

        Raises:
            EngineError: It failed.
        """
        raw = run_rows(run, self.inputs, batch=batch)
        given = processing.apply(self.postprocess, raw)
        name = self.class_output
        return Answers(raw, given, None if name is None else given[name].argmax(axis=1).astype(np.int64))

    def accuracy(self, answers: Answers) -> Interval | None:
        """Share of right answers; ``None`` without labels or classes."""
        if self.samples.labels is None or answers.classes is None:
            return None
        return accuracy(answers.classes, self.samples.labels)

    def drop(self, original: Answers, answers: Answers) -> Drop | None:
        """Loss of accuracy against the original; ``None`` without labels or classes."""
        if self.samples.labels is None or original.classes is None or answers.classes is None:
            return None
        return paired_drop(original.classes, answers.classes, self.samples.labels)

    def most_lost(self, original: Answers, answers: Answers) -> float | None:
        """Upper bound of the loss of accuracy in percentage points; without labels of the disagreement.

        It is ``None`` when the outputs are no classes.
        """
        if original.classes is None or answers.classes is None:
            return None
        truth = self.samples.labels if self.samples.labels is not None else original.classes
        lost, won = discordant(original.classes, answers.classes, truth)
        return 100 * most_lost(lost, won, len(truth))

    @staticmethod
    def agreement(original: Answers, answers: Answers) -> float | None:
        """Share of rows with the original's class; ``None`` when the outputs are no classes."""
        if original.classes is None or answers.classes is None:
            return None
        return agreement(original.classes, answers.classes)

    @staticmethod
    def sqnr_db(original: Answers, answers: Answers) -> float | None:
        """Of the raw outputs; ``None`` when they are the same or not finite."""
        return sqnr_db(original.raw, answers.raw) if answers.is_finite else None


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


def _part(tensors: Tensors, rows: NDArray[np.int64]) -> Tensors:
    return {name: array[rows] for name, array in tensors.items()}


def check_labels(samples: Samples, shapes: Mapping[str, Sequence[int | str]], name: str | None) -> None:
    """Labels must be classes that the model has.

    Args:
        samples: With labels or without.
        shapes: Output name → shape.
        name: The output that has the classes.

    Raises:
        RecipeError: There are no classes, or a label is out of range.
    """
    if samples.labels is None:
        return
    if name is None:
        found = ", ".join(f"{output} {list(shape)}" for output, shape in shapes.items())
        raise RecipeError(
            f"{samples.where}: 'labels' need an output of shape [batch, classes]; the model has {found}; "
            "leave the labels out to compare outputs only"
        )
    classes = shapes[name][1]
    if not isinstance(classes, int):
        return
    wrong = (samples.labels < 0) | (samples.labels >= classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise RecipeError(
            f"{samples.where}: 'labels': row {row} has {samples.labels[row]}, expected 0 to {classes - 1} "
            f"(output {name!r} has {classes} classes)"
        )
