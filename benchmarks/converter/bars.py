"""What is asked of the converter, as data, and whether figures meet it. Pure; nothing is measured here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from benchmarks.limits import Bound, Verdict

OURS, MIXED = "EdgeOps", "EdgeOps, mixed precision"
"""The tools that the bars are for; any other name in the figures is a stock tool."""
BOTH = "onnx and tflite"
MEMORY = "calibration"
"""Where the growth of memory stands among the figures, since it belongs to no subject."""


class Measure(StrEnum):
    """What a figure says, as the table shows it."""

    AGREEMENT = "agreement"
    """Share of the rows with float's top class."""
    SQNR = "SQNR, dB"
    """Of the outputs against float."""
    SPEED = "times float's speed"
    """Median latency of float in the same format over this one's."""
    DROP = "points lost"
    """Of accuracy or area under the curve against the source, on the same rows."""
    INTEGER = "% in integers"
    """Convolutions and matrix products that the engine runs in integers."""
    PARITY = "% same class"
    """Rows on which the ONNX and the TFLite file give the same top class."""
    SIZE = "of float's size"
    SECONDS = "times NNCF's seconds"
    """To make the file, over what NNCF's full bias correction takes on the same model and rows."""
    GROWTH = "times the peak RSS"
    """With 10,000 calibration rows over that with 100, the rows themselves in memory both times."""


