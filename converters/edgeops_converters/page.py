"""``report.html``: one self-contained page for the people who decide whether to ship a bundle."""

from collections.abc import Sequence

from edgeops.signals import EVERYTHING, Reference
from edgeops_converters import pictures, wording
from edgeops_converters.extras import load
from edgeops_converters.report import Report, VariantReport

_SHOWN_TENSORS = 12
_SHORT_TABLE = 12


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
        "percent": wording.percent,
        "interval": wording.interval,
        "kilobytes": wording.kilobytes,
        "milliseconds": wording.milliseconds,
        "decibel": wording.decibel,
        "short": wording.short_name,
        "tail": wording.tail,
        "signed": wording.signed,
        "loss": pictures.loss_in_words,
        "range_picture": pictures.tensor_picture,
    }
    page: str = environment.get_template("report.html").render(
        report=report,
        headline=_headline(report),
        size_chart=pictures.size_chart(report),
        latency_chart=pictures.latency_chart(report),
        accuracy_chart=pictures.accuracy_chart(report),
        layers=[pictures.layers_picture(variant) for variant in report.variants if variant.layers],
        pareto=pictures.pareto_pictures(report.trials, report.max_drop),
        histograms=[(signal, pictures.signal_picture(signal, labels)) for signal in reference.signals],
        strata=_strata(reference),
        reference=reference,
        shown_tensors=_SHOWN_TENSORS,
        short_table=_SHORT_TABLE,
    )
    return page


def _headline(report: Report) -> list[tuple[str, str, str]]:
    """What one wants to know first, of the preferred variant: figure, what it is, against what."""
    best = report.variants[0]
    floats = [one for one in report.variants if one.precision == "float32" and one.format == best.format]
    cards = [("preferred", best.name, f"of {len(report.variants)} variants")]
    smaller = f"{floats[0].size_bytes / best.size_bytes:.1f}× smaller than float" if floats else "on disk"
    cards.append(("size", wording.kilobytes(best.size_bytes), smaller))
    faster = f"{best.speedup:.2f}× as fast as float" if best.speedup is not None else "one row, one thread"
    cards.append(("latency", wording.milliseconds(best.latency_ms), faster))
    cards += _likeness(best)
    if best.audit is not None:
        cards.append(
            (
                "in integers",
                f"{best.audit.integer} of {best.audit.total}",
                "convolutions and matrix products, as loaded",
            )
        )
    return cards


def _likeness(best: VariantReport) -> list[tuple[str, str, str]]:
    if best.accuracy is not None and best.drop is not None:
        points, low, high = (wording.signed(-one) for one in (best.drop.points, best.drop.high, best.drop.low))
        change = f"{points} [{low}, {high}] points against the source"
        return [("accuracy", wording.percent(best.accuracy.value), change)]
    if best.agreement is not None:
        return [("agreement", wording.percent(best.agreement), "with the source model")]
    if best.sqnr_db is not None:
        return [("signal to noise", wording.decibel(best.sqnr_db), "against the source model")]
    return []


def _strata(reference: Reference) -> list[tuple[str, int, str]]:
    """Name, rows and accuracy of each stratum."""
    names = sorted({name for signal in reference.signals for name in signal.counts} - {EVERYTHING})
    rows = []
    for name in names:
        correct, labelled = reference.accuracy.get(name, (0, 0))
        count = sum(reference.signals[0].counts[name])
        rows.append((name, count, wording.percent(correct / labelled) if labelled else "–"))
    return rows
