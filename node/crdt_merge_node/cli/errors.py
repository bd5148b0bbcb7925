"""``errors list|lookup``: what a code means. ``ERRORS.md`` is the one place where it is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from crdt_merge_node.errors import NotFoundError, did_you_mean

from .app import SuggestingGroup
from .options import Invocation, command
from .output import clean, say, say_json, table

DOCUMENT: Final = Path(__file__).with_name("ERRORS.md")
_HEADING: Final = re.compile(r"(?P<code>\S+?)(?: (?P<name>\w+))?, (?:exit (?P<exit>\d+)|alarm)")
_PARTS: Final = ("What happened", "Why", "What to do")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What is written about one code."""

    code: str
    name: str
    """Of the Python class; empty for an alarm that is no error."""
    exit: int | None
    """Exit status of a command that ends with it; None for an alarm."""
    what: str
    why: str
    remedy: str


@click.group(cls=SuggestingGroup)
def errors() -> None:
    """Look up what an error code means."""


@errors.command("list")
@command
def list_(invocation: Invocation) -> None:
    """List all codes, each with what happened."""
    pages = read_pages()
    if invocation.is_json:
        say_json("errors-list/1", errors=tuple(pages.values()))
        return
    rows = [
        (page.code, page.name or "alarm", "" if page.exit is None else str(page.exit), _plain(page.what))
        for page in pages.values()
    ]
    say(table(("CODE", "ERROR", "EXIT", "WHAT HAPPENED"), rows))


@errors.command()
@click.argument("code", shell_complete=lambda _c, _p, begin: [c for c in read_pages() if c.startswith(begin)])
@command
def lookup(invocation: Invocation, code: str) -> None:
    """Print what CODE (such as E1203) means, why it happens and what to do."""
    pages = read_pages()
    found = pages.get(code) or pages.get(code.upper()) or pages.get(f"E{code}")
    if found is None:
        suggestion = did_you_mean(code.upper(), pages) if len(code) < 100 else ""
        raise NotFoundError(
            f"there is no error code {clean(code[:100])!r}. {suggestion}".rstrip(),
            hint="`crdt-merge-node errors list` shows all.",
        )
    if invocation.is_json:
        say_json("errors-lookup/1", error=found)
        return
    ending = f"exit status {found.exit}" if found.exit is not None else "an alarm of `status`"
    say(f"{found.code} {found.name} ({ending})".replace("  ", " "))
    for title, text in zip(_PARTS, (found.what, found.why, found.remedy), strict=True):
        say("")
        say(
            click.wrap_text(f"{title}: {_plain(text)}", width=88, initial_indent="  ", subsequent_indent="  ")
        )


def read_pages() -> Mapping[str, Page]:
    """Return all pages by code, in the order of the document."""
    return {page.code: page for page in map(_read_page, DOCUMENT.read_text().split("\n## ")[1:])}


def _read_page(section: str) -> Page:
    heading, _, body = section.partition("\n")
    found = _HEADING.fullmatch(heading)
    if found is None:
        raise ValueError(f"{DOCUMENT}: not a heading of a page: {heading!r}")
    texts = [" ".join(part.split()) for part in re.split(r"\*\*[\w ]+\.\*\*", body)[1:]]
    what, why, remedy = texts
    status = found["exit"]
    return Page(
        code=found["code"],
        name=found["name"] or "",
        exit=None if status is None else int(status),
        what=what,
        why=why,
        remedy=remedy,
    )


def _plain(text: str) -> str:
    """Return Markdown as a terminal shows it: commands stay in their quotes."""
    return text.replace("**", "")
