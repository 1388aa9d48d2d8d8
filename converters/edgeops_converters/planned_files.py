"""The files of a plan: int8 and mixed precision of every format, and what the report says of them.

The plan is made in :mod:`edgeops_converters.planning`, searched in :mod:`edgeops_converters.mixing` and carried out in
:mod:`edgeops_converters.quantization`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.mixing import Quiz, search
from edgeops_converters.plan import QuantPlan
from edgeops_converters.planning import Planned
from edgeops_converters.quantization import Subject, carry_out, float_nodes, plan_for
from edgeops_converters.quantizers.entry import entry_ranges, fuse_entry
from edgeops_converters.ranges import Range
from edgeops_converters.recipe import Recipe
from edgeops_converters.steps import Steps
from edgeops_converters.targets import Target
from edgeops_converters.tensor_report import TensorReport, summarize
from edgeops_converters.trials import Trial


@dataclass(frozen=True)
class PlannedFiles:
    """What came of a plan.

    Attributes:
        artifacts: In integers: int8, mixed, or both, of every format.
        plan: As it ships; ``None`` when none was wanted.
        tensors: Variant → the range of each activation. Only of the format that the plan was made on: the others have the same.
        trials: What a search tried.
        notes: What a person should know.
        refusal: What a search says against the mixed precision it came to; empty when that holds all limits.
    """

    artifacts: tuple[Artifact, ...] = ()
    plan: QuantPlan | None = None
    tensors: dict[str, tuple[TensorReport, ...]] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = ()
    refusal: str = ""

    @property
    def names(self) -> frozenset[str]:
        """Of the variants."""
        return frozenset(one.name for one in self.artifacts)

    def tensors_of(self, artifact: Artifact) -> tuple[TensorReport, ...]:
        """The ranges of a variant, if they are told with it."""
        return self.tensors.get(artifact.name, ())


def make_planned(
    bases: Sequence[Artifact],
    reference: Artifact,
    calibration: Tensors,
    recipe: Recipe,
    scratch: Path,
    *,
    steps: Steps,
    quiz: Quiz | None,
) -> PlannedFiles:
    """Plan, search where mixed precision is wanted, and write.

    Args:
        bases: Float files to quantise, one a format; plan and search are made on the first.
        reference: Float as it ships, in the first format.
        calibration: Rows as the model takes them.
        recipe: What is wanted.
        scratch: Where to write.
        steps: Told what happens.
        quiz: What the search asks; ``None`` without a search.

    Raises:
        RecipeError: A quantizer cannot work on a file.
        EngineError: An engine does not load or run a file of the search.
    """
    with steps.step("plan int8"):
        pinned = {one.format: entry_ranges(one) for one in bases}
        planned, subjects = plan_for(bases, calibration, target=recipe.target, pinned=pinned)

    def write(plan: QuantPlan, form: str, precision: str) -> Artifact:
        with steps.step(f"quantise {form}" if precision == "int8" else f"quantise {form} to {precision}"):
            target = scratch / f"model.{precision}.{form}"
            made = carry_out(plan, subjects[form], target, cpu=recipe.target, precision=precision)
            fuse_entry(made)
            return made

    def write_others() -> list[Artifact]:
        onnx = [one for one in bases if one.format == "onnx"]
        return [_write_for(cpu, onnx[0], calibration, pinned["onnx"], scratch, steps=steps) for cpu in recipe.also]

    lead, *others = (one.format for one in bases)
    first = write(planned.plan, lead, "int8")
    subject = subjects[lead]
    if quiz is None:
        made = [first, *(write(planned.plan, form, "int8") for form in others), *write_others()]
        return PlannedFiles(tuple(made), planned.plan, {first.name: _ranges(planned, planned.plan, subject)})

    mix = search(planned.plan, subject, first, reference, quiz=quiz, recipe=recipe, scratch=scratch, steps=steps)
    wanted = {"int8": planned.plan} if "int8" in recipe.precisions else {}
    if mix.plan.float_regions or not wanted:
        wanted["mixed"] = mix.plan
    ready = {"int8": first, "mixed": replace(mix.artifact, precision="mixed")}
    made = [
        ready[precision] if form == lead else write(plan, form, precision)
        for precision, plan in wanted.items()
        for form in (lead, *others)
    ]
    tensors = {ready[precision].name: _ranges(planned, plan, subject) for precision, plan in wanted.items()}
    made += write_others()
    return PlannedFiles(tuple(made), mix.plan, tensors, mix.trials, mix.notes, mix.refusal)


def _write_for(
    cpu: Target, base: Artifact, calibration: Tensors, pinned: Mapping[str, Range], scratch: Path, *, steps: Steps
) -> Artifact:
    """One more int8 file for onnxruntime, for other CPUs."""
    with steps.step(f"quantise onnx for {cpu}"):
        planned, subjects = plan_for([base], calibration, target=cpu, pinned={"onnx": pinned})
        made = carry_out(planned.plan, subjects["onnx"], scratch / f"model.int8.{cpu}.onnx", cpu=cpu)
        fuse_entry(made)
        return replace(made, qualifier=str(cpu))


def _ranges(planned: Planned, plan: QuantPlan, subject: Subject) -> tuple[TensorReport, ...]:
    """The range of each activation that is in integers, in the order of the graph."""
    left_out = float_nodes(plan, subject)
    in_float = {tensor for node in subject.graph.nodes if node.name in left_out for tensor in node.gives}
    return tuple(
        summarize(name, planned.histograms[name], low=one.low, high=one.high, estimator=one.estimator, reason=one.why)
        for name, one in plan.tensors.items()
        if name not in in_float and name in planned.histograms
    )
