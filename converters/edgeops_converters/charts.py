"""Inline SVG for the report: pure, values in, markup out, with every text escaped; colours are the page's.

Bars, points with intervals, histograms, the noise along a graph, and what a search tried.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDE, HALF = 940, 460
_CHARACTER = 7.2  # width of one, at the size of the labels
_LONGEST_LABEL = 22  # in characters
_VALUE_WIDTH = 176
_ROW_HEIGHT = 30
_BAR_HEIGHT = 16
_HISTOGRAM_WIDTH, _HISTOGRAM_HEIGHT = 220, 120
_PLOT_HEIGHT, _PLOT_LEFT, _PLOT_BOTTOM = 220, 56, 40
_LEAST_STEP = 5.0  # between two layers; a chart of many grows wider


@dataclass(frozen=True)
class Part:
    """A stretch of a bar: its share of the whole in the bar's unit, what it is, and the CSS class that tells it from others."""

    value: float
    title: str
    kind: str


@dataclass(frozen=True)
class Row:
    """One line of a chart.

    Attributes:
        label: To its left.
        value: Length of the bar, or place of the point.
        shown: The value in words, to its right.
        kind: CSS class that gives the colour.
        low: Lower end of the interval, where the chart has intervals; likewise ``high``.
        parts: What the bar consists of, from the left; one piece when there are none.
    """

    label: str
    value: float
    shown: str
    kind: str
    low: float = math.nan
    high: float = math.nan
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Point:
    """One point of a plot.

    Attributes:
        x: To the right; the number of the layer, or a cost.
        y: Upwards.
        kind: CSS class that gives the colour.
        title: Shown when one points at it.
        name: Written beside it; empty where nothing is.
        low: Lower end of the interval of ``y``, where it has one; likewise ``high``.
    """

    x: float
    y: float
    kind: str
    title: str
    name: str = ""
    low: float = math.nan
    high: float = math.nan


def bars(rows: Sequence[Row]) -> str:
    """Horizontal bars from zero, one a row, with their intervals where they have one."""
    reach = [row.high if math.isfinite(row.high) else row.value for row in rows]
    most, left = max(reach, default=0) or 1, _label_width(rows)
    room = HALF - left - _VALUE_WIDTH
    drawn = []
    for index, row in enumerate(rows):
        top = index * _ROW_HEIGHT + (_ROW_HEIGHT - _BAR_HEIGHT) / 2
        place = float(left)
        for part in row.parts or (Part(row.value, f"{row.label}: {row.shown}", ""),):
            length = max(room * part.value / most, 0 if row.parts else 2)
            drawn.append(
                f'<rect class="{row.kind} {part.kind}" x="{place:.1f}" y="{top:.1f}" width="{length:.1f}" '
                f'height="{_BAR_HEIGHT}"><title>{escape(part.title)}</title></rect>'
            )
            place += length
        if math.isfinite(row.low):
            ends = [left + room * value / most for value in (row.low, row.high)]
            drawn += _whisker(ends[0], ends[1], top + _BAR_HEIGHT / 2)
            place = max(place, ends[1])
        drawn += _words(row, index, left=left, value=place + 8)
    return _svg(drawn, height=len(rows) * _ROW_HEIGHT, width=HALF, css="half")


def intervals(rows: Sequence[Row], *, unit: str) -> str:
    """Points with their intervals on one axis that spans them all, one a row.

    Args:
        rows: With ``low`` and ``high``.
        unit: Behind the numbers of the axis.
    """
    low, high = _spread([row.low for row in rows], [row.high for row in rows])
    left, height = _label_width(rows), len(rows) * _ROW_HEIGHT
    room = WIDE - left - _VALUE_WIDTH

    def place(value: float) -> float:
        return left + room * (value - low) / (high - low)

    drawn = []
    for tick in _ticks(low, high):
        drawn.append(f'<line class="grid" x1="{place(tick):.1f}" x2="{place(tick):.1f}" y1="0" y2="{height}"/>')
        drawn.append(_tick(place(tick), height + 15, f"{tick:g}{unit}"))
    for index, row in enumerate(rows):
        middle = index * _ROW_HEIGHT + _ROW_HEIGHT / 2
        drawn += _whisker(place(row.low), place(row.high), middle)
        drawn.append(
            f'<circle class="{row.kind}" cx="{place(row.value):.1f}" cy="{middle}" r="5.5">'
            f"<title>{escape(f'{row.label}: {row.shown}')}</title></circle>"
        )
        drawn += _words(row, index, left=left, value=WIDE - _VALUE_WIDTH + 8)
    return _svg(drawn, height=height + 22, width=WIDE, css="wide")


