"""Searching a mixed precision: files written, asked and timed. What follows is decided in :mod:`edgeops_converters.search`.

The search sees its own half of the held-out rows and never the other, on which the figures of the report are taken.
"""

import math
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeops_converters.artifact import Artifact
from edgeops_converters.audit import audit
from edgeops_converters.bounds import CONFIDENCE, rows_to_prove
from edgeops_converters.correction import BiasCorrection
from edgeops_converters.exam import Answers, Exam
from edgeops_converters.gate import Evidence, is_faithful
from edgeops_converters.measurement import is_for_here, latencies, open_as_there, steady_latencies
from edgeops_converters.plan import QuantPlan
from edgeops_converters.quantization import Subject, carry_out
from edgeops_converters.quantizers.entry import fuse_entry
from edgeops_converters.recipe import Recipe
from edgeops_converters.search import (
    Point,
    Proof,
    Sensitivity,
    as_trial,
    choose,
    cost_of,
    estimate,
    groups_of,
    in_words,
    is_within,
    nearest,
    ranked,
    reasons_against,
    smallest_depth,
    trials_of,
)
from edgeops_converters.steps import Steps
from edgeops_converters.trials import Outcome, Trial
from edgeops_converters.wording import short_name

_MOST_GROUPS = 40  # that are left in float one at a time
_PROBE_ROWS = 256
_PROBE_BUDGET_S = 0.3
_THREADS = 2
_FAINTEST, _LOUDEST = 1e-15, 1e6  # noise over signal that exact answers, and answers that are no numbers, count as
_NAMED = 3  # layers, where there are more


@dataclass(frozen=True)
class Quiz:
    """The rows of a search, and what the source answers."""

    exam: Exam
    original: Answers

    def part(self, most: int) -> "Quiz":
        """At most so many rows, evenly over all."""
        count = self.exam.samples.rows
        rows: NDArray[np.int64] = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))
        return Quiz(self.exam.part(rows), self.original.part(rows))


@dataclass(frozen=True)
class Mix:
    """What a search came to.

    Attributes:
        plan: With the layers that are best in float; none when int8 holds all limits.
        artifact: The file of it.
        trials: What was tried.
        notes: What a person should know.
        refusal: Which limits it does not hold, where nothing holds all; else empty.
    """

    plan: QuantPlan
    artifact: Artifact
    trials: tuple[Trial, ...]
    notes: tuple[str, ...]
    refusal: str


def search(
    plan: QuantPlan,
    subject: Subject,
    int8: Artifact,
    reference: Artifact,
    *,
    quiz: Quiz,
    recipe: Recipe,
    scratch: Path,
    steps: Steps,
) -> Mix:
    """Find the fewest regions to leave in float so that all limits hold.

    Args:
        plan: All in integers.
        subject: The float file that it was made on.
        int8: The file of the plan.
        reference: Float, as it ships.
        quiz: The rows to choose by.
        recipe: The limits.
        scratch: Where to write.
        steps: Told what happens.

    Raises:
        RecipeError: The quantizer cannot work on the model with some layers in float.
        EngineError: An engine does not load or run a file.
    """
    bench = _Bench(plan, subject, reference, quiz, recipe, scratch)
    groups = groups_of(sorted(plan.regions), most=_MOST_GROUPS)
    probes = _probe(bench, groups, steps)
    ladder = _Ladder(bench, probes, int8, steps)
    taken = None
    for proof in _proofs(quiz, recipe):
        smallest_depth(len(probes), partial(ladder.is_within, proof=proof))
        ladder.time()
        taken = choose(ladder.points, recipe, proof)
        if taken is not None:
            break
    best = taken or nearest(ladder.points, recipe)
    refusal = ""
    if taken is None:
        against = ", and ".join(reasons_against(best, recipe, Proof.ESTIMATE))
        refusal = f"no mixed precision that was tried holds all limits; the nearest is {best.settings}: {against}"
    form = int8.format
    return Mix(
        plan=ladder.plans[best.depth],
        artifact=ladder.files[best.depth],
        trials=(
            *trials_of(ladder.points, ladder.reference, taken, recipe, proof, form=form),
            *(_as_trial(probe, rank, recipe, form) for rank, probe in enumerate(probes, start=1)),
        ),
        notes=_notes(best, bench, len(groups), refusal),
        refusal=refusal,
    )


def _proofs(quiz: Quiz, recipe: Recipe) -> tuple[Proof, ...]:
    """By the bound, and where that refuses everything by the estimate; by the estimate alone where rows are too few.

    Of few rows, a bound would take the first file on which chance has lost none: nearly all of it in float.
    """
    needed = rows_to_prove(recipe.max_drop / 100)
    if quiz.original.classes is None or needed is None or quiz.exam.samples.rows < needed:
        return (Proof.ESTIMATE,)
    return (Proof.BOUND, Proof.ESTIMATE)


