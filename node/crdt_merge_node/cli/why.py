"""``why``: what stands between a group and convergence."""

from __future__ import annotations

import click

from crdt_merge_node.control.model import Reason, WhyGroup, WhyReport

from .completing import GROUP
from .options import Invocation, command
from .output import age, clean, count, facts, say, say_json, short
from .status import show_alarms

IDS_SHOWN_MAX = 8


@click.command()
@click.argument("group", type=GROUP, required=False)
@command
def why(invocation: Invocation, group: str | None) -> None:
    """Say why GROUP (default: any group) is not converged.

    Which peer lacks what, since when, which step waits, and what would fix it.
    """
    with invocation.client() as client:
        report = client.why(group)
    if invocation.is_json:
        say_json("why/1", report)
    else:
        show_report(report)


def show_report(report: WhyReport) -> None:
    """Print the answer for every group."""
    if not report.groups:
        say("this node knows no group: `group create` makes one")
    for position, group in enumerate(report.groups):
        if position:
            say("")
        _show_group(group, report.now)
    show_alarms(report.alarms, report.now)


def _show_group(group: WhyGroup, now: float) -> None:
    where = (
        f"{group.converged_peers} of {count(group.live_peers, 'live peer')} at root {short(group.sync_root)}"
    )
    title = f"group {clean(group.name)} ({short(group.group)})"
    if group.is_converged:
        alone = "" if group.live_peers else "; no peer is connected, so nobody else was asked"
        flaw = "; but not all is well:" if group.reasons else ""
        say(f"{title}: converged, {where}{alone}{flaw}", colour="yellow" if flaw else "green")
    else:
        say(f"{title}: not converged, {where}", colour="yellow")
    for number, reason in enumerate(group.reasons, start=1):
        _show_reason(number, reason, now)


def _show_reason(number: int, reason: Reason, now: float) -> None:
    name = f"{clean(reason.subject_name)} " if reason.subject_name else ""
    since = f" for {age(now, reason.since)}" if reason.since else ""
    say(f"  {number}. {name}({short(reason.subject)}) lacks {clean(reason.lacks)}{since}")
    shown = ", ".join(short(identifier) for identifier in reason.missing[:IDS_SHOWN_MAX])
    if len(reason.missing) > IDS_SHOWN_MAX:
        shown += f" and {len(reason.missing) - IDS_SHOWN_MAX} more (--json lists them)"
    say(facts((("missing", shown), ("waits", reason.waiting), ("remedy", reason.remedy)), indent="       "))
