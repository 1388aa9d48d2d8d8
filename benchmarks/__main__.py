"""``python -m benchmarks``: what a conversion takes, and what int8 costs and gives, as a table."""

import json
from pathlib import Path

import click

from benchmarks import conversion
from benchmarks.machine import describe_machine
from benchmarks.subject import Subject, prepare
from benchmarks.tables import console, show_figures


@click.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures to this file.")
@click.option("--rounds", type=click.IntRange(50), default=2000, show_default=True, help="Calls of each candidate.")
def main(json_file: Path | None, rounds: int) -> None:
    """Measure, and print what was measured."""
    machine = describe_machine()
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), highlight=False)
    subject: Subject = prepare(Path("build/benchmarks").absolute())
    figures = conversion.measure(subject, rounds)
    show_figures("conversion", figures)
    if json_file is not None:
        json_file.write_text(
            json.dumps({"machine": machine, "figures": [figure.as_json() for figure in figures]}, indent=2)
        )


if __name__ == "__main__":
    main()
