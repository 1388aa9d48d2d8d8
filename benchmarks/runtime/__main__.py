"""``python -m benchmarks.runtime``: measure, print a table for each part, and hold the figures against what is asked.

It always ends with exit code 0: figures are looked at, not gated on.
"""

from dataclasses import dataclass, field
from pathlib import Path

import click
import msgspec

from benchmarks.figures import Figure
from benchmarks.limits import Verdict
from benchmarks.machine import describe_machine
from benchmarks.runtime.bars import BARS, Outcome, judge
from benchmarks.runtime.parts import PARTS, LeftOutError, measure
from benchmarks.tables import console, say, show_figures, table


@dataclass
class Report:
    """Everything that was found, as ``--json`` writes it; filled as the run goes on.

    Attributes:
        machine: What it ran on, and how busy that was at the beginning.
        figures: Part → what it found.
        left_out: Part → how to install what it needs.
        failed: Part → what went wrong; its bars are not met.
        bars: The outcome of each.
    """

    machine: dict[str, str]
    figures: dict[str, list[Figure]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    bars: list[Outcome] = field(default_factory=list)

    def conclude(self) -> None:
        """Judge what there is by now."""
        self.bars = judge(BARS, {**dict.fromkeys(self.failed, ()), **self.figures})


@click.command()
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help="Run these parts; by default all.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures to this file.")
@click.option("--rounds", type=click.IntRange(100), default=4000, show_default=True, help="Calls of each candidate.")
@click.option(
    "--seconds", type=click.IntRange(1), default=5, show_default=True, help="Of each turn of a process at an even pace."
)
@click.option("--starts", type=click.IntRange(1), default=5, show_default=True, help="Starts and kills of an agent.")
@click.option("--swaps", type=click.IntRange(1), default=1000, show_default=True, help="Swaps of each kind.")
@click.option("--kills", type=click.IntRange(1), default=500, show_default=True, help="Processes that are killed.")
def main(only: tuple[str, ...], json_file: Path | None, **settings: int) -> None:
    """Measure every bar of the device runtime side by side, and say which are met."""
    report = Report(describe_machine())
    say(", ".join(f"{name} {value}" for name, value in report.machine.items()))
    try:
        for name in only or PARTS:
            _measure(name, settings, report)
    finally:  # an hour's figures survive Ctrl-C
        report.conclude()
        _show_bars(report.bars)
        if json_file is not None:
            json_file.write_bytes(msgspec.json.format(msgspec.json.encode(report)))


def _measure(name: str, settings: dict[str, int], report: Report) -> None:
    say(f"\n{name}: {PARTS[name].what} …")
    try:
        report.figures[name] = measure(name, settings)
    except LeftOutError as error:
        report.left_out[name] = str(error)
        say(f"{name}: left out: {error}")
    except Exception as error:  # noqa: BLE001 - one part that fails must not hide what the others show
        report.failed[name] = f"{type(error).__name__}: {error}"
        say(f"{name}: failed: {report.failed[name]}")
    else:
        show_figures(name, report.figures[name])


def _show_bars(outcomes: list[Outcome]) -> None:
    """The bars that something was measured for, and how many are met."""
    rows = table("bars", ("what", "figure", "asked", "got", "verdict"))
    for one in outcomes:
        if one.verdict is not Verdict.NOT_MEASURED:
            rows.add_row(one.what, one.figure, one.asked, one.got, one.verdict)
    console.print()
    if rows.row_count:
        console.print(rows, highlight=False)
    counts = {verdict: sum(one.verdict is verdict for one in outcomes) for verdict in Verdict}
    say(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))


if __name__ == "__main__":
    main()
