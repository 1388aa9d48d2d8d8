"""Every model file asked the whole exam on its real engine, timed, and put before the gate."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgeops.errors import EngineError, GateError, RecipeError
from edgeops.manifest import Interval
from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.audit import Audit, audit
from edgeops_converters.compressors import purpose_of
from edgeops_converters.exam import Answers, Exam
from edgeops_converters.gate import Evidence, Purpose, Verdict, is_slower, judge
from edgeops_converters.layer_noise import LayerReport, layer_noise
from edgeops_converters.recipe import Recipe
from edgeops_converters.sessions import Session
from edgeops_converters.steps import Steps
from edgeops_converters.targets import has_dot_product
from edgeops_converters.timing import interleaved_latencies

_THREADS = 2
_TIMED_ROWS = 64
_TIMING_BUDGET_S = 1.5


@dataclass(frozen=True)
class Measurement:
    """A model file with everything that was measured on it.

    Attributes:
        latency: Median of one call with one row (or with the batch that the file fixes), one thread, with its 95 % interval,
            in milliseconds.
        float_latency_ms: The same of float in the same format.
        audit: What its engine runs in integers here; ``None`` for float, for what is made for its size, and for what is made for
            another CPU.
        layers: How noisy each layer is, or why that is not known; ``None`` for float.
    """

    artifact: Artifact
    answers: Answers
    latency: Interval
    float_latency_ms: float
    verdict: Verdict
    audit: Audit | None = None
    layers: tuple[LayerReport, ...] | EngineError | None = None

    @property
    def latency_ms(self) -> float:
        """The median alone."""
        return self.latency.value

    @property
    def rank(self) -> int:
        """Where it stands among the variants: before float, float, or behind it."""
        if self.artifact.precision == "float32":
            return 1
        return 2 if self._is_small_and_slow else 0

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a person should know of what was measured."""
        if not self._is_small_and_slow:
            return ()
        said = f"it takes {self.latency_ms:.3f} ms where float takes {self.float_latency_ms:.3f} ms"
        return (f"{said}; it is made for its size, and stands behind float",)

    @property
    def _is_small_and_slow(self) -> bool:
        is_slow = is_slower(self.latency_ms, self.float_latency_ms)
        return purpose_of(self.artifact) is Purpose.SIZE and is_slow


def measure(
    artifacts: Sequence[Artifact],
    exam: Exam,
    original: Answers,
    *,
    recipe: Recipe,
    steps: Steps,
    refusal: str = "",
) -> list[Measurement]:
    """Ask, time and judge.

    Args:
        artifacts: For each format float first.
        exam: What to ask.
        original: What the source said.
        recipe: What to accept.
        steps: Told what happens.
        refusal: What a search says against the mixed precision it came to.

    Raises:
        EngineError: An engine does not load or run a file.
    """
    answers = {}
    for artifact in artifacts:
        with steps.step(f"evaluate {artifact.name}"):
            answers[artifact.name] = exam.ask(open_as_there(artifact, recipe).run, batch=artifact.batch)
    with steps.step("kernel audit"):
        audits = {one.name: audit(one) for one in artifacts if _is_audited(one) and is_for_here(one, recipe)}
    with steps.step("noise by layer"):
        layers = {one.name: _layers(one, artifacts, exam.inputs) for one in artifacts if one.precision != "float32"}
    with steps.step("latency"):
        latency = steady_latencies(
            {one.name: one for one in artifacts},
            exam.inputs,
            float_names={one.name: _float_name(one) for one in artifacts},
            recipe=recipe,
        )
    sizes = {artifact.name: artifact.size_bytes for artifact in artifacts}
    return [
        Measurement(
            artifact,
            answers[artifact.name],
            latency=latency[artifact.name],
            float_latency_ms=latency[_float_name(artifact)].value,
            verdict=_verdict(
                artifact,
                answers[artifact.name],
                exam,
                original,
                latency=latency,
                float_size_bytes=sizes[_float_name(artifact)],
                recipe=recipe,
                audited=audits.get(artifact.name),
                refusal=refusal if artifact.precision == "mixed" else "",
            ),
            audit=audits.get(artifact.name),
            layers=layers.get(artifact.name),
        )
        for artifact in artifacts
    ]


def admitted(measured: Sequence[Measurement], recipe: Recipe) -> list[Measurement]:
    """The variants that ship, in order of preference: what is fast, float, what is small and slower; each by latency.

    Without ``force``, :func:`replaced_int8` stays behind.

    Raises:
        GateError: One that is wanted does not pass, and ``force`` was not given.
    """
    wanted = [one for one in measured if one.artifact.label in recipe.precisions]
    if not recipe.force:
        replaced = {one.artifact.name for one in replaced_int8(wanted)}
        wanted = [one for one in wanted if one.artifact.name not in replaced]
    refused = [one for one in wanted if not one.verdict.passed]
    if refused and not recipe.force:
        figures = "; ".join(f"{one.artifact.name}: {', and '.join(one.verdict.reasons)}" for one in refused)
        raise GateError(
            f"{figures}. Nothing was written. Give more or better calibration data, leave the variant out "
            "(--formats, --precisions), accept more (--max-drop), or take it as it is (--force)"
        )
    # A device takes the first that it can run, so that what asks for more of the CPU comes first.
    return sorted(wanted, key=lambda one: _preference(one, recipe))


def _preference(one: Measurement, recipe: Recipe) -> tuple[int, int, bool, float]:
    """The least comes first; among files for other CPUs than this one latency says nothing."""
    return one.rank, -len(_asked_of_cpu(one.artifact)), not is_for_here(one.artifact, recipe), one.latency_ms


