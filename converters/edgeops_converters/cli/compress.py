"""The command ``edgeops compress``: options to arguments, progress to standard error, the figures to standard output."""

import sys
from contextlib import redirect_stdout
from pathlib import Path

import click

from edgeops_converters.cli.convert import progress
from edgeops_converters.training import Compression, compress
from edgeops_converters.training.compression import encode_compression


@click.command("compress")
@click.argument("source")
@click.option(
    "--train", "step", required=True, metavar="FILE.PY:STEP", help="Your training step: step(module, index) -> loss."
)
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Calibration rows (.npz), as the module itself takes them.",
)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The exported program (.pt2) to write."
)
@click.option(
    "--prune", default=0.0, show_default=True, metavar="PERCENT", help="Multiply-accumulates that are to go, at least."
)
@click.option("--steps", default=300, show_default=True, help="Training steps after pruning.")
@click.option("--qat-steps", default=0, show_default=True, help="Training steps through the rounding of int8.")
@click.option(
    "--distill",
    default=0.5,
    show_default=True,
    metavar="SHARE",
    help="Of the loss that asks for the answers of the module as it was; 0 for none.",
)
@click.option(
    "--learning-rate", default=1e-3, show_default=True, help="At the beginning; a tenth of it with --qat-steps."
)
@click.option("--seed", default=0, show_default=True, help="Of torch's generator.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON instead of the table.")
def compress_command(
    source: str,
    *,
    step: str,
    data: Path,
    output: Path,
    prune: float,
    steps: int,
    qat_steps: int,
    distill: float,
    learning_rate: float,
    seed: int,
    as_json: bool,
) -> None:
    """Make a module smaller by training it, for edgeops convert to take.

    SOURCE is file.py:function (returns an nn.Module in eval mode).
    """
    # What the user's code prints is no part of the figures.
    with progress() as on_step, redirect_stdout(sys.stderr):
        compression = compress(
            source,
            step=step,
            data=data,
            output=output,
            prune=prune,
            steps=steps,
            qat_steps=qat_steps,
            distill=distill,
            learning_rate=learning_rate,
            seed=seed,
            on_step=on_step,
        )
    if as_json:
        click.echo(encode_compression(compression))
        return
    _show(compression, output)


def _show(compression: Compression, output: Path) -> None:
    for what, (before, after) in {
        "multiply-accumulates": compression.macs,
        "parameters": compression.parameters,
    }.items():
        click.echo(f"{what:<22}{before:>13,}  → {after:>13,}  {after / max(before, 1) - 1:+7.1%}")
    for layer in compression.layers:
        click.echo(f"{layer.name:<28}{_shape(layer.before)} → {_shape(layer.after)}")
    for training in compression.trainings:
        click.echo(f"{training.name}: {training.steps} steps, loss {training.first:.4f} → {training.last:.4f}")
    for layers, reason in compression.left_alone:
        click.echo(f"left alone: {layers}: {reason}")
    for note in compression.notes:
        click.echo(f"note: {note}")
    click.echo(str(output))


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
