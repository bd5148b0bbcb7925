"""``bundle``: the state of a node for a bug report, without its secrets."""

from __future__ import annotations

import datetime as dt
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from .doctor import examine_room
from .durations import Seconds
from .options import Invocation, command
from .output import clean, note, say, say_json, size, table
from .values import OUTPUT, READABLE


@click.command()
@click.option("-o", "--output", type=OUTPUT, help="File to write; else one in this directory.")
@click.option("--names/--no-names", default=True, help="Keep names and addresses, or put ids in their place.")
@click.option("--log", type=READABLE, help="The daemon's log, if it goes to a file that is not found.")
@click.option("--timeout-s", type=Seconds(0.1, 60.0), default=3.0, show_default=True, help="Of each probe.")
@command
def bundle(
    invocation: Invocation, *, output: str | None, names: bool, log: str | None, timeout_s: float
) -> None:
    """Write versions, settings, state, events, metrics and findings of this node into one archive.

    Private keys and tokens are never in it, and paths are replaced; with --no-names also the names of nodes
    and groups and all addresses. Works without a daemon, with less in it.
    """
    from crdt_merge_node.bundle import Source, collect, write_bundle
    from crdt_merge_node.doctor import examine
    from crdt_merge_node.ports import SystemFs

    created = time.time()
    patient = examine_room(invocation, timeout_s=timeout_s)
    with ExitStack() as stack:
        client = None
        if patient.status is not None:
            client = stack.enter_context(invocation.client(timeout_s=10 * timeout_s))
        source = Source(
            patient=patient,
            client=client,
            findings=list(examine(patient)),
            log=Path(log) if log else None,
            hides_names=not names,
        )
        path = Path(
            output or f"crdt-merge-bundle-{dt.datetime.fromtimestamp(created, dt.UTC):%Y%m%dT%H%M%SZ}.tar.gz"
        )
        written = write_bundle(
            path.absolute(), collect(source), created=created, hides_names=not names, fs=SystemFs()
        )
    files: list[dict[str, Any]] = [
        {"name": p.name, "about": p.about, "nbytes": len(p.data)} for p in written.pieces if not p.missing
    ]
    missing = [{"name": p.name, "about": p.about, "reason": p.missing} for p in written.pieces if p.missing]
    if invocation.is_json:
        say_json(
            "bundle/1",
            path=str(written.path),
            nbytes=written.nbytes,
            has_names=names,
            files=files,
            missing=missing,
        )
        return
    say(f"wrote {clean(str(written.path))}: {size(written.nbytes)}")
    say(table(("FILE", "SIZE", "WHAT"), [(f["name"], size(f["nbytes"]), f["about"]) for f in files]))
    for item in missing:
        note(f"not in it: {item['name']}, {clean(item['reason'])}")
    note("Look through it before you send it: tar -xzf FILE, all of it is text.")
    if names:
        note("It names nodes, groups and addresses; --no-names puts ids in their place.")
