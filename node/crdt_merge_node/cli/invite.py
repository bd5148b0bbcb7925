"""``invite``: the command for the next machine."""

from __future__ import annotations

import datetime as dt

import click

from .app import PROGRAM
from .durations import Seconds
from .options import Invocation, command
from .output import note, say, say_json


@click.command()
@click.option(
    "--expires-s",
    type=Seconds(min=1.0, max=30 * 86400.0),
    default=86400.0,
    show_default=True,
    help="How long the token works.",
)
@command
def invite(invocation: Invocation, expires_s: float) -> None:
    """Make a one-time token with which another machine joins the cluster."""
    with invocation.client() as client:
        made = client.invite(expires_s=expires_s)
    if invocation.is_json:
        say_json("invite/1", made)
        return
    until = dt.datetime.fromtimestamp(made.expires, dt.UTC)
    say(f"{PROGRAM} init --join {made.token}")
    note(f"Run this on the next machine. It works once, until {until:%Y-%m-%d %H:%M} UTC.")
    note(f"The machine must reach one of: {', '.join(made.addresses) or 'no address is known'}.")
