"""``ca export|import``: let more than one node admit others, and keep a copy of what does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from .app import PROGRAM, SuggestingGroup
from .options import Invocation, command
from .output import can_ask, clean, note, say, say_json, short
from .values import READABLE, read_text

PASSPHRASE_CHARS_MIN: Final = 8
PASSPHRASE_FILE: Final = click.option(
    "--passphrase-file",
    metavar="FILE",
    help="First line: the passphrase; - reads standard input. Without it the terminal is asked.",
)


@click.group(cls=SuggestingGroup)
def ca() -> None:
    """Export the key that admits nodes to a safe place, or import it on another node."""


@ca.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@PASSPHRASE_FILE
@command
def export(invocation: Invocation, file: Path, passphrase_file: str | None) -> None:
    """Write the cluster's CA, its key encrypted with a passphrase, to the new FILE.

    Whoever has FILE and the passphrase can admit nodes to the cluster.
    """
    from crdt_merge_node.ports import SystemFs
    from crdt_merge_node.transport.authority_file import export_authority

    passphrase = read_passphrase(passphrase_file, is_new=True)
    cluster = export_authority(invocation.data_dir, file.absolute(), passphrase, fs=SystemFs())
    if invocation.is_json:
        say_json("ca-export/1", path=str(file.absolute()), cluster=cluster.hex())
        return
    say(f"the CA of cluster {short(cluster.hex())} is in {clean(str(file))}, readable by you alone")
    note(f"On another node of the cluster: {PROGRAM} ca import FILE")


@ca.command("import")
@click.argument("file", type=READABLE)
@PASSPHRASE_FILE
@command
def import_(invocation: Invocation, file: str, passphrase_file: str | None) -> None:
    """Take the cluster's CA out of FILE, so that this node can admit others and renew certificates.

    Refused unless it is the CA of this node's own cluster.
    """
    from crdt_merge_node.ports import SystemClock, SystemFs
    from crdt_merge_node.transport.authority_file import import_authority

    passphrase = read_passphrase(passphrase_file, is_new=False)
    cluster = import_authority(
        invocation.data_dir, Path(file).absolute(), passphrase, fs=SystemFs(), clock=SystemClock()
    )
    is_running = _is_running(invocation)
    if invocation.is_json:
        say_json("ca-import/1", cluster=cluster.hex(), needs_restart=is_running)
        return
    say(f"this node holds the CA of cluster {short(cluster.hex())} and can invite")
    if is_running:
        note("The daemon that is running does so once it has been restarted.")


def _is_running(invocation: Invocation) -> bool:
    from crdt_merge_node.errors import DaemonNotRunningError

    try:
        with invocation.client() as client:
            client.version()
    except DaemonNotRunningError:
        return False
    return True


def read_passphrase(file: str | None, *, is_new: bool) -> bytes:
    """Return the passphrase: from a file or standard input, else from a person at the terminal."""
    if file is not None:
        lines = (sys.stdin.read() if file == "-" else read_text(file)).splitlines()
        text = lines[0] if lines else ""
    elif can_ask():
        text = click.prompt("Passphrase", hide_input=True, confirmation_prompt=is_new, err=True)
    else:
        raise click.UsageError("There is no terminal to ask on: give --passphrase-file.")
    if is_new and len(text) < PASSPHRASE_CHARS_MIN:
        raise click.UsageError(f"A passphrase has at least {PASSPHRASE_CHARS_MIN} characters.")
    return str(text).encode()