def profile(points: Sequence[Point], *, unit: str) -> str:
    """A stem for each point along ``x``, which counts from 1: a figure along the layers of a graph.

    Args:
        points: In order; ``name`` is the mark of those that the text speaks of.
        unit: Of ``y``.
    """
    low, high = _spread([0.0, *(point.y for point in points)], [point.y for point in points])
    width = max(WIDE, _PLOT_LEFT + 20 + _LEAST_STEP * len(points))
    step = (width - _PLOT_LEFT - 20) / max(len(points), 1)
    bottom = _PLOT_HEIGHT - _PLOT_BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return _PLOT_LEFT + step * (x - 0.5), bottom - (bottom - 14) * (y - low) / (high - low)

    drawn = list(_y_axis(low, high, unit, width))
    zero = place(1, max(low, 0.0))[1]
    drawn += [_tick(place(tick, 0)[0], bottom + 16, str(tick)) for tick in _layer_ticks(len(points))]
    drawn.append(_tick((_PLOT_LEFT + width) / 2, _PLOT_HEIGHT - 6, "layer, in the order of the graph"))
    radius = min(4.5, max(2.2, step / 2.4))
    for point in points:
        x, y = place(point.x, point.y)
        title = f"<title>{escape(point.title)}</title>"
        mark = (
            f'<text class="mark" x="{x:.1f}" y="{y - radius - 5:.1f}">{escape(point.name)}</text>' if point.name else ""
        )
        hit = f'<rect class="hit" x="{x - step / 2:.1f}" y="0" width="{step:.1f}" height="{bottom}"/>'
        stem = f'<line class="stem" x1="{x:.1f}" x2="{x:.1f}" y1="{zero:.1f}" y2="{y:.1f}"/>'
        dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'
        drawn.append(f'<g class="{point.kind}">{title}{hit}{stem}{dot}{mark}</g>')
    return _svg(drawn, height=_PLOT_HEIGHT, width=width, css="wide")


def tradeoff(
    points: Sequence[Point], front: Sequence[Point], *, x_unit: str, y_unit: str, limit: float | None = None
) -> str:
    """Cost to the right, loss upwards, so that what is better lies to the lower left; the front is a stair.

    Args:
        points: All, one or more.
        front: Those that nothing beats, by ``x``.
        x_unit: Under the axis.
        y_unit: Over the axis.
        limit: The largest loss that is accepted, drawn as a line; ``None`` draws none.
    """
    height = 300
    left, right = _spread([point.x for point in points], [point.x for point in points])
    ends = [end for point in points for end in (point.low, point.high) if point.name and math.isfinite(end)]
    low, high = _spread([point.y for point in points] + ends, [point.y for point in points] + ends)
    bottom, room = height - _PLOT_BOTTOM, HALF - _PLOT_LEFT - 16

    def place(point: Point) -> tuple[float, float]:
        return across(point.x), down(point.y)

    def across(x: float) -> float:
        return _PLOT_LEFT + room * (x - left) / (right - left)

    def down(y: float) -> float:
        return bottom - (bottom - 22) * (y - low) / (high - low)

    drawn = list(_y_axis(low, high, "", HALF, height=height, top=22))
    drawn.append(f'<text class="axis-name" x="0" y="11">{escape(y_unit)}</text>')
    drawn += [_tick(across(tick), bottom + 16, f"{tick:g}") for tick in _ticks(left, right)]
    drawn.append(_tick(_PLOT_LEFT + room / 2, height - 6, x_unit))
    if limit is not None and low <= limit <= high:
        drawn.append(
            f'<line class="limit" x1="{_PLOT_LEFT}" x2="{HALF - 10}" y1="{down(limit):.1f}" y2="{down(limit):.1f}"/>'
        )
    if front:
        corners = [f"M{place(front[0])[0]:.1f},{place(front[0])[1]:.1f}"]
        corners += [f"H{x:.1f}V{y:.1f}" for x, y in map(place, front[1:])]
        drawn.append(f'<path class="front" d="{"".join(corners)}"/>')
    for point in points:
        x, y = place(point)
        title = f"<title>{escape(point.title)}</title>"
        if point.name and math.isfinite(point.low):
            drawn.append(
                f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{down(point.low):.1f}" y2="{down(point.high):.1f}"/>'
            )
        shape = (
            f'<path class="{point.kind}" d="M{x - 4:.1f},{y - 4:.1f}l8,8m0,-8l-8,8">{title}</path>'
            if "refused" in point.kind
            else f'<circle class="{point.kind}" cx="{x:.1f}" cy="{y:.1f}" r="{6 if point.name else 4.5}">{title}</circle>'
        )
        drawn.append(shape)
        if point.name:
            anchor, beside = ("end", -10) if x > HALF * 0.6 else ("start", 10)
            words = f'x="{x + beside:.1f}" y="{y - 8:.1f}">{escape(point.name)}'
            drawn.append(f'<text class="value-strong" text-anchor="{anchor}" {words}</text>')
    return _svg(drawn, height=height, width=HALF, css="half")


