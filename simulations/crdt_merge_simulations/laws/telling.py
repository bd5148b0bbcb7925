"""The matrix in words: one table of strategies and laws, its legend, its counts, and as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from crdt_merge_node.cli.output import table
from crdt_merge_node.documents import plain

from .matrix import RAW_LAWS, Entry, Matrix
from .models import Gap

SCHEMA: Final = "sim-laws/1"
SYMBOLS: Final[Mapping[str, str]] = {"exact": "=", "rounding": "~", "broken": "x"}
HIDDEN: Final = "x*"
UNDEFINED, SKIPPED, FAILED = "n/a", "skipped", "failed"
LEGEND: Final = (
    ("=", "equal bit for bit"),
    ("~", "differs by rounding only: relative L2 distance up to 1e-6"),
    ("x", "the law is broken"),
    (
        HIDDEN,
        "broken, and hidden by the canonical order: with inputs sorted by digest the same call commutes",
    ),
    (UNDEFINED, "no operator on two models: it refuses so few"),
    (SKIPPED, "would take too long at that size; nothing is made up"),
)
HEADERS: Final = ("commutes", "associates", "idempotent")
STATE_HEADERS: Final = (*HEADERS, "converges")
STATE_LAWS: Final = ("commutative", "associative", "idempotent", "converged")
WHAT_IS_RAW: Final = (
    "raw: f on two models in the order of the call, by their places and not by their digests; 3 replicas fold"
    " abc, bca, cab"
)
WHAT_IS_STATE: Final = (
    "state: 3 replicas of real signed operations, joined in 3 orders and groupings with repetitions, then"
    " resolved"
)


def render_text(matrix: Matrix) -> str:
    """Return table, legend, counts and verdict."""
    gaps = [f"naive {size}" for size in matrix.sizes]
    state = [f"S {header[:3]}" for header in STATE_HEADERS]
    headers = ("strategy", *HEADERS, *gaps, *state, "CRDT gap", "CPU s")
    rows = [row(matrix, name) for name in matrix.strategies]
    lines = [
        f"Laws of {len(matrix.strategies)} strategies, seed {matrix.seed}; gaps are relative L2 distances",
        WHAT_IS_RAW,
        WHAT_IS_STATE,
        table(headers, rows),
        "",
        *(f"  {symbol:7} {meaning}" for symbol, meaning in (*LEGEND, ("S", "through the state"))),
        "",
        *(f"  {line}" for line in sums(matrix)),
        *(f"  · {line}" for line in remarks(matrix)),
        "",
        "PASSED" if matrix.is_success else "FAILED",
    ]
    return "\n".join(lines)


def row(matrix: Matrix, name: str) -> tuple[str, ...]:
    """Return the cells of a strategy: the worst of all sizes, but each size's own gap."""
    entries = matrix.of(name)
    return (
        name,
        *(law_symbol(matrix, name, law) for law in RAW_LAWS),
        *(naive_cell(entry) for entry in entries),
        *(state_symbol(entries, law) for law in STATE_LAWS),
        crdt_cell(entries),
        f"{sum(entry.took_s for entry in entries):,.1f}",
    )


def law_symbol(matrix: Matrix, name: str, law: str) -> str:
    """Return the symbol of the worst verdict on a raw operator over all sizes."""
    worst = matrix.worst(name, law)
    if worst is None:
        return UNDEFINED if any(entry.undefined for entry in matrix.of(name)) else SKIPPED
    if law == "commutative" and worst.verdict == "broken":
        raws = [entry.raw for entry in matrix.of(name) if entry.raw is not None]
        return HIDDEN if all(found.sorted_commutative.is_bitwise for found in raws) else "x"
    return SYMBOLS[worst.verdict]


def naive_cell(entry: Entry) -> str:
    """Return the gap between replicas that fold, or why there is none."""
    if entry.raw is not None:
        return number(entry.raw.replicas)
    return UNDEFINED if entry.undefined else entry.status.partition(":")[0]


def state_symbol(entries: tuple[Entry, ...], law: str) -> str:
    """Return whether a law holds through the state at every size measured."""
    held = [getattr(entry.through, f"is_{law}") for entry in entries if entry.through is not None]
    if not held:
        return FAILED if any(entry.status == FAILED for entry in entries) else SKIPPED
    return "=" if all(held) else "x"


def crdt_cell(entries: tuple[Entry, ...]) -> str:
    """Return the greatest gap between replicas with a state over all sizes."""
    gaps = [entry.through.replicas for entry in entries if entry.through is not None]
    if not gaps:
        return FAILED if any(entry.status == FAILED for entry in entries) else SKIPPED
    return number(max(gaps, key=lambda found: (not found.is_bitwise, found.relative)))


def number(found: Gap) -> str:
    """Return a relative distance; 0 only where all bytes are equal."""
    if found.is_bitwise:
        return "0"
    return f"{found.relative:.2g}" if found.relative else "0 (bits differ)"


def sums(matrix: Matrix) -> Iterator[str]:
    """Yield how many strategies keep what: all of them, then those of the paper."""
    for of_what, is_paper_only in (("all", False), ("those of the paper", True)):
        yield from _sums(matrix.counts(is_paper_only=is_paper_only), of_what)


def _sums(counts: Mapping[str, int], of_what: str) -> Iterator[str]:
    yield f"of {of_what}, {counts['strategies']}:"
    yield f"  raw, of {counts['raw defined']} that merge two models, at all sizes, but for rounding:"
    laws = ", ".join(f"{law} {counts[f'raw {law}']}" for law in RAW_LAWS)
    yield f"    {laws}; all three {counts['raw all laws']}; replicas agree {counts['raw replicas agree']}"
    kept = counts["state all laws"]
    yield f"  through the state: all laws, and equal bytes, {kept} of {counts['strategies']}"


def remarks(matrix: Matrix) -> Iterator[str]:
    """Yield why something was not measured."""
    for name in matrix.strategies:
        if undefined := next((entry.undefined for entry in matrix.of(name) if entry.undefined), ""):
            yield f"{name} is no operator on two models: {undefined}"
    for entry in matrix.entries:
        if entry.reason:
            yield f"{entry.strategy} at {entry.size} {entry.status}: {entry.reason}"
        elif entry.through is not None and not entry.through.is_success:
            broken = [law for law in STATE_LAWS if not getattr(entry.through, f"is_{law}")]
            what = f"not {', not '.join(broken)}" if broken else "the outputs of the replicas differ"
            yield f"{entry.strategy} at {entry.size} through the state: {what}"


def document(matrix: Matrix, command: str) -> dict[str, Any]:
    """Return everything as JSON values, schema ``sim-laws/1``; verdicts beside their gaps."""
    entries = []
    for entry in matrix.entries:
        values = plain(entry)
        for law, found in values["raw"].items() if entry.raw is not None else ():
            found["verdict"] = getattr(entry.raw, law).verdict
        if entry.raw is not None:
            values["raw"]["is_hidden"] = entry.raw.is_hidden
        entries.append({**values, "is_success": entry.is_success})
    return {
        "schema": SCHEMA,
        "command": command,
        "seed": matrix.seed,
        "sizes": list(matrix.sizes),
        "strategies": list(matrix.strategies),
        "counts": matrix.counts(),
        "counts_of_the_paper": matrix.counts(is_paper_only=True),
        "is_success": matrix.is_success,
        "entries": entries,
    }
