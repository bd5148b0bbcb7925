"""Charts as SVG text: lines, bars, a heat map, a graph. Colours are classes, which the page's style gives.

Nothing here knows what is drawn. Numbers are rounded to a tenth of a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 560
WIDE: Final = 2 * WIDTH
"""Of a chart over the whole page, so that its letters are as large as those of the others."""
HEIGHT: Final = 224
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 24, 34


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One series of a line chart."""

    name: str
    css: str
    points: Sequence[tuple[float, float]]
    is_stepped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A span of time in the background of a chart."""

    begin: float
    end: float
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """Maps values to pixels and draws what surrounds them."""

    x_low: float
    x_high: float
    y_high: float
    x_label: str
    y_label: str
    height: int = HEIGHT
    width: int = WIDTH
    y_low: float = 0.0

    def x(self, value: float) -> float:
        """Return the horizontal place of a value."""
        span = self.x_high - self.x_low or 1.0
        return LEFT + (value - self.x_low) / span * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Return the vertical place of a value."""
        span = self.y_high - self.y_low or 1.0
        return self.height - BOTTOM - (value - self.y_low) / span * (self.height - TOP - BOTTOM)

    def draw(self, *, has_x_ticks: bool = True) -> str:
        """Return grid, ticks and labels."""
        parts = []
        right = self.width - RIGHT
        for value in ticks(self.y_low, self.y_high, 4):
            at = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">')
            parts.append(f"{short(value)}</text>")
        base = self.height - BOTTOM
        for value in ticks(self.x_low, self.x_high, 7) if has_x_ticks else ():
            at = self.x(value)
            parts.append(f'<text class="tick" x="{at:.1f}" y="{base + 14}" text-anchor="middle">')
            parts.append(f"{short(value)}</text>")
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{base}" y2="{base}"/>')
        parts.append(f'<text class="label" x="{right}" y="{self.height - 4}" text-anchor="end">')
        parts.append(f"{escape(self.x_label)}</text>")
        parts.append(f'<text class="label" x="4" y="{TOP - 12}">{escape(self.y_label)}</text>')
        return "".join(parts)


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    bands: Iterable[Band] = (),
    marks: Iterable[tuple[float, str]] = (),
) -> str:
    """Return a chart of lines over a common axis, with spans and moments marked behind them."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    if not xs:
        return empty("nothing was sampled")
    axes = Axes(x_low=min(xs), x_high=max(xs), y_high=nice(max(ys)), x_label=x_label, y_label=y_label)
    parts = [_band(axes, band) for band in bands]
    parts.append(axes.draw())
    for time, title in marks:
        if axes.x_low <= time <= axes.x_high:
            at, base = axes.x(time), axes.height - BOTTOM
            parts.append(
                f'<path class="mark" d="M{at:.1f} {base}l-3.5 6h7z"><title>{escape(title)}</title></path>'
            )
    parts += [f'<path class="line {line.css}" d="{_path(axes, line)}"/>' for line in lines]
    return _svg(parts, axes.height) + legend([(line.css, line.name) for line in lines])


def bar_chart(
    bars: Sequence[tuple[str, float]],
    *,
    x_label: str,
    y_label: str,
    css: str = "c1",
    reference: tuple[float, str] | None = None,
    labels: int = 12,
) -> str:
    """Return a chart of bars, about ``labels`` of them named. ``reference``: a line across, and its name."""
    if not bars:
        return empty("nothing was counted")
    highest = max(value for _, value in bars)
    if reference is not None:
        highest = max(highest, reference[0])
    axes = Axes(x_low=0, x_high=len(bars), y_high=nice(highest), x_label=x_label, y_label=y_label)
    parts = [axes.draw(has_x_ticks=False)]
    gap = 1.5 if len(bars) <= 60 else 0.3
    every = max(1, math.ceil(len(bars) / labels))
    for number, (name, value) in enumerate(bars):
        left, right, top = axes.x(number), axes.x(number + 1), axes.y(value)
        broad = max(right - left - gap, 0.4)
        tall = axes.height - BOTTOM - top
        parts.append(
            f'<rect class="{css}" x="{left + gap / 2:.1f}" y="{top:.1f}" width="{broad:.1f}"'
            f' height="{tall:.1f}"><title>{escape(name)}: {full(value)}</title></rect>'
        )
        if number % every == 0:
            parts.append(f'<text class="tick" x="{(left + right) / 2:.1f}" y="{axes.height - BOTTOM + 14}"')
            parts.append(f' text-anchor="middle">{escape(name)}</text>')
    shown = []
    if reference is not None:
        at = axes.y(reference[0])
        parts.append(
            f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        shown = [("ref", reference[1])]
    return _svg(parts, axes.height) + legend(shown)


def heat_map(
    columns: Sequence[float],
    rows: Sequence[Sequence[tuple[str, str]]],
    *,
    x_label: str,
    y_label: str,
    names: Sequence[tuple[str, str]],
) -> str:
    """Return cells of (class, title), one row per node and one column per time; equal neighbours are one."""
    if not columns or not rows:
        return empty("nothing was sampled")
    height = TOP + BOTTOM + max(90, min(400, 11 * len(rows)))
    last = columns[-1] + (columns[-1] - columns[0]) / max(len(columns) - 1, 1)
    edges = [*columns, last]
    axes = Axes(
        x_low=columns[0],
        x_high=last,
        y_low=len(rows),
        y_high=0,
        x_label=x_label,
        y_label=y_label,
        height=height,
        width=WIDE,
    )
    tall = (height - TOP - BOTTOM) / len(rows)
    gap = min(1.0, tall * 0.1)
    parts = [axes.draw()]
    for number, row in enumerate(rows):
        top = TOP + number * tall
        start = 0
        for column in range(1, len(row) + 1):
            if column < len(row) and row[column] == row[start]:
                continue
            css, title = row[start]
            left, right = axes.x(edges[start]), axes.x(edges[column])
            parts.append(
                f'<rect class="{css}" x="{left:.1f}" y="{top:.1f}" width="{right - left + 0.2:.1f}"'
                f' height="{tall - gap:.2f}"><title>n{number} {escape(title)}</title></rect>'
            )
            start = column
    return _svg(parts, height, WIDE) + legend(names)


def graph(
    places: Sequence[tuple[float, float]], links: Sequence[tuple[int, int]], *, wan: Sequence[bool] = ()
) -> str:
    """Return nodes and links; a node has the id ``node-N``, so that a script can colour it."""
    size, margin = 420, 18
    radius = max(2.5, min(11.0, 110 / max(len(places), 1) ** 0.75))
    at = [(margin + x * (size - 2 * margin), margin + y * (size - 2 * margin)) for x, y in places]
    faint = " faint" if len(links) > 600 else ""
    parts = []
    for number, (a, b) in enumerate(links):
        css = "wan" if number < len(wan) and wan[number] else "edge"
        parts.append(
            f'<line class="{css}{faint}" id="link-{a}-{b}" x1="{at[a][0]:.1f}" y1="{at[a][1]:.1f}"'
            f' x2="{at[b][0]:.1f}" y2="{at[b][1]:.1f}"/>'
        )
    for node, (x, y) in enumerate(at):
        parts.append(f'<circle class="node s0" id="node-{node}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">')
        parts.append(f"<title>n{node}</title></circle>")
        if len(at) <= 40:
            parts.append(f'<text class="name" x="{x:.1f}" y="{y + 3:.1f}" text-anchor="middle">{node}</text>')
    return f'<svg class="graph" viewBox="0 0 {size} {size}" role="img">{"".join(parts)}</svg>'


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Return swatches with names."""
    items = "".join(f'<span><i class="swatch {css}"></i>{escape(name)}</span>' for css, name in entries)
    return f'<p class="legend">{items}</p>' if items else ""


