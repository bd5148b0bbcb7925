"""What a person asks first: status, peers, and why something is not converged."""

from __future__ import annotations

from crdt_merge_protocol.limits import PING_IDLE_S

from crdt_merge_node.control.model import (
    ContributionState,
    PeerInfo,
    PeerState,
    Reason,
    Severity,
    Status,
    WhyGroup,
    WhyReport,
)
from crdt_merge_node.errors import FullError
from crdt_merge_node.ports import process_id
from crdt_merge_node.services import Services
from crdt_merge_node.storage.health import RESERVE_SHARE
from crdt_merge_node.version import VERSION

from .contributions import shown_contributions
from .groups import group_info
from .why_acts import act_reasons

SUSPECT_S = 2 * PING_IDLE_S
MISSING_NAMED_MAX = 32
REASONS_MAX = 4


def peer_info(services: Services, peer: bytes) -> PeerInfo:
    """Return how this node stands with a peer."""
    overlay, record = services.engine.overlay, services.driver.record(peer)
    connection = services.driver.connections.get(peer)
    target = overlay.peers.get(peer)
    state = PeerState(record.state)
    last_received: float | None = None
    if connection is not None:
        silent_s = services.driver.loop_time() - connection.last_received
        last_received = services.clock.now() - silent_s
        state = PeerState.SUSPECT if silent_s > SUSPECT_S else PeerState.ALIVE
    elif peer in overlay.left:
        state = PeerState.LEFT
    elif overlay.is_at_rest(peer):
        state = PeerState.KNOWN
    if peer in overlay.blocked:
        state = PeerState.BLOCKED
    reconciler = services.engine.reconciler
    announced = [group for group in services.engine.replicas if peer in reconciler.roots(group)]
    converged = all(reconciler.is_equal(peer, group) for group in announced) if announced else None
    return PeerInfo(
        id=peer.hex(),
        name=services.driver.name(peer),
        state=state.value,
        addresses=tuple(target.addresses) if target else (),
        direction=("outbound" if connection.outbound else "inbound") if connection else "",
        since=record.since,
        last_received=last_received,
        last_sync=record.last_sync,
        bytes_in=record.bytes_in + (connection.bytes_in if connection else 0),
        bytes_out=record.bytes_out + (connection.bytes_out if connection else 0),
        is_converged=converged,
        last_error=record.last_error or (target.last_error if target else ""),
        view=overlay.view_of(peer),
        rtt_s=connection.rtt_s if connection else None,
        last_exchange=max((each.time for each in record.exchanges.values()), default=None),
    )


def peer_list(services: Services) -> tuple[PeerInfo, ...]:
    """Return every known peer, by name and id."""
    known = services.driver.known
    return tuple(sorted((peer_info(services, peer) for peer in known), key=lambda info: (info.name, info.id)))


async def status(services: Services) -> Status:
    """Return one screen of facts."""
    check_space(services)
    groups = [await group_info(services, group) for group in services.engine.replicas]
    endpoint = services.endpoint
    listen_host, listen_port = endpoint.address
    return Status(
        is_healthy=services.alarms.is_healthy,
        node=services.engine.node.hex(),
        name=services.config.node.name,
        cluster=services.identity.cluster.hex(),
        cluster_name=services.identity.cluster_name,
        version=VERSION,
        pid=process_id(),
        started=services.started,
        now=services.clock.now(),
        listen=f"{listen_host}:{listen_port}",
        advertise=services.config.listen.advertise,
        data_dir=str(services.config.node.data_dir),
        store_bytes=services.store.blobs.total_bytes(),
        free_bytes=services.fs.disk_space(services.config.node.data_dir).free_bytes,
        bytes_in=services.endpoint.bytes_in,
        bytes_out=services.endpoint.bytes_out,
        peers=peer_list(services),
        groups=tuple(sorted(groups, key=lambda info: (info.name, info.id))),
        alarms=services.alarms.standing(),
        dashboard=services.web.url,
        certificate_expires=services.certificate.expires_at,
    )


async def why(services: Services, groups: list[bytes]) -> WhyReport:
    """Return what stands between groups and convergence."""
    check_space(services)
    return WhyReport(
        now=services.clock.now(),
        groups=tuple([await _why_group(services, group) for group in groups]),
        alarms=services.alarms.standing(),
    )


async def _why_group(services: Services, group: bytes) -> WhyGroup:
    info = await group_info(services, group)
    reasons = _peer_reasons(services, group) + await _own_reasons(services, group)
    unusable = await _unusable(services, group)
    return WhyGroup(
        group=info.id,
        name=info.name,
        is_converged=not reasons,
        sync_root=info.sync_root,
        converged_peers=info.converged_peers,
        live_peers=info.live_peers,
        reasons=(*reasons, *unusable, *act_reasons(services, group)),
    )