@dataclass(frozen=True)
class Reading:
    """A figure, with its 95 % interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def text(self) -> str:
        """For the table.

        >>> Reading(0.5, -0.1, 1.1).text
        '0.5 [-0.1, 1.1]'
        """
        interval = f" [{self.low:.3g}, {self.high:.3g}]" if self.low is not None and self.high is not None else ""
        return f"{self.value:.3g}{interval}"


@dataclass(frozen=True)
class Place:
    """Whose figures: a subject in a format, made by a tool."""

    subject: str
    format: str
    tool: str


Figures = Mapping[Place, Mapping[Measure, Reading]]


@dataclass(frozen=True)
class Limit:
    """One condition."""

    measure: Measure
    bound: Bound
    value: float

    @property
    def text(self) -> str:
        """For the table."""
        return f"{self.bound} {self.value:g} {self.measure}"

    def admits(self, value: float) -> bool:
        """Whether a figure is on the good side; NaN never is."""
        return self.bound.admits(value, self.value)

    def best(self, values: Sequence[float]) -> float:
        """The one of some figures that is farthest on the good side."""
        return max(values) if self.bound is Bound.AT_LEAST else min(values)


@dataclass(frozen=True)
class Bar:
    """Conditions that have to hold together, for each of some subjects in each of some formats.

    Attributes:
        tool: Whose figures have to meet them.
        needs_rival: Whether the figure is against a stock tool, so that nothing is said where that took no part.
    """

    what: str
    subjects: tuple[str, ...]
    formats: tuple[str, ...]
    limits: tuple[Limit, ...]
    tool: str = OURS
    needs_rival: bool = False


@dataclass(frozen=True)
class Outcome:
    """One bar for one subject in one format.

    Attributes:
        what: As the bar says.
        subject: Which; with ``format``.
        asked: The conditions, for people.
        got: Our figures.
        stock: For each condition the best figure of any stock tool; they need not be of the same one.
        verdict: Whether all conditions hold.
    """

    what: str
    subject: str
    format: str
    asked: str
    got: str
    stock: str
    verdict: Verdict


def judge(bars: Sequence[Bar], figures: Figures, *, measured: Sequence[str]) -> list[Outcome]:
    """Hold figures against bars.

    Args:
        bars: What is asked.
        figures: What was found.
        measured: The subjects that took part: for them a figure that is missing fails its bar, for others nothing is said.
    """
    return list(_outcomes(bars, figures, frozenset(measured)))


def _outcomes(bars: Sequence[Bar], figures: Figures, measured: frozenset[str]) -> Iterator[Outcome]:
    for bar in bars:
        for subject in bar.subjects:
            for form in bar.formats:
                found = figures.get(Place(subject, form, bar.tool), {})
                readings = [found.get(limit.measure) for limit in bar.limits]
                if subject not in measured or (bar.needs_rival and None in readings):
                    verdict = Verdict.NOT_MEASURED
                elif all(
                    one is not None and limit.admits(one.value) for one, limit in zip(readings, bar.limits, strict=True)
                ):
                    verdict = Verdict.MET
                else:
                    verdict = Verdict.NOT_MET
                yield Outcome(
                    what=bar.what,
                    subject=subject,
                    format=form,
                    asked=", ".join(limit.text for limit in bar.limits),
                    got=", ".join("none" if one is None else one.text for one in readings),
                    stock=", ".join(_best_of_stock(limit, figures, subject, form) for limit in bar.limits),
                    verdict=verdict,
                )


def _best_of_stock(limit: Limit, figures: Figures, subject: str, form: str) -> str:
    values = [
        found[limit.measure].value
        for place, found in figures.items()
        if (place.subject, place.format) == (subject, form)
        and place.tool not in {OURS, MIXED}
        and limit.measure in found
    ]
    return f"{limit.best(values):.3g}" if values else "–"


def _at_least(measure: Measure, value: float) -> Limit:
    return Limit(measure, Bound.AT_LEAST, value)


def _at_most(measure: Measure, value: float) -> Limit:
    return Limit(measure, Bound.AT_MOST, value)


_RUNTIMES = ("onnx", "tflite")
_WELL_BEHAVED = ("depthwise", "resnet", "transformer", "keywords", "autoencoder")
_CLASSIFIERS = (
    "depthwise", "resnet", "transformer", "mobilenetv3", "keywords", "plain", "plain-rescaled", "efficientnet"
)  # fmt: skip
_ALL = (*_CLASSIFIERS, "autoencoder")


def _faithful(agreement: float, sqnr_db: float, speed: float) -> tuple[Limit, ...]:
    return (
        _at_least(Measure.AGREEMENT, agreement),
        _at_least(Measure.SQNR, sqnr_db),
        _at_least(Measure.SPEED, speed),
    )


BARS = (
    Bar("EfficientNet-Lite0, all int8", ("efficientnet",), ("onnx",), _faithful(0.92, 21, 2.0)),
    Bar("EfficientNet-Lite0, all int8", ("efficientnet",), ("tflite",), _faithful(0.92, 21, 1.9)),
    Bar("EfficientNet-Lite0, mixed precision", ("efficientnet",), _RUNTIMES, _faithful(0.95, 24, 1.4), tool=MIXED),
    Bar(
        "well-behaved nets", _WELL_BEHAVED, _RUNTIMES, (_at_most(Measure.DROP, 0.5), _at_least(Measure.SPEED, 1))
    ),
    Bar("MobileNetV3-like", ("mobilenetv3",), _RUNTIMES, (_at_most(Measure.DROP, 1.0),)),
    Bar("rescaled channels", ("plain-rescaled",), _RUNTIMES, (_at_most(Measure.DROP, 0.5),)),
    Bar("integer kernels", _ALL, _RUNTIMES, (_at_least(Measure.INTEGER, 95),)),
    Bar("same classes on both runtimes", _CLASSIFIERS, (BOTH,), (_at_least(Measure.PARITY, 99),)),
    Bar(
        "size, convolutional nets over 1 MB",
        ("efficientnet", "resnet", "mobilenetv3"),
        _RUNTIMES,
        (_at_most(Measure.SIZE, 0.28),),
    ),
    Bar("time to make it", _ALL, ("onnx",), (_at_most(Measure.SECONDS, 1),), needs_rival=True),
    Bar("memory of calibration", (MEMORY,), _RUNTIMES, (_at_most(Measure.GROWTH, 1.1),)),
)  # fmt: skip
"""What is asked. Memory counts as flat within a tenth, which is what one allocator differs by from run to run."""
