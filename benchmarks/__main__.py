"""``python -m benchmarks``: run the benchmarks and print a table."""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks import conversion, device, serving
from benchmarks.figures import Figure
from benchmarks.subject import Subject, prepare

PARTS = {"conversion": conversion.measure, "serving": serving.measure, "device": device.measure}


@click.command()
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help="Run these parts; by default all.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures to this file.")
@click.option("--rounds", type=click.IntRange(50), default=2000, show_default=True, help="Calls of each candidate.")
def main(only: tuple[str, ...], json_file: Path | None, rounds: int) -> None:
    """Measure, and print what was measured."""
    console = Console() if sys.stdout.isatty() else Console(width=160)
    machine = describe_machine()
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), highlight=False)
    subject: Subject = prepare(Path("build/benchmarks").absolute())
    figures: list[Figure] = []
    for part in only or PARTS:
        console.print(f"{part} …")
        found = PARTS[part](subject, rounds)
        console.print(_table(part, found))
        figures += found
    if json_file is not None:
        json_file.write_text(
            json.dumps({"machine": machine, "figures": [figure.as_json() for figure in figures]}, indent=2)
        )


def describe_machine() -> dict[str, str]:
    """What a figure is worth nothing without."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        **{name: version(name) for name in ("onnxruntime", "ai-edge-litert", "numpy")},
    }


def _table(title: str, figures: list[Figure]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("what", "value", "against", "ratio or difference"):
        table.add_column(heading, justify="left" if heading in {"what", "against"} else "right")
    for figure in figures:
        table.add_row(
            figure.name, f"{figure.value:,.4g} {figure.unit}", figure.shown_alternative, figure.shown_comparison
        )
    return table


if __name__ == "__main__":
    main()