def _peer_reasons(services: Services, group: bytes) -> list[Reason]:
    """Return the peers whose root differs, and those that cannot be asked."""
    state = services.engine.replicas[group].state
    reasons = []
    for info in peer_list(services):
        peer = bytes.fromhex(info.id)
        if info.state == PeerState.BLOCKED.value:
            reasons.append(
                Reason(
                    subject=info.id,
                    subject_name=info.name,
                    lacks="whatever happened since it was blocked",
                    since=info.since,
                    waiting="blocked by the operator of this node",
                    remedy=f"crdt-merge-node peer unblock {info.id[:12]}",
                )
            )
        elif info.state in (PeerState.KNOWN.value, PeerState.LEFT.value):
            continue  # Its neighbours see to it that it lacks nothing; or it is gone for good.
        elif info.direction == "":
            reasons.append(
                Reason(
                    subject=info.id,
                    subject_name=info.name,
                    lacks="whatever happened since it was last connected",
                    since=info.since,
                    waiting=f"dialling {', '.join(info.addresses) or 'nothing: no address is known'}"
                    + (f"; last error: {info.last_error}" if info.last_error else ""),
                    remedy=_remedy(services, info),
                )
            )
        else:
            announced = services.engine.reconciler.roots(group).get(peer)
            if announced is None or announced[0] != state.sync_root:
                difference = None if announced is None else announced[1] - len(state)
                reasons.append(_root_reason(services, info, difference))
    return reasons


def _remedy(services: Services, info: PeerInfo) -> str:
    """Return what helps against a peer that cannot be reached: it refuses, or it does not answer."""
    if "blocked by the operator" in info.last_error:
        own = services.config.node.name or services.engine.node.hex()[:12]
        return f"on {info.name or 'that node'}: crdt-merge-node peer unblock {own}"
    if "refused this node" in info.last_error:
        return "nothing here: remove what it names as its reason"
    return "start it, or repair the network between the two"


def _root_reason(services: Services, info: PeerInfo, difference: int | None) -> Reason:
    if difference is None:
        subject, lacks = info.id, "the group, as far as we know: it has not announced it"
    elif difference > 0:
        subject, lacks = services.engine.node.hex(), f"at least {difference} operations that the peer has"
    elif difference < 0:
        subject, lacks = info.id, f"at least {-difference} operations that we have"
    else:
        subject, lacks = info.id, "as many operations as it has that we lack"
    return Reason(
        subject=subject,
        subject_name=info.name if subject == info.id else services.config.node.name,
        lacks=lacks,
        since=info.last_sync or info.since,
        waiting=f"anti-entropy with {info.name or info.id[:12]},"
        f" {services.engine.reconciler.session_count} sessions under way",
        remedy="nothing to do; it repairs itself",
    )


async def _own_reasons(services: Services, group: bytes) -> list[Reason]:
    """Return what this node lacks of the bytes."""
    contents = services.keeper.contents(group) or await services.keeper.current(group)
    missing = contents.missing
    if not missing or not services.keeper.is_followed(group):
        return []
    waits = [wait for wait in services.fetcher.missing() if wait.id in missing]
    since = min((wait.since for wait in waits), default=services.clock.now())
    steps = sorted({wait.reason for wait in waits if wait.reason})
    holders = sorted(
        {
            services.driver.name(item.visible.author) or item.visible.author.hex()[:12]
            for item in contents.items.values()
            if item.missing or not item.is_judged
        }
    )
    return [
        Reason(
            subject=services.engine.node.hex(),
            subject_name=services.config.node.name,
            lacks=f"{services.keeper.remaining(missing)} bytes of {len(missing)} blobs",
            missing=tuple(blob.hex() for blob in sorted(missing)[:MISSING_NAMED_MAX]),
            since=since,
            waiting="; ".join(steps[:REASONS_MAX]) or "in the queue of the fetcher",
            remedy=f"connect to a node that has them, such as {', '.join(holders)}"
            if holders
            else "nothing to do",
        )
    ]


async def _unusable(services: Services, group: bytes) -> list[Reason]:
    """Return what keeps contributions out of every resolve on every node, converged or not."""
    contents = await services.keeper.current(group)
    shown = list(shown_contributions(services, group, contents))
    aside = [info for info in shown if info.state == ContributionState.QUARANTINED]
    if not aside and not contents.problem:
        return []
    why = dict.fromkeys(info.reason for info in aside)
    return [
        Reason(
            subject=services.engine.node.hex(),
            subject_name=services.config.node.name,
            lacks=f"{len(aside)} of {len(shown)} contributions for a resolve: every node quarantines them"
            if aside
            else "a policy by which anything can be merged",
            missing=tuple(info.tag for info in aside[:MISSING_NAMED_MAX]),
            waiting=contents.problem or "; ".join([*why][:REASONS_MAX]),
            remedy="policy set, on a node of an admin" if contents.problem else "contribute anew what fits",
        )
    ]


def check_space(services: Services) -> None:
    """Raise or clear the alarm about a full disk."""
    space = services.fs.disk_space(services.config.node.data_dir)
    reserve = min(int(services.config.storage.reserve_bytes), space.total_bytes // RESERVE_SHARE)
    if space.free_bytes < reserve:
        services.alarms.set(
            "store.full",
            severity=Severity.ERROR,
            code=FullError.code,
            message=f"{space.free_bytes} bytes are free, {reserve} are kept in reserve:"
            " nothing large is accepted.",
            hint="Make room; the node goes on by itself.",
        )
    else:
        services.alarms.clear("store.full")
