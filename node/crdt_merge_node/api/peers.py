"""All about one peer: the connection, what one of the two lacks, and the story of its last events."""

from __future__ import annotations

from typing import Final

from crdt_merge_node.control.model import LogEvent, PeerDetail, PeerExchange, PeerState
from crdt_merge_node.services import Services
from crdt_merge_node.transport.certificates import read_peer_certificate
from crdt_merge_node.transport.connection import Connection

from .reports import peer_info

EVENTS_SHOWN_MAX: Final = 20


def peer_detail(services: Services, peer: bytes) -> PeerDetail:
    """Return all that this node knows about a peer."""
    info, overlay = peer_info(services, peer), services.engine.overlay
    connection, target = services.driver.connections.get(peer), overlay.peers.get(peer)
    is_suspect = info.state == PeerState.SUSPECT
    missing = _missing(services, peer)
    hello = connection.hello if connection else None
    return PeerDetail(
        peer=info,
        now=services.clock.now(),
        remote=connection.remote if connection else "",
        connected_since=_connected_since(services, connection) if connection else None,
        agent=hello.agent if hello else "",
        wire_version_min=hello.version_min if hello else 0,
        wire_version_max=hello.version_max if hello else 0,
        certificate_expires=_certificate_expires(services, connection) if connection else None,
        queued_bytes=connection.queued_bytes() if connection else 0,
        suspected_since=info.last_received if is_suspect else None,
        accused_by=(services.engine.node.hex(),) if is_suspect else (),
        refusal=overlay.refusal(peer, now=services.clock.monotonic()) or "",
        dial_attempts=target.attempts if target else 0,
        missing_contributions=len(missing),
        missing_bytes=sum(services.keeper.remaining(blobs) for blobs in missing),
        exchanges=_exchanges(services, peer),
        events=_events(services, peer),
    )


def _connected_since(services: Services, connection: Connection) -> float:
    return services.clock.now() - (services.driver.loop_time() - connection.opened)


def _certificate_expires(services: Services, connection: Connection) -> float | None:
    der = connection.peer_certificate
    return None if der is None else read_peer_certificate(der, services.identity.cluster).expires_at


def _missing(services: Services, peer: bytes) -> list[dict[bytes, int]]:
    """Return, for each contribution of a peer of which bytes are not here, which these are."""
    found = []
    for group in services.engine.replicas:
        contents = services.keeper.contents(group)
        if contents is not None and services.keeper.is_followed(group):
            items = contents.items.values()
            found += [item.missing for item in items if item.visible.author == peer and item.missing]
    return found


def _exchanges(services: Services, peer: bytes) -> tuple[PeerExchange, ...]:
    found = [_exchange(services, peer, group) for group in services.engine.replicas]
    return tuple(sorted(found, key=lambda exchange: (exchange.group_name, exchange.group)))


def _exchange(services: Services, peer: bytes, group: bytes) -> PeerExchange:
    state = services.engine.replicas[group].state
    announced = services.engine.reconciler.roots(group).get(peer)
    last = services.driver.record(peer).exchanges.get(group)
    ended = last.ended if last else None
    return PeerExchange(
        group=group.hex(),
        group_name=state.genesis.name,
        is_equal=None if announced is None else announced[0] == state.sync_root,
        operations=len(state),
        peer_operations=None if announced is None else announced[1],
        ended=last.time if last else None,
        outcome=ended.outcome if ended else "",
        reason=ended.reason if ended else "",
        sent=ended.sent_count if ended else 0,
        received=ended.received_count if ended else 0,
        nbytes=ended.nbytes if ended else 0,
        duration_s=ended.duration_s if ended else 0.0,
    )


def _events(services: Services, peer: bytes) -> tuple[LogEvent, ...]:
    """Return the last events that name a peer, debug ones too: they tell of exchanges."""
    name = peer.hex()
    told = [event for event in services.events.read(level="debug") if event.fields.get("peer") == name]
    return tuple(told[-EVENTS_SHOWN_MAX:])
