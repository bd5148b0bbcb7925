"""``events``: what happened on the node lately, and what happens."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import click

from crdt_merge_node.control.model import EventsMissed, LogEvent
from crdt_merge_node.errors import DaemonNotRunningError

from .options import Invocation, command
from .output import clean, count, say, say_json, short, warn

LEVELS: Final = ("debug", "info", "warning", "error")
FOLLOW_LAST: Final = 10
"""How many events of the past `--follow` begins with, unless `--since` says otherwise."""
_UNITS_S: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_COLOURS: Final = {"warning": "yellow", "error": "red", "debug": "bright_black"}
_ID: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Since:
    """Where to begin: after the event of a number, or a while ago."""

    after: int | None = None
    age_s: float | None = None


class SinceType(click.ParamType[Since]):
    """``1234``, the number of an event, or ``90s``, ``10m``, ``2h``, ``1d`` ago."""

    name = "seq|duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Since:  # noqa: ARG002
        """Read one."""
        if isinstance(value, Since):
            return value
        found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*(s|m|min|h|d)", value.strip())
        if found is not None:
            return Since(age_s=float(found[1]) * _UNITS_S[found[2]])
        if re.fullmatch(r"\d{1,15}", value.strip(), flags=re.ASCII):
            return Since(after=int(value))
        raise click.BadParameter(f"{value!r} is neither the number of an event nor a duration such as 10m.")


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option("--since", type=SinceType(), help="Begin after event SEQ, or a while ago: 90s, 10m, 2h, 1d.")
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default="info",
    show_default=True,
    help="Leave out what is less important.",
)
@command
def events(invocation: Invocation, *, follow: bool, since: Since | None, level: str) -> None:
    """Show what happened on the node lately, the newest last.

    The node remembers its last few thousand events, whatever the level of its log. Exit status 3 if it stops
    meanwhile.
    """
    last = FOLLOW_LAST if follow and since is None else 0
    since = since or Since()
    with invocation.client() as client:
        found = client.events(after=since.after, age_s=since.age_s, last=last, level=level, follow=follow)
        for event in found:
            if invocation.is_json:
                say_event_json(event)
            else:
                say_event(event)
    if follow:
        raise DaemonNotRunningError(
            "the daemon has stopped.", hint="Start it again with `crdt-merge-node run`."
        )


def say_event_json(event: LogEvent | EventsMissed) -> None:
    """Print one event as a document."""
    if isinstance(event, EventsMissed):
        say_json("events/1", missed=event.count)
    else:
        say_json("events/1", event)


def say_event(event: LogEvent | EventsMissed) -> None:
    """Print one event as a line."""
    if isinstance(event, EventsMissed):
        warn(f"warning: {count(event.count, 'event')} had to make way for newer ones and cannot be shown")
    else:
        say(event_line(event), colour=_COLOURS.get(event.level))


def event_line(event: LogEvent) -> str:
    """Return one event as a line: when, how important, what, and with which fields."""
    when = dt.datetime.fromtimestamp(event.time, dt.UTC)
    return f"{when:%Y-%m-%d %H:%M:%S}Z  {event.level:7}  {event.event:22}  {fields_text(event)}".rstrip()


def fields_text(event: LogEvent, *, without: Iterable[str] = ()) -> str:
    """Return the fields of an event as ``name=value``, ids cut as tables show them."""
    fields = [(name, _shown(value)) for name, value in event.fields.items() if value]
    fields += [(name, f"{value:.10g}") for name, value in event.numbers.items()]
    left_out = set(without)
    return clean(" ".join(f"{name}={value}" for name, value in fields if name not in left_out))


def _shown(value: str) -> str:
    if _ID.fullmatch(value):
        return short(value)
    return json.dumps(value, ensure_ascii=False) if re.search(r'[\s"=]', value) else value
