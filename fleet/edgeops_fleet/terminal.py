"""What the command line writes: tables, lines, JSON, times and sizes in the reader's units."""

import json
import textwrap
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console

_TEXTS = {"attributes", "why", "gate", "because"}
"""Columns of free text, which give way where a line is short."""
_INDENT = "    "
_DAY_S = 86400.0


class Terminal:
    """Where a command writes: a table for people, plain columns where the output is no terminal, JSON for scripts."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._console = Console()

    def show(self, value: Any, write: Callable[["Terminal"], None]) -> None:  # noqa: ANN401 - JSON
        """The value as JSON, or what ``write`` writes."""
        if self._as_json:
            click.echo(json.dumps(value, indent=2))
        else:
            write(self)

    def tell(self, text: str) -> None:
        """A line for people on the way to the answer; none where the answer is JSON."""
        if not self._as_json:
            click.echo(text)

    def say(self, text: str) -> None:
        """A line."""
        click.echo(text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str = "") -> None:
        """A table; ``empty`` is said when there are no rows."""
        if not rows and empty:
            click.echo(empty)
            return
        cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
        width = self._console.width if self._console.is_terminal else None
        for line in table_lines(
            [[column.upper() for column in columns], *cells], width=width, has_text=columns[-1] in _TEXTS
        ):
            click.echo(line)


def table_lines(rows: Sequence[Sequence[str]], *, width: int | None, has_text: bool) -> list[str]:
    """Aligned columns; the first row is the heading.

    Args:
        rows: Cells, as many in each row.
        width: Of the terminal; ``None`` where lines may be of any length.
        has_text: The last column is free text: where a line would be too long, it stands below its row, indented.

    >>> table_lines([("NAME", "WHY"), ("a", "it failed again")], width=None, has_text=True)
    ['NAME  WHY', 'a     it failed again']
    >>> table_lines([("NAME", "WHY"), ("a", "it failed again")], width=14, has_text=True)
    ['NAME', 'a', '    it failed', '    again']
    """
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    is_too_wide = width is not None and has_text and sum(widths) + 2 * (len(widths) - 1) > width
    shown = len(widths) - 1 if is_too_wide else len(widths)
    lines: list[str] = []
    for number, row in enumerate(rows):
        cells = zip(row[:shown], widths[:shown], strict=True)
        lines.append("  ".join(cell.ljust(size) for cell, size in cells).rstrip())
        if is_too_wide and width is not None and number:
            wrapped = textwrap.wrap(row[-1], max(width - len(_INDENT), 1))
            lines.extend(f"{_INDENT}{line}" for line in wrapped)
    return lines


def clock(moment: float | None) -> str:
    """A Unix time as local date and time.

    >>> clock(None), clock(0.0)
    ('-', '-')
    """
    if not moment:
        return "-"
    return datetime.fromtimestamp(moment, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def ago(moment: float | None, *, now: float | None = None) -> str:
    """How long ago a Unix time was, roughly.

    >>> ago(None), ago(100.0, now=107.0), ago(0.5, now=7200.5), ago(0.5, now=1e6)
    ('never', '7 s ago', '2 h ago', '12 d ago')
    """
    if moment is None:
        return "never"
    passed = max((time.time() if now is None else now) - moment, 0.0)
    for unit, seconds in (("d", _DAY_S), ("h", 3600.0), ("min", 60.0)):
        if passed >= 2 * seconds or (unit == "h" and passed >= seconds):
            return f"{passed / seconds:.0f} {unit} ago"
    return f"{passed:.0f} s ago"


def size(count: int) -> str:
    """A number of bytes in decimal units.

    >>> size(900), size(270528), size(3 * 10**9)
    ('900 B', '270.5 kB', '3.0 GB')
    """
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:  # noqa: PLR2004 - decimal units
        value /= 1000
        units.pop(0)
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
