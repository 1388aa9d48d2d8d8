"""What was found, for people; to standard output."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.converter.bars import Outcome
from benchmarks.converter.carried import Carried
from benchmarks.converter.measurement import FLOAT, Finding, Line
from benchmarks.limits import Verdict
from edgeops_converters.fidelity import Drop

_CONSOLE = Console() if sys.stdout.isatty() else Console(width=200)
_LINE_HEADINGS = (
    "file", "%", "points lost [95 %]", "agreement", "SQNR, dB", "p50, ms", "speed", "in integers", "kB", "of float",
    "overhead, kB", "made in, s",
)  # fmt: skip


def show_finding(finding: Finding) -> None:
    """One subject: a line for each file. The first figure is accuracy, or the area under the ROC curve.

    The overhead is what a file has beyond one byte for each weight: biases, scales, the graph.
    """
    worth = "no labels" if finding.value is None else f"source {100 * finding.value:.2f} %"
    table = _table(
        f"{finding.subject}: {finding.title}; {finding.rows} rows of {finding.origin}; {worth}", _LINE_HEADINGS
    )
    floats = {line.format: line.size_bytes for line in finding.lines if line.tool == FLOAT}
    for line in finding.lines:
        table.add_row(*_cells(line, floats[line.format], finding.weights))
    _CONSOLE.print()
    _CONSOLE.print(table, highlight=False)
    if finding.parity is not None:
        _say(f"ONNX and TFLite give the same class for {100 * finding.parity:.2f} % of the rows")
    for file, why in finding.failures.items():
        _say(f"{file}: failed: {why}")
    for tool, how in finding.left_out.items():
        _say(f"{tool}: left out: {how}")


def show_carried(found: Sequence[Carried]) -> None:
    """The models that only have to come through."""
    if not found:
        return
    table = _table("carried", ("model", "format", "rows at once", "float, dB", "int8, dB", "as it should be"))
    for one in found:
        rows = "any" if one.batch is None else str(one.batch)
        verdict = f"no: {one.why_not}" if one.why_not else "yes"
        table.add_row(one.model, one.format, rows, _decibel(one.float_db), _decibel(one.int8_db), verdict)
    _CONSOLE.print()
    _CONSOLE.print(table, highlight=False)


def show_outcomes(outcomes: Sequence[Outcome]) -> None:
    """The bars that something was measured for, and how many are met."""
    if all(one.verdict is Verdict.NOT_MEASURED for one in outcomes):
        return
    table = _table("bars", ("what", "subject", "format", "asked", "EdgeOps", "best of stock, each", "verdict"))
    for one in (one for one in outcomes if one.verdict is not Verdict.NOT_MEASURED):
        table.add_row(one.what, one.subject, one.format, one.asked, one.got, one.stock, one.verdict)
    _CONSOLE.print()
    _CONSOLE.print(table, highlight=False)
    met, missed = (sum(one.verdict is verdict for one in outcomes) for verdict in (Verdict.MET, Verdict.NOT_MET))
    _say(f"{met} met, {missed} not met, {len(outcomes) - met - missed} not measured")


def _cells(line: Line, float_bytes: int, weights: int) -> tuple[str, ...]:
    is_float = line.tool == FLOAT
    return (
        f"{line.format} {line.tool}",
        "–" if line.value is None else f"{100 * line.value:.2f}",
        _drop(line.drop),
        "–" if line.agreement is None else f"{line.agreement:.4f}",
        "exact" if line.sqnr_db is None else f"{line.sqnr_db:.1f}",
        f"{line.p50_ms:.3f}",
        f"{line.speedup:.2f}",
        "–" if is_float else f"{line.integer} of {line.products}",
        f"{line.size_bytes / 1000:,.1f}",
        f"{line.size_bytes / float_bytes:.3f}",
        "–" if is_float else f"{(line.size_bytes - weights) / 1000:,.1f}",
        "–" if line.seconds is None else f"{line.seconds:.1f}",
    )


def _drop(drop: Drop | None) -> str:
    return "–" if drop is None else f"{drop.points:+.2f} [{drop.low:+.2f}, {drop.high:+.2f}]"


def _decibel(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right", overflow="fold", no_wrap=index == 0)
    return table


def _say(text: str) -> None:
    _CONSOLE.print(text, highlight=False, markup=False)
