"""The report for a terminal: one line per event with a legend, figures, a verdict per invariant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from crdt_merge_node.cli.output import clean, facts, table

from .story import Story, figures

SYMBOLS: Final[Sequence[tuple[str, str, tuple[str, ...]]]] = (
    ("✗", "violated", ("violat", "mismatch", "lost ")),
    ("·", "", ("work begins",)),
    ("=", "agreement", ("converged", "agree")),
    (
        "^",
        "recovery",
        ("start", "heal", "mend", "thaw", "peace", "recover", "comes back", "restored", "ends", "over"),
    ),
    (
        "!",
        "fault",
        ("#", "kill", "split", "partition", "cut", "freez", "crash", "fault", "isolat", "flap", "wipe"),
    ),
    ("-", "remove", ("remove",)),
    ("*", "policy", ("policy",)),
    ("?", "unknown kind", ("newer release", "unknown")),
    ("+", "contribution", ("add", "supersede", "contribut")),
    ("·", "anything else", ("",)),
)
"""Symbol, meaning, and the words by which an event is one of these; the first that fits."""


def symbol_of(event: str) -> str:
    """Return the symbol of an event by the words it is told in."""
    words = event.lower()
    return next(symbol for symbol, _, signs in SYMBOLS if any(sign in words for sign in signs))


def legend() -> str:
    """Return what the symbols mean, in one line."""
    return "legend   " + "   ".join(f"{symbol} {meaning}" for symbol, meaning, _ in SYMBOLS if meaning)


def timeline(log: Sequence[str], *, lines_max: int | None = None) -> str:
    """Return one line per event, with symbols; the middle is left out of more than ``lines_max``."""
    lines = []
    for line in log:
        time, gap, text = line.lstrip().partition("  ")
        lines.append(
            f"{time:>9}  {symbol_of(text)} {clean(text)}" if gap else f"{symbol_of(line)} {clean(line)}"
        )
    if lines_max is not None and len(lines) > lines_max:
        half = lines_max // 2
        left_out = len(lines) - 2 * half
        lines = [*lines[:half], f"           … {left_out:,} events more: --events all …", *lines[-half:]]
    return "\n".join(lines)


def verdicts(story: Story) -> str:
    """Return a line per invariant, violations below it."""
    result = story.result
    rows = [(check.id, check.verdict, f"{check.checked:,}", check.claim) for check in result.checks.values()]
    lines = table(("invariant", "verdict", "checked", "claim"), rows).splitlines()
    parts = lines[:1]
    for line, check in zip(lines[1:], result.checks.values(), strict=True):
        parts.append(line)
        parts += [f"      ✗ {clean(text)}" for text in check.violations[:5]]
        if len(check.violations) > 5:
            parts.append(f"      … {len(check.violations) - 5:,} more")
    return "\n".join(parts)


def headline(story: Story) -> str:
    """Return the outcome in one line."""
    result = story.result
    return (
        f"{'PASSED' if result.is_success else 'FAILED'}  {clean(result.name)}, seed {result.seed}:"
        f" {result.nodes} nodes, {result.fidelity} level, trace {result.trace[:12] or '-'}"
    )


def render(story: Story, *, events_max: int | None = 200) -> str:
    """Return the whole report."""
    result = story.result
    parts = []
    if result.log:
        parts += [legend(), timeline(result.log, lines_max=events_max), ""]
    parts += [headline(story), facts(figures(result)), ""]
    if result.checks:
        parts += [verdicts(story), ""]
    if result.sometimes:
        seen = sorted(((name, count) for name, count in result.sometimes.items()), key=lambda item: -item[1])
        parts += [
            table(
                ("exercised", "times"), [(name, f"{count:,}" if count else "never") for name, count in seen]
            )
        ]
    if result.unsupported:
        parts.append(facts([("left out, not possible at this level", ", ".join(result.unsupported))]))
    if story.command:
        parts.append(facts([("replay", story.command)]))
    return "\n".join(parts).rstrip()
