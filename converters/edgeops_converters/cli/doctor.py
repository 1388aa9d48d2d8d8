"""The command ``edgeops doctor``: findings to standard output, progress to standard error, exit code 1 when something blocks."""

import sys
import textwrap
from collections.abc import Iterable
from contextlib import redirect_stdout
from itertools import groupby
from pathlib import Path

import click
import msgspec

from edgeops_converters.cli.convert import progress, split
from edgeops_converters.cli.scratch import scratch
from edgeops_converters.doctor import Diagnosis, Finding, Level, examine
from edgeops_converters.targets import Target

_WIDTH = 110
_INDENT = " " * 8
_COLOURS = {Level.BLOCKS: "red", Level.COSTS: "yellow", Level.NOTE: "blue"}


@click.command("doctor")
@click.argument("source")
@click.option(
    "--data", type=click.Path(path_type=Path, dir_okay=False), help="Calibration rows (.npz), as for convert."
)
@click.option("--formats", default="onnx,tflite", show_default=True, callback=split, help="What is to be written.")
@click.option(
    "--target",
    type=click.Choice([str(target) for target in Target]),
    help="CPU that it is for; this machine's by default.",
)
@click.option("--allow-pickle", is_flag=True, help="Load a pickled module (.pt), which can run any code.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor_command(
    source: str, *, data: Path | None, formats: tuple[str, ...], target: str | None, allow_pickle: bool, as_json: bool
) -> int:
    """Say what will not export, will not quantise, or will cost time or accuracy, and what to change. Writes nothing.

    SOURCE is what `edgeops convert` takes. Without --data, a .py file says what its model takes in `example_inputs`.
    """
    # What the user's code prints is no part of the findings.
    with scratch(), progress() as on_step, redirect_stdout(sys.stderr):
        diagnosis = examine(
            source, data=data, formats=formats, target=target, allow_pickle=allow_pickle, on_step=on_step
        )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(diagnosis)))
    else:
        _show(diagnosis)
    return int(diagnosis.is_blocked)


def _show(diagnosis: Diagnosis) -> None:
    for level, findings in groupby(diagnosis.findings, key=lambda one: one.level):
        for alike in _alike(findings):
            _show_alike(level, alike)
    counts = ", ".join(f"{diagnosis.count(level)} {level}" for level in Level)
    click.echo(f"{diagnosis.source}: {diagnosis.operators} operators, for {diagnosis.target}: {counts}")


def _alike(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Findings that say the same of several layers, together, in the order of the first."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for one in findings:
        groups.setdefault((one.rule, one.what, one.change), []).append(one)
    return list(groups.values())


def _show_alike(level: Level, findings: list[Finding]) -> None:
    first = findings[0]
    places = dict.fromkeys(one.place for one in findings if one.place)
    runtimes = dict.fromkeys(str(one.where) for one in findings)
    click.echo(f"{click.style(f'{level:<6}', fg=_COLOURS[level])}  {'; '.join(places) or 'the model'}")
    _say(f"{'; '.join(runtimes)}: {first.what}")
    if first.change:
        _say(f"change: {first.change}")


def _say(text: str) -> None:
    click.echo(textwrap.fill(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT))
