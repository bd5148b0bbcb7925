"""``leave``: go for good, and take nothing along that only this node has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .durations import Seconds
from .options import Invocation, command
from .output import clean, count, note, say, say_json, short, size, table
from .progress import follow as watch

if TYPE_CHECKING:
    from crdt_merge_node.control.model import LeaveItem, LeavePlan, LeaveReport


@click.command()
@click.option(
    "--copies",
    type=click.IntRange(0),
    default=0,
    help="Other nodes that shall hold everything first; two if there are so many.",
)
@click.option("--wait", "wait_s", type=Seconds(0), default=0.0, metavar="SECONDS", help="Wait until they do.")
@click.option("--yes", "accept_loss", is_flag=True, help="Leave even if something is lost.")
@command
def leave(invocation: Invocation, copies: int, wait_s: float, accept_loss: bool) -> None:
    """Leave the cluster for good: tell the peers, then stop.

    They forget this node's address and do not look for it. Nothing that it contributed is taken back. What
    nobody else holds yet would be lost: then this refuses, unless it may wait (--wait) or is told so (--yes).
    """
    with invocation.client() as client:
        events = client.leave(copies=copies, wait_s=wait_s, accept_loss=accept_loss)
        report: LeaveReport = watch(invocation, "leave/1", events, show_plan=_show_plan)
    if invocation.is_json:
        say_json("leave/1", report, event="result")
        return
    say(f"node {short(report.node)} has left; {count(report.told, 'peer')} told, the daemon stops")
    if report.lost:
        say(f"lost with it: {count(len(report.lost), 'contribution')}")
        say(_table(report.lost))
    note("To come back: crdt-merge-node init --join TOKEN --force")


def _show_plan(plan: LeavePlan) -> None:
    asked = f"{count(plan.contributions, 'content')} here, {count(plan.peers, 'connected peer')} asked"
    if plan.items:
        say(f"{asked}; {len(plan.items)} of them are held by fewer than {count(plan.copies, 'other node')}")
    else:
        say(f"{asked}; {count(plan.copies, 'other node')} or more hold each of them")
    if plan.items:
        say(_table(plan.items))
    if plan.groups_behind:
        say(f"  operations are behind in: {clean(', '.join(plan.groups_behind))}")


def _table(items: tuple[LeaveItem, ...]) -> str:
    rows = [
        (item.group_name, item.slot, short(item.tag), size(item.nbytes), str(item.holders)) for item in items
    ]
    return table(("GROUP", "SLOT", "TAG", "SIZE", "HOLDERS"), rows)