@dataclass(frozen=True)
class _Bench:
    """What every file of a search is made of and held against."""

    plan: QuantPlan
    subject: Subject
    reference: Artifact
    quiz: Quiz
    recipe: Recipe
    scratch: Path

    @property
    def is_timed(self) -> bool:
        """Whether latency here says anything."""
        return is_for_here(self.reference, self.recipe)

    def write(self, plan: QuantPlan, target: Path, correction: BiasCorrection) -> Artifact:
        cpu = self.recipe.target
        made = carry_out(plan, self.subject, target, cpu=cpu, precision="mixed", correction=correction)
        fuse_entry(made)
        return made

    def weigh(self, file: Artifact, quiz: Quiz, *, depth: int, settings: str) -> Point:
        """Ask a file; its latency is another matter."""
        exam, original = quiz.exam, quiz.original
        answers = exam.ask(open_as_there(file, self.recipe).run, batch=file.batch)
        drop, agreement = exam.drop(original, answers), exam.agreement(original, answers)
        is_audited = self.recipe.min_int8 > 0 and self.is_timed and file is not self.reference
        evidence = Evidence(
            latency_ms=None,
            float_latency_ms=0.0,
            drop_points=None if drop is None else drop.points,
            disagreement_points=None if agreement is None else 100 * (1 - agreement),
            sqnr_db=exam.sqnr_db(original, answers),
            is_finite=answers.is_finite,
            audit=audit(file) if is_audited else None,
            size_bytes=file.size_bytes,
        )
        return Point(depth, settings, evidence, drop, exam.most_lost(original, answers))

    def named(self, regions: Collection[int]) -> str:
        """The layers of regions in words."""
        names = [short_name(name) for region in sorted(regions) for name in self.plan.regions[region]]
        others = len(names) - _NAMED
        return ", ".join(names) if others <= 1 else f"{', '.join(names[:_NAMED])} and {others} more"


@dataclass(frozen=True)
class _Probe:
    """A file with one group of regions in float.

    Attributes:
        point: Its figures, on a few of the rows.
        worth: What it gains and costs.
        why: The same in words.
    """

    point: Point
    worth: Sensitivity
    why: str


def _probe(bench: _Bench, groups: Sequence[frozenset[int]], steps: Steps) -> list[_Probe]:
    """Leave each group of regions in float alone; best first."""
    few = bench.quiz.part(_PROBE_ROWS)
    probes = {}
    with tempfile.TemporaryDirectory(dir=bench.scratch) as directory:
        with steps.step("sensitivity", "all in int8"):
            plain = bench.write(bench.plan, Path(directory) / "plain", BiasCorrection.FAST)
            before = bench.weigh(plain, few, depth=0, settings="int8").evidence
        for number, group in enumerate(groups, start=1):
            named = bench.named(group)
            with (
                steps.step("sensitivity", f"{number} of {len(groups)}: {named} in float"),
                tempfile.TemporaryDirectory(dir=directory) as place,
            ):
                plan = bench.plan.with_float(dict.fromkeys(group, "tried"))
                file = bench.write(plan, Path(place) / "probe", BiasCorrection.FAST)
                point = bench.weigh(file, few, depth=1, settings=f"int8, with only {named} in float")
                probes[group] = _probed(bench, group, point, before, {"int8": plain, "probe": file})
    return [probes[one.regions] for one in ranked([probe.worth for probe in probes.values()])]


def _probed(
    bench: _Bench, group: frozenset[int], point: Point, before: Evidence, files: Mapping[str, Artifact]
) -> _Probe:
    """Hold a probe against int8, which takes turns with it where latency is measured."""
    noises = [_noise(one) for one in (before, point.evidence)]
    gained = f"{10 * math.log10(noises[0] / noises[1]):+.1f} dB"
    if not bench.is_timed:
        cost = cost_of(before.size_bytes, point.evidence.size_bytes)
        worth = Sensitivity(group, noises[0] - noises[1], cost)
        return _Probe(point, worth, f"{gained} for {point.evidence.size_bytes - before.size_bytes:+,} bytes")
    timed = latencies(files, bench.quiz.exam.inputs, budget_s=_PROBE_BUDGET_S)
    int8_ms, probe_ms = timed["int8"].value, timed["probe"].value
    return _Probe(
        replace(point, evidence=replace(point.evidence, latency_ms=probe_ms)),
        Sensitivity(group, noises[0] - noises[1], cost_of(int8_ms, probe_ms)),
        f"{gained} for {probe_ms - int8_ms:+.3f} ms",
    )


