"""The matrix for the eyes: one HTML file that loads nothing, for light and dark screens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from typing import Final

from crdt_merge_simulations.report import svg

from . import telling
from .matrix import RAW_LAWS, Matrix
from .models import Gap

ROW: Final = 17
NAMES_WIDTH: Final = 190
ZERO_WIDTH: Final = 72
"""Of the column of what is equal to the bit: a logarithmic axis has no zero."""
APART: Final = 16
LOWEST, HIGHEST = -9, 1
"""Powers of ten of the axis."""
COLOURS: Final = ("c1", "c2", "c4")
STYLE: Final = """
.crdt { fill: var(--good); background: var(--good); } .zone { fill: var(--good-paper); }
svg text.strategy { fill: var(--ink); font-size: 11px; }
.matrix td { white-space: nowrap; } .matrix td.cell, .matrix th.cell { text-align: center; }
.verdict { display: inline-block; min-width: 26px; padding: 0 7px; border-radius: 6px; }
.verdict { text-align: center; font-weight: 650; }
.scroll { overflow-x: auto; }
"""


def render_html(matrix: Matrix, command: str) -> str:
    """Return the page."""
    badge = "good" if matrix.is_success else "bad"
    said = "✓ passed" if matrix.is_success else "✗ failed"
    facts = f"{len(matrix.strategies)} strategies · {', '.join(matrix.sizes)} · seed {matrix.seed}"
    sheet = (files("crdt_merge_simulations.report") / "page.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Laws of the strategies</title><style>{sheet}{STYLE}</style></head><body>
<header><h1>Laws of the strategies</h1><span class="badge {badge}">{said}</span>
<span class="facts">{escape(facts)}</span></header>
<p class="facts">{escape(telling.WHAT_IS_RAW)}.<br>{escape(telling.WHAT_IS_STATE)}.</p>
<div class="command"><code>{escape(command)}</code></div>
<div class="tiles">{"".join(_tiles(matrix))}</div>
<div class="grid">
<section class="card wide"><h2>Naive gap against CRDT gap</h2>
<p class="why">How far apart three replicas end that were given the same models in three orders: without a
state, and with one. Relative L2 distance of the farthest two; left of the axis, equal to the bit.</p>
{chart(matrix)}</section>
<section class="card wide"><h2>Every strategy, every law</h2>
<p class="why">The worst of all sizes; the gaps at each size.</p>
<div class="scroll">{_table(matrix)}</div>{_legend()}</section>
<section class="card wide"><h2>Remarks</h2>{_remarks(matrix)}</section>
</div></body></html>
"""


def chart(matrix: Matrix) -> str:
    """Return a row for each strategy with its naive gap at each size, and its CRDT gap."""
    height = svg.TOP + svg.BOTTOM + ROW * len(matrix.strategies)
    base = height - svg.BOTTOM
    zone = f'x="{NAMES_WIDTH}" y="{svg.TOP}" width="{ZERO_WIDTH}" height="{base - svg.TOP}"'
    parts = [f'<rect class="zone" {zone}/>']
    parts.append(_text(NAMES_WIDTH + ZERO_WIDTH / 2, base + 14, "equal bits", "tick", "middle"))
    for power in range(LOWEST, HIGHEST + 1):
        at = _place(10.0**power)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{svg.TOP}" y2="{base}"/>')
        label = f"{10**power}" if power >= 0 else f"1e{power}"
        parts.append(_text(at, base + 14, label, "tick", "middle"))
    parts.append(_text(svg.WIDE - svg.RIGHT, height - 4, "relative L2 distance", "label", "end"))
    for index, name in enumerate(matrix.strategies):
        parts += _row(matrix, name, svg.TOP + ROW * index)
    entries = [(css, f"naive, {size}") for size, css in _colours(matrix)]
    drawing = f'<svg viewBox="0 0 {svg.WIDE} {height}" role="img">{"".join(parts)}</svg>'
    return drawing + svg.legend([*entries, ("crdt", "through the state, all sizes")])


