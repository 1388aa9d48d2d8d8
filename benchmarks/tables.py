"""Figures for people; to standard output."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure

console = Console() if sys.stdout.isatty() else Console(width=180)


def show_figures(title: str, figures: Sequence[Figure]) -> None:
    """A line for each figure, and below them what was left out and why."""
    rows = table(title, ("what", "value", "against", "ratio or difference"))
    for figure in figures:
        if not figure.left_out:
            value = f"{figure.value:,.4g} {figure.unit}".strip()
            rows.add_row(figure.name, value, figure.shown_alternative, figure.shown_comparison)
    console.print(rows, highlight=False)
    for figure in (each for each in figures if each.left_out):
        say(f"{figure.name}: left out: {figure.left_out}")


def table(title: str, headings: Sequence[str]) -> Table:
    """An empty table."""
    made = Table(title=title, title_justify="left")
    for heading in headings:
        made.add_column(heading, justify="right" if heading in {"value", "ratio or difference", "got"} else "left")
    return made


def say(text: str) -> None:
    """A line as it is."""
    console.print(text, highlight=False, markup=False)
