"""``inspect``: the operations of a stopped node, as they stand in its store."""

from __future__ import annotations

import click

from .options import Invocation, command
from .output import count, note, say, say_json, short, size, table

DAMAGED = 7


@click.command()
@click.option("--group", default="", help="Only this group: a name, or the beginning of an id.")
@click.option("--author", default="", help="Only this author: the beginning of an id.")
@click.option("--last", metavar="N", type=click.IntRange(1), help="Only the newest N.")
@command
def inspect(invocation: Invocation, group: str, author: str, last: int | None) -> None:
    """List the stored operations of this node, whose daemon must be stopped. Changes nothing.

    Exit status 7 if one of them is not what was stored; `fsck` then says more.
    """
    from crdt_merge_node.ports import SystemFs
    from crdt_merge_node.storage.inspecting import stored_operations

    found = list(stored_operations(invocation.data_dir, group=group, author=author, fs=SystemFs()))
    shown = found[-last:] if last else found
    if invocation.is_json:
        say_json("inspect/1", operations=shown, total=len(found))
    else:
        rows = [
            (
                str(item.position),
                item.kind or "?",
                short(item.id),
                item.group_name or short(item.group),
                short(item.author),
                f"{item.log[:8]}:{item.seq}",
                size(item.nbytes),
                f"damaged: {item.problem}" if item.problem else item.summary,
            )
            for item in shown
        ]
        if rows:
            say(table(("NO", "KIND", "ID", "GROUP", "AUTHOR", "LOG:SEQ", "SIZE", "SAYS"), rows))
        note(count(len(found), "operation"))
    if any(item.problem for item in found):
        raise click.exceptions.Exit(DAMAGED)