def _noise(evidence: Evidence) -> float:
    """Power of the noise as a share of that of the outputs."""
    if not evidence.is_finite:
        return _LOUDEST
    return _FAINTEST if evidence.sqnr_db is None else min(max(10 ** (-evidence.sqnr_db / 10), _FAINTEST), _LOUDEST)


class _Ladder:
    """The files that may ship: the best so many of the probed regions in float, at each depth that is asked for."""

    def __init__(self, bench: _Bench, probes: Sequence[_Probe], int8: Artifact, steps: Steps) -> None:
        self._bench, self._probes, self._steps = bench, probes, steps
        self._points: dict[int, Point] = {}
        self.plans, self.files = {0: bench.plan}, {0: int8}
        with steps.step("search", "float"):
            self.reference = bench.weigh(bench.reference, bench.quiz, depth=-1, settings="float")

    @property
    def points(self) -> list[Point]:
        """All that were asked for."""
        return list(self._points.values())

    def point(self, depth: int) -> Point:
        """The file at a depth, with what it loses on all rows of the search."""
        if depth not in self._points:
            probes = self._probes[:depth]
            in_float = {region: f"float by search: {one.why}" for one in probes for region in one.worth.regions}
            settings = f"int8, with {self._bench.named(in_float)} in float" if depth else "int8"
            with self._steps.step("search", f"{depth} of {len(self._probes)} in float"):
                if depth:
                    plan = self._bench.plan.with_float(in_float)
                    file = self._bench.write(plan, self._bench.scratch / f"mixed-{depth}", BiasCorrection.FULL)
                    self.plans[depth], self.files[depth] = plan, file
                self._points[depth] = self._bench.weigh(
                    self.files[depth], self._bench.quiz, depth=depth, settings=settings
                )
        return self._points[depth]

    def is_within(self, depth: int, *, proof: Proof) -> bool:
        """Whether the file at a depth is like enough to the source."""
        return is_within(self.point(depth), self._bench.recipe, proof)

    def time(self) -> None:
        """Let all files and float take turns."""
        if not self._bench.is_timed:
            return
        with self._steps.step("search", "latency"):
            timed = steady_latencies(
                {str(depth): file for depth, file in self.files.items()} | {"float": self._bench.reference},
                self._bench.quiz.exam.inputs,
                float_names={str(depth): "float" for depth in self.files},
                recipe=self._bench.recipe,
            )
        float_ms = timed["float"].value
        for depth, point in self._points.items():
            evidence = replace(point.evidence, latency_ms=timed[str(depth)].value, float_latency_ms=float_ms)
            self._points[depth] = replace(point, evidence=evidence)
        evidence = replace(self.reference.evidence, latency_ms=float_ms, float_latency_ms=float_ms)
        self.reference = replace(self.reference, evidence=evidence)


def _as_trial(probe: _Probe, rank: int, recipe: Recipe, form: str) -> Trial:
    """A probe in the report; it is not one of those to choose from."""
    is_like = is_faithful(probe.point.evidence, recipe.max_drop)
    return as_trial(
        probe.point,
        name=f"{form}-probe-{rank}",
        outcome=Outcome.PASSED if is_like else Outcome.REFUSED,
        reason=f"sensitivity, place {rank}: {probe.why}{'' if is_like else f'; {estimate(probe.point)}'}",
        is_probe=True,
    )


def _notes(best: Point, bench: _Bench, groups: int, refusal: str) -> tuple[str, ...]:
    """What a person should know of a search, in lines."""
    rows, limit = bench.quiz.exam.samples.rows, bench.recipe.max_drop
    lost = f"{in_words(best)} on the {rows:,} rows of the search"
    if refusal:
        said = [f"mixed: {refusal}"]
    elif best.depth:
        said = [f"mixed: {best.settings}; {lost}"]
    else:
        once = "; it is not written twice" if "int8" in bench.recipe.precisions else ""
        said = [f"mixed: int8 holds all limits as it is, and nothing is left in float; {lost}{once}"]
    if not refusal and not is_within(best, bench.recipe, Proof.BOUND):
        needed = rows_to_prove(limit / 100)
        if needed is None:
            least = "no number of rows does"
        elif rows < needed:
            least = f"it takes about {needed:,} where half as much is lost"
        else:
            least = "of what holds the other limits none is proven"
        said.append(
            f"mixed: NOT ENOUGH DATA to prove at {CONFIDENCE:.0%} that at most {limit:g} points are lost: the search has "
            f"{rows:,} rows, and {least}; what they show has decided, not its bound"
        )
    regions = len(bench.plan.regions)
    if groups < regions:
        said.append(f"mixed: {regions} regions were tried in {groups} groups of neighbours, to bound the work")
    return tuple(said)
