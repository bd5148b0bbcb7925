"""What commands print: aligned text for people, one JSON object per line for programs.

Names, notes and reasons come from other machines. Control characters in them are made visible, so that no
peer can move the cursor or change the title of an operator's terminal.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import click

from crdt_merge_node.documents import WEIGHT_ONE, document

ID_DIGITS: Final = 12
INTERRUPTED: Final = 130
"""Exit status after Ctrl-C."""
QUIET: Final = "crdt_merge_node.quiet"
"""Where click's context holds whether ``--quiet`` was given."""
NO_INPUT: Final = "crdt_merge_node.no_input"
"""The same of ``--no-input``."""
_CONTROL: Final = {
    **{code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != 10},
    # Bytes that were no text, which strict streams refuse; and marks that turn the direction of writing.
    **{0xDC00 + code: f"\\x{code:02x}" for code in range(128, 256)},
    **{code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))},
}
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def short(identifier: str) -> str:
    """Return the first digits of an id, as tables show it; a dash for none."""
    return identifier[:ID_DIGITS] or "-"


def size(nbytes: float) -> str:
    """Return a number of bytes in the unit that people would choose."""
    unit = 0
    while abs(nbytes) >= 1024 and unit < len(_UNITS) - 1:
        nbytes /= 1024
        unit += 1
    return f"{nbytes:.0f} {_UNITS[unit]}" if unit == 0 else f"{nbytes:.1f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """Return a duration with at most two units."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def age(now: float, then: float | None) -> str:
    """Return how long ago ``then`` was, in whole seconds; a dash if it never was."""
    return duration(round(max(now - then, 0.0))).replace(".0 s", " s") if then else "-"


def count(number: int, noun: str) -> str:
    """Return ``1 peer`` or ``3 peers``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def by_workers(number: int) -> str:
    """Return who does the work; no worker: the process that was asked."""
    return count(number, "worker") if number else "one process"


def weight(units: int) -> str:
    """Return a weight over 2^32 as a decimal."""
    return f"{units / WEIGHT_ONE:.10g}"


def params(values: Mapping[str, str]) -> str:
    """Return parameters in one line."""
    return ", ".join(f"{key}={value}" for key, value in sorted(values.items())) or "-"


def clean(text: str) -> str:
    """Return ``text`` with control characters made visible; line ends stay."""
    return text.translate(_CONTROL)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, indent: str = "  ") -> str:
    """Return aligned columns under ``headers``; nothing if there are no rows."""
    lines = [list(headers), *([clean(cell).replace("\n", " ") for cell in row] for row in rows)]
    if len(lines) == 1:
        return ""
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    return "\n".join(
        (indent + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))).rstrip()
        for line in lines
    )


def facts(pairs: Iterable[tuple[str, str]], *, indent: str = "  ") -> str:
    """Return ``label  value`` lines, aligned; pairs without a value are left out."""
    shown = [(label, clean(value)) for label, value in pairs if value]
    width = max((len(label) for label, _ in shown), default=0)
    return "\n".join(f"{indent}{label.ljust(width)}  {value}" for label, value in shown)


def say(text: str, *, colour: str | None = None) -> None:
    """Print a part of the answer. Colour only repeats what the words say."""
    is_coloured = colour is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    click.echo(click.style(text, fg=colour) if is_coloured else text)


def note(text: str) -> None:
    """Print something that is not the answer; ``--quiet`` leaves it out unless it is a warning."""
    context = click.get_current_context(silent=True)
    if context is None or not context.meta.get(QUIET) or text.startswith("warning"):
        warn(text)


def can_ask() -> bool:
    """Tell whether there is a person at a terminal who may be asked; ``--no-input`` says: nobody."""
    context = click.get_current_context(silent=True)
    return sys.stdin.isatty() and not (context is not None and context.meta.get(NO_INPUT))


def warn(text: str) -> None:
    """Print what a person has to see, ``--quiet`` or not."""
    click.echo(text, err=True)


def say_json(schema: str, value: Any = None, *, event: str | None = None, **more: Any) -> None:
    """Print one JSON object on one line: ``schema``, ``event``, then the fields of ``value`` and ``more``."""
    click.echo(json.dumps(document(schema, value, event=event, **more)))
