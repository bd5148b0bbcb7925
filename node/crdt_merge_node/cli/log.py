"""``log level``: how much the running daemon writes to its log."""

from __future__ import annotations

import click

from .app import SuggestingGroup
from .events import LEVELS
from .options import Invocation, command
from .output import say, say_json


@click.group(cls=SuggestingGroup)
def log() -> None:
    """Change how much the running daemon writes to its log."""


@log.command("level")
@click.argument("level", type=click.Choice(LEVELS), required=False)
@command
def level_(invocation: Invocation, level: str | None) -> None:
    """Show from which level up lines are written to standard error, or set it to LEVEL until the next start.

    What `events` shows does not depend on it.
    """
    with invocation.client() as client:
        found = client.log_level(level)
    if invocation.is_json:
        say_json("log-level/1", found)
        return
    if found.level == found.configured:
        say(f"{found.level}, as configured")
    else:
        say(f"{found.level} until the next start; then {found.configured} again, as configured")
