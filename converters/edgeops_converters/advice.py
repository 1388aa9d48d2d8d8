"""What to do next, as far as it follows from the figures of a report. Pure."""

import math
from collections.abc import Iterator

from edgeops_converters.layer_noise import LayerReport
from edgeops_converters.report import Report, VariantReport
from edgeops_converters.wording import short_name

_FEW_ROWS = 100  # of calibration data
_FAITHFUL = 0.98  # agreement from which more calibration rows hardly help
_QUIET_DB = 30.0  # signal to noise from which no layer is worth an effort
_LOUD_DB = 3.0  # a layer that doubles the noise that it got
_SMALL_SPEEDUP = 1.1
_WORST_LAYERS = 2
_APART_DB = 6.0  # between two formats of one model, where rounding explains a decibel or two
_RESTLESS = 1.25  # the upper end of a latency's interval over the lower
_NARROW_POINTS = 0.05  # what a drop must stay below the limit for a number of rows to be named


def advise(report: Report) -> tuple[str, ...]:
    """A few sentences, most urgent first; never none."""
    said = [line for rule in _RULES for line in rule(report)]
    if not said:
        said = [
            f"Nothing in these figures asks for more work: ship {report.variants[0].name}, in waves (edgeops fleet)."
        ]
    return tuple(said)


def _compressed(report: Report) -> list[VariantReport]:
    return [variant for variant in report.variants if variant.precision != "float32"]


def _forced(report: Report) -> Iterator[str]:
    for variant in _compressed(report):
        if variant.gate.forced:
            yield f"Do not ship {variant.name} before somebody has agreed to this: {'; '.join(variant.gate.reasons)}."


def _restless(report: Report) -> Iterator[str]:
    """Once more, where the machine was too busy for the latencies to say anything."""
    intervals = {one.name: one.latency_interval for one in report.variants if one.latency_interval is not None}
    wide = {name: one for name, one in intervals.items() if one.high > _RESTLESS * one.low}
    if wide:
        name, widest = max(wide.items(), key=lambda item: item[1].high / item[1].low)
        yield (
            f"Convert again on a quiet machine before a latency decides anything: that of {name} lies between {widest.low:.3f} "
            f"and {widest.high:.3f} ms."
        )


def _apart(report: Report) -> Iterator[str]:
    """The same model and precision in two formats, one of them much noisier: then it is the kernels, not the numbers."""
    noises = {one.name: (one.precision, one.sqnr_db) for one in _compressed(report) if one.sqnr_db is not None}
    for precision in sorted({precision for precision, _ in noises.values()}):
        of_precision = {name: sqnr for name, (other, sqnr) in noises.items() if other == precision}
        worst, best = min(of_precision, key=of_precision.__getitem__), max(of_precision, key=of_precision.__getitem__)
        apart = of_precision[best] - of_precision[worst]
        if apart >= _APART_DB:
            yield (
                f"Find out why {worst} has {apart:.0f} dB more noise than {best}, which is the same model in {precision}: an x86 "
                "CPU without VNNI saturates in onnxruntime's int8 kernels, and the noise by layer shows where."
            )


def _uncertain(report: Report) -> Iterator[str]:
    """More rows where the interval of a drop reaches beyond the limit, although the drop itself does not."""
    drops = {one.name: one.drop for one in _compressed(report) if one.drop is not None}
    reaching = {name: drop for name, drop in drops.items() if drop.points <= report.max_drop < drop.high}
    if not reaching:
        return
    name = max(reaching, key=lambda one: reaching[one].high)
    drop = reaching[name]
    room = report.max_drop - drop.points
    enough = ""
    if room >= _NARROW_POINTS:
        # The width of the interval falls with the square root of the number of rows.
        needed = math.ceil(report.evaluation_rows * ((drop.high - drop.points) / room) ** 2 - 1e-6)
        magnitude = 10 ** (len(str(needed)) - 1)
        enough = f"; about {magnitude * math.ceil(needed / magnitude):,} would do if the drop stays what it is"
    yield (
        f"Give more held-out rows than {report.evaluation_rows:,}: the drop of {name} may be as large as {drop.high:.2f} points, "
        f"and {report.max_drop:g} are accepted{enough}."
    )


