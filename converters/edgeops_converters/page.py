"""``report.html``: one self-contained page for the people who decide whether to ship a bundle."""

from collections.abc import Sequence

from edgeops.manifest import Interval
from edgeops.signals import EVERYTHING, Reference, Signal, Statistic
from edgeops_converters.charts import Row, bars, histogram, intervals
from edgeops_converters.extras import load
from edgeops_converters.report import Report, VariantReport


def render_page(report: Report, reference: Reference, labels: Sequence[str] = ()) -> str:
    """The page as HTML.

    Args:
        report: The figures.
        reference: The drift baseline.
        labels: Class names by index; empty when there are none.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja = load("jinja2")
    environment = jinja.Environment(
        loader=jinja.PackageLoader("edgeops_converters", "templates"),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "svg": load("markupsafe").Markup,
        "percent": _percent,
        "interval": _interval,
        "kilobytes": _kilobytes,
    }
    page: str = environment.get_template("report.html").render(
        report=report,
        headline=_headline(report),
        size_chart=bars([_size_row(variant) for variant in report.variants]),
        latency_chart=bars([_latency_row(variant) for variant in report.variants]),
        accuracy_chart=_accuracy_chart(report),
        histograms=[(signal, _histogram(signal, labels)) for signal in reference.signals],
        strata=_strata(reference),
        reference=reference,
    )
    return page


def _headline(report: Report) -> list[tuple[str, str, str]]:
    """What one wants to know first, of the preferred variant: figure, what it is, against what."""
    best = report.variants[0]
    floats = [
        variant for variant in report.variants if variant.precision == "float32" and variant.format == best.format
    ]
    cards = [("preferred", best.name, f"of {len(report.variants)} variants")]
    smaller = f"{floats[0].size_bytes / best.size_bytes:.1f}× smaller than float" if floats else "on disk"
    cards.append(("size", _kilobytes(best.size_bytes), smaller))
    faster = f"{best.speedup:.2f}× as fast as float" if best.speedup is not None else "one row, one thread"
    cards.append(("latency", f"{best.latency_ms:.3f} ms", faster))
    if best.accuracy is not None and best.drop is not None:
        cards.append(("accuracy", _percent(best.accuracy.value), f"{-best.drop.points:+.2f} points against the source"))
    elif best.agreement is not None:
        cards.append(("agreement", _percent(best.agreement), "with the source model"))
    elif best.sqnr_db is not None:
        cards.append(("signal to noise", f"{best.sqnr_db:.1f} dB", "against the source model"))
    return cards


def _size_row(variant: VariantReport) -> Row:
    return Row(variant.name, variant.size_bytes, _kilobytes(variant.size_bytes), _kind(variant))


def _latency_row(variant: VariantReport) -> Row:
    speedup = f" · {variant.speedup:.2f}× as fast" if variant.speedup is not None else ""
    return Row(variant.name, variant.latency_ms, f"{variant.latency_ms:.3f} ms{speedup}", _kind(variant))


def _accuracy_chart(report: Report) -> str | None:
    measured = [(variant.name, variant.accuracy, _kind(variant)) for variant in report.variants]
    rows = [
        Row(name, 100 * share.value, _interval(share), kind, low=100 * share.low, high=100 * share.high)
        for name, share, kind in [("source", report.source.accuracy, "source"), *measured]
        if share is not None
    ]
    return intervals(rows, unit=" %") if rows else None


def _histogram(signal: Signal, labels: Sequence[str]) -> str:
    is_class = signal.statistic is Statistic.CLASS
    # The last bin is for what is not finite, which held-out data never is.
    counts = signal.counts[EVERYTHING][:-1]
    names = [labels[index] if index < len(labels) else f"class {index}" for index in range(len(counts))]
    return histogram(counts, signal.edges, labels=names if is_class else ())


def _strata(reference: Reference) -> list[tuple[str, int, str]]:
    """Name, rows and accuracy of each stratum."""
    names = sorted({name for signal in reference.signals for name in signal.counts} - {EVERYTHING})
    rows = []
    for name in names:
        correct, labelled = reference.accuracy.get(name, (0, 0))
        count = sum(reference.signals[0].counts[name])
        rows.append((name, count, _percent(correct / labelled) if labelled else "–"))
    return rows


def _kind(variant: VariantReport) -> str:
    # The page has two shades for each format: float, and whatever is compressed.
    return f"{variant.format} {'float32' if variant.precision == 'float32' else 'compressed'}"


def _percent(share: float) -> str:
    return f"{share:.2%}".replace("%", " %")


def _interval(share: Interval) -> str:
    return f"{100 * share.value:.2f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _kilobytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"  # noqa: PLR2004 - a megabyte