def _row(matrix: Matrix, name: str, top: float) -> Iterator[str]:
    middle = top + ROW / 2
    yield f'<line class="grid" x1="{NAMES_WIDTH}" x2="{svg.WIDE - svg.RIGHT}" y1="{middle}" y2="{middle}"/>'
    yield _text(NAMES_WIDTH - 8, middle + 4, name, "strategy", "end")
    colours = dict(_colours(matrix))
    if any(entry.undefined for entry in matrix.of(name)):
        yield _text(_place(10.0**LOWEST) + 6, middle + 4, "no operator on two models", "tick", "start")
    for entry in matrix.of(name):
        if entry.raw is not None:
            shift = 2.5 * (list(matrix.sizes).index(entry.size) - (len(matrix.sizes) - 1) / 2)
            title = f"{name}, naive, {entry.size}: {_described(entry.raw.replicas)}"
            yield _dot(_place_of(entry.raw.replicas, -APART), middle + shift, 4.0, colours[entry.size], title)
    for entry in matrix.of(name):
        if entry.through is not None:
            title = f"{name}, through the state, {entry.size}: {_described(entry.through.replicas)}"
            yield _dot(_place_of(entry.through.replicas, APART), middle, 5.0, "crdt", title)


def _colours(matrix: Matrix) -> list[tuple[str, str]]:
    return [(size, COLOURS[number % len(COLOURS)]) for number, size in enumerate(matrix.sizes)]


def _place_of(found: Gap, shift: float) -> float:
    """Return the horizontal place of a gap; ``shift`` keeps the two kinds apart where both are zero."""
    return NAMES_WIDTH + ZERO_WIDTH / 2 + shift if found.is_bitwise else _place(found.relative)


def _place(relative: float) -> float:
    """Return the horizontal place of a distance above zero."""
    left = NAMES_WIDTH + ZERO_WIDTH + 14
    power = min(max(math.log10(max(relative, 1e-300)), LOWEST), HIGHEST)
    return left + (power - LOWEST) / (HIGHEST - LOWEST) * (svg.WIDE - svg.RIGHT - 10 - left)


def _dot(x: float, y: float, radius: float, css: str, title: str) -> str:
    side = 2 * radius
    return (
        f'<rect class="{css}" x="{x - radius:.1f}" y="{y - radius:.1f}" width="{side}" height="{side}"'
        f' rx="{radius}"><title>{escape(title)}</title></rect>'
    )


def _text(x: float, y: float, text: str, css: str, anchor: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _described(found: Gap) -> str:
    return f"relative L2 {found.relative:.3g}, greatest difference {found.max_abs:.3g}"


def _tiles(matrix: Matrix) -> Iterator[str]:
    counts = matrix.counts()
    defined = counts["raw defined"]
    for law in (*RAW_LAWS, "all laws"):
        yield _tile(f"{counts[f'raw {law}']} of {defined}", f"raw: {law if law in RAW_LAWS else 'all three'}")
    yield _tile(f"{counts['state all laws']} of {counts['strategies']}", "through the state: all, to the bit")


def _tile(value: str, name: str) -> str:
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'


def _table(matrix: Matrix) -> str:
    count = len(matrix.sizes)
    heads = [*telling.HEADERS, *matrix.sizes, *telling.STATE_HEADERS, "CRDT gap"]
    top = (
        '<tr><th><th class="cell" colspan="3">raw operator'
        f'<th class="cell" colspan="{count}">naive gap<th class="cell" colspan="5">through the state'
    )
    head = "<tr><th>strategy" + "".join(f'<th class="cell">{escape(text)}' for text in heads)
    rows = [telling.row(matrix, name)[:-1] for name in matrix.strategies]
    return f'<table class="matrix">{top}</tr>{head}</tr>{"".join(map(_table_row, rows))}</table>'


def _table_row(cells: Sequence[str]) -> str:
    name, *rest = cells
    return f"<tr><td>{escape(name)}" + "".join(f'<td class="cell">{_cell(text)}' for text in rest) + "</tr>"


def _cell(text: str) -> str:
    css = {"=": "good", "~": "idle", "0": "good", "x": "bad", telling.HIDDEN: "bad"}.get(text, "")
    return f'<span class="verdict {css}">{escape(text)}</span>' if css else escape(text)


def _legend() -> str:
    items = "".join(f"<span>{_cell(symbol)} {escape(meaning)}</span>" for symbol, meaning in telling.LEGEND)
    return f'<p class="legend">{items}</p>'


def _remarks(matrix: Matrix) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in telling.remarks(matrix))
    return f"<ul>{lines}</ul>" if lines else svg.empty("none")
