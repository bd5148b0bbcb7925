"""``status``: one screen, health first."""

from __future__ import annotations

import sys
import time

import click

from crdt_merge_node.control.model import Alarm, GroupInfo, PeerInfo, PeerState, Severity, Status

from .durations import Seconds
from .options import Invocation, command
from .output import age, clean, count, facts, say, say_json, short, size, table

_PEER_ORDER: dict[str, int] = {state: position for position, state in enumerate(PeerState)}
_SEVERITY_ORDER: dict[str, int] = {Severity.DAMAGE: 0, Severity.ERROR: 1, Severity.WARNING: 2}
_PEER_WHO: tuple[str, ...] = ("STATE", "VIEW", "PEER", "NAME", "ADDRESS")
_PEER_HOW: tuple[str, ...] = ("DIRECTION", "RTT", "SINCE", "SYNC", "CONVERGED", "REASON")
_COLOURS: dict[str, str] = {Severity.WARNING: "yellow", Severity.ERROR: "red", Severity.DAMAGE: "red"}


@click.command()
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--interval-s",
    type=Seconds(min=0.1, max=3600.0),
    default=2.0,
    show_default=True,
    help="Between two screens of --watch.",
)
@command
def status(invocation: Invocation, *, watch: bool, interval_s: float) -> None:
    """Show the health of the node, its peers and its groups.

    Exit status 0 if healthy, 7 if data is damaged or two nodes computed different outputs, else 1.
    """
    with invocation.client() as client:
        found = client.status()
        _show(invocation, found)
        while watch:
            pause(interval_s)
            found = client.status()
            if sys.stdout.isatty() and not invocation.is_json:
                click.clear()
            _show(invocation, found)
    raise click.exceptions.Exit(exit_status(found))


def pause(seconds: float) -> None:
    """Wait between two screens."""
    time.sleep(seconds)


def _show(invocation: Invocation, found: Status) -> None:
    if invocation.is_json:
        say_json("status/1", found)
    else:
        show_status(found)


def exit_status(found: Status) -> int:
    """Return the exit status for what was found."""
    if any(alarm.severity == Severity.DAMAGE for alarm in found.alarms):
        return 7
    return 0 if found.is_healthy else 1


def show_status(found: Status) -> None:
    """Print one screen."""
    _show_node(found)
    show_alarms(found.alarms, found.now)
    say("")
    show_peers(found.peers, found.now)
    say("")
    show_groups(found.groups)


def _show_node(found: Status) -> None:
    word, colour = ("healthy", "green") if found.is_healthy else ("UNHEALTHY", "red")
    name = f' "{clean(found.name)}"' if found.name else ""
    say(f"{word}  node {short(found.node)}{name}, up {age(found.now, found.started)}", colour=colour)
    cluster = f"{found.cluster_name} ({short(found.cluster)})" if found.cluster_name else short(found.cluster)
    advertised = ", ".join(found.advertise)
    say(
        facts(
            (
                ("cluster", cluster if found.cluster else ""),
                ("listen", f"{found.listen}, advertised as {advertised}" if advertised else found.listen),
                ("data", f"{found.data_dir}: {size(found.store_bytes)}, {size(found.free_bytes)} free"),
                ("wire", f"{size(found.bytes_in)} in, {size(found.bytes_out)} out since the start"),
                ("dashboard", found.dashboard),
                ("version", f"{found.version}, process {found.pid}" if found.version else ""),
            )
        )
    )


def show_alarms(alarms: tuple[Alarm, ...], now: float) -> None:
    """Print standing problems, the worst first."""
    for alarm in sorted(alarms, key=lambda alarm: (_SEVERITY_ORDER.get(alarm.severity, 0), alarm.since)):
        message = clean(alarm.message)
        if alarm.since:
            message = f"{message.removesuffix('.')}, for {age(now, alarm.since)}"
        say("")
        say(
            f"{alarm.severity} {alarm.code}: {message}",
            colour=_COLOURS.get(alarm.severity),
        )
        if alarm.hint:
            say(f"  hint: {clean(alarm.hint)}")


def show_peers(peers: tuple[PeerInfo, ...], now: float) -> None:
    """Print peers by state."""
    if not peers:
        say("no peers: `invite` prints what to run on the next machine")
        return
    states = sorted({peer.state for peer in peers}, key=_state_order)
    say("peers: " + ", ".join(f"{sum(peer.state == state for peer in peers)} {state}" for state in states))
    rows = [
        (
            peer.state,
            peer.view or "-",
            short(peer.id),
            peer.name or "-",
            peer.addresses[0] if peer.addresses else "-",
            peer.direction or "-",
            "-" if peer.rtt_s is None else f"{peer.rtt_s * 1000:.1f} ms",
            age(now, peer.since),
            age(now, peer.last_sync),
            {True: "yes", False: "no", None: "-"}[peer.is_converged],
            peer.last_error if peer.state != PeerState.ALIVE else "",
        )
        for peer in sorted(peers, key=lambda peer: (_state_order(peer.state), peer.name, peer.id))
    ]
    say(table((*_PEER_WHO, *_PEER_HOW), rows))


def show_groups(groups: tuple[GroupInfo, ...]) -> None:
    """Print groups with what is missing, never a percentage."""
    if not groups:
        say("no groups: `group create` makes one")
        return
    say(f"groups: {len(groups)}")
    rows = [
        (
            group.name,
            short(group.id),
            group.strategy or "-",
            contributions_text(group),
            missing_text(group),
            short(group.sync_root),
            f"{group.converged_peers} of {count(group.live_peers, 'peer')}",
            "" if group.is_followed else "not followed",
        )
        for group in groups
    ]
    say(table(("GROUP", "ID", "STRATEGY", "CONTRIBUTIONS", "MISSING", "ROOT", "CONVERGED", ""), rows))
    for group in groups:
        if group.unjudged:
            say(f"  {clean(group.name)} shows nothing: {clean(group.unjudged)}")


def contributions_text(group: GroupInfo) -> str:
    """Return how many contributions count, and why others do not."""
    others = ((group.pending, "pending"), (group.quarantined, "quarantined"))
    more = ", ".join(f"{number} {word}" for number, word in others if number)
    return f"{group.contributions} ({more})" if more else str(group.contributions)


def missing_text(group: GroupInfo) -> str:
    """Return what is not here yet."""
    if not group.missing_blobs:
        return "-"
    return f"{count(group.missing_blobs, 'blob')}, {size(group.missing_bytes)}"


def _state_order(state: str) -> int:
    return _PEER_ORDER.get(state, len(_PEER_ORDER))
