"""From the figures of a report to what :mod:`edgeops_converters.charts` draws: which rows, which points, in which words. Pure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeops.signals import EVERYTHING, Signal, Statistic
from edgeops_converters.advice import loudest
from edgeops_converters.charts import (
    Part,
    Point,
    Row,
    bars,
    clipped_histogram,
    histogram,
    intervals,
    profile,
    stair,
    tradeoff,
)
from edgeops_converters.layer_noise import LayerReport
from edgeops_converters.report import Report, VariantReport
from edgeops_converters.tensor_report import TensorReport
from edgeops_converters.trials import Outcome, Trial
from edgeops_converters.wording import decibel, interval, kilobytes, milliseconds, percent, short_name, signed

_NOISE = "noise against signal, dB"


def size_chart(report: Report) -> str:
    """Bars of the sizes, in weights, biases and the rest."""
    return bars(
        [
            Row(one.name, one.size_bytes, kilobytes(one.size_bytes), _kind(one), parts=_parts(one))
            for one in report.variants
        ]
    )


def latency_chart(report: Report) -> str:
    """Bars of the latencies, with the intervals of the medians."""
    rows = []
    for one in report.variants:
        speedup = f" · {one.speedup:.2f}×" if one.speedup is not None else ""
        row = Row(one.name, one.latency_ms, f"{milliseconds(one.latency_ms)}{speedup}", _kind(one))
        if one.latency_interval is not None:
            row = Row(row.label, row.value, row.shown, row.kind, one.latency_interval.low, one.latency_interval.high)
        rows.append(row)
    return bars(rows)


def accuracy_chart(report: Report) -> str | None:
    """Accuracies with their intervals; ``None`` where there are none."""
    measured = [(one.name, one.accuracy, _kind(one)) for one in report.variants]
    rows = [
        Row(name, 100 * share.value, interval(share), kind, low=100 * share.low, high=100 * share.high)
        for name, share, kind in [("source", report.source.accuracy, "source"), *measured]
        if share is not None
    ]
    return intervals(rows, unit=" %") if rows else None


@dataclass(frozen=True)
class LayersPicture:
    """The noise of a variant's layers: the chart, the lines of its table, and the layers that the text speaks of.

    Attributes:
        variant: Its name.
        chart: SVG.
        lines: Number, layer, its short name and its mark, empty where there is none.
        loudest: The same of those that add most noise.
    """

    variant: str
    chart: str
    lines: list[tuple[int, LayerReport, str, str]]
    loudest: list[tuple[int, LayerReport, str, str]]


def layers_picture(variant: VariantReport) -> LayersPicture:
    """SQNR in the order of the graph; a layer without noise is drawn at the top."""
    marks = {id(layer): letter for letter, layer in zip("ABC", loudest(variant.layers, most=3), strict=False)}
    top = max((layer.sqnr_db for layer in variant.layers if layer.sqnr_db is not None), default=0.0)
    lines = [
        (number, layer, short_name(layer.name), marks.get(id(layer), ""))
        for number, layer in enumerate(variant.layers, start=1)
    ]
    points = [
        Point(
            x=number,
            y=top if layer.sqnr_db is None else layer.sqnr_db,
            kind=f"layer {_family(layer.precision)}{' loud' if mark else ''}",
            title=f"{number}  {name}\n{layer.kind}, {layer.precision}\n{decibel(layer.sqnr_db)}{_against_input(layer)}",
            name=mark,
        )
        for number, layer, name, mark in lines
    ]
    return LayersPicture(
        variant=variant.name,
        chart=profile(points, unit=" dB"),
        lines=lines,
        loudest=sorted((line for line in lines if line[3]), key=lambda line: line[3]),
    )


def tensor_picture(tensor: TensorReport) -> str:
    """What a tensor held, and the range that was chosen."""
    return clipped_histogram(tensor.counts, first=tensor.first, width=tensor.width, low=tensor.low, high=tensor.high)


def pareto_pictures(tried: Sequence[Trial], max_drop: float) -> list[tuple[str, str]]:
    """Title and chart of size and of latency against loss, of the trials that have both, with the limit of the loss.

    Probes are left out: they are of other rows, and far from what could be chosen.
    """
    trials = [trial for trial in tried if not trial.is_probe]
    words, loss = _loss(trials)
    limit = max_drop if words != _NOISE else None
    is_large = max((trial.size_bytes for trial in trials), default=0) >= 1e6  # noqa: PLR2004 - a megabyte
    unit, unit_bytes = ("MB", 1e6) if is_large else ("kB", 1e3)
    costs: list[tuple[str, str, Callable[[Trial], float | None]]] = [
        ("Size against loss", f"size, {unit}", lambda trial: trial.size_bytes / unit_bytes),
        ("Latency against loss", "latency, ms", lambda trial: trial.latency_ms),
    ]
    pictures = []
    for title, cost_words, cost in costs:
        points = {
            trial.name: _trial_point(trial, x, y, f"{cost_words} {x:.4g}; {words} {y:.3g}")
            for trial in trials
            if (x := cost(trial)) is not None and (y := loss(trial)) is not None
        }
        if points:
            front = stair([points[trial.name] for trial in trials if trial.is_pareto and trial.name in points])
            pictures.append(
                (title, tradeoff(list(points.values()), front, x_unit=cost_words, y_unit=words, limit=limit))
            )
    return pictures


def _trial_point(trial: Trial, x: float, y: float, figures: str) -> Point:
    drop = trial.drop
    return Point(
        x=x,
        y=y,
        kind=f"trial {trial.outcome}{' pareto' if trial.is_pareto else ''}",
        title=f"{trial.name}: {trial.settings}\n{figures}\n{trial.outcome}{f': {trial.reason}' if trial.reason else ''}",
        name=trial.name if trial.outcome is Outcome.CHOSEN else "",
        low=drop.low if drop is not None else math.nan,
        high=drop.high if drop is not None else math.nan,
    )


def signal_picture(signal: Signal, labels: Sequence[str]) -> str:
    """The bins of a drift signal."""
    is_class = signal.statistic is Statistic.CLASS
    # The last bin is for what is not finite, which held-out data never is.
    counts = signal.counts[EVERYTHING][:-1]
    names = [labels[index] if index < len(labels) else f"class {index}" for index in range(len(counts))]
    return histogram(counts, signal.edges, labels=names if is_class else ())


def loss_in_words(trial: Trial) -> str:
    """What a trial lost, in the sharpest figure there is."""
    if trial.drop is not None:
        drop = trial.drop
        return f"{signed(drop.points)} points [{signed(drop.low)}, {signed(drop.high)}]"
    if trial.agreement is not None:
        return f"{percent(trial.agreement)} agreement"
    return decibel(trial.sqnr_db)


def _loss(trials: Sequence[Trial]) -> tuple[str, Callable[[Trial], float | None]]:
    """The sharpest figure that all trials have."""
    if all(trial.drop is not None for trial in trials):
        return "accuracy lost, points", lambda trial: trial.drop.points if trial.drop is not None else None
    if all(trial.agreement is not None for trial in trials):
        return "disagreement, %", lambda trial: 100 * (1 - trial.agreement) if trial.agreement is not None else None
    return _NOISE, lambda trial: -trial.sqnr_db if trial.sqnr_db is not None else None


def _parts(variant: VariantReport) -> tuple[Part, ...]:
    if variant.sizes is None:
        return ()
    named = (("weights", variant.sizes.weights), ("biases", variant.sizes.biases), ("rest", variant.sizes.rest))
    return tuple(Part(value, f"{variant.name}: {name} {kilobytes(value)}", f"part-{name}") for name, value in named)


def _against_input(layer: LayerReport) -> str:
    return f", {-layer.loss_db:+.1f} dB against its input" if layer.loss_db is not None else ""


def _family(precision: str) -> str:
    """CSS class of a precision: which colour it has."""
    known = ("int8", "int16", "int4")
    return precision if precision in known else "float"


def _kind(variant: VariantReport) -> str:
    return f"{variant.format} {'plain' if variant.precision == 'float32' else 'compressed'}"
