"""How commands that run a plan answer: text or JSON on stdout, files for those who asked, an exit status."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec

import click
from crdt_merge_node.cli.output import note, say

from crdt_merge_simulations.documents import result_document
from crdt_merge_simulations.report import Story, render_html, render_text
from crdt_merge_simulations.result import Result

from .options import WRITABLE

P = ParamSpec("P")
NOT_CONVERGED: Final = 6
VIOLATED: Final = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """In which forms a command answers."""

    html: str | None
    save: str | None
    events: int | None
    """Lines of the story to print; None: all."""

    def give(self, story: Story, *, is_json: bool) -> None:
        """Print the report and write the files."""
        document = json.dumps(result_document(story.result, story.plan, story.command))
        say(document if is_json else render_text(story, events_max=self.events))
        if self.save is not None:
            Path(self.save).write_text(document + "\n", encoding="utf-8")
            note(f"wrote {self.save}")
        if self.html is not None:
            Path(self.html).write_text(render_html(story), encoding="utf-8")
            note(f"wrote {self.html}")


def answer_options(function: Callable[Concatenate[Answer, P], None]) -> Callable[..., None]:
    """Give a command ``--html``, ``--save`` and ``--events``; it receives them as an :class:`Answer`."""

    @click.option("--html", type=WRITABLE, help="Write a report to look at: one file, no network.")
    @click.option("--save", type=WRITABLE, help="Write the result as JSON, for replay and compare.")
    @click.option(
        "--events", callback=_parse_events, default="200", show_default=True, help="Lines to print, or: all."
    )
    @functools.wraps(function)
    def wrapper(*args: Any, html: str | None, save: str | None, events: int | None, **kwargs: Any) -> None:
        function(Answer(html=html, save=save, events=events), *args, **kwargs)

    return wrapper


def end(result: Result) -> None:
    """End the command with the exit status of a result."""
    if not result.is_success:
        is_violated = any(check.violations for check in result.checks.values())
        raise click.exceptions.Exit(VIOLATED if is_violated else NOT_CONVERGED)


def _parse_events(_context: click.Context, _option: click.Parameter, text: str) -> int | None:
    if text == "all":
        return None
    if text.isdecimal():
        return int(text)
    raise click.BadParameter(f"{text!r} is neither a number nor: all.")
