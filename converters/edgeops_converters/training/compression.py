"""From a module and its training step to a smaller module: prune, recover, rehearse int8, write.

What comes out is a module of the same class with smaller weights, and an exported program of it, which ``edgeops convert`` takes
as it takes any other: the conversion knows nothing of what was done here.
"""

import copy
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgeops.errors import ConflictError, ExportError, RecipeError, TransientError
from edgeops.files import write_durably
from edgeops.processing import Tensors
from edgeops_converters.extras import load, quiet
from edgeops_converters.samples import SampleSource, read_calibration
from edgeops_converters.sources import open_model
from edgeops_converters.training.channels import OF_THE_CALLER, Channels, read_channels
from edgeops_converters.training.distillation import Teacher
from edgeops_converters.training.pruning import (
    CutLayer,
    choose,
    cut,
    cut_layers,
    difference,
    importance,
    multiply_accumulates,
    shapes_of,
    tried,
)
from edgeops_converters.training.recovery import Training, train
from edgeops_converters.training.rehearsal import Rehearsal
from edgeops_converters.training.step import StepFunction, TrainingStep, open_step
from edgeops_converters.training.tracing import trace

if TYPE_CHECKING:
    from torch import nn

_PROBE_ROWS = 4
_RANGE_UPDATES = 8  # of a rehearsal: the weights move, and the ranges with them
_GENTLER = 0.1  # of the learning rate, in the rehearsal


@dataclass(frozen=True)
class CompressionRecipe:
    """What is to be done.

    Attributes:
        prune: Per cent of the multiply-accumulates that are to go; 0 for none.
        steps: Of recovery after pruning.
        qat_steps: Of quantisation-aware training; 0 for none.
        distill: Share of the loss that is distillation, 0 to 1.
        learning_rate: Of recovery; the rehearsal has a tenth of it.
        seed: Of torch's generator.
    """

    prune: float = 0.0
    steps: int = 300
    qat_steps: int = 0
    distill: float = 0.5
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.prune < 100:  # noqa: PLR2004 - per cent
            raise RecipeError(f"prune: expected per cent of the multiply-accumulates, 0 to below 100, got {self.prune}")
        if self.steps < 0 or self.qat_steps < 0:
            raise RecipeError(f"expected 0 or more steps, got {min(self.steps, self.qat_steps)}")
        if not 0 <= self.distill <= 1:
            raise RecipeError(f"distill: expected a share from 0 to 1, got {self.distill}")
        if not (self.learning_rate > 0 and np.isfinite(self.learning_rate)):
            raise RecipeError(f"learning rate: expected a positive number, got {self.learning_rate}")
        if not self.prune and not self.qat_steps:
            raise RecipeError("nothing to do; give --prune PERCENT, --qat-steps N, or both")


@dataclass(frozen=True)
class Compression:
    """What came of it.

    Attributes:
        module: In eval mode, with smaller weights.
        layers: Those whose weights are smaller.
        left_alone: Layers whose channels stay → why.
        macs: Multiply-accumulates of one row, before and after.
        parameters: Their number, before and after.
        trainings: Recovery and rehearsal, as far as they were asked for.
        notes: What a person should know.
    """

    module: "nn.Module" = field(repr=False)
    layers: tuple[CutLayer, ...]
    left_alone: tuple[tuple[str, str], ...]
    macs: tuple[int, int]
    parameters: tuple[int, int]
    trainings: tuple[Training, ...]
    notes: tuple[str, ...]


def compress(
    source: "nn.Module | str | Path",
    *,
    step: StepFunction | str | Path,
    data: SampleSource,
    output: Path | None = None,
    prune: float = 0.0,
    steps: int = 300,
    qat_steps: int = 0,
    distill: float = 0.5,
    learning_rate: float = 1e-3,
    seed: int = 0,
    on_step: Callable[[str], None] | None = None,
) -> Compression:
    """Make a module smaller by training it.

    Args:
        source: A module in eval mode, which stays as it is, or ``file.py:function``.
        step: ``step(module, index) -> loss`` of batch number ``index``, counted from 0, or ``file.py:function``.
        data: Calibration rows as the module takes them: an ``.npz`` file or a mapping, one key for each input.
        output: The ``.pt2`` to write; none when ``None``.
        prune: Per cent of the multiply-accumulates that go.
        steps: Of recovery after pruning.
        qat_steps: Of quantisation-aware training.
        distill: Share of the loss that is distillation from the module as it was.
        learning_rate: Of recovery; quantisation-aware training has a tenth of it.
        seed: Of torch's generator.
        on_step: Told what begins, and about ten times how training goes.

    Raises:
        RecipeError: Settings, data or the training step cannot work.
        ExportError: The source gives no module, or one that cannot be traced.
        ConflictError: ``output`` exists.
        TransientError: ``output`` cannot be written.
        MissingExtraError: A library of the ``convert`` extra is not installed.
    """
    recipe = CompressionRecipe(prune, steps, qat_steps, distill, learning_rate, seed)
    say = on_step if on_step is not None else lambda _: None
    if output is not None:
        _check_output(output)
    say("open the source")
    rows = read_calibration(data).inputs
    original = _open(source, rows)
    session = _Session(open_step(step), Teacher(copy.deepcopy(original), distill), rows, recipe, say)
    say("read the channels")
    channels = read_channels(trace(original, session.few, is_dynamic=False))
    module, trainings = copy.deepcopy(original), []
    if prune:
        module, channels = session.prune(module, channels)
        if steps:
            trainings.append(session.recover(module))
    if qat_steps:
        trainings.append(session.rehearse(module))
    module.eval()
    notes = _write(module, session.few, output, say) if output is not None else ()
    before, after = shapes_of(original), shapes_of(module)
    fixed = [(", ".join(group.layers), reason) for group, reason in channels.fixed if reason != OF_THE_CALLER]
    return Compression(
        module=module,
        layers=cut_layers(channels, original, module),
        left_alone=tuple(dict.fromkeys(fixed)) if prune else (),
        macs=(multiply_accumulates(channels.products, before), multiply_accumulates(channels.products, after)),
        parameters=(_parameters(original), _parameters(module)),
        trainings=tuple(trainings),
        notes=notes,
    )


