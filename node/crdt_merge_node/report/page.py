"""The measurements per tensor as one HTML file that loads nothing: heat-maps in light and dark."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

ID_DIGITS: Final = 12
_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1c2126;--page:#fff;--line:#d5dae0;
--cold:#2f6fb7;--hot:#c8552b;--one:#2a8f6d}
@media(prefers-color-scheme:dark){:root{--ink:#e3e8ee;--page:#14181c;--line:#39414a;
--cold:#6fb0f5;--hot:#f08a5d;--one:#5cc9a2}}
body{font:14px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--page);
margin:2rem auto;max-width:88rem;padding:0 1rem}
h1{font-size:1.35rem}h2{font-size:1.05rem;margin-top:2rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}
th,td{padding:.15rem .5rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left;font-family:ui-monospace,monospace;font-size:.85em}
thead th{position:sticky;top:0;background:var(--page);vertical-align:bottom}
.share{background:color-mix(in oklab,var(--one) calc(var(--v)*70%),transparent)}
.up{background:color-mix(in oklab,var(--hot) calc(var(--v)*70%),transparent)}
.down{background:color-mix(in oklab,var(--cold) calc(var(--v)*70%),transparent)}
.note{color:color-mix(in oklab,var(--ink) 70%,var(--page))}
code{font-family:ui-monospace,monospace}
"""


def render(report: dict[str, Any], *, title: str) -> str:
    """Return the page of a ``layers/1`` report.

    Args:
        report: What ``layers.measure`` returned.
        title: Of the page, such as the name of the output.
    """
    names = [model["digest"][:ID_DIGITS] for model in report["inputs"]]
    name = html.escape(title)
    parts = [
        f"<h1>{name}</h1>",
        (
            f"<p>Strategy <code>{html.escape(report['strategy'])}</code>, resolve key "
            f"<code>{report['resolve_key'][:ID_DIGITS]}</code>. Vectors are {report['of']}. "
            "A contribution is named by the first digits of its digest.</p>"
        ),
        "<h2>The whole model</h2>",
        _summary(names, [model.get("name", "") for model in report["inputs"]], report["total"]),
        _pairs(names, report["total"]),
        "<h2>By tensor</h2>",
        (
            '<p class="note">Conflict: of the elements that two contributions or more change, the share '
            "on whose sign they differ. Influence: the share of the merged vector along each contribution. "
            "Cosine: with the merged vector.</p>"
        ),
        _tensors(names, report["tensors"]),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{name}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _summary(names: Sequence[str], calls: Sequence[str], total: dict[str, Any]) -> str:
    rows = [
        [_text(f"{name} {call}"), _number(norm), _share(influence), _signed(cosine)]
        for name, call, norm, influence, cosine in zip(
            names, calls, total["norms"], total["influences"], total["merged_cosines"], strict=True
        )
    ]
    rows.append([_text("merged"), _number(total["merged_norm"]), "<td></td>", "<td></td>"])
    conflict = (
        f"<p>Signs conflict on {total['conflict']:.1%} of {total['contested']:,} contested elements.</p>"
    )
    return _table(["contribution", "norm", "influence", "cosine with the merged"], rows) + conflict


def _pairs(names: Sequence[str], total: dict[str, Any]) -> str:
    if total["cosines"] is None:
        return f'<p class="note">{len(names)} contributions: their pairs were not compared.</p>'
    rows = [
        [_text(name), *(_signed(value) for value in row)]
        for name, row in zip(names, total["cosines"], strict=True)
    ]
    return "<h2>Cosines of pairs</h2>" + _table(["", *names], rows)


def _tensors(names: Sequence[str], tensors: Sequence[dict[str, Any]]) -> str:
    heads = ["tensor", "shape", "conflict", "merged norm"]
    for what in ("influence", "cosine", "norm"):
        heads += [f"{what}<br>{name}" for name in names]
    rows = []
    for tensor in tensors:
        cells: list[str] = [
            _text(tensor["name"]),
            _text("x".join(map(str, tensor["shape"])) or "scalar"),
            _share(tensor["conflict"]),
            _number(tensor["merged_norm"]),
        ]
        groups: tuple[tuple[Callable[[float | None], str], str], ...] = (
            (_share, "influences"), (_signed, "merged_cosines"), (_number, "norms"),
        )  # fmt: skip
        for cell, key in groups:
            cells += map(cell, tensor[key])
        rows.append(cells)
    return _table(heads, rows)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{text}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(text: str) -> str:
    return f"<td>{html.escape(text)}</td>"


def _number(value: float | None) -> str:
    return f"<td>{'-' if value is None else format(value, '.4g')}</td>"


def _share(value: float | None) -> str:
    """Return a cell of a share: 0 to 1 as a rule, negative if it was worked against."""
    if value is None:
        return "<td>-</td>"
    kind = "share" if value >= 0 else "down"
    return f'<td class="{kind}" style="--v:{min(abs(value), 1):.3f}">{value:.1%}</td>'


def _signed(value: float | None) -> str:
    if value is None:
        return "<td>-</td>"
    return f'<td class="{"up" if value >= 0 else "down"}" style="--v:{abs(value):.3f}">{value:+.3f}</td>'
