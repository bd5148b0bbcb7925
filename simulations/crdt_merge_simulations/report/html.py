"""The report for the eyes: one HTML file that needs nothing else, for light and dark screens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any, Final

from crdt_merge_simulations.plan import Fault
from crdt_merge_simulations.result import Check, Result, Sample

from . import svg
from .layout import positions
from .story import PURPOSES, Story, figures, span_s

COLUMNS_MAX: Final = 200
"""Moments of the heat map and of the slider; more would only be thinner than a pixel."""
HUES: Final = 12
LINKS_MAX: Final = 6000
SPANS: Final = frozenset({"partition", "one_way", "isolate"})
"""Faults drawn as spans behind the curves; the others are moments below them."""


def render(story: Story) -> str:
    """Return the page."""
    result = story.result
    title = f"{result.name}, seed {result.seed}"
    badge = (
        '<span class="badge good">✓ passed</span>'
        if result.is_success
        else '<span class="badge bad">✗ failed</span>'
    )
    facts = (
        f"{result.nodes:,} nodes · {result.fidelity} level · {result.events:,} events ·"
        f" trace {escape(result.trace[:16]) or '-'}"
    )
    described = story.plan.scenario.description if story.plan else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_asset("page.css")}</style></head><body>
<header><h1>{escape(title)}</h1>{badge}<span class="facts">{facts}</span></header>
<p class="facts">{escape(described)}</p>
{_command(story.command)}
<div class="tiles">{"".join(_tile(name, value) for name, value in figures(result))}</div>
<div class="grid">{"".join(_cards(story))}</div>
<script type="application/json" id="story">{_data(story)}</script>
<script>{_asset("page.js")}</script></body></html>
"""


def _cards(story: Story) -> Iterator[str]:
    result = story.result
    samples = thinned(result.samples)
    yield _card(
        "Invariants",
        "What must hold, how often it was looked at, and whether it did.",
        _checks(result),
        wide=True,
    )
    yield _card(
        "Convergence over time",
        "How many different sets of operations the living nodes hold, and how far apart the weights are that"
        " they would resolve. One, and zero, are agreement.",
        _disagreement(story, samples) + _distance(story, samples),
    )
    yield f'<div class="stack">{"".join(_course(result, samples))}</div>'
    yield _card(
        "Who agrees with whom",
        "A row per node. Calm: what most nodes hold; a colour: another set; dark: down.",
        _agreement(samples),
        wide=True,
    )
    yield _card(
        "Topology", "Partition sides by colour. Drag to move through time.", _topology(story, samples)
    )
    yield f'<div class="stack">{"".join(_traffic(result))}</div>'
    yield _card(
        "Exercised",
        "Rare things, and how often they happened. Never means: this run says nothing of it.",
        _sometimes(result),
    )
    yield _card("Faults", "What went wrong on purpose.", _faults(story), wide=True)
    yield _log(result)


def _course(result: Result, samples: Sequence[Sample]) -> Iterator[str]:
    yield _card(
        "Growth", "Operations held by the fullest and the emptiest node, and tombstones.", _growth(samples)
    )
    yield _card(
        "Delivery",
        "From authoring to the last node, per operation.",
        svg.bar_chart(svg.histogram(result.delivery_s), x_label="seconds", y_label="operations", css="c2"),
    )


def _traffic(result: Result) -> Iterator[str]:
    yield _card(
        "Bytes sent by node", "Against what each would send if every byte travelled once.", _bytes(result)
    )
    hops = [(str(hop), float(result.hops[hop])) for hop in sorted(result.hops)]
    yield _card(
        "Hops and redundancy",
        f"First deliveries by broadcast; {result.duplicates:,} payloads came for nothing.",
        svg.bar_chart(hops, x_label="hops", y_label="deliveries", css="c3"),
    )


