"""``python -m benchmarks.converter``: measure, print a table for each subject, and hold our figures against what is asked.

It always ends with exit code 0: figures are looked at, not gated on.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import click
import msgspec

from benchmarks.converter import memory
from benchmarks.converter.bars import BARS, MEMORY, Measure, Outcome, Place, Reading, judge
from benchmarks.converter.carried import MODELS, Carried, carry
from benchmarks.converter.measurement import Finding, examine, figures
from benchmarks.converter.subjects import SUBJECTS, LeftOutError, prepare
from benchmarks.converter.tables import show_carried, show_finding, show_outcomes
from benchmarks.machine import describe_machine, vector_instructions

CARRIED = "carried"
_CONVOLUTIONAL = frozenset(SUBJECTS) - {"transformer", "autoencoder"}


@click.command()
@click.option(
    "--only",
    type=click.Choice([*SUBJECTS, CARRIED, MEMORY]),
    multiple=True,
    help="Measure these; by default all.",
)  # fmt: skip
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures to this file.")
@click.option("--stock/--no-stock", default=True, help="Whether the stock tools are measured too.")
def main(only: tuple[str, ...], json_file: Path | None, *, stock: bool) -> None:
    """Convert with everything, measure everything in turns, and hold ours against the bars."""
    report = Report(
        {**describe_machine(), "vector instructions": " ".join(vector_instructions()) or "none of interest"}
    )
    click.echo(", ".join(f"{name} {value}" for name, value in report.machine.items()))
    try:
        _measure(only or (*SUBJECTS, CARRIED, MEMORY), report, with_stock=stock)
    finally:  # an hour's figures survive Ctrl-C
        report.bars = judge(BARS, report.readings(), measured=report.measured)
        show_outcomes(report.bars)
        if json_file is not None:
            json_file.write_bytes(msgspec.json.format(msgspec.json.encode(report)))


@dataclass
class Report:
    """Everything that was found, as ``--json`` writes it; filled as the run goes on.

    Attributes:
        machine: What it ran on.
        subjects: A finding for each subject that was measured.
        left_out: Subject → how to install what it needs.
        failed: Subject → what went wrong; its bars are not met.
        carried: Models without bars.
        peak_mb: Format → number of calibration rows → peak resident memory.
        bars: The outcome of each.
    """

    machine: dict[str, str]
    subjects: list[Finding] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    carried: list[Carried] = field(default_factory=list)
    peak_mb: dict[str, dict[int, float]] = field(default_factory=dict)
    bars: list[Outcome] = field(default_factory=list)

    @property
    def measured(self) -> list[str]:
        """Whose bars can be judged."""
        return [finding.subject for finding in self.subjects] + [*self.failed] + ([MEMORY] if self.peak_mb else [])

    def readings(self) -> dict[Place, dict[Measure, Reading]]:
        """All figures that bars look at."""
        found = memory.growth(self.peak_mb)
        for finding in self.subjects:
            found |= figures(finding, is_convolutional=finding.subject in _CONVOLUTIONAL)
        return found


def _measure(wanted: tuple[str, ...], report: Report, *, with_stock: bool) -> None:
    for name in (one for one in SUBJECTS if one in wanted):
        try:
            with tempfile.TemporaryDirectory() as scratch:
                finding = examine(prepare(name), Path(scratch), with_stock=with_stock)
        except LeftOutError as error:
            report.left_out[name] = str(error)
            click.echo(f"\n{name}: left out: {error}")
        except Exception as error:  # noqa: BLE001 - one model that fails must not hide what the others show
            report.failed[name] = f"{type(error).__name__}: {error}"
            click.echo(f"\n{name}: failed: {report.failed[name]}")
        else:
            report.subjects.append(finding)
            show_finding(finding)
    if CARRIED in wanted:
        report.carried = carry(tuple(MODELS))
        show_carried(report.carried)
    if MEMORY in wanted:
        report.peak_mb = memory.peaks()


if __name__ == "__main__":
    main()