def empty(text: str) -> str:
    """Return what stands where there is nothing to draw."""
    return f'<p class="empty">{escape(text)}</p>'


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return round numbers between two bounds."""
    low, high = min(low, high), max(low, high)
    if high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def nice(value: float) -> float:
    """Return a round number at or above a value: the top of an axis."""
    if value <= 0:
        return 1.0
    step = ticks(0, value, 4)
    width = step[1] - step[0] if len(step) > 1 else value
    return math.ceil(value / width - 1e-9) * width


def short(value: float) -> str:
    """Return a number in a few characters: 1.5k, 20M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def full(value: float) -> str:
    """Return a number with all its digits, grouped."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3f}"


def histogram(values: Sequence[float], bins: int = 24) -> list[tuple[str, float]]:
    """Return how many values fall between round bounds, named by the lower one."""
    if not values:
        return []
    edges = ticks(0, nice(max(values)), bins)
    width = edges[1] - edges[0] if len(edges) > 1 else 1.0
    counts: Mapping[int, int] = _count(values, width)
    return [(short(number * width), float(counts.get(number, 0))) for number in range(max(counts) + 1)]


def _count(values: Sequence[float], width: float) -> dict[int, int]:
    counts: dict[int, int] = {}
    for value in values:
        counts[int(value / width)] = counts.get(int(value / width), 0) + 1
    return counts


def _path(axes: Axes, line: Line) -> str:
    parts: list[str] = []
    for x, y in line.points:
        at_x, at_y = f"{axes.x(x):.1f}", f"{axes.y(y):.1f}"
        if not parts:
            parts.append(f"M{at_x} {at_y}")
        elif line.is_stepped:
            parts.append(f"H{at_x}V{at_y}")
        else:
            parts.append(f"L{at_x} {at_y}")
    return "".join(parts)


def _band(axes: Axes, band: Band) -> str:
    left, right = axes.x(max(band.begin, axes.x_low)), axes.x(min(band.end, axes.x_high))
    if right <= left:
        return ""
    return (
        f'<rect class="band" x="{left:.1f}" y="{TOP}" width="{right - left:.1f}"'
        f' height="{axes.height - TOP - BOTTOM}"><title>{escape(band.title)}</title></rect>'
    )


def _svg(parts: Sequence[str], height: int, width: int = WIDTH) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'
