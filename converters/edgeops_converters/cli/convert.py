"""The command ``edgeops convert``: options to arguments, progress to standard error, the figures to standard output."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import click
import msgspec

from edgeops.errors import ConfigError, RecipeError
from edgeops.files import DIGEST_PATTERN
from edgeops.manifest import Interval, Operator
from edgeops.signing import SigningKey
from edgeops_converters.cli.scratch import scratch
from edgeops_converters.convert import Conversion, convert
from edgeops_converters.extras import load
from edgeops_converters.report import VariantReport, encode_report
from edgeops_converters.targets import parse_targets


class _Processing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of ``--processing``."""

    preprocess: tuple[Operator, ...] = ()
    postprocess: tuple[Operator, ...] = ()


def split(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
    """A click callback: words between commas."""
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _digest(_context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not DIGEST_PATTERN.match(value):
        raise click.BadParameter(f"expected sha256:<64 hex>, got {value!r}", param=parameter)
    return value


_NAME_WIDTH = 14


def _targets(_context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    try:
        parse_targets(value)
    except RecipeError as error:
        raise click.BadParameter(str(error), param=parameter) from error
    return value


_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("convert")
@click.argument("source")
@click.option("--data", required=True, type=_FILE, help="Calibration rows (.npz): one key for each input.")
@click.option(
    "--eval", "evaluation", required=True, type=_FILE, help="Held-out rows (.npz): the same keys, 'labels', 'stratum'."
)
@click.option("--name", required=True, help="Name of the model.")
@click.option("--version", required=True, help="Version of the model: major.minor.patch.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The bundle directory to make.")
@click.option("--formats", default="onnx,tflite", show_default=True, callback=split, help="What to write.")
@click.option(
    "--precisions",
    default="float,int8",
    show_default=True,
    callback=split,
    help="What to write: float, int8, mixed, float16, int8-weights, int4-weights, dynamic, int16.",
)
@click.option(
    "--max-drop", default=0.5, show_default=True, metavar="POINTS", help="Largest loss of accuracy, percentage points."
)
@click.option(
    "--min-int8",
    default=0.0,
    show_default=True,
    metavar="PERCENT",
    help="Least share of convolutions and matrix products that must run in integers.",
)
@click.option(
    "--max-latency-ms", type=float, metavar="MS", help="Longest time of a compressed variant for one row on one thread."
)
@click.option("--max-bytes", type=int, metavar="BYTES", help="Largest file of a compressed variant.")
@click.option(
    "--target",
    callback=_targets,
    help="CPUs that it is made for: x86, x86-vnni, arm, or several with commas; this machine's by default.",
)
@click.option(
    "--input-layout",
    type=click.Choice(["nchw", "nhwc"]),
    default="nchw",
    show_default=True,
    help="How callers give images; the data too.",
)
@click.option("--labels", "labels_file", type=_FILE, help="Class names, one a line.")
@click.option(
    "--processing", "processing_file", type=_FILE, help='Operators (.json): {"preprocess": […], "postprocess": […]}.'
)
@click.option("--stratum-attribute", default="", help="Device attribute whose values are the 'stratum' of the rows.")
@click.option("--key", "key_files", multiple=True, type=_FILE, help="Private key that signs; repeatable.")
@click.option("--parent", callback=_digest, metavar="DIGEST", help="The bundle that this model was retrained from.")
@click.option("--dataset", callback=_digest, metavar="DIGEST", help="The dataset that it was retrained on.")
@click.option("--license", "license_", default="", help="SPDX expression of the model.")
@click.option("--allow-pickle", is_flag=True, help="Load a pickled module (.pt), which can run any code.")
@click.option("--requantize", is_flag=True, help="Quantise a file that is int8 already anew, rather than keep it.")
@click.option("--force", is_flag=True, help="Keep a variant that the gate refuses; the report says so.")
@click.option("--json", "as_json", is_flag=True, help="Print report.json instead of the table.")
def convert_command(
    source: str,
    *,
    data: Path,
    evaluation: Path,
    name: str,
    version: str,
    output: Path,
    formats: tuple[str, ...],
    precisions: tuple[str, ...],
    max_drop: float,
    min_int8: float,
    max_latency_ms: float | None,
    max_bytes: int | None,
    target: str | None,
    input_layout: str,
    labels_file: Path | None,
    processing_file: Path | None,
    stratum_attribute: str,
    key_files: tuple[Path, ...],
    parent: str | None,
    dataset: str | None,
    license_: str,
    allow_pickle: bool,
    requantize: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Compress a model, prove that it is still the model, and write a signed bundle.

    SOURCE is file.py:function (returns an nn.Module in eval mode), a .pt2 exported program, an .onnx or a .tflite file.
    """
    processing = _read_processing(processing_file) if processing_file is not None else _Processing()
    labels = _read_labels(labels_file) if labels_file is not None else ()
    keys = [SigningKey.load(path) for path in key_files]
    # What the user's code prints is no part of the figures.
    with scratch(), progress() as on_step, redirect_stdout(sys.stderr):
        conversion = convert(
            source,
            data=data,
            evaluation=evaluation,
            name=name,
            version=version,
            output=output,
            formats=formats,
            precisions=precisions,
            max_drop=max_drop,
            min_int8=min_int8,
            max_latency_ms=max_latency_ms,
            max_bytes=max_bytes,
            target=target,
            input_layout=input_layout,
            labels=labels,
            preprocess=processing.preprocess,
            postprocess=processing.postprocess,
            keys=keys,
            stratum_attribute=stratum_attribute,
            parent=parent,
            dataset=dataset,
            license=license_,
            allow_pickle=allow_pickle,
            requantize=requantize,
            force=force,
            on_step=on_step,
        )
    if as_json:
        click.echo(encode_report(conversion.report))
        return
    _show(conversion, is_signed=bool(keys))


def _read_processing(path: Path) -> _Processing:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Processing)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f'{path}: expected {{"preprocess": [operators], "postprocess": [operators]}}: {error}'
        ) from error


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected class names, one a line: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Tell the steps on standard error: a spinner with times on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        begin = time.monotonic()
        yield lambda step: click.echo(f"{time.monotonic() - begin:6.1f} s  {step}", err=True)
        return
    rich = load("rich.progress")
    # The libraries' native log lines are kept off descriptor 2; the display needs one of its own.
    with os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8") as terminal:
        console = load("rich.console").Console(file=terminal, force_terminal=True)
        columns = (
            rich.SpinnerColumn(finished_text="✓"),
            rich.TextColumn("{task.description}"),
            rich.TimeElapsedColumn(),
        )
        with rich.Progress(*columns, console=console) as display:
            yield _stepper(display)
            _finish_last(display)


def _stepper(display: Any) -> Callable[[str], None]:  # noqa: ANN401 - rich.progress.Progress, loaded lazily
    def on_step(step: str) -> None:
        _finish_last(display)
        display.add_task(step, total=1)

    return on_step


def _finish_last(display: Any) -> None:  # noqa: ANN401 - rich.progress.Progress, loaded lazily
    if display.task_ids:
        display.update(display.task_ids[-1], completed=1)


def _show(conversion: Conversion, *, is_signed: bool) -> None:
    report = conversion.report
    click.echo(f"{report.name} {report.version} from {report.source.label}: {report.evaluation_rows} held-out rows")
    width = max(_NAME_WIDTH, *(len(variant.name) + 1 for variant in report.variants))
    click.echo(
        f"{'variant':<{width}}{'size':>11}{'latency':>12}{'':>8}{'accuracy (95 %)':>27}{'drop':>9}{'agree':>9}{'SQNR':>10}"
    )
    click.echo(f"{'source':<{width}}{'':>31}{_interval(report.source.accuracy):>27}")
    for variant in report.variants:
        click.echo(_row(variant, width))
    for note in report.notes:
        click.echo(f"note: {note}")
    for variant in report.variants:
        if variant.audit is not None:
            click.echo(f"{variant.name}: {variant.audit.text}")
    for variant in report.variants:
        for reason in variant.gate.reasons:
            click.echo(f"forced: {variant.name}: {reason}")
    click.echo(f"{conversion.bundle.path}  {conversion.bundle.digest}{'' if is_signed else '  not signed; give --key'}")
    click.echo(f"{conversion.bundle.file('report.html')}")


def _row(variant: VariantReport, width: int) -> str:
    speedup = f"{variant.speedup:.2f}×" if variant.speedup is not None else ""
    drop = f"{variant.drop.points:+.2f}" if variant.drop is not None else "-"
    agreement = f"{variant.agreement:.2%}" if variant.agreement is not None else "-"
    noise = f"{variant.sqnr_db:.1f} dB" if variant.sqnr_db is not None else "exact"
    return (
        f"{variant.name:<{width}}{variant.size_bytes / 1000:>8.1f} kB{variant.latency_ms:>9.3f} ms{speedup:>8}"
        f"{_interval(variant.accuracy):>27}{drop:>9}{agreement:>9}{noise:>10}"
    )


def _interval(accuracy: Interval | None) -> str:
    return f"{accuracy.value:.2%} [{accuracy.low:.2%}, {accuracy.high:.2%}]" if accuracy is not None else "-"
