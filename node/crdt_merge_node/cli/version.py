"""``version``: of this command, and of the daemon if one runs."""

from __future__ import annotations

import platform
from importlib import metadata

import click
from crdt_merge_protocol.limits import WIRE_VERSION_MAX

from crdt_merge_node.errors import ControlError

from .options import Invocation, command
from .output import facts, say, say_json


@click.command()
@command
def version(invocation: Invocation) -> None:
    """Show versions. Works without a daemon."""
    own = metadata.version("crdt-merge-node")
    try:
        with invocation.client() as client:
            daemon = client.version()
    except ControlError:
        daemon = None
    if invocation.is_json:
        say_json(
            "version/1",
            version=own,
            wire_version=WIRE_VERSION_MAX,
            python=platform.python_version(),
            daemon=daemon,
        )
        return
    running = "not running" if daemon is None else f"{daemon.version}, wire version {daemon.wire_version}"
    say(f"crdt-merge-node {own}, wire version {WIRE_VERSION_MAX}, Python {platform.python_version()}")
    say(facts((("daemon", running),)))