def thinned(samples: Sequence[Sample], most: int = COLUMNS_MAX) -> list[Sample]:
    """Return at most ``most`` of the samples, evenly spread, the last always."""
    if len(samples) <= most:
        return list(samples)
    return [samples[number * (len(samples) - 1) // (most - 1)] for number in range(most)]


def agreement_cells(samples: Sequence[Sample]) -> list[list[tuple[str, str]]]:
    """Return (class, title) by node and moment: calm for the most common root, a hue for any other."""
    columns = [_cells(sample) for sample in samples]
    return [[column[node] for column in columns] for node in range(len(columns[0]) if columns else 0)]


def _cells(sample: Sample) -> list[tuple[str, str]]:
    counts: dict[str, int] = {}
    for root in filter(None, sample.roots):
        counts[root] = counts.get(root, 0) + 1
    common = max(counts, key=lambda root: (counts[root], root), default="")
    cells = []
    for root in sample.roots:
        if not root:
            cells.append(("down", "down"))
        elif root == common:
            cells.append(("calm", "with the most"))
        else:
            cells.append((f"h{sum(root.encode()) * 7 % HUES}", root[:12]))
    return cells


def _disagreement(story: Story, samples: Sequence[Sample]) -> str:
    lines = [
        svg.Line(
            name="distinct roots",
            css="c1",
            is_stepped=True,
            points=[(s.time, s.distinct_roots) for s in samples],
        ),
        svg.Line(
            name="distinct resolve keys",
            css="c2",
            is_stepped=True,
            points=[(s.time, s.distinct_keys) for s in samples],
        ),
    ]
    faults = story.plan.faults if story.plan else ()
    chart = svg.line_chart(
        lines,
        x_label="virtual seconds",
        y_label="different",
        bands=[_band(fault) for fault in faults if fault.kind in SPANS],
        marks=[(fault.time, str(fault)) for fault in faults if fault.kind not in SPANS],
    )
    return chart + (svg.legend([("band", "a split"), ("mark", "another fault")]) if faults else "")


def _band(fault: Fault) -> svg.Band:
    return svg.Band(begin=fault.time, end=fault.time + (span_s(fault) or 0.0), title=str(fault))


def _distance(story: Story, samples: Sequence[Sample]) -> str:
    points = [(s.time, s.distance) for s in samples if s.distance is not None]
    if not points:
        return svg.empty("no distance of weights: this level has no tensors")
    return svg.line_chart(
        [svg.Line(name="mean pairwise distance", css="c4", points=points)],
        x_label="virtual seconds",
        y_label="L2 distance of the weights of two nodes",
        bands=[_band(fault) for fault in story.plan.faults if fault.kind in SPANS] if story.plan else (),
    )


def _growth(samples: Sequence[Sample]) -> str:
    held = [
        (s.time, [count for count, root in zip(s.operations, s.roots, strict=False) if root]) for s in samples
    ]
    return svg.line_chart(
        [
            svg.Line(
                name="log of the fullest node",
                css="c1",
                points=[(t, max(counts, default=0)) for t, counts in held],
            ),
            svg.Line(
                name="of the emptiest living node",
                css="c3",
                points=[(t, min(counts, default=0)) for t, counts in held],
            ),
            svg.Line(name="tombstones", css="c2", points=[(s.time, s.tombstones) for s in samples]),
        ],
        x_label="virtual seconds",
        y_label="operations",
    )


def _agreement(samples: Sequence[Sample]) -> str:
    return svg.heat_map(
        [sample.time for sample in samples],
        agreement_cells(samples),
        x_label="virtual seconds",
        y_label="node",
        names=[("calm", "what most hold"), ("hues", "another set, by its root"), ("down", "down")],
    )


def _topology(story: Story, samples: Sequence[Sample]) -> str:
    result = story.result
    links = result.links[:LINKS_MAX]
    planned = {(link.a, link.b): link.is_wan for link in story.plan.links} if story.plan else {}
    wan = [planned.get(link, False) for link in links]
    places = [(float(x), float(y)) for x, y in positions(result.nodes, links, result.sites)]
    graph = svg.graph(places, links, wan=wan)
    entries = [("wan-link", "between sites")] if any(wan) else []
    if not samples:
        return graph + svg.legend(entries)
    slider = (
        f'<div class="scrub"><input type="range" id="moment" min="0" max="{len(samples) - 1}"'
        f' value="{_worst(samples)}" aria-label="moment"><output id="moment-text"></output></div>'
    )
    return graph + slider + svg.legend(entries)


def _worst(samples: Sequence[Sample]) -> int:
    """Return the moment to show first: the one with the most sides."""
    return max(range(len(samples)), key=lambda at: (len(set(samples[at].sides)), samples[at].distinct_roots))


def _bytes(result: Result) -> str:
    optimum = result.bytes_needed / max(result.nodes, 1)
    return svg.bar_chart(
        [(f"n{node}", float(sent)) for node, sent in enumerate(result.bytes_sent)],
        x_label="node",
        y_label="bytes",
        reference=(optimum, f"optimum per node: {optimum:,.0f} bytes") if result.bytes_needed else None,
    )


def _checks(result: Result) -> str:
    if not result.checks:
        return svg.empty("none was looked at")
    rows = "".join(_check(check) for check in result.checks.values())
    return f'<table><tr><th>id<th>claim<th>verdict<th class="number">checked</tr>{rows}</table>'


def _check(check: Check) -> str:
    css = {"held": "badge good", "violated": "badge bad"}.get(check.verdict, "badge idle")
    broken = "".join(f'<p class="violation">{escape(text)}</p>' for text in check.violations[:8])
    return (
        f"<tr><td>{escape(check.id)}<td>{escape(check.claim)}{broken}"
        f'<td><span class="{css}">{check.verdict}</span><td class="number">{check.checked:,}</tr>'
    )


def _sometimes(result: Result) -> str:
    if not result.sometimes:
        return svg.empty("nothing was counted")
    rows = "".join(
        f'<tr><td>{escape(name)}<td class="number">{f"{count:,}" if count else "never"}</tr>'
        for name, count in sorted(result.sometimes.items(), key=lambda item: (-item[1], item[0]))
    )
    return f"<table>{rows}</table>"


def _faults(story: Story) -> str:
    faults = story.plan.faults if story.plan else ()
    if not faults:
        return svg.empty("none")
    rows = "".join(
        f'<tr><td class="number">{fault.time:.2f} s<td>#{fault.index}<td>{escape(fault.kind)}'
        f"<td>{escape(PURPOSES.get(fault.kind, ''))}<td><code>{escape(_shown(fault.args))}</code></tr>"
        for fault in faults
    )
    left_out = "".join(
        f'<p class="why">Left out at this level: {escape(text)}</p>' for text in story.result.unsupported
    )
    table = f"<table><tr><th>time<th>#<th>kind<th>meaning<th>arguments</tr>{rows}</table>"
    return f"<details><summary>{len(faults)} faults</summary>{table}</details>{left_out}"


def _shown(args: Mapping[str, Any]) -> str:
    return " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in args.items()
    )


def _log(result: Result) -> str:
    lines = escape("\n".join(result.log))
    body = f"<details><summary>{len(result.log):,} events</summary><pre>{lines}</pre></details>"
    return _card("What happened", "", body, wide=True)


def _card(title: str, why: str, body: str, *, wide: bool = False) -> str:
    said = f'<p class="why">{escape(why)}</p>' if why else ""
    return f'<section class="card{" wide" if wide else ""}"><h2>{escape(title)}</h2>{said}{body}</section>'


def _tile(name: str, value: str) -> str:
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'


def _command(command: str) -> str:
    if not command:
        return ""
    return f'<div class="command"><code>{escape(command)}</code><button id="copy">copy</button></div>'


def _data(story: Story) -> str:
    """Return what the script needs, safe inside a script element."""
    moments = [
        {
            "time": sample.time,
            "distinct": sample.distinct_roots,
            "sides": sample.sides,
            "off": [node for node, root in enumerate(sample.roots) if not root],
        }
        for sample in thinned(story.result.samples)
    ]
    links = story.result.links[:LINKS_MAX]
    text = json.dumps({"command": story.command, "moments": moments, "links": links}, separators=(",", ":"))
    return text.replace("<", "\\u003c")


@cache
def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
