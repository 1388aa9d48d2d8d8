"""The command ``edgeops compare``: two bundles side by side, on standard output."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click
import msgspec

from edgeops.manifest import Interval
from edgeops.signing import PublicKey
from edgeops_converters.comparison import (
    Better,
    Comparison,
    Figure,
    PairedComparison,
    Side,
    VariantComparison,
    compare,
    opened,
)
from edgeops_converters.wording import decibel, interval, kilobytes, milliseconds, percent, signed

_NAMES = {"sqnr": "SQNR", "integer": "in integers"}
_WIDTH = 30


@click.command("compare")
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Rows (.npz) that both are to answer, with 'labels' where there are any: the difference is then one of pairs.",
)
@click.option(
    "--key", "keys", multiple=True, help="Public key that must have signed both (base64); several: any of them."
)
@click.option("--json", "as_json", is_flag=True, help="The comparison as JSON.")
def compare_command(first: Path, second: Path, *, data: Path | None, keys: tuple[str, ...], as_json: bool) -> None:
    """Set two bundles side by side: directories, or .tar files."""
    public = [PublicKey(key) for key in keys] if keys else None
    with ExitStack() as stack:
        bundles = [stack.enter_context(opened(path, keys=public)) for path in (first, second)]
        found = compare(*bundles, where=(str(first), str(second)), evaluation=data)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
        return
    _show(found, data)


def _show(found: Comparison, data: Path | None) -> None:
    for letter, side in (("A", found.first), ("B", found.second)):
        click.echo(_side(letter, side))
    click.echo(found.relation)
    for line in found.differences:
        click.echo(f"differs: {line}")
    for line in found.notes:
        click.echo(f"note: {line}")
    for variant in found.variants:
        _show_variant(variant)
    for letter, names in (("A", found.only_first), ("B", found.only_second)):
        if names:
            click.echo(f"\nonly in {letter}: {', '.join(names)}")
    if found.paired:
        click.echo(f"\non the {found.rows} rows of {data}")
        for pair in found.paired:
            click.echo(_pair(pair))


def _show_variant(variant: VariantComparison) -> None:
    click.echo(f"\n{variant.name:<14}{'A':>{_WIDTH}}{'B':>{_WIDTH}}  better")
    if variant.is_same_file:
        click.echo("  the same file in both")
    for figure in variant.figures:
        click.echo(_line(figure))


def _side(letter: str, side: Side) -> str:
    parts = [
        f"{letter}  {side.name} {side.version}",
        side.where,
        side.created,
        side.digest,
        f"from {side.lineage.source}",
    ]
    return "  ".join(parts)


def _line(figure: Figure) -> str:
    name = _NAMES.get(figure.what, figure.what)
    shown = [_shown(figure, one) for one in (figure.first, figure.second)]
    return f"  {name:<12}{shown[0]:>{_WIDTH}}{shown[1]:>{_WIDTH}}  {_verdict(figure)}"


def _shown(figure: Figure, value: Interval | None) -> str:
    return "-" if value is None else _SHOWN[figure.unit](value)


_SHOWN: dict[str, Callable[[Interval], str]] = {
    "bytes": lambda one: kilobytes(round(one.value)),
    "ms": lambda one: milliseconds(one.value) + (f" [{one.low:.3f}, {one.high:.3f}]" if one.low < one.high else ""),
    "share": interval,
    "points": lambda one: f"{signed(one.value)} [{signed(one.low)}, {signed(one.high)}]",
    "dB": lambda one: decibel(one.value),
    "%": lambda one: f"{one.value:.1f} %",
}


def _verdict(figure: Figure) -> str:
    if figure.better is None:
        return ""
    unclear = "unclear: within what two runs differ by" if figure.unit == "ms" else "unclear: the intervals overlap"
    return unclear if figure.better is Better.UNCLEAR else str(figure.better)


def _pair(pair: PairedComparison) -> str:
    said = []
    if pair.first is not None and pair.second is not None:
        said.append(f"A {interval(pair.first)}, B {interval(pair.second)}")
    if pair.drop is not None:
        points, low, high = (signed(-one) for one in (pair.drop.points, pair.drop.high, pair.drop.low))
        verdicts = {
            Better.UNCLEAR: "unclear: the interval has zero in it",
            Better.SAME: "the same rows are right",
        }
        verdict = verdicts.get(pair.better, f"{pair.better} is better") if pair.better is not None else ""
        said.append(f"B is {points} points [{low}, {high}] against A, {verdict}")
    if pair.agreement is not None:
        said.append(f"the same class on {percent(pair.agreement)}")
    said.append("the same outputs" if pair.sqnr_db is None else f"B's outputs are {decibel(pair.sqnr_db)} from A's")
    return f"{pair.name}: {'; '.join(said)}"