def histogram(counts: Sequence[int], edges: Sequence[float], *, labels: Sequence[str] = ()) -> str:
    """Counts by bin: equal bars where the bins have names, otherwise density, so that the area is the count.

    Args:
        counts: One a bin; the first and the last bin are open, and drawn as wide as their neighbours.
        edges: One less than counts.
        labels: Names of the bins, where they have names.
    """
    bounds = _bounds(edges, len(counts)) if not labels else [float(index) for index in range(len(counts) + 1)]
    span = bounds[-1] - bounds[0]
    densities = [count / (high - low) for count, low, high in zip(counts, bounds, bounds[1:], strict=False)]
    most = max(densities, default=0) or 1
    drawn = []
    for index, (density, low, high) in enumerate(zip(densities, bounds, bounds[1:], strict=False)):
        left, right = (_HISTOGRAM_WIDTH * (bound - bounds[0]) / span for bound in (low, high))
        drawn.append(_bin(left, right, density / most, f"{_bin_name(index, edges, labels)}: {counts[index]}"))
    drawn.append(_ground())
    if edges and not labels:
        ends = dict.fromkeys((edges[0], edges[-1]))
        drawn += [_histogram_tick(_HISTOGRAM_WIDTH * (edge - bounds[0]) / span, edge) for edge in ends]
    return _svg(drawn, height=_HISTOGRAM_HEIGHT + 18, width=_HISTOGRAM_WIDTH)


def clipped_histogram(counts: Sequence[int], *, first: float, width: float, low: float, high: float) -> str:
    """Equal bins with the range that was chosen shaded; heights are logarithmic, since what is clipped is rare.

    Args:
        counts: One a bin.
        first: Where the first bin begins.
        width: Of a bin.
        low: Where the range begins.
        high: Where it ends.
    """
    left, right = min(first, low), max(first + width * len(counts), high)
    span = (right - left) or 1.0
    most = max((math.log1p(count) for count in counts), default=0) or 1

    def place(value: float) -> float:
        return _HISTOGRAM_WIDTH * (value - left) / span

    shade = f'x="{place(low):.2f}" y="0" width="{max(place(high) - place(low), 1):.2f}" height="{_HISTOGRAM_HEIGHT}"'
    drawn = [f'<rect class="chosen-range" {shade}/>']
    for index, count in enumerate(counts):
        begin = first + width * index
        is_out = begin + width <= low or begin >= high
        title = f"{begin:.4g} to {begin + width:.4g}: {count:,}{' (clipped)' if is_out else ''}"
        share = 0.96 * math.log1p(count) / most
        drawn.append(_bin(place(begin), place(begin + width), share, title, kind="bin out" if is_out else "bin"))
    drawn.append(_ground())
    ends = place(low), place(high)
    drawn += [f'<line class="clip" x1="{end:.2f}" x2="{end:.2f}" y1="0" y2="{_HISTOGRAM_HEIGHT}"/>' for end in ends]
    if ends[1] - ends[0] >= 60:  # noqa: PLR2004 - both numbers fit
        drawn += [_histogram_tick(end, value) for end, value in zip(ends, (low, high), strict=True)]
    else:
        middle = min(max(sum(ends) / 2, 50), _HISTOGRAM_WIDTH - 50)
        drawn.append(_tick(middle, _HISTOGRAM_HEIGHT + 14, f"{low:.3g} to {high:.3g}"))
    return _svg(drawn, height=_HISTOGRAM_HEIGHT + 18, width=_HISTOGRAM_WIDTH)


def stair(points: Sequence[Point]) -> list[Point]:
    """Those that no other is left of and below, by ``x``: the front in two figures.

    >>> [(p.x, p.y) for p in stair([Point(2, 2, "", ""), Point(1, 3, "", ""), Point(3, 2.5, "", ""), Point(4, 1, "", "")])]
    [(1, 3), (2, 2), (4, 1)]
    """
    found: list[Point] = []
    for point in sorted(points, key=lambda one: (one.x, one.y)):
        if not found or point.y < found[-1].y:
            found.append(point)
    return found


