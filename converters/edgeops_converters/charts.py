"""Inline SVG for the report: bars, points with intervals, histograms. Pure: values in, markup out, with every text escaped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDE, HALF = 940, 460
_LABEL_WIDTH = 110
_VALUE_WIDTH = 190
_ROW_HEIGHT = 30
_BAR_HEIGHT = 16
_HISTOGRAM_WIDTH, _HISTOGRAM_HEIGHT = 220, 120


@dataclass(frozen=True)
class Row:
    """One line of a chart.

    Attributes:
        label: To its left.
        value: Length of the bar, or place of the point.
        shown: The value in words, to its right.
        kind: CSS class that gives the colour.
        low: Lower end of the interval, where the chart has intervals; likewise ``high``.
    """

    label: str
    value: float
    shown: str
    kind: str
    low: float = math.nan
    high: float = math.nan


def bars(rows: Sequence[Row], *, width: int = HALF) -> str:
    """Horizontal bars from zero, one a row."""
    most = max((row.value for row in rows), default=0) or 1
    room = width - _LABEL_WIDTH - _VALUE_WIDTH
    parts = []
    for index, row in enumerate(rows):
        top = index * _ROW_HEIGHT + (_ROW_HEIGHT - _BAR_HEIGHT) / 2
        length = max(room * row.value / most, 2)
        parts.append(
            f'<rect class="{row.kind}" x="{_LABEL_WIDTH}" y="{top:.1f}" width="{length:.1f}" height="{_BAR_HEIGHT}" rx="3"/>'
        )
        parts.append(_words(row, index, _LABEL_WIDTH + length + 8))
    return _svg(parts, height=len(rows) * _ROW_HEIGHT, width=width)


def intervals(rows: Sequence[Row], *, unit: str) -> str:
    """Points with their intervals on one axis that spans them all, one a row.

    Args:
        rows: With ``low`` and ``high``.
        unit: Behind the numbers of the axis.
    """
    low, high = min(row.low for row in rows), max(row.high for row in rows)
    margin = (high - low or 1) * 0.08
    low, high = low - margin, high + margin
    room = WIDE - _LABEL_WIDTH - _VALUE_WIDTH
    height = len(rows) * _ROW_HEIGHT

    def place(value: float) -> float:
        return _LABEL_WIDTH + room * (value - low) / (high - low)

    parts = []
    for tick in _ticks(low, high):
        parts.append(f'<line class="grid" x1="{place(tick):.1f}" x2="{place(tick):.1f}" y1="0" y2="{height}"/>')
        parts.append(f'<text class="tick" x="{place(tick):.1f}" y="{height + 15}">{tick:g}{escape(unit)}</text>')
    for index, row in enumerate(rows):
        middle = index * _ROW_HEIGHT + _ROW_HEIGHT / 2
        left, right = place(row.low), place(row.high)
        parts.append(f'<line class="whisker" x1="{left:.1f}" x2="{right:.1f}" y1="{middle}" y2="{middle}"/>')
        parts += [
            f'<line class="whisker" x1="{end:.1f}" x2="{end:.1f}" y1="{middle - 5}" y2="{middle + 5}"/>'
            for end in (left, right)
        ]
        parts.append(f'<circle class="{row.kind}" cx="{place(row.value):.1f}" cy="{middle}" r="5.5"/>')
        parts.append(_words(row, index, WIDE - _VALUE_WIDTH + 8))
    return _svg(parts, height=height + 22, width=WIDE)


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
    parts = []
    for index, (density, low, high) in enumerate(zip(densities, bounds, bounds[1:], strict=False)):
        left, right = (_HISTOGRAM_WIDTH * (bound - bounds[0]) / span for bound in (low, high))
        height = _HISTOGRAM_HEIGHT * density / most
        parts.append(
            f'<rect class="bin" x="{left:.2f}" y="{_HISTOGRAM_HEIGHT - height:.2f}" '
            f'width="{max(right - left - 1, 0.7):.2f}" height="{height:.2f}">'
            f"<title>{escape(_bin_name(index, edges, labels))}: {counts[index]}</title></rect>"
        )
    parts.append(
        f'<line class="axis" x1="0" x2="{_HISTOGRAM_WIDTH}" y1="{_HISTOGRAM_HEIGHT}" y2="{_HISTOGRAM_HEIGHT}"/>'
    )
    if edges and not labels:
        for edge in dict.fromkeys((edges[0], edges[-1])):
            place = min(max(_HISTOGRAM_WIDTH * (edge - bounds[0]) / span, 18), _HISTOGRAM_WIDTH - 18)
            parts.append(f'<text class="tick" x="{place:.1f}" y="{_HISTOGRAM_HEIGHT + 14}">{edge:.3g}</text>')
    return _svg(parts, height=_HISTOGRAM_HEIGHT + 18, width=_HISTOGRAM_WIDTH, is_fixed=True)


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


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two bounds."""
    raw = (high - low) / 5
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw)
    first = math.ceil(low / step)
    return [round(index * step, 10) for index in range(first, math.floor(high / step) + 1)]


def _words(row: Row, index: int, place: float) -> str:
    middle = index * _ROW_HEIGHT + _ROW_HEIGHT / 2 + 4
    return (
        f'<text class="name" x="{_LABEL_WIDTH - 10}" y="{middle}">{escape(row.label)}</text>'
        f'<text class="value" x="{place:.1f}" y="{middle}">{escape(row.shown)}</text>'
    )


def _svg(parts: Sequence[str], *, height: float, width: float, is_fixed: bool = False) -> str:
    size = f'width="{width}" height="{height}"' if is_fixed else 'width="100%"'
    return f'<svg viewBox="0 0 {width} {height}" {size} role="img">{"".join(parts)}</svg>'