def _lossy(report: Report) -> Iterator[str]:
    """More calibration rows, or training, where a variant is not like float."""
    for variant in _compressed(report):
        is_unlike = variant.agreement is not None and variant.agreement < _FAITHFUL
        if is_unlike and report.calibration_rows < _FEW_ROWS:
            yield (
                f"Give more calibration rows than {report.calibration_rows}, some hundreds that look like the field: "
                f"{variant.name} agrees with the source on {variant.agreement:.1%}."
            )
        elif variant.drop is not None and variant.drop.low > report.max_drop:
            yield (
                f"Train with quantisation in the loop, or keep the noisiest layers of {variant.name} in a higher precision: its "
                f"drop is beyond {report.max_drop:g} points even at the lower end of its interval ({variant.drop.low:.2f})."
            )


def _loud_layers(report: Report) -> Iterator[str]:
    """The layers that add most noise, where there is noise that matters."""
    for variant in _compressed(report):
        if variant.sqnr_db is None or variant.sqnr_db >= _QUIET_DB:
            continue
        worst = loudest(variant.layers)
        if worst:
            named = " and ".join(
                f"{short_name(layer.name)} ({layer.kind}, {layer.loss_db:.1f} dB below its input)" for layer in worst
            )
            how = "" if report.trials else " (--precisions float,int8,mixed searches for it)"
            yield f"Try a higher precision for what adds most noise to {variant.name}{how}: {named}."


def loudest(layers: tuple[LayerReport, ...], most: int = _WORST_LAYERS) -> list[LayerReport]:
    """The layers that add most noise to what they got, if they at least double it."""
    loud = [layer for layer in layers if layer.loss_db is not None and layer.loss_db >= _LOUD_DB]
    return sorted(loud, key=lambda layer: layer.loss_db or 0.0, reverse=True)[:most]


def _float_layers(report: Report) -> Iterator[str]:
    left = [
        f"{len(one.audit.in_float)} of {one.audit.total} of {one.name}"
        for one in report.variants
        # A search leaves layers in float on purpose.
        if one.audit is not None and one.audit.in_float and one.precision != "mixed"
    ]
    if left:
        yield (
            "Run edgeops doctor on the source: it says what to change so that the convolutions and matrix products that are left "
            f"in float get integers ({', '.join(left)})."
        )


def _slow(report: Report) -> Iterator[str]:
    for variant in _compressed(report):
        if variant.speedup is not None and not variant.gate.forced and variant.speedup < _SMALL_SPEEDUP:
            yield (
                f"Measure {variant.name} on the device: here it is {variant.speedup:.2f}× as fast as float, which is within what "
                "another CPU changes."
            )


def _overhead(report: Report) -> Iterator[str]:
    """Only of the preferred variant: what a format costs is nearly the same for all."""
    best = report.variants[0]
    if best.sizes is not None and 2 * best.sizes.rest > best.size_bytes:
        yield (
            f"Do not look for a smaller {best.name} in its weights: {best.sizes.rest / best.size_bytes:.0%} of its "
            f"{best.size_bytes / 1000:.1f} kB are graph, names and scales."
        )


def _unlabelled(report: Report) -> Iterator[str]:
    if report.source.accuracy is None and report.variants[0].agreement is not None:
        yield (
            "Give labels with the held-out rows (key 'labels') if there are any: what is known without them is the likeness to "
            "the source, not the accuracy."
        )


_RULES = (
    _forced,
    _restless,
    _apart,
    _uncertain,
    _lossy,
    _loud_layers,
    _float_layers,
    _slow,
    _overhead,
    _unlabelled,
)
"""Most urgent first."""