def _bounds(edges: Sequence[float], bins: int) -> list[float]:
    """Edges with two more, for the open bins at both ends."""
    if not edges:
        return [0.0, float(bins)]
    if len(edges) == 1:
        margin = abs(edges[0]) or 1.0
        return [edges[0] - margin, edges[0], edges[0] + margin]
    return [2 * edges[0] - edges[1], *edges, 2 * edges[-1] - edges[-2]]


def _bin_name(index: int, edges: Sequence[float], labels: Sequence[str]) -> str:
    if index < len(labels):
        return labels[index]
    if not edges:
        return "all"
    if index == 0:
        return f"below {edges[0]:.4g}"
    return f"from {edges[-1]:.4g}" if index >= len(edges) else f"{edges[index - 1]:.4g} to {edges[index]:.4g}"


def _bin(left: float, right: float, share: float, title: str, *, kind: str = "bin") -> str:
    height = _HISTOGRAM_HEIGHT * share
    return (
        f'<rect class="{kind}" x="{left:.2f}" y="{_HISTOGRAM_HEIGHT - height:.2f}" width="{max(right - left - 1, 0.7):.2f}" '
        f'height="{height:.2f}"><title>{escape(title)}</title></rect>'
    )


def _ground() -> str:
    return f'<line class="axis" x1="0" x2="{_HISTOGRAM_WIDTH}" y1="{_HISTOGRAM_HEIGHT}" y2="{_HISTOGRAM_HEIGHT}"/>'


def _histogram_tick(place: float, value: float) -> str:
    return _tick(min(max(place, 18), _HISTOGRAM_WIDTH - 18), _HISTOGRAM_HEIGHT + 14, f"{value:.3g}")


def _tick(x: float, y: float, words: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:g}">{escape(words)}</text>'


def _y_axis(
    low: float, high: float, unit: str, width: float, *, height: float = _PLOT_HEIGHT, top: float = 14
) -> Iterator[str]:
    bottom = height - _PLOT_BOTTOM
    for tick in _ticks(low, high):
        y = bottom - (bottom - top) * (tick - low) / (high - low)
        yield f'<line class="grid" x1="{_PLOT_LEFT}" x2="{width - 10:.0f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="name tick-left" x="{_PLOT_LEFT - 8}" y="{y + 4:.1f}">{tick:g}{escape(unit)}</text>'


def _layer_ticks(count: int) -> list[int]:
    """Numbers of layers to write under a plot: all of a few, otherwise round ones."""
    step = next(step for step in (1, 5, 10, 20, 50, 100, 200, 500, 1000, count) if count / step <= 25)  # noqa: PLR2004 - side by side
    return [1, *range(step, count + 1, step)] if step > 1 else list(range(1, count + 1))


def _spread(lows: Sequence[float], highs: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest with some room; from zero on when everything is on one side of it and near."""
    low, high = min([*lows, *highs]), max([*lows, *highs])
    # Equal values, also great ones, need a room that a float can hold.
    margin = (high - low) * 0.08 or max(abs(high) * 0.05, 0.5)
    return (low if low == 0 else low - margin), high + margin


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two bounds."""
    raw = (high - low) / 5
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    first = math.ceil(low / step)
    return [round(index * step, 10) + 0.0 for index in range(first, math.floor(high / step) + 1)]


def _label_width(rows: Sequence[Row]) -> float:
    return round(min(max((len(row.label) for row in rows), default=0), _LONGEST_LABEL) * _CHARACTER) + 14


def _whisker(left: float, right: float, middle: float) -> list[str]:
    lines = [(left, right, middle, middle), *((end, end, middle - 5, middle + 5) for end in (left, right))]
    return [f'<line class="whisker" x1="{a:.1f}" x2="{b:.1f}" y1="{c:.1f}" y2="{d:.1f}"/>' for a, b, c, d in lines]


def _words(row: Row, index: int, *, left: float, value: float) -> list[str]:
    middle = index * _ROW_HEIGHT + _ROW_HEIGHT / 2 + 4
    label = row.label if len(row.label) <= _LONGEST_LABEL else f"{row.label[: _LONGEST_LABEL - 1]}…"
    return [
        f'<text class="name" x="{left - 10}" y="{middle}">{escape(label)}</text>',
        f'<text class="value" x="{value:.1f}" y="{middle}">{escape(row.shown)}</text>',
    ]


def _svg(drawn: Sequence[str], *, height: float, width: float, css: str = "") -> str:
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    return f'<svg class="{css}" {size} role="img">{"".join(drawn)}</svg>'