def _asked_of_cpu(artifact: Artifact) -> tuple[str, ...]:
    return artifact.target.cpu_flags if artifact.target is not None else ()


def replaced_int8(measured: Sequence[Measurement]) -> list[Measurement]:
    """Int8 that the gate refuses where a mixed precision of the same format passes, which a search made to take its place."""
    mixed = {one.artifact.format for one in measured if one.artifact.precision == "mixed" and one.verdict.passed}
    return [
        one
        for one in measured
        if one.artifact.precision == "int8" and not one.verdict.passed and one.artifact.format in mixed
    ]


def _verdict(
    artifact: Artifact,
    answers: Answers,
    exam: Exam,
    original: Answers,
    *,
    latency: Mapping[str, Interval],
    float_size_bytes: int,
    recipe: Recipe,
    audited: Audit | None,
    refusal: str,
) -> Verdict:
    if artifact.precision == "float32":
        return Verdict(passed=True)
    drop, agreement = exam.drop(original, answers), exam.agreement(original, answers)
    evidence = Evidence(
        latency_ms=latency[artifact.name].value if is_telling(artifact, recipe) else None,
        float_latency_ms=latency[_float_name(artifact)].value,
        drop_points=drop.points if drop is not None else None,
        disagreement_points=100 * (1 - agreement) if agreement is not None else None,
        sqnr_db=exam.sqnr_db(original, answers),
        is_finite=answers.is_finite,
        audit=audited,
        purpose=purpose_of(artifact),
        size_ratio=artifact.size_bytes / float_size_bytes,
        size_bytes=artifact.size_bytes,
        refusal=refusal,
    )
    return judge(evidence, **recipe.limits)


def _is_audited(artifact: Artifact) -> bool:
    """Whether it ought to run in integers; what is made for its size need not."""
    return artifact.precision != "float32" and purpose_of(artifact) is Purpose.SPEED


def _layers(one: Artifact, artifacts: Sequence[Artifact], inputs: Tensors) -> tuple[LayerReport, ...] | EngineError:
    """The noise of each layer; what only explains the other figures does not end a conversion."""
    original = next(other for other in artifacts if other.name == _float_name(one))
    try:
        return layer_noise(original, one, inputs)
    except EngineError as error:
        return error


def is_for_here(artifact: Artifact, recipe: Recipe) -> bool:
    """Whether this machine can tell: ONNX for another CPU runs on other kernels there; a .tflite serves all."""
    return (artifact.target or recipe.target).runs_here or artifact.format == "tflite"


def is_telling(artifact: Artifact, recipe: Recipe) -> bool:
    """Whether its latency here says whether it is faster on a device.

    Without an eight-bit dot product XNNPACK's integer kernels are no faster than its float ones, whatever the file.
    """
    is_generic = artifact.format == "tflite" and artifact.precision in {"int8", "mixed", "dynamic"}
    return is_for_here(artifact, recipe) and (has_dot_product() or not is_generic)


def open_as_there(artifact: Artifact, recipe: Recipe) -> Session:
    """Load a file to ask it: an int8 one for other CPUs in exact arithmetic, since this machine's kernels may saturate.

    Raises:
        EngineError: The engine refuses the file.
    """
    is_away = artifact.precision != "float32" and not is_for_here(artifact, recipe)
    return artifact.open(threads=_THREADS, is_plain=is_away)


def steady_latencies(
    files: Mapping[str, Artifact], inputs: Tensors, *, float_names: Mapping[str, str], recipe: Recipe
) -> dict[str, Interval]:
    """As :func:`latencies`, and once more where a file would be refused for its latency.

    Args:
        files: Name → file.
        inputs: Rows.
        float_names: Name → name of float in the same format.
        recipe: The limit.
    """
    found = latencies(files, inputs, budget_s=_TIMING_BUDGET_S)
    most = recipe.max_latency_ms or math.inf
    if any(found[a].value > most or is_slower(found[a].value, found[b].value) for a, b in float_names.items()):
        # A neighbour may have been busy just then; what is slower in the better of two runs is slower.
        again = latencies(files, inputs, budget_s=2 * _TIMING_BUDGET_S)
        found = {name: min(one, again[name], key=lambda interval: interval.value) for name, one in found.items()}
    return found


def latencies(files: Mapping[str, Artifact], inputs: Tensors, *, budget_s: float) -> dict[str, Interval]:
    """Median of one call of each file with one batch on one thread, with its 95 % interval, in milliseconds.

    Raises:
        RecipeError: A file takes more rows at once than there are.
    """
    calls = {name: _timed_call(artifact, inputs) for name, artifact in files.items()}
    return interleaved_latencies(calls, clock=time.perf_counter, budget_s=budget_s)


def _timed_call(artifact: Artifact, inputs: Tensors) -> Callable[[int], object]:
    """One call with one batch; the number of the call chooses the rows."""
    session, size = artifact.open(threads=1), artifact.batch or 1
    starts = range(min(len(next(iter(inputs.values()))) - size + 1, _TIMED_ROWS))
    if not starts:
        raise RecipeError(f"{artifact.file} takes {size} rows at once; give at least as many evaluation rows")
    batches = [{name: array[start : start + size] for name, array in inputs.items()} for start in starts]
    return lambda index: session.run(batches[index % len(batches)])


def _float_name(artifact: Artifact) -> str:
    return f"{artifact.format}-float"
