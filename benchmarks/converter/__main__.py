"""``python -m benchmarks.converter``: measure, print a table for each subject, and hold our figures against what is asked.

It always ends with exit code 0: figures are looked at, not gated on.
"""

import tempfile
from pathlib import Path

import click
import msgspec

from benchmarks.__main__ import describe_machine
from benchmarks.converter import carried, memory
from benchmarks.converter.bars import BARS, MEMORY, Measure, Place, Reading, judge
from benchmarks.converter.measurement import Finding, examine, figures
from benchmarks.converter.subjects import SUBJECTS, LeftOutError, prepare
from benchmarks.converter.tables import show_carried, show_finding, show_outcomes

CARRIED = "carried"
_CONVOLUTIONAL = frozenset(SUBJECTS) - {"transformer", "autoencoder"}
_VECTOR_FLAGS = ("avx2", "avx_vnni", "avx512_vnni", "asimddp")


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
    machine = {**describe_machine(), "vector instructions": " ".join(vector_instructions()) or "none of interest"}
    click.echo(", ".join(f"{name} {value}" for name, value in machine.items()))
    wanted = only or (*SUBJECTS, CARRIED, MEMORY)
    findings: list[Finding] = []
    left_out: dict[str, str] = {}
    found: dict[Place, dict[Measure, Reading]] = {}
    for name in (one for one in wanted if one in SUBJECTS):
        try:
            subject = prepare(name)
        except LeftOutError as error:
            click.echo(f"\n{name}: left out: {error}")
            left_out[name] = str(error)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            finding = examine(subject, Path(scratch), with_stock=stock)
        show_finding(finding)
        findings.append(finding)
        found |= figures(finding, is_convolutional=name in _CONVOLUTIONAL)
    carried_models = carried.carry(tuple(carried.MODELS)) if CARRIED in wanted else []
    show_carried(carried_models)
    peaks = memory.peaks() if MEMORY in wanted else {}
    found |= memory.growth(peaks)
    measured = [finding.subject for finding in findings] + ([MEMORY] if peaks else [])
    outcomes = judge(BARS, found, measured=measured)
    show_outcomes(outcomes)
    if json_file is not None:
        content = {
            "machine": machine,
            "subjects": findings,
            "left_out": left_out,
            "carried": carried_models,
            "peak_mb": peaks,
            "bars": outcomes,
        }
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(content)))


def vector_instructions() -> list[str]:
    """The flags of this CPU that decide how 8-bit products are summed.

    Without one of the VNNI flags (``asimddp`` on ARM) onnxruntime adds pairs of U8S8 products in 16 bits, which can saturate.
    """
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next(
        (line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))), []
    )
    return [flag for flag in _VECTOR_FLAGS if flag in flags]


if __name__ == "__main__":
    main()