def encode_compression(compression: Compression) -> str:
    """The figures as JSON."""
    figures = {
        "layers": compression.layers,
        "left_alone": [{"layers": layers, "reason": reason} for layers, reason in compression.left_alone],
        "macs": _change(compression.macs),
        "parameters": _change(compression.parameters),
        "trainings": compression.trainings,
        "notes": compression.notes,
    }
    return msgspec.json.format(msgspec.json.encode(figures), indent=2).decode()


def _change(pair: tuple[int, int]) -> dict[str, int]:
    return {"before": pair[0], "after": pair[1]}


@dataclass(frozen=True)
class _Session:
    """What every phase needs."""

    step: TrainingStep
    teacher: Teacher
    rows: Tensors
    recipe: CompressionRecipe
    say: Callable[[str], None]

    @property
    def few(self) -> Tensors:
        """Rows to try a module on."""
        return {name: array[:_PROBE_ROWS] for name, array in self.rows.items()}

    def prune(self, module: "nn.Module", channels: Channels) -> "tuple[nn.Module, Channels]":
        """The smaller module, and the channels with those fixed that the module does not follow."""
        torch = load("torch")
        self.say("try which channels can go")
        channels = tried(module, channels, self.few)
        self.say("measure which channels matter")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            # A copy: the step may switch to training mode, which moves the statistics of batch norms.
            scores = importance(copy.deepcopy(module), channels, self.step)
        gone = choose(channels, shapes_of(module), scores, share=self.recipe.prune / 100)
        reason = difference(module, channels, gone, self.few)
        if reason:
            raise RecipeError(
                f"prune: every group of channels can go by itself, but not all together: {reason}; prune less"
            )
        return cut(module, channels, gone), channels

    def recover(self, module: "nn.Module") -> Training:
        """Train as the user would."""
        module.train()
        return train(
            module,
            self.step,
            self.teacher,
            name="recover",
            steps=self.recipe.steps,
            learning_rate=self.recipe.learning_rate,
            seed=self.recipe.seed,
            on_step=self.say,
        )

    def rehearse(self, module: "nn.Module") -> Training:
        """Train through the rounding of int8; batch norm keeps its statistics, and the ranges follow the weights."""
        module.eval()
        rehearsal = Rehearsal(trace(module, self.few, is_dynamic=True), module)
        steps = self.recipe.qat_steps
        every = max(steps // _RANGE_UPDATES, 1)

        def follow(index: int) -> None:
            if index % every == 0:
                rehearsal.calibrate(self.rows)

        with rehearsal.on_stage():
            return train(
                module,
                self.step,
                self.teacher,
                name="rehearse int8",
                steps=steps,
                learning_rate=self.recipe.learning_rate * _GENTLER,
                seed=self.recipe.seed,
                before_step=follow,
                plain=rehearsal.plain,
                on_step=self.say,
            )


def _open(source: "nn.Module | str | Path", rows: Tensors) -> "nn.Module":
    """The user's own module, once it has answered rows."""
    torch = load("torch")
    if not isinstance(source, torch.nn.Module) and Path(str(source).partition(":")[0]).suffix != ".py":
        raise ExportError(
            f"{source}: expected file.py:function; training needs the module itself, and a file of another kind has no layers "
            "that could be made smaller"
        )
    wrapped = open_model(source, {name: array[:_PROBE_ROWS] for name, array in rows.items()}).module
    module = getattr(wrapped, "module", None)
    if not isinstance(module, torch.nn.Module):
        raise ExportError(f"{source}: expected a torch.nn.Module")
    return module  # type: ignore[no-any-return]  # checked above, through a lazily loaded class


def _check_output(output: Path) -> None:
    """Refuse early what could not be written minutes later."""
    if output.suffix != ".pt2":
        raise RecipeError(f"{output}: expected a name that ends in .pt2, an exported program")
    if os.path.lexists(output):
        raise ConflictError(f"{output}: exists already; choose another name")
    if not output.absolute().parent.is_dir() or not os.access(output.absolute().parent, os.W_OK | os.X_OK):
        raise TransientError(f"{output}: cannot be written, {output.absolute().parent} is no directory that can be")


def _write(module: "nn.Module", rows: Tensors, output: Path, say: Callable[[str], None]) -> tuple[str, ...]:
    say("write the exported program")
    traced = trace(module, rows, is_dynamic=True)
    for node in traced.program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    content = io.BytesIO()
    with quiet():
        load("torch").export.save(traced.program, content)
    try:
        write_durably(output, content.getvalue())
    except OSError as error:
        raise TransientError(f"{output}: {error}") from error
    fixed = "the module fixes the number of rows, so that the exported program takes two at a time"
    return () if traced.is_dynamic else (fixed,)


def _parameters(module: "nn.Module") -> int:
    return sum(parameter.numel() for parameter in module.parameters())
