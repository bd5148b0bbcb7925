"""What ``peer show`` prints."""

from __future__ import annotations

import datetime as dt

from crdt_merge_node.control.model import PeerDetail, PeerExchange, PeerState

from .events import fields_text
from .output import age, clean, count, duration, facts, say, short, size, table

_DAY_S = 86400.0


def show_detail(found: PeerDetail) -> None:
    """Print all about a peer: what it is, how it is reached, what one of the two lacks, and its story."""
    info = found.peer
    name = f" {clean(info.name)}" if info.name else ""
    is_well = info.state in (PeerState.ALIVE, PeerState.KNOWN)
    say(
        f"{info.state}  peer {short(info.id)}{name}, for {age(found.now, info.since)}",
        colour="green" if is_well else "yellow",
    )
    say(facts((*_identity(found), *_connection(found), *_trouble(found))))
    if found.exchanges:
        say("")
        _show_exchanges(found)
    say("")
    _show_story(found)


def _identity(found: PeerDetail) -> tuple[tuple[str, str], ...]:
    info = found.peer
    versions = f"{found.wire_version_min} to {found.wire_version_max}"
    return (
        ("id", info.id),
        ("addresses", ", ".join(info.addresses) or "none is known"),
        ("view", info.view),
        ("version", f"{found.agent}, wire versions {versions}" if found.agent else ""),
        ("certificate", _expiry(found)),
    )


def _expiry(found: PeerDetail) -> str:
    if found.certificate_expires is None:
        return ""
    until = dt.datetime.fromtimestamp(found.certificate_expires, dt.UTC)
    left_s = found.certificate_expires - found.now
    rest = f"{left_s / _DAY_S:.0f} days left" if left_s > 0 else "EXPIRED"
    return f"valid until {until:%Y-%m-%d %H:%M} UTC, {rest}"


def _connection(found: PeerDetail) -> tuple[tuple[str, str], ...]:
    info = found.peer
    traffic = f"{size(info.bytes_in)} in, {size(info.bytes_out)} out since the start"
    if found.connected_since is None:
        return (("connection", "none"), ("bytes", traffic if info.bytes_in or info.bytes_out else ""))
    dialler = "this node dialled" if info.direction == "outbound" else "the peer dialled"
    waiting = f", {size(found.queued_bytes)} wait to be sent" if found.queued_bytes else ""
    return (
        ("connection", f"{found.remote}, direct; {dialler} {age(found.now, found.connected_since)} ago"),
        ("round trip", "not measured yet" if info.rtt_s is None else f"{info.rtt_s * 1000:.1f} ms"),
        ("bytes", traffic + waiting),
    )


def _trouble(found: PeerDetail) -> tuple[tuple[str, str], ...]:
    info = found.peer
    who = ", ".join(short(node) for node in found.accused_by)
    attempts = f"{count(found.dial_attempts, 'dial')} in a row without success" if found.dial_attempts else ""
    lacking = f"{size(found.missing_bytes)} of {count(found.missing_contributions, 'contribution')} by it"
    return (
        (
            "suspected",
            f"for {duration(found.now - found.suspected_since)}, by {who}"
            if found.suspected_since is not None
            else "",
        ),
        ("not heard", found.refusal),
        ("dialling", attempts),
        ("last error", info.last_error if info.state != PeerState.ALIVE else ""),
        ("missing here", lacking if found.missing_contributions else ""),
    )


def _show_exchanges(found: PeerDetail) -> None:
    rows = [
        (
            exchange.group_name or short(exchange.group),
            lacks_text(exchange),
            f"{age(found.now, exchange.ended)} ago" if exchange.ended else "-",
            exchange.outcome or "-",
            _amount(exchange) if exchange.ended else "-",
            duration(exchange.duration_s) if exchange.ended else "-",
            exchange.reason,
        )
        for exchange in found.exchanges
    ]
    say(table(("GROUP", "DIFFERENCE", "LAST EXCHANGE", "OUTCOME", "OPERATIONS", "TOOK", "REASON"), rows))


def _amount(exchange: PeerExchange) -> str:
    return f"{exchange.sent} out, {exchange.received} in, {size(exchange.nbytes)}"


def lacks_text(exchange: PeerExchange) -> str:
    """Return what one of the two lacks of a group, as far as the announced roots tell."""
    if exchange.is_equal is None or exchange.peer_operations is None:
        return "it has announced no root"
    if exchange.is_equal:
        return "none"
    difference = exchange.peer_operations - exchange.operations
    if difference > 0:
        return f"we lack {count(difference, 'operation')} or more"
    if difference < 0:
        return f"it lacks {count(-difference, 'operation')} or more"
    return "each lacks as many as the other"


def _show_story(found: PeerDetail) -> None:
    if not found.events:
        say("no event of late names it")
        return
    say(f"last {count(len(found.events), 'event')}:")
    for event in found.events:
        when = f"{age(found.now, event.time)} ago".rjust(14)
        text = fields_text(event, without=("peer",))
        say(f"  {when}  {event.level:7}  {event.event:20}  {text}".rstrip())
