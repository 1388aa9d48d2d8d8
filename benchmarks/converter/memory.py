"""Whether calibration's memory grows with the number of rows.

``python -m benchmarks.converter.memory FORMAT ROWS`` prints the peak of one process. It holds the most rows that are asked for
either way, so that a difference is what calibration itself takes.
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import torch
from torch import nn

from benchmarks.converter.bars import MEMORY, OURS, Measure, Place, Reading
from benchmarks.converter.networks import DepthwiseNet
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.quantization import quantize
from edgeops_converters.sources import open_model
from edgeops_converters.targets import this_machine

FEW, MANY = 100, 10_000


@click.command()
@click.argument("form", type=click.Choice(list(EXPORTERS)))
@click.argument("count", type=click.IntRange(2, MANY))
def main(form: str, count: int) -> None:
    """Calibrate on so many rows, and print this process's peak resident memory in megabytes as JSON."""
    torch.manual_seed(0)
    rows = np.random.default_rng(0).random((MANY, 1, 28, 28), dtype=np.float32)
    model = open_model(DepthwiseNet(nn.ReLU6, is_residual=True).eval(), {"image": rows[:4]})
    with tempfile.TemporaryDirectory() as directory:
        exported = EXPORTERS[form].export(model, {"image": rows[:4]}, Path(directory) / f"float.{form}")
        quantize(exported, {"image": rows[:count]}, Path(directory) / f"int8.{form}", cpu=this_machine())
    print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def peaks() -> dict[str, dict[int, float]]:
    """Format → number of rows → peak resident megabytes, each in a process of its own.

    Raises:
        subprocess.CalledProcessError: A process failed; its words are on standard error.
    """
    found: dict[str, dict[int, float]] = {}
    for form in EXPORTERS:
        for count in (FEW, MANY):
            click.echo(f"memory: {form}, {count} rows …", err=True)
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.converter.memory", form, str(count)],
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            found.setdefault(form, {})[count] = float(json.loads(done.stdout.splitlines()[-1])["peak_mb"])
    return found


def growth(found: dict[str, dict[int, float]]) -> dict[Place, dict[Measure, Reading]]:
    """The peaks as the bars want them."""
    return {
        Place(MEMORY, form, OURS): {Measure.GROWTH: Reading(by_count[MANY] / by_count[FEW])}
        for form, by_count in found.items()
    }


if __name__ == "__main__":
    main()
